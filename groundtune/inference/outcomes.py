"""What became of each question: was the evidence found, and was the answer right?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from groundtune.schema import Prediction

RIGHT = "answered right"
WRONG = "found but answered wrong"
MISSED = "retrieval missed"
LUCKY = "right without evidence"
OUTCOMES = {
    RIGHT: "a gold passage was read, and the answer is right",
    WRONG: "a gold passage was read, and the answer is wrong: the model's fault",
    MISSED: "no gold passage was read, and the answer is wrong: the retriever's fault, or the length budget's; in "
    "closed_book nothing is searched",
    LUCKY: "no gold passage was read, and the answer is right: known by heart, or found in another passage",
}


@dataclass(frozen=True)
class Rightness:
    """An answer is right if its score `metric` is at least `threshold`."""

    metric: str = "generation/f1"
    threshold: float = 0.5

    def __str__(self) -> str:
        return f"{self.metric} >= {self.threshold:g}"


def outcome(prediction: Prediction, right: Rightness) -> str:
    """One of `OUTCOMES`; empty where there is no such score, because the answer or its judge failed.

    Of several gold passages one is enough to count as evidence.
    """
    if right.metric not in prediction.scores:
        return ""
    gold = {document.id for document in prediction.example.gold_documents}
    evidence = any(document.id in gold for document in prediction.read)
    if prediction.scores[right.metric] >= right.threshold:
        return RIGHT if evidence else LUCKY
    return WRONG if evidence else MISSED


def with_outcomes(predictions: Sequence[Prediction], right: Rightness) -> list[Prediction]:
    """The same predictions, each with its outcome."""
    return [replace(prediction, outcome=outcome(prediction, right)) for prediction in predictions]


def outcome_counts(predictions: Sequence[Prediction]) -> dict[str, int]:
    """How many questions had each outcome, in the order of `OUTCOMES`; `failed` if any had none. They sum to n."""
    counts = Counter(prediction.outcome for prediction in predictions)
    failed = {"failed": counts[""]} if counts[""] else {}
    return {name: counts[name] for name in OUTCOMES} | failed
