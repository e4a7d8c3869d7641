"""Prompt lookup: an answer is likely to repeat what followed the same few tokens in its passages or in itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_TOKENS = (3, 2)  # length of a match, longer first; a single token matches too often


class Lookup:
    """A growing sequence, and what followed each short run of its tokens when it last occurred.

    Prompt lookup decoding (Saxena, 2023, https://github.com/apoorvumang/prompt-lookup-decoding): a model reads several
    tokens in about the time of one, so a guess costs little, and it is kept only if the model would choose the same.
    """

    def __init__(self, ids: Iterable[int]):
        self.ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        for id in ids:
            for n in _TOKENS:
                self._next[tuple(self.ids[-n:])] = len(self.ids)
            self.ids.append(id)

    def guess(self, at_most: int) -> Sequence[int]:
        """Up to `at_most` tokens that may come next; none if the last tokens have not occurred before."""
        found = (self._next.get(tuple(self.ids[-n:])) for n in _TOKENS)
        start = next((start for start in found if start is not None), len(self.ids))
        return self.ids[start : start + at_most]
