"""Every command that README, docs and configs show is one that the command line, or the Makefile, understands."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from groundtune.cli import COMMANDS
from groundtune.commands.parsing import given, parse_arguments

ROOT = Path(__file__).parents[2]
SCRIPTS = {"train_w_gt.py": "sft", "train_w_fixed_retriever.py": "swr"}


def documented_commands() -> list[list[str]]:
    """The words of each command in a fenced block without a language, continued lines joined."""
    commands = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").rglob("*.md"))):
        for block in re.findall(r"^```\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(("make ", "groundtune ", "python ")):
                    commands.append(shlex.split(line, comments=True))
    return commands


def test_the_documentation_shows_both_historical_scripts_and_both_make_targets():
    said = [word for words in documented_commands() for word in words]
    assert {"demo", "test", *(f"scripts/train/qa_llm/{script}" for script in SCRIPTS)} <= set(said)


@pytest.mark.parametrize("words", documented_commands(), ids=lambda words: " ".join(words)[:60])
def test_a_documented_command_is_understood(words, monkeypatch):
    monkeypatch.chdir(ROOT)  # for what is after --config
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
        method = SCRIPTS[Path(words[1]).name]
        parse_training(method, words[2:])
        return
    command, rest = words[1], words[2:]
    assert command in COMMANDS
    if command in ("sft", "swr"):
        parse_training(command, rest)
    elif command == "doctor":
        parse_arguments(rest[0], ["--output_dir", "x", *rest[1:]])
    elif command != "demo":
        module = import_module(f"groundtune.{COMMANDS[command][1].partition(':')[0]}")
        assert given(module.parser(), rest)


def parse_training(method: str, words: list[str]) -> None:
    arguments = parse_arguments(method, [word for word in words if word != "..."])
    assert arguments.training.output_dir
