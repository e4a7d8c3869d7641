"""`groundtune split`: one file of examples -> train, eval and test, with no passage or article in two of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from groundtune.data.passages import ARTICLE, article_of
from groundtune.errors import DataError
from groundtune.schema import Example

BY = ("passage", "article")
_NAMES = ", ".join(ARTICLE)


def split_examples(
    examples: Sequence[Example], by: str, shares: dict[str, float], seed: int
) -> dict[str, list[Example]]:
    """The examples of each split, in the order of the file; `shares` are the shares of all but `train`.

    Examples that share a gold passage (`by` "passage") or an article stay together. Such groups are drawn at random
    until a split has its share, so a share is reached or exceeded by less than one group.

    Raises `DataError` if an example's gold passages name no article, or if a split would be empty.
    """
    groups = list(groups_of(examples, by))
    random.Random(seed).shuffle(groups)  # noqa: S311  is to be repeatable, unlike a secret
    chosen: dict[str, list[int]] = {}
    for name, share in shares.items():
        chosen[name] = []
        while groups and len(chosen[name]) < share * len(examples):
            chosen[name] += groups.pop()
    chosen["train"] = [i for group in groups for i in group]
    if empty := [name for name in ("train", *shares) if not chosen[name] and shares.get(name, 1)]:
        n = len(list(groups_of(examples, by)))
        raise DataError([f"{' and '.join(empty)}: nothing left; the examples form {n} groups by {by}"])
    return {name: [examples[i] for i in sorted(chosen[name])] for name in ("train", *shares) if chosen[name]}


def groups_of(examples: Sequence[Example], by: str) -> Iterator[list[int]]:
    """The positions of examples that must stay together, in the order of the file."""
    first: dict[str, int] = {}
    root = list(range(len(examples)))

    def top(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    problems = []
    for i, example in enumerate(examples):
        for document in example.gold_documents:
            key = document.id if by == "passage" else article_of(document)
            if not key:
                problems.append(f"{example.source}: gold_docs: metadata has none of {_NAMES}; use --by passage")
                break
            first_top, own = top(first.setdefault(key, i)), top(i)
            root[max(first_top, own)] = min(first_top, own)
    if problems:
        raise DataError([*problems[:5], *([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])])
    groups: dict[int, list[int]] = {}
    for i in range(len(examples)):
        groups.setdefault(top(i), []).append(i)
    yield from groups.values()
