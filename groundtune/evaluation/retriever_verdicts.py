"""A tuned retriever against the untrained one, question by question: differences and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from groundtune.evaluation.statistics import Interval, PairedDifference, aggregate, clusters_of, paired_difference
from groundtune.schema import Example

Rows = Sequence[dict[str, float]]
Line = tuple[Interval, Interval, PairedDifference]  # untrained, tuned, and the difference


@dataclass(frozen=True)
class Compared:
    """The scores of the same questions by both models, for each retriever; the last retriever is the one in use.

    `recall` is the metric that decides.
    """

    what: str
    examples: tuple[Example, ...]
    untrained: dict[str, list[dict[str, float]]]
    tuned: dict[str, list[dict[str, float]]]
    recall: str

    @property
    def retrievers(self) -> list[str]:
        return list(self.tuned)

    @cached_property
    def _clusters(self) -> list[int]:
        return clusters_of(self.examples)

    @property
    def passages(self) -> int:
        return len(set(self._clusters))

    @cached_property
    def table(self) -> dict[str, dict[str, Line]]:
        """Retriever -> metric -> both means and their difference."""
        return {name: self._lines(name) for name in self.retrievers}

    def _lines(self, retriever: str) -> dict[str, Line]:
        before, after = self.untrained[retriever], self.tuned[retriever]
        untrained, tuned = (aggregate(rows, self._clusters) for rows in (before, after))
        return {name: (untrained[name], tuned[name], self._difference(name, before, after)) for name in tuned}

    def _difference(self, metric: str, before: Rows, after: Rows) -> PairedDifference:
        return paired_difference([row[metric] for row in before], [row[metric] for row in after], self._clusters)

    @property
    def decisive(self) -> PairedDifference:
        """Of recall inside the retriever that will be used."""
        return self.table[self.retrievers[-1]][self.recall][2]

    @property
    def better(self) -> bool:
        return self.decisive.verdict == "better"

    def to_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "questions": len(self.examples),
            "passages": self.passages,
            "retrievers": {
                name: {metric: _to_dict(line) for metric, line in lines.items()} for name, lines in self.table.items()
            },
        }


def _to_dict(line: Line) -> dict[str, Any]:
    return {name: one.to_dict() for name, one in zip(("untrained", "tuned", "difference"), line)}


@dataclass(frozen=True)
class RetrieverResults:
    """What the training of a retriever found; the first of `compared` decides. `tuned`: the tuned model is kept."""

    kind: str
    tuned: bool
    kept: str  # in words: "the tuned model is kept"
    compared: Sequence[Compared]
    history: Sequence[dict[str, Any]]
    best_step: int | None
    notes: Sequence[str]
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One sentence: what was found inside the retriever in use, and which model is kept."""
        kept = self.kept
        if not self.compared:
            return f"No step of the training finds more than the untrained model on --eval_file: {kept}"
        first = self.compared[0]
        found, name, k = first.decisive, first.retrievers[-1], first.recall.rpartition("@")[2]
        untrained, tuned = (mean.value for mean in first.table[name][first.recall][:2])
        words = {"better": "Better", "worse": "Worse"}.get(found.verdict, "No clear difference")
        if first.better and not self.tuned:
            kept = f"but no step of the last training found more on the questions that choose it: {kept}"
        return (
            f"{words}: inside the retriever {name}, recall@{k} is {untrained:.3f} untrained and {tuned:.3f} tuned, "
            f"{found.value:+.3f} [{found.low:.3f}, {found.high:.3f}], on {found.n} questions about {found.passages} "
            f"passages ({first.what}); {kept}"
        )
