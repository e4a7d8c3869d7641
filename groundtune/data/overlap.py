"""Which passages hold the same text: the share of a text's 5-grams of words that another passage has too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from groundtune.data.words import words

GRAM = 5  # words; shorter runs are common phrases, longer ones miss text that was cut elsewhere
_MOST_OWNERS = 64
# Odd numbers, so that multiplying by one loses no bit of a hash, and each place in a gram counts differently.
_FACTORS = np.random.default_rng(0).integers(2**63, size=GRAM, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
HOLDS = 0.6  # a passage that has this share of a text holds it, as in LocalRQA's "likely accuracy"

Hashes = NDArray[np.uint64]


class Overlap:
    """The 5-grams of many passages, for finding those that hold (most of) a text; about 12 bytes a word."""

    def __init__(self, texts: Iterable[str]) -> None:
        hashes, owners = [], []
        for i, text in enumerate(texts):
            found = grams(text)
            hashes.append(found)
            owners.append(np.full(len(found), i, np.int32))
        every = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        order = np.argsort(every, kind="stable")
        self._hashes: Hashes = every[order]
        self._owners = np.concatenate(owners)[order] if owners else np.empty(0, np.int32)
        self._sizes = np.array(list(map(len, hashes)), np.int64)

    def shares(self, text: str) -> dict[int, float]:
        """Position of each passage that has any 5-gram of the text -> the share of the text's 5-grams that it has.

        A 5-gram of more than 64 passages, such as one of a header, counts for the first of them only, so that the time
        for all passages grows with their number and not with its square.
        """
        positions, counts, length = self._common(text, _MOST_OWNERS)
        return dict(zip(positions.tolist(), (counts / length).tolist()))

    def likeness(self, text: str) -> dict[int, float]:
        """Position of each passage that has any 5-gram of the text -> the larger of the shares that the passage has of
        the text, and the text of the passage; every 5-gram counts for all."""
        positions, counts, length = self._common(text, None)
        return dict(zip(positions.tolist(), (counts / np.minimum(length, self._sizes[positions])).tolist()))

    def _common(self, text: str, owners: int | None) -> tuple[NDArray[np.int32], NDArray[np.intp], int]:
        """The passages that share 5-grams with the text, how many each, and how many the text has (1 for none)."""
        found = grams(text)
        begin, end = (np.searchsorted(self._hashes, found, side) for side in ("left", "right"))
        end = end if owners is None else np.minimum(end, begin + owners)
        pieces = [self._owners[b:e] for b, e in zip(begin, end)]
        positions, counts = np.unique(np.concatenate([self._owners[:0], *pieces]), return_counts=True)
        return positions, counts, max(1, len(found))

    def holding(self, text: str, least: float = HOLDS) -> set[int]:
        """Positions of the passages that have at least this share of the text's 5-grams."""
        return {i for i, share in self.shares(text).items() if share >= least}


def share_held(text: str, passage: str) -> float:
    """The share of the text's 5-grams that the passage has; 0 for a text without words."""
    return share_of(grams(text), grams(passage))


def share_of(text: Hashes, passage: Hashes) -> float:
    """`share_held` of texts whose `grams` are known."""
    return float(np.isin(text, passage).mean()) if len(text) else 0.0


def grams(text: str) -> Hashes:
    """Hashes of the distinct 5-grams of a text; a shorter text is a single gram. Equal only within a process."""
    ids = np.fromiter(map(hash, words(text)), np.int64).astype(np.uint64)
    length = min(GRAM, len(ids))
    if not length:
        return np.empty(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(ids, length)
    return np.unique((windows * _FACTORS[:length]).sum(axis=1, dtype=np.uint64))


@lru_cache(maxsize=100_000)
def grams_of(text: str) -> Hashes:
    """`grams` of a passage that is compared again and again."""
    return grams(text)


def twins(texts: Sequence[str], least: float) -> dict[int, int]:
    """Position of each text that another holds -> position of the first one that holds most of it."""
    overlap, found = Overlap(texts), {}
    for i, text in enumerate(texts):
        others = {j: share for j, share in overlap.shares(text).items() if j != i and share >= least}
        if others:
            found[i] = min(others, key=lambda j: (-others[j], j))
    return found
