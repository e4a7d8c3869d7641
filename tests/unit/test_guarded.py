"""Every private name that is taken from another library is in one list, and one that is missing is one line."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from groundtune.cli import run_command
from groundtune.errors import DataError
from groundtune.system import guarded
from groundtune.system.guarded import GUARDED, TESTED, problems_of, require

ROOT = Path(__file__).parents[2]
SOURCES = {
    path: ast.parse(path.read_text("utf-8"))
    for path in sorted((ROOT / "groundtune").rglob("*.py"))
    if path.name != "guarded.py"
}
LISTED = {name for entry in GUARDED for name in entry.names}
DOCUMENTED = {"_replace", "_exit"}  # of named tuples, and of os


def is_private(name: str) -> bool:
    return bool(re.fullmatch(r"_[a-z]\w*", name))


@cache
def own_names() -> set[str]:
    """What Groundtune defines itself, anywhere: functions, classes, variables, attributes."""
    nodes = [node for tree in SOURCES.values() for node in ast.walk(tree)]
    names = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return names | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def classes() -> Iterator[type]:
    """Those of ours that have bases of other libraries."""
    for path, tree in SOURCES.items():
        if any(isinstance(node, ast.ClassDef) and node.bases for node in tree.body):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            yield from (one for one in vars(module).values() if inspect.isclass(one) and is_ours(one))


def is_ours(one: type) -> bool:
    return one.__module__.startswith("groundtune.")


def used_of(one: type) -> set[str]:
    """The private names that a class defines, or takes from itself or what it inherits from."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(one)))
    names = {node.name for node in tree.body[0].body if isinstance(node, ast.FunctionDef) and is_private(node.name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = node.value.func if isinstance(node.value, ast.Call) else node.value
            names |= {node.attr} if isinstance(owner, ast.Name) and owner.id in ("self", "super") else set()
    return names


def test_what_our_classes_override_or_call_of_those_they_inherit_from_is_listed():
    seen = set()
    for one in classes():
        strange = [base for base in one.__mro__ if not is_ours(base) and base.__module__ not in ("builtins", "typing")]
        for name in used_of(one):
            owners = [base for base in strange if name in guarded.names_in(base)]
            if owners:
                seen.add(name)
                homes = {f"{owner.__module__}:{owner.__qualname__}" for owner in owners}
                assert name in LISTED, f"{one.__qualname__} takes {name} from {homes}"
    assert {"_save_checkpoint", "_evaluate", "_format_action_invocation"} <= seen


def private_names(tree: ast.AST) -> Iterator[str]:
    """Private attributes of anything but `self`, private arguments, and what is imported from other libraries."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.Call):
            yield from (word.arg for word in node.keywords if word.arg and is_private(word.arg))
            if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr"):
                yield from (a.value for a in node.args if isinstance(a, ast.Constant) and is_private(str(a.value)))
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("groundtune"):
            yield from (alias.name for alias in node.names if is_private(alias.name))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_private_name_is_our_own_or_listed(path):
    unknown = set(private_names(SOURCES[path])) - own_names() - LISTED - DOCUMENTED
    assert not unknown, f"{path.name} takes {unknown} from another library"


def test_the_list_holds_what_is_there_and_what_is_used():
    text = "\n".join(path.read_text("utf-8") for path in SOURCES)
    for entry in GUARDED:
        assert list(entry.missing()) == [] and entry.package in TESTED
        for name, why in entry.names.items():
            assert re.search(rf"\b{name}\b", text), f"nobody uses {name}"
            assert why and len(why) < 120, name


def test_the_tested_versions_are_those_of_the_project():
    project = runpy.run_path(str(ROOT / "scripts" / "constraints.py"))["pyproject"]()["project"]
    lowest = dict(re.findall(r"([\w-]+)>=([\d.]+)", "\n".join(project["dependencies"])))
    lowest["python"] = project["requires-python"].removeprefix(">=")
    pins = dict(re.findall(r"^([\w-]+)==(\d+\.\d+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    for package, (first, last) in TESTED.items():
        assert first == lowest[package]
        assert last == pins.get(package, last), f"{package}: {pins[package]} is tested now"


# What is missing


def lacking(monkeypatch, package: str) -> None:
    """As if a release had renamed something of a package."""
    changed = [replace(one, names={**one.names, "_renamed": "x"}) if one.package == package else one for one in GUARDED]
    monkeypatch.setattr(guarded, "GUARDED", changed)


@pytest.mark.parametrize("package", [package for package in TESTED if package != "peft"])
def test_what_a_package_lacks_is_one_line_with_the_tested_versions_and_a_way_out(monkeypatch, package):
    lacking(monkeypatch, package)
    with pytest.raises(DataError) as stopped:
        require(package)
    first, last = TESTED[package]
    (line,) = stopped.value.problems
    assert re.match(rf"{package} \d[\w.+]* lacks .*_renamed.*, which Groundtune needs; it was tested with ", line)
    assert f"{first} to {last}: " in line and last in line.rpartition(": ")[2] and "\n" not in line
    assert problems_of() == [line] and require("accelerate" if package == "python" else "python") is None


def test_an_owner_that_is_gone_is_named(monkeypatch):
    gone = [replace(GUARDED[0], owner=owner) for owner in ("transformers.trainer:Coach", "transformers.coach:Coach")]
    monkeypatch.setattr(guarded, "GUARDED", gone)
    (line,) = problems_of()
    assert "lacks transformers.trainer.Coach, transformers.coach.Coach, which" in line


def test_what_can_be_done_without_stops_nothing(monkeypatch):
    lacking(monkeypatch, "peft")
    assert problems_of() == []


def test_a_trainer_without_one_of_the_methods_is_status_2_before_anything_is_read(monkeypatch, capsys):
    from transformers import Trainer

    monkeypatch.delattr(Trainer, "_run_epoch")
    for name in ("training.safe_trainer", "training.trainer", "recipes.train"):
        monkeypatch.delitem(sys.modules, f"groundtune.{name}", raising=False)
    assert run_command("sft", ["--model_name_or_path", "nowhere", "--train_file", "nothing.jsonl", "-o", "x"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("transformers 5") and "lacks Trainer._run_epoch, which Groundtune needs; it was" in line
    assert line.count("\n") == 1


def test_a_flag_parser_without_its_names_is_status_2(monkeypatch, capsys):
    lacking(monkeypatch, "python")
    assert run_command("ask", ["somewhere", "Why?"]) == 2
    assert capsys.readouterr().err.startswith("python 3")


@pytest.mark.parametrize("error", [ImportError("no name"), AttributeError("no attribute"), TypeError("an argument")])
def test_an_error_of_a_library_that_lacks_something_is_the_same_line(monkeypatch, capsys, error):
    def fail(argv):
        raise error

    monkeypatch.setattr("groundtune.commands.ask.main", fail)
    with pytest.raises(type(error)):  # our own fault
        run_command("ask", [])
    lacking(monkeypatch, "transformers")
    assert run_command("ask", []) == 2
    assert capsys.readouterr().err.startswith("transformers 5")
