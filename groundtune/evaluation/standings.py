"""Cells of a sweep side by side: means, differences from a baseline, and one winner or none.

A cell is better or worse than the baseline if the interval of the paired difference excludes 0 at a level that is
corrected for the number of comparisons (Bonferroni: 95 % become 1 - 0.05 / m), over questions and seeds. The winner is
the cell with the best mean, if it is better than each of the others in this way. Else all that are not clearly worse
than it stand, and the cheapest of them is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, median

import numpy as np

from groundtune.evaluation.figures import TRAINING, Figures, Scored
from groundtune.evaluation.metrics import greater_is_better
from groundtune.evaluation.seeds import difference_over_seeds, mean_over_seeds
from groundtune.evaluation.statistics import FEWEST_PASSAGES, Interval, PairedDifference

BETTER, WORSE, UNCLEAR = "better", "worse", "no clear difference"


@dataclass(frozen=True)
class At:
    """Where a score is from: an evaluation of the sweep, a context, and the metric."""

    evaluation: str
    context: str
    metric: str


@dataclass(frozen=True)
class Standing:
    """A cell's place: its mean over questions and seeds, and its difference from the baseline, if both are measured.

    `seeds`: how many have the score.
    """

    name: str
    seeds: int
    mean: Interval | None
    of_seeds: tuple[float, ...] = ()
    difference: PairedDifference | None = None
    verdict: str = ""
    minutes: float | None = None  # of training, the median of the seeds


@dataclass(frozen=True)
class Standings:
    """All cells, in the order of the plan; those that are not measured have no mean.

    `level` is that of the intervals of differences, corrected for `comparisons`. `standing` are the best cell and all
    that are not clearly worse: more than one if there is no clear winner.
    """

    at: At
    baseline: str
    cells: tuple[Standing, ...]
    level: float
    comparisons: int
    best: str = ""
    standing: tuple[str, ...] = ()
    on_one_machine: bool = True  # or else minutes are not compared

    @property
    def winner(self) -> str:
        """The one cell that is clearly better than each other; empty without one."""
        return self.best if len(self.standing) == 1 and self.comparisons else ""

    @property
    def cheapest(self) -> str:
        """Of the cells that stand, the one whose training took the fewest minutes; empty if that is not known, or was
        measured on several machines."""
        if not self.on_one_machine:
            return ""
        known = {one.name: one.minutes for one in self.cells if one.name in self.standing and one.minutes is not None}
        return min(known, key=lambda name: known[name] or 0.0) if len(known) == len(self.standing) > 0 else ""

    def of(self, name: str) -> Standing:
        return next(one for one in self.cells if one.name == name)

    @property
    def sentence(self) -> str:
        """What to choose, in one sentence."""
        measured = [one for one in self.cells if one.mean]
        if len(measured) < 2:
            return "Nothing to compare yet: fewer than two cells are measured."
        if self.winner:
            beaten = ", ".join(one.name for one in measured if one.name != self.winner)
            return f"The winner is {self.winner}: clearly better than each of the others that are measured: {beaten}."
        if not self.standing:
            return f"No clear winner: nothing can be concluded from fewer than {FEWEST_PASSAGES} passages."
        others = [name for name in self.standing if name != self.best]
        cheapest = f"; the cheapest is {self.cheapest}" if self.cheapest else ""
        rest = f"not clearly worse are {', '.join(others)}{cheapest}"
        return f"No clear winner: {self.best} has the best mean, and {rest}."


def standings(
    names: Sequence[str], figures: Sequence[Figures], at: At, baseline: str, samples: int = 10_000
) -> Standings:
    """The cells by these names, each measured with any number of seeds."""
    of = {name: [one for one in figures if one.cell == name] for name in names}
    scored = {name: columns for name in names if (columns := _columns(of[name], at))}
    comparisons = max(0, len(scored) - 1)
    level = 1 - 0.05 / max(1, comparisons)
    better = greater_is_better(at.metric)
    means = {name: float(columns.array().mean()) * (1 if better else -1) for name, columns in scored.items()}
    leading = max(means, key=lambda name: means[name], default="")
    pairs = {
        (a, b): _difference(scored[a], scored[b], level, better, samples)
        for a, b in combinations(scored, 2)
        if {a, b} & {baseline, leading}
    }  # as other - first
    rows = []
    for name in names:
        if name not in scored:
            rows.append(Standing(name, 0, None, minutes=_minutes(of[name])))
            continue
        values, clusters = scored[name].array(), scored[name].clusters()
        found = None
        if name != baseline and baseline in scored:
            found = _from_to(pairs, baseline, name)
        rows.append(Standing(
            name, len(values), mean_over_seeds(values, clusters, samples=samples),
            tuple(values.mean(axis=1).tolist()), found, verdict(found, level) if found else "", _minutes(of[name]),
        ))  # fmt: skip
    measured = [row for row in rows if row.mean]
    best, standing = "", tuple[str, ...]()
    if measured:
        best = leading
        against = {row.name: _from_to(pairs, row.name, best) for row in measured if row.name != best}
        if all(one and one.passages >= FEWEST_PASSAGES for one in against.values()):
            worse = {name for name, one in against.items() if one and verdict(one, level) == BETTER}
            standing = tuple(row.name for row in measured if row.name not in worse)
    trained = [one for name in standing for one in of[name] if one.method]
    alike = len({(one.machine.get("device"), one.precision) for one in trained}) < 2
    return Standings(at, baseline, tuple(rows), level, comparisons, best, standing, alike)


def verdict(found: PairedDifference, level: float) -> str:
    """`better`, `worse` or `no clear difference`, by interval and p-value at a level that may be corrected."""
    slack = 1e-9 * (found.high - found.low)
    touches_zero = found.low <= slack and found.high >= -slack
    if found.passages < FEWEST_PASSAGES or touches_zero or found.p_value >= 1 - level:
        return UNCLEAR
    return BETTER if (found.low > 0) == found.greater_is_better else WORSE


@dataclass(frozen=True)
class _Columns:
    """The scores of a cell by question, one value per seed; and the passage of each question."""

    scores: Mapping[str, tuple[float, ...]]
    passages: Mapping[str, int]

    def array(self, questions: Sequence[str] = ()) -> np.ndarray:
        """Of shape [seeds, questions]."""
        return np.array([self.scores[question] for question in questions or self.scores]).T

    def clusters(self, questions: Sequence[str] = ()) -> list[int]:
        return [self.passages[question] for question in questions or self.scores]


def _columns(cells: Sequence[Figures], at: At) -> _Columns | None:
    """The questions that all seeds answered and that have the metric; None if there are none."""
    found = [one for cell in cells if (one := _scored(cell, at)) is not None]
    if not found:
        return None
    by_seed = [dict(zip(one.questions, one.scores[at.metric], strict=True)) for one in found]
    kept = [question for question in by_seed[0] if all(one.get(question) is not None for one in by_seed)]
    if not kept:
        return None
    scores = {question: tuple(float(one[question] or 0.0) for one in by_seed) for question in kept}
    return _Columns(scores, dict(zip(found[0].questions, found[0].passages, strict=True)))


def _scored(cell: Figures, at: At) -> Scored | None:
    scored = cell.scored.get(at.evaluation, {}).get(at.context)
    return scored if scored and at.metric in scored.scores else None


def _difference(first: _Columns, other: _Columns, level: float, better: bool, samples: int) -> PairedDifference | None:
    """other - first over the questions that both have; None if there are none."""
    common = [question for question in first.scores if question in other.scores]
    if not common:
        return None
    return difference_over_seeds(
        first.array(common), other.array(common), first.clusters(common), samples=samples, level=level,
        greater_is_better=better,
    )  # fmt: skip


def _from_to(
    pairs: Mapping[tuple[str, str], PairedDifference | None], first: str, other: str
) -> PairedDifference | None:
    """other - first, whichever way round it was computed."""
    if (first, other) in pairs:
        return pairs[first, other]
    found = pairs[other, first]
    return found and PairedDifference(
        -found.value, -found.high, -found.low, found.losses, found.wins, found.ties, found.n, found.p_value,
        found.greater_is_better, found.passages, found.detectable, icc=found.icc,
    )  # fmt: skip


def _minutes(cells: Sequence[Figures]) -> float | None:
    """Minutes of training; 0 for what is not trained."""
    if cells and not any(cell.method for cell in cells):
        return 0.0
    known = [minutes for cell in cells if (minutes := cell.minutes.get(TRAINING)) is not None]
    return median(known) if known else None


def spread_of_seeds(of_seeds: Sequence[float]) -> float:
    """The largest deviation of one seed's mean from the mean of all."""
    return max((abs(one - mean(of_seeds)) for one in of_seeds), default=0.0)
