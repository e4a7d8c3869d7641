"""Policies: which passages go into a training row, and which into the prompt of a question.

A policy decides for one example: `policy(example, hits, rng)` returns passages in the order of the prompt, each
droppable or not. Passages with equal stripped texts are the same passage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from groundtune.data.evidence import repeats
from groundtune.schema import Document, Example, Hit


@dataclass(frozen=True)
class Passage:
    """A passage of one prompt. If the prompt is too long, `droppable` passages are dropped, the last one first."""

    document: Document
    droppable: bool = False


Passages = tuple[Passage, ...]
Policy = Callable[[Example, Sequence[Hit], Random], Passages]
# What a row teaches and reads: like a policy, but the example may become another.
Draws = Callable[[Example, Sequence[Hit], Random], tuple[Example, Passages]]


def kept(passages: Sequence[Passage], dropped: int = 0, required_dropped: int = 0) -> tuple[Document, ...]:
    """The documents in prompt order, without the last `dropped` droppable and `required_dropped` required ones."""
    may_go = [i for i, passage in enumerate(passages) if passage.droppable]
    must_stay = [i for i, passage in enumerate(passages) if not passage.droppable]
    gone = {*may_go[len(may_go) - dropped :], *must_stay[len(must_stay) - required_dropped :]}
    return tuple(passage.document for i, passage in enumerate(passages) if i not in gone)


def gold_passages(example: Example, hits: Sequence[Hit] = (), rng: Random | None = None) -> Passages:
    """SFT: the gold passages only. An unanswerable question without them reads its hard negatives, or else its hits.

    What it reads then resembles what a search gives, so that the model learns to abstain from passages beside the
    question, and not from an empty prompt.
    """
    if example.gold_documents:
        return required_first(distinct(example.gold_documents))
    return required_first(droppable=distinct(example.hard_negatives or [hit.document for hit in hits]))


def reads_hits(example: Example) -> bool:
    """Whether `gold_passages` falls back to the hits: the example has no passages of its own."""
    return not example.gold_documents and not example.hard_negatives


def augmented_passages(example: Example, hits: Sequence[Hit], rng: Random | None = None) -> Passages:
    """SwR (`passage_aug`): gold passages, then retrieved ones that are not gold; with k hits at most k + 1 in total.

    An unanswerable question without gold passages reads its hits, or else its hard negatives.
    """
    if not example.gold_documents:
        return required_first(droppable=distinct([hit.document for hit in hits] or example.hard_negatives))
    at_most = len(hits) + 1
    gold = distinct(example.gold_documents)[:at_most]
    seen = {document.id for document in example.gold_documents}
    retrieved = [d for d in distinct(hit.document for hit in hits) if d.id not in seen]
    return required_first(gold, retrieved[: at_most - len(gold)])


def retrieved_passages(example: Example, hits: Sequence[Hit], rng: Random | None = None) -> Passages:
    """Evaluation and serving: the retrieved passages, best first. Gold passages are never added."""
    return required_first(droppable=distinct(hit.document for hit in hits))


def no_passages(example: Example, hits: Sequence[Hit], rng: Random | None = None) -> Passages:
    """Closed book: no passages, so the model answers from memory."""
    return ()


def gold_and_distractors(example: Example, hits: Sequence[Hit], rng: Random) -> Passages:
    """Gold passages among hard negatives and retrieved passages; in total at most as many as were retrieved.

    There are fewer where some of them repeat gold: `gold_among` reads as many as it is told, from a deeper search.
    The order is random, but the same for every model, and gold passages stay together. If this scores lower than gold
    passages alone, the distractors are the cause.
    """
    gold = distinct(example.gold_documents)
    candidates = [*example.hard_negatives, *(hit.document for hit in hits)]
    distractors = _beside(gold, candidates, max(len(hits) - len(gold), 0))
    rng.shuffle(distractors)
    return as_one_block(gold, distractors, rng.randint(0, len(distractors)))


def gold_among(example: Example, hits: Sequence[Hit], rng: Random, number: int, before: int | None = None) -> Passages:
    """Gold passages, side by side, among the first `number` retrieved passages that do not repeat them, in the order of
    the search; `before` of these come first, or at random from none to all, but the same for every model."""
    gold = distinct(example.gold_documents)
    others = _beside(gold, [*(hit.document for hit in hits), *example.hard_negatives], number)
    return as_one_block(gold, others, rng.randint(0, len(others)) if before is None else before)


def _beside(gold: Sequence[Document], candidates: Sequence[Document], number: int) -> list[Document]:
    """The first `number` candidates that do not repeat a gold passage."""
    return [other for other in distinct(candidates) if not repeats(other, gold)][:number]


# Contexts of an evaluation. Only `retrieved` is end to end; the others show how much the retriever costs.
CONTEXTS: dict[str, Policy] = {
    "closed_book": no_passages,
    "retrieved": retrieved_passages,
    "gold": gold_passages,
    "gold_and_distractors": gold_and_distractors,
}
# Those of a study besides: the same gold passages first or last of four, and among ever more distractors.
RANKS, DISTRACTORS = (1, 4), (0, 1, 2, 4, 7)
STUDIED: dict[str, Policy] = {
    **{f"gold_at_{rank}": partial(gold_among, number=max(RANKS) - 1, before=rank - 1) for rank in RANKS},
    **{f"gold_with_{number}": partial(gold_among, number=number) for number in DISTRACTORS},
}


def draw(seed: int, epoch: int, number: int | str) -> Random:
    """The random generator for one example in one epoch; equal arguments give equal draws, also after a resume."""
    return Random(f"{seed} {epoch} {number}")  # noqa: S311  is to be repeatable, unlike a secret


def required_first(required: Sequence[Document] = (), droppable: Sequence[Document] = ()) -> Passages:
    """Required passages, then droppable ones."""
    return (*(Passage(d) for d in required), *(Passage(d, droppable=True) for d in droppable))


def as_one_block(gold: Sequence[Document], others: Sequence[Document], before: int) -> Passages:
    """Gold passages side by side, required, among droppable ones, `before` of which come first."""
    first, last = required_first(droppable=others[:before]), required_first(droppable=others[before:])
    return (*first, *required_first(gold), *last)


def distinct(documents: Iterable[Document]) -> tuple[Document, ...]:
    """The documents in their order, each once."""
    first: dict[str, Document] = {}
    for document in documents:
        first.setdefault(document.id, document)
    return tuple(first.values())
