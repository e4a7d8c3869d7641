"""Text from files, models and servers is shown as it is: it neither writes on the terminal nor is it markup."""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console

from groundtune.cli import main
from groundtune.commands import ask, terminal
from groundtune.commands.terminal import Bars, complain, say, say_json, say_text
from groundtune.evaluation.citations import Marked
from groundtune.prepare import corpus
from groundtune.schema import Document
from groundtune.serving.telling import Told
from groundtune.system.tables import TextTable

PACKAGE = Path(__file__).parents[2] / "groundtune"
# A title, the clipboard, the screen, one byte that begins a sequence (C1), the direction of text, a tag, markup, emoji.
NASTY = (
    "\x1b]0;t\x07\x1b]52;c;ZQ==\x07\x1b[2J\x9b31m\x85\u202e\u2066\U000e0041\x7f\r\x08"
    "[red]a[/red][link=http://x]b[/] :smile:"
)
WRITES = set("\x1b\x07\x9b\x85\u202e\u2066\U000e0041\x7f\r\x08")


def assert_literal(shown: str) -> None:
    assert not WRITES & set(shown), ascii(shown)
    joined = "".join(shown.split())
    assert "\\x1b]0;t\\x07" in joined and "[red]a[/red][link=http://x]b[/]:smile:" in joined


def calls(path: Path) -> set[str]:
    """Names of functions that a file calls, without what stands before the last dot."""
    tree = ast.walk(ast.parse(path.read_text("utf-8")))
    functions = [node.func for node in tree if isinstance(node, ast.Call)]
    return {getattr(function, "id", getattr(function, "attr", "")) for function in functions}


def test_every_door_to_the_terminal_is_in_one_file():
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name != "commands/terminal.py":
            assert not {"print", "Console", "TextColumn"} & calls(path), name
        if name != "system/tables.py":
            assert not {"Table", "Text"} & calls(path), name


@pytest.mark.parametrize(
    "door",
    [
        lambda: say(NASTY), lambda: complain(NASTY), lambda: say_text(NASTY), lambda: say_text(NASTY, end=""),
        lambda: [say_text(character, end="") for character in NASTY],
        lambda: terminal.show({}, TextTable("a"), [NASTY], argparse.Namespace(json=False, quiet=True)),
    ],
)  # fmt: skip
def test_no_door_lets_a_text_write_on_the_terminal(door, capsys):
    door()
    assert_literal("".join(capsys.readouterr()))


def test_lines_stay_lines_and_languages_stay_readable(capsys):
    say("a\nb", "c")
    say_text("a\nb\tc")
    say_text("d\te", end="")
    say(several := "\xa0quarante\u202fdeux\u3000日本 می\u200cخواهم 👩\u200d🚀")
    assert capsys.readouterr().out == f"a\\nb\nc\na\nb\tc\nd\te{several}\n"


@pytest.mark.parametrize("indent", [None, 2])
def test_printed_json_is_json_and_writes_nothing(capsys, indent):
    say_json({NASTY: [NASTY, float("nan")]}, indent)
    shown = capsys.readouterr().out
    assert json.loads(shown) == {NASTY: [NASTY, None]} and not WRITES & set(shown)


def test_a_table_shows_headers_cells_titles_and_captions_as_they_are():
    for where in ("header", "column", "cell", "title", "caption"):
        texts = {name: NASTY if name == where else "x" for name in ("title", "caption")}
        table = TextTable(NASTY if where == "header" else "a", **texts)
        table.add_column(NASTY if where == "column" else "b")
        table.add_row("c", NASTY if where == "cell" else "d", style="green")
        shown = Console(file=io.StringIO(), force_terminal=True, width=400, color_system=None)
        shown.print(table)
        assert_literal(shown.file.getvalue().replace("\x1b[3m", "").replace("\x1b[0m", "").replace("\x1b[1m", ""))


def test_a_progress_bar_shows_its_name_as_it_is():
    bars = Bars(False)
    bars.at(NASTY, 1, 2)
    bars.begin(NASTY, 3)(1)
    shown = Console(file=io.StringIO(), width=400)
    shown.print(bars.live.make_tasks_table(bars.live.tasks))
    assert_literal(shown.file.getvalue())


def test_names_of_files_and_their_kinds_are_shown_as_they_are(tmp_path, monkeypatch, capsys):
    asked = {"id": "1", "question": "Where?", "answers": [{"text": "Here", "answer_start": 0}]}
    name = NASTY.replace("/", "|")
    squad = {"data": [{"title": "T", "paragraphs": [{"context": "Here.", "qas": [asked]}]}]}
    (tmp_path / f"{name}.json").write_text(json.dumps(squad))
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["convert", "squad", str(tmp_path / f"{name}.json"), "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert not WRITES & set(shown) and "[red]a[|red][link=" in shown and ":smile:" in shown
    summary = corpus.Summary()
    summary.files[f".{NASTY}"] += 1
    summary.other_kinds[f".{NASTY}"] = [f"a.{NASTY}"]
    summary.problems.append(NASTY)
    terminal.show({}, corpus.summary_table(summary), corpus.notes(summary), argparse.Namespace(json=False, quiet=False))
    assert_literal(capsys.readouterr().out)


def test_an_answer_is_streamed_as_text_and_a_source_is_one_line(capsys):
    source = types.SimpleNamespace(score=0.5, title=NASTY, place="a\n  [2] 0.900  forged", document=Document(NASTY))
    told, manner = Told(Marked(NASTY)), types.SimpleNamespace(citations="off")
    dialogue = types.SimpleNamespace(ask=lambda _: ([source], iter(NASTY)), told=told, manner=manner, cites=False)
    ask._show(dialogue, "Why?")
    shown = capsys.readouterr().out
    assert_literal(shown)
    assert len([line for line in shown.splitlines() if line.startswith("  [")]) == 1
    ask._show_json(dialogue, NASTY)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["answer"] == NASTY and not WRITES & set(line)


@pytest.mark.parametrize(
    "words", [[NASTY], ["--", "doctor", NASTY], ["demo", NASTY], ["demo", f"--{NASTY}"], ["ask", f"--{NASTY}"]]
)
def test_what_was_typed_is_quoted_without_effect(words, capsys):
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(words))
    shown = "".join(capsys.readouterr())
    assert ended.value.code == 2 and "\\x1b" in shown and not WRITES & set(shown)


def test_logs_tracebacks_and_warnings_of_libraries_are_text(monkeypatch, capsys):
    """In a process of their own, as pytest has its own handlers."""
    script = f"""
import logging, sys, types, warnings
from groundtune.cli import COMMANDS, run_command
nasty = {NASTY!r}
def work(argv):
    logging.getLogger("library").warning("read %s", nasty)
    try:
        raise ValueError(nasty)
    except ValueError:
        logging.getLogger("library").exception("failed")
    warnings.warn(nasty)
    return 0
module = types.ModuleType("groundtune.commands.work"); module.main = work
sys.modules[module.__name__] = module
COMMANDS["work"] = ("", "commands.work:main")
sys.exit(run_command("work", []))
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, encoding="utf-8")
    assert ended.returncode == 0 and ended.stdout == ""
    assert ended.stderr.count("\\x1b]0;t\\x07") >= 3 and "Traceback" in ended.stderr
    assert not WRITES & set(ended.stderr)
