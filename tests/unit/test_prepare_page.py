"""Every command of docs/prepare.md runs, in the order of the page, on small files with the names that it uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("markdown_it", reason="needs the extra [documents]")
pytest.importorskip("bm25s", reason="needs the extra [bm25]")

from conftest import make_tokenizer
from documented import ROOT, commands, run_by
from test_convert import CHAT, PATTERN, RAFT, SQUAD, TRIVIA, beir_folder, nq_row, write
from test_convert import FOUNDERS as ANNOTATION
from test_questions import FakeGenerator, documents

import groundtune.model.opening
from groundtune.cli import main
from groundtune.data.files import read_documents, read_examples

PAGE = "docs/prepare.md"
# Replaces what the page gets from a hub or a server.
TOKENIZER = "intfloat/e5-base-v2"


@pytest.fixture
def page() -> list[list[str]]:
    """The page's commands, split into words."""
    return [words for block in run_by(__file__)[PAGE] for words in commands(block.text)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with all inputs that the page names."""
    monkeypatch.chdir(tmp_path)
    for i, document in enumerate(documents(60)):
        path = tmp_path / "handbook" / f"{i:02}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# Thing {i}\n\n{document.page_content}\n")
    (tmp_path / "faq.csv").write_text("title,text\nDogs,Dogs wait at the red door.\n")
    write(tmp_path / "pages.jsonl", [{"headline": "Food", "body": "Guests may bring only water."}])
    write(tmp_path / "train-v2.0.json", SQUAD)
    write(tmp_path / "dev-v2.0.json", SQUAD)
    write(tmp_path / "simplified-nq-train.jsonl.gz", [nq_row(ANNOTATION)])
    write(tmp_path / "qa" / "wikipedia-train.json", TRIVIA)
    evidence = tmp_path / "evidence" / "wikipedia" / "Webber.txt"
    evidence.parent.mkdir(parents=True)
    evidence.write_text("The musical Sunset Boulevard premiered in 1993.")
    beir_folder(tmp_path / "scifact")
    prompt = "Context: It opens\nat nine.\nQuestion: When?"
    told = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "At nine."}]
    write(tmp_path / "chats.jsonl", [{"messages": told}, CHAT])
    write(tmp_path / "raft.jsonl", [RAFT])
    (tmp_path / "questions.csv").write_text("question,answer\nWhere do dogs wait?,At the red door.\n")
    (tmp_path / "users.txt").write_text("What does lamp number 0 cost?\n")
    make_tokenizer("qwen").save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def test_every_command_of_the_page_runs_in_its_order(page, folder, monkeypatch, capsys):
    counter = folder / "tokenizer/tokenizer.json"
    monkeypatch.setattr("groundtune.prepare.chunking.counter_file", {TOKENIZER: counter}.__getitem__)
    monkeypatch.setattr(groundtune.model.opening, "open_writer", lambda *_, **__: FakeGenerator())
    monkeypatch.setattr("groundtune.commands.questions._lacks_template", lambda *_: False)
    assert len(page) > 10 and PATTERN in (ROOT / PAGE).read_text("utf-8")
    for words in page:
        assert main(words) == 0, (words, capsys.readouterr().err)
        if words[:2] == ["documents", "handbook/"]:
            found = read_documents("documents.jsonl")
            assert {d.metadata["source"] for d in found} >= {"handbook/00.md", "faq.csv#2"}
        elif "pages.jsonl" in words:
            assert [d.page_content for d in read_documents("documents.jsonl")] == ["Guests may bring only water."]
            main(page[0])  # the page continues with the handbook
    rows = [json.loads(line) for line in (folder / "chats" / "train.jsonl").read_text().splitlines()]
    assert rows[0]["messages"][-1]["role"] == "assistant"
    assert {e.question for e in read_examples("chats/chats.jsonl")} >= {"When?"}
    for output in (
        "qa_local/train.jsonl", "qa_reviewed/train.jsonl", "squad/dev-v2.0.jsonl", "nq/documents.jsonl",
        "trivia/wikipedia-train.jsonl",
        "scifact_qa/train.jsonl", "raft/raft.jsonl", "completions/train.jsonl", "beir/qrels/test.tsv",
    ):  # fmt: skip
        assert (folder / output).stat().st_size > 0, output
