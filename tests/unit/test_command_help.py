"""Help appears immediately, loads no library, and equals the parser's output."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from groundtune.cli import all_commands, main
from groundtune.commands import training_help

ROOT = Path(__file__).parents[2]
HELP = """
import sys, time
from groundtune.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as ended:
    status = ended.code
heavy = {"torch", "transformers", "sentence_transformers", "faiss", "peft", "numpy", "openai"} & set(sys.modules)
print(status or 0, sorted(heavy), time.process_time(), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["-h"], *([name, "-h"] for name in all_commands())], ids=" ".join)
def test_help_takes_under_half_a_second_and_loads_no_library(words):
    done = subprocess.run([sys.executable, "-c", HELP, *words], capture_output=True, text=True, cwd=ROOT)
    status, heavy, seconds = re.fullmatch(r"(\d+) (\[.*\]) (\S+)", done.stderr.splitlines()[-1]).groups()
    assert (status, heavy) == ("0", "[]"), done.stderr
    assert float(seconds) < 0.5  # of this process, however busy the machine is
    assert done.stdout.startswith("usage: groundtune")
    assert words == ["-h"] or re.search(rf"^examples?:\s+groundtune {words[0]}\b", done.stdout, re.MULTILINE)


def test_every_command_is_a_function_that_exists():
    for text, place in all_commands().values():
        module, _, function = place.partition(":")
        assert callable(getattr(import_module(f"groundtune.{module}"), function)) and text


def test_the_shipped_help_of_training_is_what_the_parser_says():
    """Run `python -m groundtune.commands.training_help` after changing arguments or transformers' version."""
    first, _, shipped = training_help.SHIPPED.read_text("utf-8").partition("\n")
    if first.split(",")[0] != training_help.made_from().split(",")[0]:
        pytest.skip(f"it was made from {first}; with another version it is not shown")
    assert first == training_help.made_from()
    # Versions of Python wrap differently.
    assert "".join(shipped.split()) == "".join(training_help.generated().split())


def test_help_made_from_something_else_is_made_anew_and_kept(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setenv("GROUNDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(training_help, "made_from", lambda: f"transformers 5.99.{len(made) > 2}, arguments 0")
    monkeypatch.setattr(training_help, "generated", lambda: made.append(1) or f"data:\n  --flag  text {len(made)}")
    for _ in range(2):
        assert main(["sft", "-h"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("usage: groundtune sft ") and shown.endswith("--flag  text 1\n")
    made += [1, 1]  # and now for another version
    assert "text 4" in training_help.training_help("sft")


def test_help_is_shown_where_no_cache_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GROUNDTUNE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(training_help, "made_from", lambda: "another version")
    monkeypatch.setattr(training_help, "generated", lambda: "data:")
    assert training_help.training_help("sft").endswith("data:")
