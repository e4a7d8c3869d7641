"""The outcome of each question: was the evidence found, and was the answer right?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from groundtune.schema import Prediction

RIGHT = "answered right"
WRONG = "found but answered wrong"
MISSED = "retrieval missed"
LUCKY = "right without evidence"
FORGOT = "wrong without evidence"
KNEW = "unanswerable, abstained"
INVENTED = "unanswerable, but answered"
OUTCOMES = {
    RIGHT: "a gold passage (one with the answer) was read, and the answer counts as right; a word-based score cannot "
    "detect a missing `not`",
    WRONG: "a gold passage was read, and the answer counts as wrong: the model's fault",
    MISSED: "no gold passage was read, and the answer counts as wrong: the fault of the retriever or the length limit",
    LUCKY: "no gold passage was read, and the answer counts as right: memorised, found in another passage, or right "
    "only in its words",
}
# In closed_book, where no retriever can miss anything, in place of MISSED.
WITHOUT_PASSAGES = {FORGOT: "nothing was to be read, and the answer counts as wrong"}
# For unanswerable questions, if there are any: they have no evidence to find.
WITHOUT_ANSWER = {
    KNEW: "the passages contain no answer, and the model said that it does not know",
    INVENTED: "the passages contain no answer, but the model gave one",
}


@dataclass(frozen=True)
class Rightness:
    """An answer is right if its score `metric` is at least `threshold`."""

    metric: str = "generation/f1"
    threshold: float = 0.5

    def __str__(self) -> str:
        return f"{self.metric} >= {self.threshold:g}"


def outcome(prediction: Prediction, right: Rightness) -> str:
    """One of `OUTCOMES`, `WITHOUT_PASSAGES` or `WITHOUT_ANSWER`; empty if the answer or its judge failed.

    One of several gold passages counts as evidence.
    """
    if right.metric not in prediction.scores:
        return ""
    is_right = prediction.scores[right.metric] >= right.threshold
    if not prediction.example.answerable:
        return KNEW if _abstained(prediction, right, is_right) else INVENTED
    gold = {document.id for document in prediction.example.gold_documents}
    evidence = any(document.id in gold for document in prediction.read)
    if is_right:
        return RIGHT if evidence else LUCKY
    if evidence:
        return WRONG
    return FORGOT if prediction.context == "closed_book" else MISSED


def _abstained(prediction: Prediction, right: Rightness, is_right: bool) -> bool:
    """By the judge, or else by the answer's words: other metrics compare them with what one gold answer happens to say,
    or with passages that hold none."""
    answered = None if right.metric.startswith("judge/") else prediction.scores.get("errors/unanswerable_answered")
    return is_right if answered is None else answered == 0


def with_outcomes(predictions: Sequence[Prediction], right: Rightness) -> list[Prediction]:
    """The same predictions with their outcomes."""
    return [replace(prediction, outcome=outcome(prediction, right)) for prediction in predictions]


def outcome_counts(predictions: Sequence[Prediction]) -> dict[str, int]:
    """Number of questions per outcome, in the order of `OUTCOMES`; they sum to n.

    Includes those of `WITHOUT_PASSAGES` and `WITHOUT_ANSWER` if any question is of that kind, and `failed` if any
    prediction has no outcome.
    """
    counts = Counter(prediction.outcome for prediction in predictions)
    unanswerable = any(not prediction.example.answerable for prediction in predictions)
    failed = {"failed": counts[""]} if counts[""] else {}
    closed = any(prediction.context == "closed_book" for prediction in predictions)
    names = [*OUTCOMES, *(WITHOUT_PASSAGES if closed else []), *(WITHOUT_ANSWER if unanswerable else [])]
    return {name: counts[name] for name in names} | failed
