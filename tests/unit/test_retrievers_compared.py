"""Retrievers side by side: scores are those of their hits; the best is chosen on one file and shown on another."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import tiny_documents, tiny_examples
from fake_server import FakeServer

from groundtune.cli import main
from groundtune.data.files import write_documents, write_jsonl
from groundtune.evaluation.retrievers_compared import Measured, best_of, measured
from groundtune.evaluation.statistics import Interval
from groundtune.schema import Document, Example, Hit

LONG = "The desk opens at nine in the morning and closes at six in the evening, except on holidays."
GOLD, TWIN, OTHER = Document(LONG), Document(f"Opening hours. {LONG}"), Document("Dogs wait outside, at the red door.")


class Fixed:
    """A retriever that finds the same documents for every query."""

    limit = None

    def __init__(self, *documents: Document) -> None:
        self.documents = documents

    def search(self, queries, k):
        return [tuple(Hit(document, 1.0) for document in self.documents[:k]) for _ in queries]


@pytest.mark.parametrize(
    "found, recall, text_recall, mrr",
    [((GOLD, OTHER), 1, 1, 1), ((TWIN, OTHER), 0, 1, 0), ((OTHER, TWIN, GOLD), 0, 1, 1 / 3), ((OTHER,), 0, 0, 0)],
)
def test_a_passage_with_the_gold_text_counts_for_text_recall_alone(found, recall, text_recall, mrr):
    example = Example("When?", "At nine.", (GOLD,))
    scores = measured("fixed", "", Fixed(*found), [example], 2, "none").scores
    values = [scores[f"retrieval/{name}"].value for name in ("recall@2", "text_recall@2", "mrr")]
    assert values == pytest.approx([recall, text_recall, mrr])


def test_of_equal_recall_the_higher_rank_wins():
    def one(name: str, recall: float, mrr: float) -> Measured:
        scores = {"retrieval/recall@4": recall, "retrieval/mrr": mrr}
        return Measured(name, "", {key: Interval(value, 0, 1) for key, value in scores.items()}, 0.0)

    assert best_of([one("a", 0.7, 0.5), one("b", 0.8, 0.4), one("c", 0.8, 0.6)], 4).name == "c"


@pytest.fixture
def command(tmp_path, static_embedding_folder) -> list[str]:
    write_documents(tmp_path / "documents.jsonl", tiny_documents())
    rows = [example.to_dict() for example in tiny_examples()]
    write_jsonl(tmp_path / "eval.jsonl", rows[:4])
    write_jsonl(tmp_path / "test.jsonl", rows[3:])
    return [
        "index", "--full_dataset_file_path", str(tmp_path / "documents.jsonl"), "--full_dataset_index_path",
        str(tmp_path / "index"), "--embedding_model", str(static_embedding_folder), "--eval_num_to_retrieve", "2",
    ]  # fmt: skip


def test_the_best_is_chosen_on_one_file_and_all_are_reported_on_another(command, tmp_path, capsys):
    files = ["--retriever", "all", "--eval_file", str(tmp_path / "eval.jsonl")]
    assert main([*command, *files, "--test_file", str(tmp_path / "test.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["retrievers"]
    assert found["chosen_on"] == 4 and found["best"] in [row["flags"] for row in found["table"]]
    names = [row["name"] for row in found["table"]]
    assert names[:3] == ["dense", "bm25", "hybrid (rank fusion)"] and len(names) == 10
    assert main([*command, *files]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Flags of the best: --retriever" in said and "text_recall@2" in said
    assert "Chosen and measured on the same questions" in said


def test_rerankers_and_a_second_embedding_model_are_rows_with_their_differences(
    command, tmp_path, bert_embedding_folder, cross_encoder_folder, capsys
):
    words = [*command, "--retriever", "all", "--eval_file", str(tmp_path / "eval.jsonl"), "--json"]
    words[words.index("--embedding_model") + 1] = str(bert_embedding_folder)
    tuned = tmp_path / "tuned"
    shutil.copytree(bert_embedding_folder, tuned)
    assert main([*words, "--reranker", str(cross_encoder_folder), "--tuned_embedding_model", str(tuned)]) == 0
    found = json.loads(capsys.readouterr().out)["retrievers"]
    rows = {row["name"]: row for row in found["table"]}
    by = ["maxsim, weight 0.5", f"{cross_encoder_folder}, weight 0.5", f"{cross_encoder_folder}, weight 1.0"]
    reranked = [f"mix, weight 0.6, reranked by {name}" for name in by]
    assert list(rows)[10:13] == reranked and len(rows) == 13 + 12
    assert rows[reranked[2]]["flags"] == (
        f"--retriever mix --mix_weight 0.6 --reranker {cross_encoder_folder} --rerank_weight 1.0 --rerank_depth 20"
    )
    same = rows["mix, weight 0.6, tuned"]  # a copy of the model finds the same
    assert same["flags"] == f"--embedding_model {tuned} --retriever mix --mix_weight 0.6"
    assert same["recall_difference"]["value"] == 0 and found["difference_from"] == "mix, weight 0.6"
    for row in rows.values():
        gain = row["retrieval/recall@2"]["value"] - rows["mix, weight 0.6"]["retrieval/recall@2"]["value"]
        assert row["recall_difference"]["value"] == pytest.approx(gain) and row["recall_difference"]["n"] == 4
    assert main([*words, "--reranker", "none"]) == 0
    assert len(json.loads(capsys.readouterr().out)["retrievers"]["table"]) == 10


def test_the_questions_of_dialogues_are_rewritten_once_for_all_retrievers(command, tmp_path, capsys):
    with FakeServer(lambda body: "What does a card cost?") as server:
        words = ["--retriever", "all", "--eval_file", str(tmp_path / "eval.jsonl"), "--query_history", "rewrite"]
        words += ["--rewriter", f"openai:{server.url}", "--rewriter_model", "m", "--json"]
        assert main([*command, *words]) == 0
    assert len(server.requests) == 1 and json.loads(capsys.readouterr().out)["notes"] == []


@pytest.mark.parametrize(
    "words, said",
    [
        (["--reranker", "maxsim"], "--reranker: has no effect without --retriever all"),
        (["--tuned_embedding_model", "a/b"], "--tuned_embedding_model: has no effect without --retriever all"),
        (["--query_history", "rewrite"], "--query_history rewrite: needs a model that writes the question"),
        (["--retriever", "all"], "--eval_file: missing; --retriever all measures on its questions"),
        (["--test_file", "none.jsonl"], "--test_file: has no effect without --retriever all"),
    ],
)
def test_what_does_not_fit_together_is_one_line(command, capsys, words, said):
    assert main([*command, *words]) == 2
    assert said in capsys.readouterr().err
