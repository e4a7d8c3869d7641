"""Guesses are the tokens that followed the last occurrence of the same tokens."""

from __future__ import annotations

import random

import pytest

from groundtune.model.lookup import Lookup


def by_search(ids: list[int], at_most: int) -> list[int]:
    """The expected guess, by searching every earlier position, the last one first."""
    for n in (3, 2):
        for start in range(len(ids) - n - 1, -1, -1):
            if ids[start : start + n] == ids[-n:]:
                return ids[start + n : start + n + at_most]
    return []


@pytest.mark.parametrize("words", [2, 4, 12])
def test_the_guess_is_what_a_search_of_the_whole_sequence_finds(words):
    rng = random.Random(words)
    for length in (*range(8), 20, 100):
        ids = [rng.randrange(words) for _ in range(length)]
        for at_most in (0, 1, 5):
            assert Lookup(ids).guess(at_most) == by_search(ids, at_most), ids


def test_a_sequence_may_come_in_parts():
    rng = random.Random(0)
    ids = [rng.randrange(5) for _ in range(60)]
    lookup = Lookup(ids[:10])
    for start in range(10, 60, 7):
        lookup.extend(ids[start : start + 7])
        assert lookup.guess(5) == by_search(ids[: start + 7], 5)


def test_three_equal_tokens_say_more_than_two_and_the_last_place_more_than_the_first():
    assert Lookup([1, 2, 3, 40, 9, 2, 3, 50, 1, 2, 3]).guess(1) == [40]
    assert Lookup([2, 3, 40, 2, 3, 50, 2, 3]).guess(1) == [50]
    assert Lookup([3, 40, 8, 3]).guess(1) == []  # a single token says nothing
