"""The tree in the README is the tree on the disk, and imports run one way through it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "groundtune"


def tree() -> list[str]:
    """What groundtune/ holds, in the order of the README's tree: "index.py", "prepare/", "prepare/pages.py" ...

    The line of a package stands for those of its files that have no line of their own.
    """
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"^#+ The tree\n.*?^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    lines = block.splitlines()
    assert lines[0].split()[0] == "groundtune/"
    listed, package = [], ""
    for line in lines[1:]:
        if not line.startswith("  "):
            continue
        name, _ = line.split(maxsplit=1)  # each has its phrase
        if line.startswith("    "):
            name = package + name
        elif name.endswith("/"):
            package = name
        listed.append(name)
    return listed


TREE = tree()


def line_of(path: Path) -> str:
    """The line of the tree that a file belongs to."""
    inside = path.relative_to(PACKAGE).as_posix()
    folders = [name for name in TREE if name.endswith("/") and inside.startswith(name)]
    return inside if inside in TREE else max(folders, key=len, default=inside)


def imported(path: Path) -> set[str]:
    """Lines of the tree that a file imports, at the top or inside functions; what is imported for types only is not."""
    found = set()
    parsed = ast.parse(path.read_text("utf-8"))
    for_types = [
        node for node in ast.walk(parsed) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    ignored = {id(inner) for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(parsed):
        names = []
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {line_of(file_of(name.split(".")[1:])) for name in names if name.split(".")[0] == "groundtune"}
    return found


def file_of(parts: list[str]) -> Path:
    """The file in which `groundtune.parts` is; the last parts may be names inside it."""
    for end in range(len(parts), 0, -1):
        if (module := PACKAGE.joinpath(*parts[:end]).with_suffix(".py")).is_file():
            return module
        if (package := PACKAGE.joinpath(*parts[:end], "__init__.py")).is_file():
            return package
    return PACKAGE / "__init__.py"


def test_the_readme_lists_exactly_the_modules_there_are():
    there = {line_of(path) for path in PACKAGE.rglob("*.py")}
    assert len(TREE) == len(set(TREE))
    assert set(TREE) == there


def test_a_module_imports_only_from_lines_above_its_own():
    # What a package's line stands for comes after those of its files that have lines of their own.
    order = {name: max(i for i, other in enumerate(TREE) if other.startswith(name)) for name in TREE}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in sorted(imported(path))
        if order[name] > order[line_of(path)] or (name == line_of(path) and not name.endswith("/"))
    ]
    assert wrong == []
    assert sum(len(imported(path)) for path in PACKAGE.rglob("*.py")) > 40  # or nothing was seen


def test_the_schema_is_standard_library_only():
    roots = set()
    for node in ast.walk(ast.parse((PACKAGE / "schema.py").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.split(".")[0])
    assert roots <= set(sys.stdlib_module_names)


def test_importing_groundtune_loads_neither_torch_nor_transformers():
    code = (
        "import sys, groundtune; groundtune.Document; groundtune.read_examples; groundtune.__version__\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'faiss', 'peft', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(groundtune.__all__) <= set(dir(groundtune))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_what_it_says():
    import groundtune

    for name in groundtune.__all__:
        assert getattr(groundtune, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        groundtune.nonsense  # noqa: B018


def test_no_file_is_abandoned_dependencies_by_another_door():
    """Packages that the design rules out are imported nowhere."""
    ruled_out = {"rouge", "rank_bm25", "pytrec_eval", "langchain", "hnswlib", "text_generation", "retry", "torchtune"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & ruled_out, path


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_no_tracked_file_names_the_machine_it_was_written_on():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    forbidden = ["/wo" + "rk/", "sand" + "box"]  # written so that this file is not one of them
    wrong = []
    for name in filter(None, files.split("\0")):
        path = ROOT / name
        if not path.is_file():  # deleted and not yet committed
            continue
        text = path.read_text("utf-8", errors="ignore").lower()
        wrong += [f"{name}: {word}" for word in forbidden if word in text]
    assert wrong == []
