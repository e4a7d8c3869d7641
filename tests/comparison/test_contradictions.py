"""The contradiction rules against 200 pairs labelled by hand: precision decides how far they are trusted.

The pairs were written before the rules; the first 100 were looked at while the rules were written, the others never.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groundtune.evaluation.contradictions import contradiction_scores, contradicts
from groundtune.schema import Example

PAIRS = [json.loads(line) for line in Path(__file__).with_name("contradictions.jsonl").read_text("utf-8").splitlines()]


def test_the_pairs_are_200_and_half_of_them_contradict():
    assert len(PAIRS) == 200 == len({(row["question"], row["answer"]) for row in PAIRS})
    assert sum(row["contradicts"] for row in PAIRS) == 100


@pytest.mark.parametrize(("pairs", "recall"), [(PAIRS[:100], 0.9), (PAIRS[100:], 0.9)], ids=["seen", "unseen"])
def test_precision_is_at_least_95_percent_on_both_halves(pairs, recall):
    found = [row for row in pairs if contradicts(row["answer"], row["gold_answer"], row["question"])]
    right = sum(row["contradicts"] for row in found)
    assert right / len(found) >= 0.95, [row for row in found if not row["contradicts"]]
    assert right / sum(row["contradicts"] for row in pairs) >= recall


def test_an_answer_never_contradicts_itself_nor_what_is_empty():
    for row in PAIRS:
        assert not contradicts(row["gold_answer"], row["gold_answer"], row["question"])
        assert not contradicts("", row["gold_answer"], row["question"])


def test_a_wrong_yes_is_found_though_its_words_are_shared():
    assert contradicts("Yes.", "No, it is free of charge.", "Is there a fee?")
    assert not contradicts("I don't know.", "No, it is free of charge.", "Is there a fee?")


def test_the_score_takes_the_kindest_of_several_answers_and_leaves_unanswerable_questions_out():
    example = Example("How long?", "Two weeks.", (), gold_answers=("Two weeks.", "30 days."))
    assert contradiction_scores("30 days", example) == {"generation/contradiction": 0.0}
    assert contradiction_scores("60 days", example) == {"generation/contradiction": 1.0}
    assert contradiction_scores("60 days", Example("How long?", "Unknown.", (), answerable=False)) == {}
