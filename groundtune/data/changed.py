"""What became of the gold passages when the document database was made again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from groundtune.data.checks import ERROR, WARNING, Finding
from groundtune.data.overlap import HOLDS, Overlap
from groundtune.data.passages import article_of
from groundtune.schema import Document, Example


def changed_gold(
    examples: Sequence[Example], old: Sequence[Document], new: Sequence[Document], places: Sequence[str]
) -> Iterator[Finding]:
    """A finding for each gold passage of the old documents that the new ones do not have as it is.

    It is *moved* if a new passage holds its text under another title or source, *reworded* or cut elsewhere if one
    holds at least 60 % of it, and *gone* otherwise, which is an error. `places[i]` is the file and line of `new[i]`.
    """
    before, after = {document.id for document in old}, {document.id for document in new}
    bodies = {document.body.strip(): place for document, place in zip(new, places, strict=True)}
    overlap = Overlap(document.body for document in new)
    for example in examples:
        for i, gold in enumerate(example.gold_documents):
            if gold.id in before and gold.id not in after:
                severity, check, message = _became(gold, bodies, overlap, new, places)
                yield Finding(severity, check, example.source, f"gold_docs[{i}]", message)


def _became(
    gold: Document, bodies: dict[str, str], overlap: Overlap, new: Sequence[Document], places: Sequence[str]
) -> tuple[str, str, str]:
    if place := bodies.get(gold.body.strip()):
        return WARNING, "moved-gold", f"moved: {place} has this text under another title or source; use that passage"
    shares = overlap.shares(gold.body)
    best = max(shares, key=lambda j: (shares[j], article_of(new[j]) == article_of(gold)), default=None)
    if best is not None and shares[best] >= HOLDS:
        held = f"{places[best]} has {100 * shares[best]:.0f} % of its text"
        return (
            WARNING,
            "reworded-gold",
            f"reworded or cut elsewhere: {held}; check that the answer still holds, and use it",
        )
    return ERROR, "gone-gold", "gone: no new passage has its text; write the question again, or delete the line"
