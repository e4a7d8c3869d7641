"""Prompt lookup: after the same few words, an answer is likely to go on as its passages did, or as it did itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_TOKENS = (3, 2)  # that must be the same, more of them first; after a single one too much is found


class Lookup:
    """A sequence as it grows, and what followed each few of its tokens when they were last seen.

    Prompt lookup decoding (Saxena, 2023, https://github.com/apoorvumang/prompt-lookup-decoding): a model reads several
    tokens in about the time of one, so a guess costs little, and the model's own choice decides whether it stands.
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
        """Up to `at_most` tokens that may come next; none where the last ones were not there before."""
        found = (self._next.get(tuple(self.ids[-n:])) for n in _TOKENS)
        start = next((start for start in found if start is not None), len(self.ids))
        return self.ids[start : start + at_most]
