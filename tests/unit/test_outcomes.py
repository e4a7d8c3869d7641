"""Every question has exactly one outcome, and the counts sum to all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import tiny_documents, tiny_examples

from groundtune.evaluation.outcomes import (
    FORGOT,
    LUCKY,
    MISSED,
    OUTCOMES,
    RIGHT,
    WRONG,
    Rightness,
    outcome,
    outcome_counts,
    with_outcomes,
)
from groundtune.schema import Hit, Prediction

EXAMPLE, OTHER = tiny_examples()[0], tiny_documents()[1]
GOLD = EXAMPLE.gold_documents[0]


def prediction(read=(), scores=None, hits=()) -> Prediction:
    found = tuple(Hit(document, 1.0) for document in hits or read)
    return Prediction(EXAMPLE, found, "x", True, len(read), 9, 1, scores or {}, read=tuple(read))


@pytest.mark.parametrize(
    "read, f1, expected",
    [
        ([OTHER, GOLD], 0.5, RIGHT),
        ([GOLD], 0.49, WRONG),
        ([OTHER], 0.49, MISSED),
        ([], 0.0, MISSED),
        ([OTHER], 1.0, LUCKY),
        ([], 0.5, LUCKY),
    ],
)
def test_the_outcome_is_that_of_evidence_and_rightness(read, f1, expected):
    assert outcome(prediction(read, {"generation/f1": f1}), Rightness()) == expected


def test_evidence_is_what_was_read_and_not_what_was_found():
    """If the prompt had no room for a gold passage, that is not the model's fault."""
    cut = prediction([OTHER], {"generation/f1": 0.0}, hits=[OTHER, GOLD])
    assert outcome(cut, Rightness()) == MISSED


def test_where_nothing_is_retrieved_no_retrieval_is_missed():
    made = [replace(prediction([], {"generation/f1": f1}), context="closed_book") for f1 in (0.2, 0.6)]
    counts = outcome_counts(with_outcomes(made, Rightness()))
    assert (counts[FORGOT], counts[LUCKY], counts[MISSED]) == (1, 1, 0) and sum(counts.values()) == 2


def test_what_is_right_is_for_the_user_to_say():
    made = prediction([GOLD], {"generation/f1": 0.4, "judge/correctness": 0.75})
    assert outcome(made, Rightness()) == WRONG
    assert outcome(made, Rightness("generation/f1", 0.4)) == RIGHT
    assert outcome(made, Rightness("judge/correctness", 0.75)) == RIGHT
    assert str(Rightness("judge/correctness", 0.75)) == "judge/correctness >= 0.75"


def test_counts_sum_to_all_and_those_without_a_score_are_counted_as_failed():
    made = [prediction([GOLD], {"generation/f1": f1}) for f1 in (0.2, 0.6, 0.9)] + [prediction([OTHER])]
    counts = outcome_counts(with_outcomes(made, Rightness()))
    assert counts == {RIGHT: 2, WRONG: 1, MISSED: 0, LUCKY: 0, "failed": 1}
    assert "failed" not in outcome_counts(with_outcomes(made[:3], Rightness()))
    assert [*outcome_counts([])] == [*OUTCOMES]
