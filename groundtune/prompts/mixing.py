"""The passages of a training row as flags choose them: their order, the distractors, and rows without gold.

A distractor never repeats a gold passage. Nothing here is remembered between rows: a row depends on its example, its
hits and the random generator alone, so another epoch draws other rows and a resumed run the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from groundtune.arguments import GOLD_FIRST, RANKED, SHUFFLED
from groundtune.data.evidence import gives_away, repeats
from groundtune.prompts.policies import Passages, as_one_block, distinct, required_first
from groundtune.schema import UNANSWERABLE, Document, Example, Hit

_TRIES = 1000  # random passages that are looked at for one row: nearly all may have an answer such as "Yes."


@dataclass(frozen=True)
class Mixing:
    """Draws a row's example and passages. `number`: of distractors; None: as many as make k + 1 passages in all.

    A row without gold reads as many passages as its row with gold would: their number must not tell them apart.
    """

    k: int
    documents: Sequence[Document] = field(repr=False)
    order: str = GOLD_FIRST
    number: int | None = None
    kinds: Sequence[str] = ("retrieved",)
    gold_dropout: float = 0.0
    abstention: str = UNANSWERABLE

    def __call__(self, example: Example, hits: Sequence[Hit], rng: Random) -> tuple[Example, Passages]:
        gold = distinct(example.gold_documents)
        total = self.k + 1 if self.number is None else self.number + max(len(gold), 1)
        if self.gold_dropout and example.has_evidence and rng.random() < self.gold_dropout:
            others = self._others(example, hits, total, rng, lambda passage: gives_away(passage, example))
            if others:  # or nothing would be left to abstain from
                return without_gold(example, self.abstention), required_first(
                    droppable=self._ordered(others, hits, rng)
                )
        gold = gold[:total]
        others = self._others(example, hits, total - len(gold), rng, lambda passage: repeats(passage, gold))
        if not gold:
            return example, required_first(droppable=self._ordered(others, hits, rng))
        return example, as_one_block(gold, *self._around(gold, others, hits, rng))

    def _others(
        self, example: Example, hits: Sequence[Hit], wanted: int, rng: Random, unfit: Callable[[Document], bool]
    ) -> list[Document]:
        """Distractors of each kind in turn; where all kinds run out, retrieved ones, then random ones."""
        kinds = rng.sample(list(self.kinds), len(self.kinds))
        chosen: dict[str, Document] = {}
        pools = [self._pool(kind, example, hits, wanted, rng) for kind in kinds]
        for pool in [_in_turn(pools), self._pool("retrieved", example, hits, wanted, rng), self._random(rng)]:
            for passage in pool:
                if len(chosen) >= wanted:
                    break
                if passage.id not in chosen and not unfit(passage):
                    chosen[passage.id] = passage
        return list(chosen.values())

    def _pool(self, kind: str, example: Example, hits: Sequence[Hit], wanted: int, rng: Random) -> Iterator[Document]:
        """The passages of a kind: retrieved ones best first, the others in a random order."""
        if kind == "random":
            return self._random(rng)
        if kind == "retrieved":
            return iter([hit.document for hit in hits])
        if kind == "given":
            return iter(rng.sample(example.hard_negatives, len(example.hard_negatives)))
        below = [hit.document for hit in hits[max(self.k, wanted) :]]
        return (passage for passage in rng.sample(below, len(below)) if not gives_away(passage, example))

    def _random(self, rng: Random) -> Iterator[Document]:
        """Documents in a random order, each once: a shuffle (Fisher and Yates) that goes only as far as it is read."""
        moved: dict[int, int] = {}
        for left in range(len(self.documents), max(len(self.documents) - _TRIES, 0), -1):
            place = rng.randrange(left)
            yield self.documents[moved.get(place, place)]
            moved[place] = moved.get(left - 1, left - 1)

    def _around(
        self, gold: Sequence[Document], others: list[Document], hits: Sequence[Hit], rng: Random
    ) -> tuple[list[Document], int]:
        """The distractors in order, and how many of them come before gold."""
        others = self._ordered(others, hits, rng)
        if self.order == GOLD_FIRST:
            return others, 0
        ranks, ids = _ranks(hits), {document.id for document in gold}
        found = min((rank for id, rank in ranks.items() if id in ids), default=len(hits))
        if self.order == RANKED and found < len(gold) + len(others):
            return others, sum(ranks.get(other.id, len(hits)) < found for other in others)
        return others, rng.randint(0, len(others))

    def _ordered(self, others: list[Document], hits: Sequence[Hit], rng: Random) -> list[Document]:
        if self.order == SHUFFLED:
            return rng.sample(others, len(others))
        ranks = _ranks(hits)
        return sorted(others, key=lambda other: ranks.get(other.id, len(hits)))


def without_gold(example: Example, abstention: str = UNANSWERABLE) -> Example:
    """The example as a question that its passages do not answer: its answer says so."""
    return replace(example, answer=abstention, gold_answers=(), gold_documents=(), answerable=False)


def _ranks(hits: Sequence[Hit]) -> dict[str, int]:
    return {hit.document.id: rank for rank, hit in reversed(list(enumerate(hits)))}


def _in_turn(pools: Sequence[Iterator[Document]]) -> Iterator[Document]:
    """One of each pool at a time, until all are empty."""
    left = list(pools)
    while left:
        for pool in list(left):
            if (passage := next(pool, None)) is None:
                left.remove(pool)
            else:
                yield passage
