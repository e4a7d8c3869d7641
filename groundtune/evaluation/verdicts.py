"""Base against tuned model, question by question: differences, and the verdict in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from groundtune.evaluation.abstention import ANSWERED, REFUSED
from groundtune.evaluation.metrics import greater_is_better, is_share
from groundtune.evaluation.statistics import FEWEST_PASSAGES, TIE, Interval, PairedDifference, paired_difference
from groundtune.system.text import counted

if TYPE_CHECKING:
    from groundtune.evaluation.predictions import Evaluation
    from groundtune.schema import Prediction

HOW_MEASURED = (
    "Means over questions with 95 % intervals that treat the questions on a gold passage as one group. A difference is "
    "better or worse if its paired interval excludes 0, p < 0.05, and the questions are on at least "
    f"{FEWEST_PASSAGES} passages; otherwise it is unclear."
)


def differences(base: Evaluation, tuned: Evaluation, samples: int = 10_000) -> dict[str, PairedDifference]:
    """tuned - base for every metric except times, paired by question.

    Questions are timed in batches, so their times are nearly equal and the interval of a difference would be far too
    narrow. Metrics that the two do not have on the same questions (few answers quote) are left out. Raises ValueError
    if base and tuned answered different examples.
    """
    if [p.example for p in base.predictions] != [p.example for p in tuned.predictions]:
        raise ValueError("base and tuned answered different examples, or in another order; nothing can be paired")
    return {
        metric: paired_difference(
            base.values(metric),
            tuned.values(metric),
            base.clusters(metric),
            samples=samples,
            greater_is_better=greater_is_better(metric),
            shares=is_share(metric),
        )
        for metric in base.metrics
        if not _is_time(metric) and _on_the_same_questions(metric, base, tuned)
    }


def _on_the_same_questions(metric: str, base: Evaluation, tuned: Evaluation) -> bool:
    pairs = zip(base.predictions, tuned.predictions, strict=True)
    return all((metric in before.scores) == (metric in after.scores) for before, after in pairs)


def _is_time(metric: str) -> bool:
    return metric.startswith("latency/")


def verdict(
    differences: Mapping[str, PairedDifference],
    base: Evaluation | None = None,
    tuned: Evaluation | None = None,
    name: str = "Tuned",
    than: str = "",
) -> str:
    """One honest sentence based on token F1; with `base` and `tuned` it includes both means.

    Its subject is `name`, compared with `than`.
    """
    return ": ".join(verdict_parts(differences, base, tuned, name, than))


def verdict_parts(
    differences: Mapping[str, PairedDifference],
    base: Evaluation | None = None,
    tuned: Evaluation | None = None,
    name: str = "Tuned",
    than: str = "",
) -> tuple[str, str]:
    """The same before and after its colon: a name may have colons, too."""
    f1 = differences[F1]
    questions = counted(f1.n, "question")
    if f1.wins == f1.losses == 0:
        both = f"{name} and {than}" if than else "both models"
        return "No difference", f"{both} have the same token F1 on every one of {questions}"
    digits, means = decimals(f1), ""
    if base is not None and tuned is not None:
        means = f" {tuned.metrics[F1].value:.{digits}f} against {base.metrics[F1].value:.{digits}f},"
    found = (
        f"token F1{means} {f1.value:+.{digits}f} [{f1.low:.{digits}f}, {f1.high:.{digits}f}] "
        f"on {questions} ({f1.wins} better, {f1.losses} worse, {f1.ties} the same)"
    )
    head = f"No clear difference{f' between {name} and {than}' if than else ''}"
    if f1.verdict != "no clear difference":
        head = f"{name} answers {f1.verdict}{f' than {than}' if than else ''}"
    return head, f"{found}; {power(f1)}"


def power(found: PairedDifference) -> str:
    """How large a difference the test could have seen, in words."""
    if found.passages < FEWEST_PASSAGES:
        return (
            f"nothing can be concluded from questions on fewer than {FEWEST_PASSAGES} passages (here {found.passages})"
        )
    return f"a test of this size finds a difference of {found.detectable:.{decimals(found)}f} in 80 % of cases"


def alike(f1: Mapping[str, Interval | None]) -> str:
    """A sentence on how alike the token F1 of questions on the same passage is, by name; empty if it is not known."""
    known = [f"{name} {found.icc:.2f}" for name, found in f1.items() if found is not None and found.icc is not None]
    return f"Intraclass correlation of token F1 within a passage: {'; '.join(known)}." if known else ""


F1 = "generation/f1"
UNFINISHED = "generation/unfinished"


MOST = 10  # answers shown on each side


SCORES = {
    F1: "Token F1",
    "generation/rougeL": "ROUGE-L",
    "generation/bleu": "BLEU",
    "generation/exact_match": "Exact match",
    "generation/precision": "Precision",
    "generation/recall": "Recall",
}


ERRORS = {ANSWERED: "Unanswerable, answered", REFUSED: "Answerable, refused"}
CHECKS = {"generation/numeric_match": "Exact, numbers by value", "generation/contradiction": "Contradicts gold"}
OF_ANSWERS = {F1: SCORES[F1], **ERRORS, **SCORES, **CHECKS}  # in display order


def shown(labels: Mapping[str, str], *evaluations: Evaluation) -> dict[str, str]:
    """The labels of metrics that some evaluation has; the rate of refusals only where a model could have abstained
    rightly, or did so wrongly."""
    said = {name for evaluation in evaluations for name in evaluation.metrics}
    if ANSWERED not in said and not any(REFUSED in e.metrics and e.metrics[REFUSED].value for e in evaluations):
        said.discard(REFUSED)
    return {name: label for name, label in labels.items() if name in said}


def decimals(interval: Interval) -> int:
    """The fewest decimals, at least 2, that still show on which side of 0 the interval ends."""
    ends = [abs(end) for end in (interval.low, interval.high) if end and isfinite(end)]
    return next((digits for digits in (2, 3) if min(ends, default=1) >= 0.5 * 10**-digits), 4)


def most_changed(pairs: Iterable[tuple[Prediction, Prediction]], most: int = MOST) -> tuple[list[Change], list[Change]]:
    """The largest gains and losses among pairs of predictions for the same question, as in `gained_and_lost`."""
    changes = sorted((Change(base, tuned) for base, tuned in pairs), key=lambda change: change.value)
    gained = [change for change in reversed(changes) if change.value > TIE]
    return gained[:most], [change for change in changes if change.value < -TIE][:most]


@dataclass(frozen=True)
class Change:
    """One question, answered before and after."""

    base: Prediction
    tuned: Prediction

    @property
    def value(self) -> float:
        return self.tuned.scores[F1] - self.base.scores[F1]

    @property
    def gold_rank(self) -> str:
        """The ranks of the gold documents, and whether the prompt had room for the first one."""
        gold = {document.id for document in self.tuned.example.gold_documents}
        ranks = [rank for rank, hit in enumerate(self.tuned.hits, 1) if hit.document.id in gold]
        if not gold:
            return "no gold document"
        if not ranks:
            return f"not among the {len(self.tuned.hits)} retrieved"
        some = f" ({len(ranks)} of {len(gold)} gold documents)" if len(gold) > 1 else ""
        cut = ", cut from the prompt" if ranks[0] > self.tuned.passages_read else ""
        return f"rank {', '.join(map(str, ranks))}{some}{cut}"
