"""What a comparison or an evaluation must show to pass, for CI: conditions as typed, and whether they hold.

A gate must not pass because something is missing: an answer or a judgement that failed, of either system, a question
that was not answered or a metric that was not measured is a reason not to pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from groundtune.errors import DataError
from groundtune.evaluation.metrics import METRICS, greater_is_better, largest
from groundtune.evaluation.statistics import FEWEST_PASSAGES, PairedDifference, clusters_of, paired_difference
from groundtune.evaluation.verdicts import F1, decimals, power
from groundtune.system.text import counted

if TYPE_CHECKING:
    from groundtune.evaluation.comparison import Comparison
    from groundtune.evaluation.predictions import Evaluation

_FORMS = "write worse, worse:METRIC, or worse:METRIC:MARGIN, such as worse:f1:0.02"


@dataclass(frozen=True)
class Worse:
    """Fails if a system is significantly worse by `metric`; with a margin, unless it is shown to be no worse by it."""

    metric: str
    margin: float | None = None

    def __str__(self) -> str:
        return f"--fail_if worse:{self.metric}" + ("" if self.margin is None else f":{self.margin:g}")


@dataclass(frozen=True)
class Limit:
    """Fails if the mean of `metric` is under `value`, or over it."""

    metric: str
    value: float
    over: bool = False

    def __str__(self) -> str:
        return f"--fail_{'over' if self.over else 'under'} {self.metric}={self.value:g}"


@dataclass(frozen=True)
class Checked:
    """A condition and what came of it; `detectable` is the difference that this test finds in 80 % of cases."""

    condition: str
    system: str
    passed: bool
    reason: str
    detectable: float | None = None

    def __str__(self) -> str:
        return f"{'Passed' if self.passed else 'Failed'}: {self.condition}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# Conditions as typed


def read_worse(words: Sequence[str]) -> list[Worse]:
    """The values of --fail_if. Raises `DataError` with all that are wrong."""
    found, problems = [], []
    for word in words:
        kind, _, rest = word.partition(":")
        metric, colon, margin = rest.partition(":")
        try:
            if kind != "worse" or (not metric and ":" in word):
                raise ValueError(f"is not a condition; {_FORMS}")
            name = metric_named(metric or F1)
            found.append(Worse(name, _margin(name, margin) if colon else None))
        except ValueError as error:
            problems.append(f"--fail_if: {word}: {error}")
    if problems:
        raise DataError(problems)
    return found


def read_limits(under: Sequence[str], over: Sequence[str]) -> list[Limit]:
    """The values of --fail_under and --fail_over. Raises `DataError` with all that are wrong."""
    found, problems = [], []
    for word, is_over in [*((word, False) for word in under), *((word, True) for word in over)]:
        metric, equals, value = word.partition("=")
        try:
            if not equals:
                raise ValueError("is not METRIC=VALUE, such as f1=0.3")
            found.append(Limit(metric_named(metric), _number(value), is_over))
        except ValueError as error:
            problems.append(f"--fail_{'over' if is_over else 'under'}: {word}: {error}")
    if problems:
        raise DataError(problems)
    return found


def metric_named(text: str) -> str:
    """A metric's name in full: `f1` is `generation/f1`, `recall@4` is `retrieval/recall@4`. Raises ValueError."""
    for name in (text, f"generation/{text}", f"retrieval/{text}"):
        try:
            greater_is_better(name)
        except ValueError:
            continue
        if "/" in name and not name.startswith("latency/") and "loss" not in name:
            return name
    known = [name for name in METRICS if "/" in name and not name.startswith("latency/")]
    raise ValueError(f"{text or 'an empty name'} is no metric; choose from {', '.join(known)}")


def _margin(metric: str, text: str) -> float:
    margin = _number(text)
    if margin <= 0:
        raise ValueError("the margin must be greater than 0: how much worse would still be acceptable?")
    if margin >= 1 == largest(metric):
        raise ValueError(f"{metric} lies between 0 and 1, so with this margin everything would pass")
    return margin


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text or 'nothing'} is not a number")
    return number


# Conditions checked


def check_worse(comparison: Comparison, conditions: Sequence[Worse]) -> list[Checked]:
    """Every condition on every system but the reference. Raises `DataError` if a metric was not measured."""
    found = {
        (condition, name): comparison.difference(name, condition.metric)
        for condition in conditions for name in comparison.others
    }  # fmt: skip
    problems = [
        f"{condition}: {name} and {comparison.reference} have no {condition.metric} on the same questions; measured: "
        f"{', '.join(_in_both(comparison, name))}"
        for (condition, name), difference in found.items() if difference is None
    ]  # fmt: skip
    if problems:
        raise DataError(problems)
    return [_checked(comparison, *about, difference) for about, difference in found.items() if difference]


