"""When the documents are made again: every example whose gold passage is not the same any more is named, and why."""

from __future__ import annotations

import json

import pytest

from groundtune.cli import main
from groundtune.data.files import write_documents, write_jsonl
from groundtune.data.passages import format_passage

HOURS = "The desk opens at nine in the morning and closes at six in the evening, except on public holidays."
DOGS = "Dogs may enter the garden on a lead, and they wait outside the house at the red door."
FEES = "Members pay ten euros a month, students pay five, and children under twelve pay nothing at all."
FOOD = "Guests may bring water into the reading room, but no food and no hot drinks of any kind."
OLD = [format_passage(text, title="Guide", source="guide.md") for text in (HOURS, DOGS, FEES, FOOD)]
NEW = [
    format_passage(HOURS, title="Guide", source="guide.md"),
    format_passage(DOGS, title="Animals", source="animals.md"),
    format_passage("Prices. " + FEES.replace("ten", "twelve"), title="Guide", source="guide.md"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents("old.jsonl", OLD)
    write_documents("new.jsonl", NEW)
    rows = [{"question": f"{i}?", "gold_docs": [d.to_dict()], "gold_answer": "So."} for i, d in enumerate(OLD)]
    write_jsonl("train.jsonl", rows)
    return tmp_path


def test_what_moved_what_was_reworded_and_what_is_gone_is_named_at_its_line(folder, capsys):
    assert main(["doctor", "--changed", "old.jsonl", "new.jsonl", "--train_file", "train.jsonl"]) == 2
    gone, moved, reworded, told = capsys.readouterr().out.splitlines()
    assert gone.startswith("error: train.jsonl:4: gold_docs[0]: gone: ")
    assert moved.startswith(
        "warning: train.jsonl:2: gold_docs[0]: moved: new.jsonl:2 has this text under another title"
    )
    assert reworded.startswith("warning: train.jsonl:3: gold_docs[0]: reworded or cut elsewhere: new.jsonl:3 has ")
    assert told == "3 of 4 examples have a gold passage that changed"


def test_nothing_is_reported_where_nothing_changed_and_json_is_for_programs(folder, capsys):
    assert main(["doctor", "--changed", "old.jsonl", "old.jsonl", "--train_file", "train.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    assert main(["doctor", "--changed", "old.jsonl", "new.jsonl", "--train_file", "train.jsonl", "--json"]) == 2
    checks = [finding["check"] for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert checks == ["gone-gold", "moved-gold", "reworded-gold"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--changed", "old.jsonl"], "--changed: takes two document databases"),
        (["--changed", "old.jsonl", "new.jsonl"], "--train_file: missing; name the files of examples"),
        (["--changed", "none.jsonl", "new.jsonl", "--train_file", "train.jsonl"], "no such file: none.jsonl"),
    ],
)
def test_what_is_missing_is_one_line(folder, capsys, words, said):
    assert main(["doctor", *words]) == 2
    assert said in capsys.readouterr().err
