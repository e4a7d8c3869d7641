"""Predictions survive writing and reading, and none drops out of a mean silently."""

from __future__ import annotations

import json

import pytest
from conftest import tiny_documents, tiny_examples
from damages import HARMLESS_PREDICTIONS, PREDICTIONS, as_line

from groundtune.errors import DataError
from groundtune.evaluation.predictions import evaluation_of, read_predictions, write_predictions
from groundtune.schema import Document, Hit, Prediction


def predictions() -> list[Prediction]:
    documents, examples = tiny_documents(), tiny_examples()
    hits = tuple(Hit(document, 1 / (1 + i)) for i, document in enumerate(documents[:3]))
    nasty = 'two\u2028lines \u0085 "quoted" 日本\n'
    return [
        Prediction(examples[0], hits, nasty, True, 2, 90, 3, {"generation/f1": 0.25}, read=tuple(documents[:2])),
        Prediction(examples[2], (), "gold", False, 1, 90, 1, {"generation/f1": 1.0, "grounded/quotes": 1.0}, "gold",
                   examples[2].gold_documents, outcome="answered right", judged={"correctness": "[[5]]"}),
        Prediction(examples[1], hits, "", True, 0, None, None, {}, failure="timeout"),
    ]  # fmt: skip


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "new" / "predictions.jsonl"
    write_predictions(path, evaluation_of(predictions()))
    assert read_predictions(path) == predictions()
    assert [p.read[0].metadata for p in read_predictions(path)[:2]] == [{"title": "Opening"}, {"title": "Price"}]


def test_files_of_runs_from_before_contexts_are_read_as_retrieved(tmp_path):
    row = {name: value for name, value in predictions()[0].to_dict().items() if name != "context"}
    (tmp_path / "old.jsonl").write_text(json.dumps(row) + "\n")
    assert read_predictions(tmp_path / "old.jsonl") == predictions()[:1]


def test_what_was_read_is_each_text_once():
    a, same = Document("text", metadata={"n": 1}), Document("x", "text")
    made = Prediction(tiny_examples()[0], (Hit(a, 2.0), Hit(same, 1.0)), "x", True, 1, 9, 1, read=(a,))
    assert json.loads(json.dumps(made.to_dict()))["passages_read"] == 1


def test_a_mean_is_over_those_that_have_the_metric_and_says_of_how_many():
    evaluation = evaluation_of(predictions())
    assert (evaluation.n, evaluation.failed) == (3, 1)
    assert evaluation.metrics["generation/f1"].value == pytest.approx(0.625)
    shown = evaluation.to_dict()
    assert shown["n"] == 3 and shown["failed"] == 1
    assert shown["generation/f1"]["scored"] == 2 and shown["grounded/quotes"]["scored"] == 1
    assert "scored" not in evaluation_of(predictions()[:2]).to_dict()["generation/f1"]


@pytest.mark.parametrize(
    "content, problem",
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("{}\n", ":1: not a prediction"),
        ("not json\n{}\n[]\n", ":3: not a prediction"),
    ],
)
def test_a_file_that_is_none_is_refused_line_by_line(tmp_path, content, problem):
    path = tmp_path / "predictions.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    assert problem in caught.value.problems[-1]
    assert len(caught.value.problems) == max(1, len((content or "").splitlines()))


@pytest.mark.parametrize("values", [
    {"question": 17}, {"answer": None}, {"outcome": [1]},
    {"judged": [1]}, {"judged": {"a": 1}}, {"gold_answers": [1, 2]},
    {"scores": {"generation/f1": 1e999}}, {"scores": {"generation/f1": "nan"}}, {"passages_read": "x"},
    {"question": "\ud800?"}, {"answer": "\udfff"}, {"gold_answer": "a\ud83d"}, {"gold_answers": ["a", "\ud83d"]},
    {"judged": {"a": "\ud800"}}, {"failure": "\ud800"},
    {"scores": {"people/zzz": 1.0}}, {"scores": {"foo/recall@5": 1.0}}, {"scores": {"judge/a.b-c": 1.0}},
    {"scores": {"retrieval/recall@0": 1.0}}, {"scores": {"latency/recall@x": 1.0}}, {"scores": {"judge/x/y": 0.5}},
    {"scores": {"generation/f1": 50}}, {"scores": {"generation/f1": 1e308}}, {"scores": {"judge/x": -0.1}},
    {"scores": {"people/correct": 1.01}}, {"scores": {"generation/new_tokens": -1}},
    {"scores": {"latency/generation_s": -1}}, {"scores": {"generation/new_tokens": 1e308}},
], ids=str)  # fmt: skip
def test_a_prediction_with_odd_values_is_refused_by_its_line(tmp_path, values):
    (tmp_path / "p.jsonl").write_text(json.dumps(predictions()[0].to_dict() | values))
    with pytest.raises(DataError, match="p.jsonl:1: not a prediction"):
        read_predictions(tmp_path / "p.jsonl")


def test_shares_have_limits_and_tokens_and_seconds_have_others(tmp_path):
    scores = {"generation/f1": 1.0, "judge/x": 0.0, "generation/new_tokens": 900.0, "latency/generation_s": 70.5,
              "retrieval/recall@4": 0.5, "eval_retrieval/ndcg@4": 0.5}  # fmt: skip
    (tmp_path / "p.jsonl").write_text(json.dumps(predictions()[0].to_dict() | {"scores": scores}))
    assert read_predictions(tmp_path / "p.jsonl")[0].scores == scores


def test_a_line_that_nests_without_end_is_refused(tmp_path):
    (tmp_path / "p.jsonl").write_text("[" * 100_000)
    with pytest.raises(DataError, match="p.jsonl:1: not a prediction"):
        read_predictions(tmp_path / "p.jsonl")


@pytest.mark.parametrize("name", [name for name in PREDICTIONS if name not in HARMLESS_PREDICTIONS])
def test_a_line_that_is_no_prediction_is_one_line_with_its_number(tmp_path, name):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, evaluation_of([predictions()[i] for i in (0, 1, 2)]))
    as_line(PREDICTIONS[name])(path)
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:2: not a prediction (") and "; write it again" in problem and len(problem) < 400