def _in_both(comparison: Comparison, name: str) -> list[str]:
    theirs, of_reference = comparison.evaluations[name].metrics, comparison.evaluations[comparison.reference].metrics
    return [metric for metric in of_reference if metric in theirs and not metric.startswith("latency/")]


def _checked(comparison: Comparison, condition: Worse, name: str, found: PairedDifference) -> Checked:
    reference = comparison.reference
    if missing := _missing(comparison, condition.metric, name):
        return Checked(str(condition), name, False, missing, found.detectable)
    digits, same = decimals(found), found.wins == found.losses == 0
    seen = (
        f"{condition.metric} {found.value:+.{digits}f} {found.ends(digits)} against "
        f"{reference} on {counted(found.n, 'question')}; {power(found)}"
    )
    if condition.margin is None:
        passed = found.verdict != "worse"
        reason = f"{name} is {'not significantly' if passed else 'significantly'} worse: {seen}"
    elif same and _same_answers(comparison, name):
        passed, reason = True, f"{name} gave the same answers as {reference} to all {comparison.n} questions"
    else:
        passed = non_inferior(found, condition.margin)
        said = "is" if passed else "was not shown to be"
        reason = f"{name} {said} less than {condition.margin:g} worse: {seen}"
    return Checked(str(condition), name, passed, reason, found.detectable)


def non_inferior(found: PairedDifference, margin: float) -> bool:
    """Whether the 95 % interval excludes that tuned is worse by `margin` or more; never on too few passages."""
    least = found.low if found.greater_is_better else -found.high
    return found.passages >= FEWEST_PASSAGES and least > -margin


def _same_answers(comparison: Comparison, name: str) -> bool:
    pairs = zip(comparison.evaluations[comparison.reference].predictions, comparison.evaluations[name].predictions)
    return all(a.answer == b.answer for a, b in pairs)


def _missing(comparison: Comparison, metric: str, name: str) -> str:
    """Why the comparison is not of all questions of the reference; empty if it is."""
    for system in (name, comparison.reference):
        evaluation = comparison.evaluations[system]
        if evaluation.failed:
            return f"{evaluation.failed} of {evaluation.n} answers of {system} failed; answer these questions again"
        # Not so of other metrics: an answer may have nothing to measure, such as quotes.
        if metric.startswith("judge/") and (failed := evaluation.n - evaluation.scored(metric)):
            return f"{failed} of {evaluation.n} answers of {system} have no {metric}; have them judged again"
    if left_out := comparison.left_out[comparison.reference]:
        return (
            f"{left_out} of {left_out + comparison.n} questions of {comparison.reference} were not answered by all "
            "systems; evaluate them on the same file of examples"
        )
    return ""


def check_limits(evaluation: Evaluation, limits: Sequence[Limit], system: str) -> list[Checked]:
    """Every limit on the means of one system."""
    return [_within(evaluation, limit, system) for limit in limits]


def _within(evaluation: Evaluation, limit: Limit, system: str) -> Checked:
    if limit.metric not in evaluation.metrics:
        measured = ", ".join(evaluation.metrics) or "nothing"
        return Checked(str(limit), system, False, f"{limit.metric} was not measured; measured: {measured}")
    mean, values = evaluation.metrics[limit.metric], evaluation.values(limit.metric)
    clusters = clusters_of([p.example for p in evaluation.predictions if limit.metric in p.scores])
    against = paired_difference([limit.value] * len(values), values, clusters, samples=100)
    passed = mean.value <= limit.value if limit.over else mean.value >= limit.value
    digits = decimals(mean)
    side = "over" if mean.value > limit.value else "under" if mean.value < limit.value else "equal to"
    within = "; the interval includes it, so this may be chance" if mean.low <= limit.value <= mean.high else ""
    reason = (
        f"{limit.metric} of {system} is {side} {limit.value:g}: {mean.value:.{digits}f} {mean.ends(digits)} "
        f"on {counted(len(values), 'question')}{within}; {power(against)}"
    )
    return Checked(str(limit), system, passed, reason, against.detectable)


def not_measured(limits: Sequence[Limit], judges: Sequence[str], retrieved: int) -> list[str]:
    """Problems with limits on metrics that an evaluation will not measure, before hours of work.

    `judges` are the names of the judge prompts, `retrieved` is the number of passages per question.
    """
    problems = []
    for limit in limits:
        kind, _, name = limit.metric.partition("/")
        if kind == "judge" and name not in judges:
            known = f"--judge_prompt gives {', '.join(judges)}" if judges else "name a judge with --judge"
            problems.append(f"{limit}: {limit.metric} is not judged; {known}")
        if kind == "retrieval" and not retrieved:
            problems.append(f"{limit}: no context retrieves passages; add retrieved to --contexts")
        elif "@" in name and name.partition("@")[2] not in ("1", str(retrieved)):
            problems.append(f"{limit}: measured are @1 and @{retrieved}, which --eval_num_to_retrieve changes")
    return problems
