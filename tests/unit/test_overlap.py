"""Passages that hold the same text are found, and the shares are those of a plain computation."""

from __future__ import annotations

import random

import pytest

from groundtune.data.overlap import GRAM, Overlap, share_held, twins
from groundtune.data.words import words


def plain(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    n = min(GRAM, len(found))
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)} if n else set()


def texts(n: int = 60) -> list[str]:
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(12)]
    made = [" ".join(rng.choices(vocabulary, k=rng.randint(0, 80))) for _ in range(n)]
    return [*made, made[3] + ". And " + made[4], made[5].upper(), "", "three short words"]


def test_shares_are_those_of_sets_of_5_grams():
    made = texts()
    overlap = Overlap(made)
    for text in made:
        of_text = plain(text)
        expected = {
            i: len(of_text & plain(other)) / len(of_text) for i, other in enumerate(made) if of_text & plain(other)
        }
        assert overlap.shares(text) == pytest.approx(expected)
        assert {i: share_held(text, other) for i, other in enumerate(made) if share_held(text, other)} == pytest.approx(
            expected
        )
        assert overlap.holding(text, 0.5) == {i for i, share in expected.items() if share >= 0.5}


def test_a_text_is_held_by_one_that_contains_it_and_not_the_other_way_round():
    long = "Shops open at nine and close at six, except on Sundays, when they stay closed all day long."
    short = "Shops open at nine and close at six, except on Sundays"
    assert share_held(short, long) == 1 and share_held(long, short) < 0.7
    assert twins([long, "Dogs wait outside the shop at the red door.", short], 0.9) == {2: 0}
    assert twins([long, long], 0.9) == {0: 1, 1: 0}


def test_text_that_all_passages_share_costs_no_more_than_other_text():
    header = "This page is part of the handbook of the house and may change at any time."
    overlap = Overlap([f"{header} Room {i} opens at {i} in the morning and closes late." for i in range(500)])
    shares = overlap.shares(f"{header} Room 400 opens at 400 in the morning and closes late.")
    assert len(shares) <= 65 and 400 in shares and shares[0] > 0.6


def test_word_order_counts():
    assert share_held("one two three four five six", "six five four three two one") == 0


def test_likeness_is_the_larger_of_both_shares_and_counts_every_5_gram():
    made = [*texts(), *[f"all of these begin like this {n}" for n in range(100)]]
    overlap = Overlap(made)
    for text in made[-1:] + made[:20]:
        of_text, of_each = plain(text), list(map(plain, made))
        expected = {
            i: len(of_text & other) / min(len(of_text), len(other))
            for i, other in enumerate(of_each)
            if of_text & other
        }
        assert overlap.likeness(text) == pytest.approx(expected)
    assert overlap.likeness("?") == Overlap([]).likeness("w1 w2") == {}
