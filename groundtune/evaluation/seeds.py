"""Systems trained several times with different seeds: what is known of the method, not only of one of its runs.

Each question has one score per seed. Its mean over seeds is paired between two systems, with an interval by passage as
everywhere; that alone takes the trained weights as given, so it is too narrow where seeds differ. Seeds and questions
are crossed: every seed answers every question. The variance of a mean is then the sum of what varies between passages
and of what varies between seeds, and the interval is widened by Student's t with Satterthwaite's degrees of freedom, as
for readers and cases in studies of diagnosis (Obuchowski & Rockette 1995; Hillis 2007). A bootstrap that draws seeds as
well would make the interval too narrow: of three seeds it sees two thirds of their variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import hypot, sqrt
from typing import TypeVar

import numpy as np

from groundtune.evaluation.statistics import Interval, mean_interval, paired_difference, standard_errors, student
from groundtune.evaluation.statistics import PairedDifference as Difference

AnInterval = TypeVar("AnInterval", bound=Interval)


def mean_over_seeds(scores: np.ndarray, clusters: Sequence[int], *, samples: int = 10_000) -> Interval:
    """The mean of scores of shape [seeds, questions] with its 95 % interval, for other questions and other seeds."""
    found = mean_interval(scores.mean(axis=0).tolist(), clusters, samples=samples)
    wider = _widened(found, scores.mean(axis=0), clusters, [scores], 0.95)
    if scores.min() < 0 or scores.max() > 1:
        return wider
    return replace(wider, low=max(0.0, wider.low), high=min(1.0, wider.high))


def difference_over_seeds(
    first: np.ndarray, other: np.ndarray, clusters: Sequence[int], *, samples: int = 10_000, level: float = 0.95,
    greater_is_better: bool = True,
) -> Difference:  # fmt: skip
    """other - first, of scores of shape [seeds, questions] each, whose questions are the same and in the same order.

    The numbers of seeds may differ; seeds are not paired. Of one seed nothing is known about others, and the interval
    is that for questions alone. Raises ValueError as `paired_difference` does.
    """
    before, after = first.mean(axis=0), other.mean(axis=0)
    found = paired_difference(
        before.tolist(), after.tolist(), clusters, samples=samples, greater_is_better=greater_is_better, level=level
    )
    return _widened(found, after - before, clusters, [first, other], level)


def _widened(
    found: AnInterval, values: np.ndarray, clusters: Sequence[int], systems: Sequence[np.ndarray], level: float
) -> AnInterval:
    """The interval of the mean of `values` with the variance between the seeds of each system added."""
    of_seeds = [(variance_of_seeds(scores, clusters), len(scores)) for scores in systems if len(scores) > 1]
    between = [(variance / n, n - 1) for variance, n in of_seeds if variance > 0]
    passages = len(set(clusters))
    if not between or passages < 2:
        return found
    of_questions = float(standard_errors(values[:, None], clusters)[0]) ** 2
    if not of_questions:  # all equal: the interval is not Student's, so the two parts are added as independent errors
        reach = _reach(between, level)
        return replace(found, low=found.value - hypot(found.value - found.low, reach),
                       high=found.value + hypot(found.high - found.value, reach))  # fmt: skip
    alone = _reach([(of_questions, passages - 1)], level)
    wider = _reach([(of_questions, passages - 1), *between], level) / alone
    return replace(found, low=found.value - wider * (found.value - found.low),
                   high=found.value + wider * (found.high - found.value))  # fmt: skip


def _reach(parts: Sequence[tuple[float, int]], level: float) -> float:
    """Half of an interval whose variance is the sum of independent parts, each with its degrees of freedom."""
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / freedom for variance, freedom in parts)
    return student(freedom, (1 + level) / 2) * sqrt(total)


def variance_of_seeds(scores: np.ndarray, clusters: Sequence[int]) -> float:
    """Variance between the means of seeds that is more than what the same questions answered by chance better or worse
    explain; scores have the shape [seeds, questions], with at least two seeds."""
    seeds = len(scores)
    means = scores.mean(axis=1)
    left = scores - scores.mean(axis=0) - (means - means.mean())[:, None]
    by_chance = float((standard_errors(left.T, clusters) ** 2).sum()) / (seeds - 1)
    return max(0.0, float(means.var(ddof=1)) - by_chance)
