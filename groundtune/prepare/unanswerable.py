"""Questions that the documents do not answer: made from those that they do, without every passage with the answer.

What is left beside the question is what a search would find without them, so abstaining is the right answer. Whole
passages lose all their questions, and never one that another question needs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from groundtune.data.evidence import REPEATS, SUPPORTED, held_by, numbers_among, told_by
from groundtune.data.overlap import Overlap
from groundtune.prompts.mixing import without_gold
from groundtune.schema import Document, Example


@dataclass(frozen=True)
class WithoutAnswers:
    """The examples of each split, some of them unanswerable now, and the documents that are left."""

    splits: dict[str, list[Example]]
    documents: list[Document]
    unanswerable: int
    removed: int

    @property
    def note(self) -> str:
        examples = sum(map(len, self.splits.values()))
        return (
            f"{self.unanswerable:,} of {examples:,} questions are unanswerable: {self.removed:,} passages with their "
            "answers were taken from the documents"
        )


def take_answers_away(
    splits: dict[str, list[Example]], documents: Sequence[Document], share: float, seed: int,
    evidence: Evidence | None = None,
) -> WithoutAnswers:  # fmt: skip
    """Make about this share of each split's questions unanswerable, and leave out all passages that answer them, by
    what is `evidence`."""
    evidence = evidence or Evidence(documents)
    needed = Counter(id for examples in splits.values() for example in examples for id in _gold_of(example))
    gone, lost, unanswerable = set[int](), set[Example](), 0
    for examples in splits.values():
        of_passages: dict[frozenset[str], list[Example]] = defaultdict(list)
        for example in examples:
            if example.has_evidence:
                of_passages[_gold_of(example)].append(example)
        groups = list(of_passages.items())
        Random(f"{seed} unanswerable").shuffle(groups)  # noqa: S311  is to be repeatable, unlike a secret
        wanted, taken = round(share * len(examples)), 0
        for gold, group in groups:
            if taken >= wanted:
                break
            removed = set[int]().union(*map(evidence.of, group))
            ids = {documents[i].id for i in removed}
            if all(needed[id] == (len(group) if id in gold else 0) for id in ids):  # by no question that keeps its own
                gone |= removed
                lost |= set(group)
                taken += len(group)
                needed.subtract(dict.fromkeys(gold, len(group)))
        unanswerable += taken
    left = [document for i, document in enumerate(documents) if i not in gone]
    ids = {documents[i].id for i in gone}
    made = {name: [_without(e, ids, e in lost) for e in examples] for name, examples in splits.items()}
    return WithoutAnswers(made, left, unanswerable, len(gone))


def _gold_of(example: Example) -> frozenset[str]:
    return frozenset(document.id for document in example.gold_documents)


def _without(example: Example, gone: set[str], lost: bool) -> Example:
    kept = tuple(document for document in example.hard_negatives if document.id not in gone)
    return replace(without_gold(example) if lost else example, hard_negatives=kept)


class Evidence:
    """Which documents of a whole database give an example's answer away: as `gives_away` says for each, but fast."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents
        self._overlap = Overlap(document.body for document in documents)
        self._with: dict[str, list[int]] = defaultdict(list)
        self._of_id: dict[str, list[int]] = defaultdict(list)
        for i, document in enumerate(documents):
            self._of_id[document.id].append(i)
            for reading in held_by(document.text):
                self._with[reading].append(i)

    def of(self, example: Example) -> set[int]:
        """Positions of the documents."""
        found = self.repeating(example)
        for answer in example.acceptable_answers:
            added = told_by(answer, example.question)
            counts = Counter(i for one in added for i in self._holding(one))
            near = {i for i, count in counts.items() if count >= SUPPORTED * len(added)}
            if numbers := numbers_among(added):
                near &= set[int]().union(*map(self._holding, numbers))
            found |= near
        return found

    def repeating(self, example: Example) -> set[int]:
        """Positions of the documents that repeat a gold passage."""
        same = {i for gold in example.gold_documents for i in self._of_id.get(gold.id, ())}
        alike = (self._overlap.likeness(gold.body) for gold in example.gold_documents)
        return same | {i for found in alike for i, share in found.items() if share >= REPEATS}

    def _holding(self, readings: frozenset[str]) -> set[int]:
        """Positions of the documents with a word or number that is read in one of these ways."""
        return set[int]().union(*(self._with.get(reading, ()) for reading in readings))
