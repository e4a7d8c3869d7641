"""Retrievers side by side: scores are those of their hits; the best is chosen on one file and shown on another."""

from __future__ import annotations

import json

import pytest
from conftest import tiny_documents, tiny_examples

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


@pytest.mark.parametrize(
    "words, said",
    [
        (["--retriever", "all"], "--eval_file: missing; --retriever all measures on its questions"),
        (["--test_file", "none.jsonl"], "--test_file: has no effect without --retriever all"),
    ],
)
def test_what_does_not_fit_together_is_one_line(command, capsys, words, said):
    assert main([*command, *words]) == 2
    assert said in capsys.readouterr().err
