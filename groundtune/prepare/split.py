"""`groundtune split`: one file of examples -> train, eval and test, with no passage or article in two of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from operator import attrgetter

from groundtune.data.groups import connected
from groundtune.data.passages import ARTICLE, article_of
from groundtune.errors import DataError
from groundtune.schema import Document, Example


def split_examples(
    examples: Sequence[Example], by: str, shares: dict[str, float], seed: int
) -> dict[str, list[Example]]:
    """The examples of each split, in the order of the file; `shares` are the shares of all but `train`.

    Examples that share a gold passage (`by` "passage") or an article stay together. Such groups are drawn at random
    until a split has its share, so a share is reached or exceeded by less than one group.

    Raises `DataError` if an example's gold passages name no article, or if a split would be empty.
    """
    groups = groups_of(examples, by)
    number = len(groups)
    random.Random(seed).shuffle(groups)  # noqa: S311  is to be repeatable, unlike a secret
    chosen: dict[str, list[int]] = {}
    for name, share in shares.items():
        chosen[name] = []
        while groups and len(chosen[name]) < share * len(examples):
            chosen[name] += groups.pop()
    chosen["train"] = [i for group in groups for i in group]
    if empty := [name for name in ("train", *shares) if not chosen[name] and shares.get(name, 1)]:
        raise DataError([f"{' and '.join(empty)}: nothing left; the examples form {number} groups by {by}"])
    return {name: [examples[i] for i in sorted(chosen[name])] for name in ("train", *shares) if chosen[name]}


def groups_of(examples: Sequence[Example], by: str) -> list[list[int]]:
    """The positions of examples that must stay together, in the order of the file.

    Raises `DataError` if examples go `by` article and the passages of some name none.
    """
    key: Callable[[Document], str] = article_of if by == "article" else attrgetter("id")
    keys = [[key(document) for document in example.gold_documents] for example in examples]
    problems = [
        f"{example.source}: gold_docs: metadata has none of {', '.join(ARTICLE)}; use --by passage"
        for example, its in zip(examples, keys, strict=True)
        if not all(its)
    ]
    if problems:
        raise DataError([*problems[:5], *([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])])
    groups: dict[int, list[int]] = {}
    for i, number in enumerate(connected(keys)):
        groups.setdefault(number, []).append(i)
    return list(groups.values())


def share_problems(eval_share: float, test_share: float) -> list[str]:
    """Problems with the shares of eval and test, one line each."""
    if eval_share + test_share < 1:
        return []
    return ["--eval_share and --test_share: leave nothing to train on; their sum must be below 1"]
