"""Questions -> the passages that a retriever learns to tell apart: gold ones, and negatives that look like them.

A negative that holds the answer would teach the opposite of what is right. So passages are left out that repeat or
overlap a gold passage, or that a search likes nearly as much as gold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from groundtune.data.evidence import REPEATS, likeness
from groundtune.data.groups import connected
from groundtune.data.overlap import HOLDS, Overlap
from groundtune.retrieval.queries import queries_of
from groundtune.retrieval.retrievers import Retriever
from groundtune.schema import Document, Example, Hit

TOO_CLOSE = 0.95  # of the gold passage's score
_DEPTH = 100  # passages among which negatives are looked for
# Why a passage is no negative, or where it comes from -> how a note counts it.
WORDS = {
    "given": "given",
    "mined": "found by the search",
    "twin": f"left out because they hold {HOLDS:.0%} of a gold passage",
    "overlap": f"left out because they overlap a gold passage by {REPEATS:.0%}",
    "close": f"left out because they score above {TOO_CLOSE} of gold",
}


@dataclass(frozen=True)
class Pair:
    """One row of training: a question (or a part of its query), a gold passage, and passages without the answer."""

    question: str
    gold: Document
    negatives: tuple[Document, ...]


def found_negatives(
    examples: Sequence[Example], mix: Retriever, history: str, wanted: int
) -> tuple[list[tuple[Document, ...]], Counter[str]]:
    """Up to `wanted` negatives of each example, those of the file first, and how many passages were what (`WORDS`)."""
    if not wanted:
        return [()] * len(examples), Counter()
    counts: Counter[str] = Counter()
    hits = mix.search(queries_of(examples, history), _DEPTH)
    return [_negatives(example, found, wanted, counts) for example, found in zip(examples, hits, strict=True)], counts


def _negatives(example: Example, hits: Sequence[Hit], wanted: int, counts: Counter[str]) -> tuple[Document, ...]:
    scores = {hit.document.id: hit.score for hit in hits}
    gold = {document.id for document in example.gold_documents}
    # The score of a gold passage that was not found is below all others.
    limit = TOO_CLOSE * min((scores.get(id, 0.0) for id in gold), default=0.0)
    chosen: dict[str, Document] = {}
    for origin, document in _candidates(example, hits):
        if len(chosen) == wanted:
            break
        if document.id in gold or document.id in chosen:
            continue
        why = _overlap(document, example) or ("close" if scores.get(document.id, 0.0) > limit else "")
        counts[why or origin] += 1
        if not why:
            chosen[document.id] = document
    return tuple(chosen.values())


def _candidates(example: Example, hits: Sequence[Hit]) -> Iterator[tuple[str, Document]]:
    yield from (("given", document) for document in example.hard_negatives)
    yield from (("mined", hit.document) for hit in hits)


def _overlap(document: Document, example: Example) -> str:
    """`twin` or `overlap` if the passage says what a gold passage says, else empty."""
    share = likeness(document, example.gold_documents)
    return "twin" if share >= HOLDS else "overlap" if share >= REPEATS else ""


def kinds_of(documents: Sequence[Document]) -> list[int]:
    """For each passage the number of its kind: passages that hold most of each other's text are of one kind.

    In a batch, a passage of the same kind as gold would be a negative with the answer.
    """
    overlap = Overlap(document.body for document in documents)
    near = [sorted({i, *overlap.holding(document.body)}) for i, document in enumerate(documents)]
    return connected([[str(j) for j in these] for these in near])


def pairs_of(
    examples: Sequence[Example], questions: Sequence[Sequence[str]], negatives: Sequence[tuple[Document, ...]]
) -> list[Pair]:
    """A row for each gold passage of an example and each text that a search asks for it."""
    return [
        Pair(question, gold, its)
        for example, asked, its in zip(examples, questions, negatives, strict=True)
        for gold in example.gold_documents
        for question in asked
    ]
