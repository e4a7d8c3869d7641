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
    """Modules and packages of groundtune/ in the order of the README's tree."""
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"^#+ The tree\n.*?^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    lines = block.splitlines()
    assert lines[0].split()[0] == "groundtune/"
    inside = [line for line in lines[1:] if line.startswith("  ")]
    assert all(len(line.split(maxsplit=1)) == 2 for line in inside)  # each has its phrase
    return [line.split()[0] for line in inside]


def module_of(path: Path) -> str:
    """The line of the tree that a file belongs to."""
    inside = path.relative_to(PACKAGE)
    return inside.name if len(inside.parts) == 1 else f"{inside.parts[0]}/"


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
        for parts in (name.split(".") for name in names):
            if parts[0] != "groundtune":
                continue
            name = parts[1] if len(parts) > 1 else ""
            if (PACKAGE / f"{name}.py").exists():
                found.add(f"{name}.py")
            else:
                found.add(f"{name}/" if name and (PACKAGE / name).is_dir() else "__init__.py")
    return found


def test_the_readme_lists_exactly_the_modules_there_are():
    listed = tree()
    there = {module_of(path) for path in PACKAGE.rglob("*.py")}
    assert len(listed) == len(set(listed))
    assert set(listed) == there


def test_a_module_imports_only_from_lines_above_its_own():
    order = {name: i for i, name in enumerate(tree())}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in sorted(imported(path))
        if order[name] > order[module_of(path)] or (name == module_of(path) and not name.endswith("/"))
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
