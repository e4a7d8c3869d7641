"""A tuned retriever against the untrained one, question by question: differences and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from groundtune.evaluation.statistics import Interval, PairedDifference, aggregate, clusters_of, paired_difference
from groundtune.schema import Example

Rows = Sequence[dict[str, float]]


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

    def means(self, retriever: str) -> tuple[dict[str, Interval], dict[str, Interval]]:
        return tuple(aggregate(rows[retriever], self._clusters) for rows in (self.untrained, self.tuned))  # type: ignore[return-value]

    def difference(self, retriever: str, metric: str) -> PairedDifference:
        before, after = ([row[metric] for row in rows[retriever]] for rows in (self.untrained, self.tuned))
        return paired_difference(before, after, self._clusters)

    @cached_property
    def decisive(self) -> PairedDifference:
        """Of recall inside the retriever that will be used."""
        return self.difference(self.retrievers[-1], self.recall)

    @property
    def better(self) -> bool:
        return self.decisive.verdict == "better"

    def to_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "questions": len(self.examples),
            "passages": self.passages,
            "retrievers": {name: self._to_dict(name) for name in self.retrievers},
        }

    def _to_dict(self, retriever: str) -> dict[str, Any]:
        untrained, tuned = self.means(retriever)
        return {
            metric: {
                "untrained": untrained[metric].to_dict(),
                "tuned": tuned[metric].to_dict(),
                "difference": self.difference(retriever, metric).to_dict(),
            }
            for metric in tuned
        }


@dataclass(frozen=True)
class RetrieverResults:
    """What the training of a retriever found; the first of `compared` decides. `tuned`: the tuned model is kept."""

    kind: str
    tuned: bool
    compared: Sequence[Compared]
    history: Sequence[dict[str, Any]]
    best_step: int | None
    notes: Sequence[str]
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One sentence: what was found inside the retriever in use, and which model is kept."""
        kept = f"the {'tuned' if self.tuned else 'untrained'} model is kept"
        if not self.compared:
            return f"No step of the training finds more than the untrained model on --eval_file: {kept}"
        first = self.compared[0]
        found, name, k = first.decisive, first.retrievers[-1], first.recall.rpartition("@")[2]
        untrained, tuned = (means[first.recall].value for means in first.means(name))
        words = {"better": "Better", "worse": "Worse"}.get(found.verdict, "No clear difference")
        if first.better and not self.tuned:
            kept = f"but no step of the last training found more on the questions that choose it: {kept}"
        return (
            f"{words}: inside the retriever {name}, recall@{k} is {untrained:.3f} untrained and {tuned:.3f} tuned, "
            f"{found.value:+.3f} [{found.low:.3f}, {found.high:.3f}], on {found.n} questions about {found.passages} "
            f"passages ({first.what}); {kept}"
        )
