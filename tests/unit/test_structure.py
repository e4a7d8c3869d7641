"""The tree in the README matches the disk, and imports only go one way through it."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import groundtune

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "groundtune"


def blocks() -> list[list[str]]:
    """The two trees in the README, packages and files, each as a list of lines without the first."""
    text = (ROOT / "README.md").read_text("utf-8").partition("## The tree")[2]
    found = [block.splitlines() for block in re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    assert [lines[0] for lines in found] == ["groundtune/", "groundtune/"]
    return [lines[1:] for lines in found]


def packages() -> list[str]:
    """The entries of groundtune/ in import order: "schema.py", "system/" ..."""
    return [line.split(maxsplit=1)[0] for line in blocks()[0]]  # each has its phrase


def files() -> list[str]:
    """All files and packages with a line of their own: "schema.py", "data/files.py", "commands/" ..."""
    listed, package = [], ""
    for line in blocks()[1]:
        if not line.startswith("  "):
            break
        name = line.split()[0]
        if line.startswith("    "):
            name = package + name
        elif name.endswith("/"):
            package = name
            if len(line.split()) == 1:  # a heading for the files below it
                continue
        listed.append(name)
    return listed


PACKAGES, FILES = packages(), files()
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def inside(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    """The entry of the first tree that a file belongs to."""
    first, slash, _ = inside(path).partition("/")
    return first + slash


def imported(path: Path) -> set[Path]:
    """The package's files that a file imports: at the top, inside functions, or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {file_of(name.split(".")[1:]) for name in names if name.split(".")[0] == "groundtune"}
    return found - {PACKAGE / "__init__.py"}


def file_of(parts: list[str]) -> Path:
    """The file that defines `groundtune.parts`; the last parts may be names inside it."""
    for end in range(len(parts), 0, -1):
        if (module := PACKAGE.joinpath(*parts[:end]).with_suffix(".py")).is_file():
            return module
        if (package := PACKAGE.joinpath(*parts[:end], "__init__.py")).is_file():
            return package
    return PACKAGE / "__init__.py"


def test_the_readme_lists_exactly_the_packages_and_files_there_are():
    assert sorted(PACKAGES) == sorted({room(path) for path in MODULES})
    whole = [name for name in FILES if name.endswith("/")]  # its line covers files without their own
    named = {inside(path) for path in MODULES if path.name != "__init__.py"}
    assert {name for name in FILES if not name.endswith("/")} - {"__init__.py"} <= named
    assert {name for name in named - set(FILES) if not name.startswith(tuple(whole))} == set()
    assert len(FILES) == len(set(FILES))


def test_a_package_imports_only_from_packages_above_it():
    order = {name: i for i, name in enumerate(PACKAGES)}
    wrong = [
        f"{inside(path)} imports {inside(other)}"
        for path in MODULES
        for other in sorted(imported(path))
        if order[room(other)] > order[room(path)]
    ]
    assert wrong == []
    assert sum(len(imported(path)) for path in MODULES) > 200  # or nothing was seen


def test_no_file_imports_itself_through_others_not_even_for_types():
    imports = {path: imported(path) for path in PACKAGE.rglob("*.py")}
    done: set[Path] = set()

    def visit(path: Path, road: tuple[Path, ...]) -> None:
        assert path not in road, " -> ".join(inside(step) for step in (*road[road.index(path) :], path))
        if path not in done:
            for other in imports[path]:
                visit(other, (*road, path))
            done.add(path)

    for path in imports:
        visit(path, ())


def test_every_package_says_in_its_init_what_is_in_it():
    for package in {path.parent for path in MODULES}:
        words = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8"))) or ""
        assert len(words.split()) > 5, package


def test_the_schema_is_standard_library_only():
    roots = set()
    for node in ast.walk(ast.parse((PACKAGE / "schema.py").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.split(".")[0])
    assert roots <= set(sys.stdlib_module_names)


def assert_runs(code: str) -> None:
    """Run the code in a new process, which has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_importing_groundtune_loads_neither_torch_nor_transformers():
    code = (
        "import sys, groundtune; groundtune.Document; groundtune.read_examples; groundtune.__version__\n"
        "from groundtune import EndpointError, Run, compare, evaluate, load, open_retriever, train\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'faiss', 'peft', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(groundtune.__all__) <= set(dir(groundtune))"
    )
    assert_runs(code)


def test_a_dialogue_loads_nothing_of_training_hub_doctor_or_report_and_a_server_answers_without_torch():
    code = (
        "import sys, groundtune.serving.dialogue\n"
        "ours = ('training', 'recipes', 'reporting', 'runs.hub', 'runs.checkpoints', 'runs.resume')\n"
        "unwanted = tuple(f'groundtune.{name}' for name in ours) + ('torch', 'transformers', 'accelerate', 'peft')\n"
        "loaded = [name for name in sys.modules if name.startswith(unwanted)]\n"
        "assert not loaded, loaded"
    )
    assert_runs(code)


def test_every_public_name_is_what_it_says():
    for name in groundtune.__all__:
        assert getattr(groundtune, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        groundtune.nonsense  # noqa: B018


def test_editors_are_told_the_public_names_that_there_are():
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert told == {name: f"groundtune.{module}" for name, module in groundtune._PUBLIC.items()}


def test_no_package_or_module_takes_the_place_of_a_public_function():
    """Importing a module `groundtune.x` replaces any attribute `groundtune.x`."""
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(groundtune.__all__) == set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        import_module(name.removesuffix(".__init__"))
    functions = ("train", "load", "evaluate", "compare", "open_retriever")
    assert all(inspect.isfunction(getattr(groundtune, name)) for name in functions)


def test_no_file_is_abandoned_dependencies_by_another_door():
    """Packages that the design excludes are never imported."""
    ruled_out = {"rouge", "rank_bm25", "pytrec_eval", "langchain", "hnswlib", "text_generation", "retry", "torchtune"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & ruled_out, path


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_no_tracked_file_names_the_machine_it_was_written_on():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    forbidden = ["/wo" + "rk/", "sand" + "box"]  # split, so that this file does not match
    of_jinja = re.compile(rf"jinja2\.{forbidden[1]}\b|Immutable{forbidden[1].title()}edEnvironment", re.IGNORECASE)
    wrong = []
    for name in filter(None, files.split("\0")):
        path = ROOT / name
        if not path.is_file():  # deleted and not yet committed
            continue
        text = of_jinja.sub("", path.read_text("utf-8", errors="ignore")).lower()
        wrong += [f"{name}: {word}" for word in forbidden if word in text]
    assert wrong == []
