"""docs/tutorial.md from its first command to its last, on tiny models.

Only the two models, the server's address and sizes differ from the page. The question generator is
loaded and asked as on the page, but the random model's output is replaced by that of an obedient one.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("markdown_it", reason="needs the extra [documents]")
pytest.importorskip("bm25s", reason="needs the extra [bm25]")
pytest.importorskip("openai", reason="needs the extra [endpoint]")

from conftest import make_family, save_bert_embedder
from documented import ROOT, commands, replaced, run_by, run_script, steps
from fake_server import FakeServer

from groundtune.cli import main
from groundtune.data.files import read_documents, read_examples
from groundtune.model import generators
from groundtune.schema import Reply

# Unpacks half a gigabyte; here its folders are made from tiny models, under the same names.
UNPACKING = "groundtune demo --models models/"
SIZES = {
    "--chunk_size 200 --chunk_overlap 20": "--chunk_size 300 --chunk_overlap 0",  # of characters, nearly
    "--passages 300 --max_new_tokens 64 --batch_size 16": "--passages 24 --max_new_tokens 4 --batch_size 8",
    "--passages 400": "--passages 12",
    "num_train_epochs: 2": "max_steps: 2\nbootstrap_samples: 100\nmax_seq_length: 1500\nbf16: false",
    "max_new_tokens: 64 ": "max_new_tokens: 8 ",
    "--contexts all": "--contexts all --eval_max_samples 3",
}


def obedient(prompt: str) -> str:
    """A question in the passage's own words, or the passage's longest line as the answer."""
    passage = prompt.rpartition("Passage:\n")[2].rpartition("\n\nQuestion")[0]
    lines = sorted((" ".join(line.split()) for line in passage.partition("Content:\n")[2].splitlines()), key=len)
    said = lines[-1].replace("?", " ") if lines else "nothing"
    return said if prompt.rstrip().endswith("Answer:") else f"What does it say about {said[:80]}?"


@pytest.fixture
def blocks():
    (found,) = run_by(__file__).values()
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with the two models as the page unpacks them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    make_family("gemma", tmp_path / "models" / "smollm2-135m-instruct", max_position_embeddings=4096)
    save_bert_embedder(tmp_path / "bert").rename(tmp_path / "models" / "minilm")
    return tmp_path


def test_every_command_of_the_tutorial_runs_in_its_order(blocks, folder, monkeypatch, capsys):
    complete, asked = generators.LocalModel.complete, []

    def completed(model, messages_list, max_tokens, **options):
        asked.extend(m[-1]["content"] for m in messages_list)
        written = complete(model, messages_list, max_tokens, **options)
        return [Reply(obedient(m[-1]["content"])) for m, _ in zip(messages_list, written, strict=True)]

    monkeypatch.setattr(generators.LocalModel, "complete", completed)
    text = "".join(block.text for block in blocks)
    assert {words[0] for words in commands(text)} >= {
        "documents", "questions", "doctor", "swr", "sft", "evaluate", "compare", "ask",
    }  # fmt: skip
    assert all(size in text for size in SIZES), "a size of the page that is replaced here has changed"
    with FakeServer(lambda body: obedient(body["messages"][-1]["content"])) as server:
        for block in blocks:
            if UNPACKING in block.text:
                continue
            for step in steps(replaced(block.text, {**SIZES, "http://localhost:8000/v1": server.url})):
                if isinstance(step, str):
                    run_script(step, folder)
                else:
                    assert main(step) == 0, (step, capsys.readouterr().err)

    kinds = {Path(d.metadata["source"].partition("#")[0]).suffix for d in read_documents("documents.jsonl")}
    assert kinds == {".txt", ".md", ".html", ".csv"}
    assert asked and server.requests
    for name in ("qa", "qa_server"):
        assert read_examples(f"{name}/train.jsonl") and read_examples(f"{name}/test.jsonl"), name
    for file in (
        "runs/swr/report.html",
        "runs/sft/report.html",
        "runs/swr/evaluation/evaluation.html",
        "runs/swr/comparison.html",
    ):
        assert (folder / file).stat().st_size > 1000, file
    shown = capsys.readouterr().out
    assert "outcome  " in shown and "closed_book" in shown and re.search(r"base .*\n.*sft .*\n.*swr ", shown)
    assert re.search(r"based on \d passages?:\n  \[1\] ", shown)


def test_the_names_and_sizes_of_the_page_are_those_that_the_tests_replace(blocks):
    """If the page names another model, this test notices it, not the reader."""
    text = "".join(block.text for block in blocks)
    assert set(re.findall(r"models/[\w.-]+", text)) == {"models/smollm2-135m-instruct", "models/minilm"}
    assert len([block for block in blocks if UNPACKING in block.text]) == 1


def test_what_a_block_prints_takes_the_place_of_what_the_page_shows_and_nothing_else_changes(tmp_path):
    spec = importlib.util.spec_from_file_location("tutorial", ROOT / "scripts/tutorial.py")
    tutorial = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tutorial)
    page = (ROOT / "docs/tutorial.md").read_text("utf-8")
    ran = []
    filled = tutorial.filled(page, lambda commands: ran.append(commands) or "new\n" * 99)
    assert not any("localhost" in text or "pip install torch==" in text for text in ran)
    assert {words[0] for words in commands("".join(ran))} >= {"documents", "questions", "swr", "evaluate", "ask"}
    shown = re.findall(r"```text\n(.*?)```", filled, re.DOTALL)
    assert [text for text in shown if not text.startswith("new\n")] == [
        text for text in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if text.startswith("Source: ")
    ]
    assert shown[0].endswith("new\n...\n") and tutorial.filled(filled, lambda commands: "new\n" * 99) == filled
    cut = re.compile(r"```text\n.*?```", re.DOTALL)
    assert cut.sub("", filled) == cut.sub("", page)
    assert tutorial.printed("echo a\necho b\n", tmp_path) == "a\nb\n"
