"""Groundedness depends on the texts alone: words and quotations found in no passage lower it."""

from __future__ import annotations

import pytest

from groundtune.evaluation.groundedness import groundedness_scores, missing_quotes, quoted_spans
from groundtune.schema import Document

PASSAGES = [Document("The library opens at nine."), Document("x", "Title: Price\nA card costs four coins a year.")]


@pytest.mark.parametrize(
    "answer, share",
    [
        ("At nine.", 1.0),
        ("The library opens at nine, and a card costs four coins.", 8 / 9),  # "and" is in neither; no articles
        ("Price: four coins", 1.0),  # what the model read includes titles
        ("Nobody knows.", 0.0),
        ("It opens at ten.", 2 / 4),
        ("nine nine nine", 1 / 3),  # said three times, found once
        ("", 0.0),
    ],
)
def test_the_share_of_words_that_stand_in_any_passage(answer, share):
    scores = groundedness_scores(answer, PASSAGES)
    assert scores == {"grounded/tokens": pytest.approx(share)}


@pytest.mark.parametrize(
    "answer, spans",
    [
        ('It says "opens at nine" there.', ["opens at nine"]),
        ("It says “opens at nine” and «costs four coins», „a card costs“.", None),
        ('The "library" has a "red door".', []),  # names and terms
        ("It's the users' own 'opens at nine'.", []),  # apostrophes are no quotation marks
        ('A stray " mark and nothing more.', []),
        ('An inch is 2" and this\nis 3" long here.', []),  # not over a line end
    ],
)
def test_quotations_are_spans_of_three_words_in_quotation_marks(answer, spans):
    expected = ["opens at nine", "costs four coins", "a card costs"] if spans is None else spans
    assert quoted_spans(answer) == expected


def test_a_quotation_must_stand_in_one_passage_letter_case_and_space_aside():
    assert missing_quotes('"the LIBRARY  opens at nine." said', PASSAGES) == []
    assert missing_quotes('"the library opens at ten"', PASSAGES) == ["the library opens at ten"]
    assert missing_quotes('"at nine. Title: Price"', PASSAGES) == ["at nine. Title: Price"]  # over two passages


def test_the_share_of_quotations_found_is_there_only_where_something_is_quoted():
    answer = '"opens at nine" and "costs four coins" and "closes at six"'
    assert groundedness_scores(answer, PASSAGES)["grounded/quotes"] == pytest.approx(2 / 3)
    assert "grounded/quotes" not in groundedness_scores("opens at nine", PASSAGES)
