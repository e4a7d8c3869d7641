"""For the commands that make data: --json prints exactly one object on standard output; --quiet prints no table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("markdown_it", reason="needs the extra [documents]")
pytest.importorskip("bm25s", reason="needs the extra [bm25]")

from conftest import make_tokenizer
from test_convert import SQUAD, write
from test_questions import FakeGenerator, documents

import groundtune.model.opening
from groundtune.cli import main
from groundtune.data.files import write_documents

TABLE = set("┃│┏└━─")
EXPECTED = {
    "documents": {"passages": {".md": 2}, "pages": {".md": 2}, "duplicates": {}, "problems": []},
    "convert": {
        "documents": 1,
        "files": {"in.jsonl": {"examples": 2, "unanswerable": 1, "several answers": 1, "no answer": 0}},
    },
    "questions": {"splits": {"train": 18, "eval": 2, "test": 0}, "failed_requests": 0},
}


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Command lines by command name, with their inputs in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(f"{name}.md").write_text(f"# Thing {name}\n\nDogs wait at door {name}.\n")
    make_tokenizer("qwen").save_pretrained("tokenizer")
    write(tmp_path / "in.json", SQUAD)
    write_documents("documents.jsonl", documents(10))
    monkeypatch.setattr(groundtune.model.opening, "open_writer", lambda *_, **__: FakeGenerator())
    monkeypatch.setattr("groundtune.commands.questions._lacks_template", lambda *_: False)
    return {
        "documents": ["documents", "one.md", "two.md", "-o", "out.jsonl", "--tokenizer", "tokenizer"],
        "convert": ["convert", "squad", "in.json", "-o", "out"],
        "questions": ["questions", "documents.jsonl", "-o", "qa", "--generator", "fake", "--min_words", "5"],
    }.__getitem__


@pytest.mark.parametrize("command", EXPECTED)
def test_json_is_one_object_with_the_counts_and_nothing_else(words, capfd, command):
    assert main([*words(command), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert {name: found[name] for name in EXPECTED[command]} == EXPECTED[command]
    assert any(note.startswith("Wrote ") for note in found["notes"])


@pytest.mark.parametrize("command", EXPECTED)
def test_quiet_shows_no_table_and_no_progress(words, capfd, command):
    assert main(words(command)) == 0
    assert TABLE & set(capfd.readouterr().out)
    assert main([*words(command), "--quiet"]) == 0
    said = capfd.readouterr()
    assert not TABLE & set(said.out) and "Wrote " in said.out
    assert said.err.replace("\n", "") == ""
