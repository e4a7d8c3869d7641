"""Every command in README, docs and configs is run by a test, or gives a reason why not and at least parses."""

from __future__ import annotations

import re
from importlib import import_module

import pytest
from documented import ROOT, RUN_BY, Block, blocks, commands, pages, run_by, steps, who_runs

from groundtune.cli import all_commands
from groundtune.commands.parsing import given, parse_arguments

BLOCKS = [block for page in pages() for block in blocks(page) if block.is_command]
NOT_RUN = [(block, words) for block in BLOCKS if block.reason for words in commands(block.text)]


def test_the_documentation_shows_both_historical_scripts_and_both_make_targets():
    text = "".join(block.text for block in BLOCKS if block.page == "README.md")
    assert all(said in text for said in ("train_w_gt.py", "train_w_fixed_retriever.py", "make demo", "make test"))
    for block in BLOCKS:
        for script in re.findall(r"^python (\S+\.py)", block.text, re.MULTILINE):
            assert (ROOT / script).is_file(), block


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_of_commands_is_run_by_a_test_or_says_why_not(block):
    if block.reason:
        assert len(block.reason) > 10, "a reason that a reader can judge"
    else:
        assert who_runs(block.page), (
            f"{block}: no test runs it; see tests/documented.py, or mark it <!-- not run: ... -->"
        )


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_a_test_that_is_to_run_pages_asks_for_their_blocks(test):
    assert (ROOT / test).is_file() and run_by(ROOT / test)
    assert "run_by(__file__" in (ROOT / test).read_text("utf-8")


def test_a_comment_that_looks_like_a_mark_belongs_to_a_block():
    """A misspelt mark, or one too far away, would have no effect."""
    for page in pages():
        marks = re.findall(r"<!--\s*not run", (ROOT / page).read_text("utf-8"), re.IGNORECASE)
        assert len(marks) == sum(bool(block.reason) for block in blocks(page)), page
        assert (ROOT / page).read_text("utf-8").count("\n```") % 2 == 0, page


@pytest.mark.parametrize("block, words", NOT_RUN, ids=lambda value: str(value)[:60])
def test_a_command_that_no_test_runs_is_understood(block, words):
    command, rest = words[0], [word for word in words[1:] if word != "..."]
    assert command in all_commands()
    if "--config" in rest or command == "demo":
        return
    if command in ("sft", "swr"):
        assert parse_arguments(command, rest).training.output_dir
    elif command == "doctor":
        parse_arguments(rest[0], ["--output_dir", "x", *rest[1:]])
    else:
        module = import_module(f"groundtune.{all_commands()[command][1].partition(':')[0]}")
        assert given(module.parser(), rest)


def test_targets_of_make_that_are_shown_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    shown = {name for block in BLOCKS for name in re.findall(r"^make (\w+)", block.text, re.MULTILINE)}
    assert shown and all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in shown)


def test_steps_keep_here_documents_whole_and_join_continued_lines():
    text = "mkdir x\ncat > a.yaml <<'END'\ngroundtune: no\nEND\ngroundtune ask \\\n  m 'a b'  # why\nls\n"
    script = "mkdir x\ncat > a.yaml <<'END'\ngroundtune: no\nEND"
    assert list(steps(text)) == [script, ["ask", "m", "a b"], "ls"]
    assert list(steps("python scripts/train/qa_llm/train_w_gt.py --a b")) == [["sft", "--a", "b"]]
    assert Block("x.md", 1, "text", "", "").is_command is False
