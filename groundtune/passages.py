"""Which passages an example is trained on, and which a question is answered from.

One policy for training and serving: passages are told apart by their stripped text, and the order of a list is the
order in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from groundtune.schema import Document, Example, Hit


@dataclass(frozen=True)
class Passages:
    """Passages for one prompt; when it gets too long, the last of `optional` goes first, and `required` never."""

    required: tuple[Document, ...] = ()
    optional: tuple[Document, ...] = ()

    @property
    def all(self) -> tuple[Document, ...]:
        """In the order of the prompt."""
        return self.required + self.optional


def gold_passages(example: Example, hits: Sequence[Hit], k: int) -> Passages:
    """SFT: the gold passages, whatever was retrieved."""
    return Passages(required=_distinct(example.gold_documents))


def augmented_passages(example: Example, hits: Sequence[Hit], k: int) -> Passages:
    """SwR: `passage_aug`, the gold passages and then retrieved ones that are not gold, at most k + 1 in all."""
    gold = _distinct(example.gold_documents)[: k + 1]
    seen = {document.id for document in example.gold_documents}
    retrieved = [d for d in _distinct(hit.document for hit in hits[:k]) if d.id not in seen]
    return Passages(required=gold, optional=tuple(retrieved[: k + 1 - len(gold)]))


def retrieved_passages(hits: Sequence[Hit]) -> Passages:
    """Evaluation and serving: what was retrieved, best first. Gold passages have no way in."""
    return Passages(optional=_distinct(hit.document for hit in hits))


def no_passages(example: Example, hits: Sequence[Hit]) -> Passages:
    """What the model knows by itself."""
    return Passages()


def gold_and_distractors(example: Example, hits: Sequence[Hit]) -> Passages:
    """The gold passages, then the example's hard negatives and what was retrieved, as many in all as were retrieved.

    Gold comes first, as in the rows that SwR trains on; where it falls behind `gold_passages` alone, the distractors
    did that.
    """
    gold = _distinct(example.gold_documents)
    seen = {document.id for document in gold}
    others = _distinct([*example.hard_negatives, *(hit.document for hit in hits)])
    distractors = [document for document in others if document.id not in seen]
    return Passages(required=gold, optional=tuple(distractors[: max(len(hits) - len(gold), 0)]))


# What a model may read when it is evaluated. Only `retrieved` is end to end; the others say what the retriever costs.
CONTEXTS: dict[str, Callable[[Example, Sequence[Hit]], Passages]] = {
    "closed_book": no_passages,
    "retrieved": lambda example, hits: retrieved_passages(hits),
    "gold": lambda example, hits: gold_passages(example, hits, 0),
    "gold_and_distractors": gold_and_distractors,
}


def _distinct(documents: Iterable[Document]) -> tuple[Document, ...]:
    first: dict[str, Document] = {}
    for document in documents:
        first.setdefault(document.id, document)
    return tuple(first.values())
