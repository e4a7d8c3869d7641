"""A run with a reranker and rewritten questions: training rows, evaluation and `ask` search in the same way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_server import FakeServer
from test_recipes import flags, lines

from groundtune.cli import main
from groundtune.retrieval.reranking import RerankedRetriever

REWRITTEN = "Where are headphones lent in the library?"


@pytest.fixture(scope="module")
def server():
    with FakeServer(lambda body: REWRITTEN) as server:
        yield server


@pytest.fixture(scope="module")
def words(families, bert_embedding_folder, data_folder, tmp_path_factory, server) -> list[str]:
    return flags(
        families["mistral"], bert_embedding_folder, data_folder, tmp_path_factory.mktemp("run"), use_peft="true",
        max_steps=2, eval_strategy="no", reranker="maxsim", rerank_depth=5, query_history="rewrite",
        rewriter=f"openai:{server.url}", rewriter_model="m",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(words, server) -> Path:
    searched = []
    search = RerankedRetriever.search

    def noting(self, queries, k):
        searched.append([query.text for query in queries])
        return search(self, queries, k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RerankedRetriever, "search", noting)
        assert main(["swr", *words]) == 0
    assert all(REWRITTEN in texts for texts in searched) and len(searched) == 4  # rows and evaluation alike
    return Path(words[words.index("--output_dir") + 1])


def test_every_dialogue_is_rewritten_once_for_rows_and_evaluation(run, server):
    record = json.loads((run / "run.json").read_text("utf-8"))["arguments"]["retrieval"]
    assert (record["reranker"], record["query_history"]) == ("maxsim", "rewrite")
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert len(asked) == len(set(asked)) == 2  # two of the tiny examples have a chat history


def test_the_run_s_folder_alone_repeats_its_numbers_without_asking_again(run, server, capsys):
    before = len(server.requests)
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["evaluations"]["retrieved"]["model"]
    trained = json.loads((run / "metrics.json").read_text("utf-8"))["tuned"]
    assert {name: found[name] for name in trained if "latency" not in name} == {
        name: mean for name, mean in trained.items() if "latency" not in name
    }
    assert len(server.requests) == before
    rows = [lines(run / file) for file in ("evaluation/predictions/retrieved.jsonl", "predictions/test_tuned.jsonl")]
    assert [row["retrieved_docs"] for row in rows[0]] == [row["retrieved_docs"] for row in rows[1]]
    assert "reranked by maxsim" in (run / "report.md").read_text("utf-8")


def test_another_reranker_is_another_run_and_the_same_one_is_finished(run, words, capsys):
    assert main(["swr", *words]) == 0
    assert "already holds this run, finished" in capsys.readouterr().out
    assert main(["swr", *words, "--reranker", "none"]) == 2
    assert "--reranker: maxsim in the finished run, none now" in capsys.readouterr().err


def test_ask_asks_the_rewriter_for_a_follow_up_and_reranks(run, server, capsys, monkeypatch):
    import io
    import sys

    before = len(server.requests)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Is there a card?\nAnd what does it cost?\n"))
    assert main(["ask", str(run), "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(server.requests) == before + 1 and first["sources"] and second["sources"]
    assert "And what does it cost?" in server.bodies[-1]["messages"][0]["content"]
