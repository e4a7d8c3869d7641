"""Statistics over many questions: means and paired differences, with intervals that know what belongs together.

Questions on one passage are not independent: a passage that is not found, or is hard to read, spoils all of them. So
the unit of every interval and test is the passage (a cluster of questions), not the question. All that shows an
interval gets it from `mean_intervals` or `difference_intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from groundtune.data.groups import connected
from groundtune.evaluation.metrics import is_share
from groundtune.schema import Example

TIE = 1e-9  # scores that differ by no more are mathematically equal
FEWEST_REPEATED = 10  # passages with several questions, for an intraclass correlation; of nine its error is 0.3
FEWEST_PASSAGES = 20  # for a verdict; tests/comparison/test_coverage.py simulates from there on
_FLIPS = 10_000  # random sign flips behind a p-value
_CELLS = 1_000_000  # resampled values in memory at once: a few dozen MB for any number of questions
# Of a resample's standard error, as a share of the sample's: where few questions differ, a resample may hold none of
# them, and dividing by its standard error of 0 would make the interval infinite.
_SMALLEST_ERROR = 1 / 3


@dataclass(frozen=True)
class Interval:
    """A mean over questions with its confidence interval, in the unit of the values.

    The ends are infinite if the interval is unknown, because all questions are on one passage; those of shares are the
    bounds of a share then.
    `icc` is the intraclass correlation of questions on the same passage; None if fewer than `FEWEST_REPEATED` passages
    have several, or all values are equal.
    """

    value: float
    low: float
    high: float
    icc: float | None = field(default=None, kw_only=True)

    def ends(self, digits: int, sign: str = "") -> str:
        """Both ends, for display."""
        if math.isinf(self.low) or math.isinf(self.high):
            return "[unknown]"
        return f"[{self.low:{sign}.{digits}f}, {self.high:{sign}.{digits}f}]"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PairedDifference(Interval):
    """Two models on the same questions: mean of tuned - base, its 95 % interval and a two-sided test.

    `value`, `low` and `high` keep the sign of tuned - base; a win is a question on which tuned is better. `detectable`
    is the true difference that a test of this size finds with a probability of 80 %.
    """

    wins: int
    losses: int
    ties: int
    n: int
    p_value: float
    greater_is_better: bool = True
    passages: int = 0
    detectable: float = math.nan

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the interval excludes 0 and the p-value is under 0.05, else `no clear difference`.

        With questions on fewer than `FEWEST_PASSAGES` passages it is always the latter.
        """
        slack = 1e-9 * (self.high - self.low)  # an end that is mathematically 0 may be 1e-17
        touches_zero = self.low <= slack and self.high >= -slack
        if self.passages < FEWEST_PASSAGES or touches_zero or self.p_value >= 0.05:
            return "no clear difference"
        return "better" if (self.low > 0) == self.greater_is_better else "worse"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def clusters_of(examples: Sequence[Example]) -> list[int]:
    """For each example the number of its cluster: examples that share a gold passage, also by way of others, share it.

    Passages are equal if their text is. An unanswerable example is alone: no passage holds its answer.
    """
    return connected([[d.id for d in example.gold_documents] if example.answerable else [] for example in examples])


def mean_interval(
    values: Sequence[float], clusters: Sequence[int] | None = None, *, samples: int = 10_000, seed: int = 0,
    level: float = 0.95, shares: bool = True,
) -> Interval:  # fmt: skip
    """Mean of one value per question with its interval, as in `aggregate`; `shares`: the values lie in [0, 1]."""
    rows = [{"value": value} for value in values]
    return aggregate(rows, clusters, samples=samples, seed=seed, level=level, shares=lambda _: shares)["value"]


def aggregate(
    rows: Sequence[Mapping[str, float]], clusters: Sequence[int] | None = None, *, samples: int = 10_000, seed: int = 0,
    level: float = 0.95, shares: Callable[[str], bool] = is_share,
) -> dict[str, Interval]:  # fmt: skip
    """Mean and interval of every metric; each row holds the scores of one question.

    `clusters` are the numbers of `clusters_of`; without them, each question counts as one on a passage of its own. The
    order of the questions has no effect. Raises ValueError if there are no rows, if their metrics differ, or if a score
    is NaN or infinite.
    """
    if not rows:
        raise ValueError("no values: there is no mean over 0 questions")
    names = list(rows[0])
    for number, row in enumerate(rows):
        if differing := sorted(row.keys() ^ rows[0].keys()):
            raise ValueError(f"row {number} and row 0 have different metrics: only one has {differing}")
    columns = np.array([[row[name] for name in names] for row in rows], dtype=float)
    for number, metric in np.argwhere(~np.isfinite(columns)):
        raise ValueError(f"row {number}: {names[metric]} is {columns[number, metric]}; a mean would hide it")
    found = mean_intervals(
        columns, _numbered(clusters, len(rows)), samples=samples, seed=seed, level=level,
        shares=np.array([shares(name) for name in names]),
    )  # fmt: skip
    return dict(zip(names, found, strict=True))


def paired_difference(
    base: Sequence[float], tuned: Sequence[float], clusters: Sequence[int] | None = None, *, samples: int = 10_000,
    seed: int = 0, greater_is_better: bool = True, level: float = 0.95, shares: bool = True,
) -> PairedDifference:  # fmt: skip
    """Compare two models question by question: `base[i]` and `tuned[i]` belong to the same question.

    The p-value is that of the randomisation test with sign flips (Fisher 1935; for retrieval, Smucker, Allan &
    Carterette 2007), of whole passages: 10,000 random flips, (b + 1) / (m + 1), so never 0 (Davison & Hinkley 1997,
    ch. 4). `shares`: the values lie in [0, 1], so differences lie in [-1, 1]. Raises ValueError as `aggregate` does,
    and if the lengths differ.
    """
    if len(base) != len(tuned):
        raise ValueError(f"base has {len(base)} values, tuned {len(tuned)}; need one each for every question")
    change = np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)
    if not len(change):
        raise ValueError("no values: there is no difference over 0 questions")
    for number in np.flatnonzero(~np.isfinite(change)):
        raise ValueError(f"row {number}: the difference is {change[number]}; a mean would hide it")
    numbers = _numbered(clusters, len(change))
    (mean,), (detectable,) = difference_intervals(
        change[:, None], numbers, samples=samples, seed=seed, level=level, shares=shares
    )
    gain = change if greater_is_better else -change
    wins, losses, ties = (int(where.sum()) for where in (gain > TIE, gain < -TIE, abs(gain) <= TIE))
    (p_value,) = sign_flip_p_values(change[:, None], numbers, seed)
    count = int(numbers.max()) + 1
    return PairedDifference(
        mean.value, mean.low, mean.high, wins, losses, ties, len(gain), float(p_value), greater_is_better, count,
        float(detectable), icc=mean.icc,
    )  # fmt: skip


def mean_intervals(
    columns: np.ndarray,
    clusters: np.ndarray,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    shares: np.ndarray | bool = True,
) -> list[Interval]:
    """The mean of each column, whose rows are questions, with its interval: Wilson's if all values are 0 or 1.

    Equal scores get it, too: a bootstrap of equal values is a point, which looks certain. `shares` says which columns
    are bounded by 0 and 1; no other column has an interval where there is one passage.
    """
    found = _Clustered(columns, clusters)
    low, high = found.bootstrap_t(samples, seed, level)
    wilson = _wilson(found.mean, found.effective_n(), found.quantile((1 + level) / 2))
    ends = np.where(found.all_in(0, 1), wilson, (low, high))
    return found.intervals(ends[0], ends[1], least=0, most=1, bounded=shares)


def difference_intervals(
    columns: np.ndarray,
    clusters: np.ndarray,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    shares: np.ndarray | bool = True,
) -> tuple[list[Interval], np.ndarray]:
    """The mean of each column of differences, and the true one that a test of this size finds in 80 % of cases.

    Differences of 0 and 1 are -1, 0 or 1; they, and equal ones, get the interval of Bonett & Price (2012).
    `shares` as in `mean_intervals`.
    """
    found = _Clustered(columns, clusters)
    low, high = found.bootstrap_t(samples, seed, level)
    whole = found.all_in(-1, 0, 1)
    centre, smoothed = _smoothed(found)
    reach = found.quantile((1 + level) / 2) * smoothed
    ends = np.where(whole, (centre - reach, centre + reach), (low, high))
    detectable = (found.quantile(0.975) + found.quantile(0.8)) * np.where(whole, smoothed, found.error)
    if found.count < 2:
        detectable += math.inf
    return found.intervals(ends[0], ends[1], least=-1, most=1, bounded=shares), detectable


def sign_flip_p_values(columns: np.ndarray, clusters: np.ndarray, seed: int = 0) -> np.ndarray:
    """Of each column of differences: how often random signs of the passages give a sum at least as far from 0."""
    size = np.sort(np.abs(_sums(columns, clusters)), axis=0)
    generator, extreme = np.random.default_rng(seed), np.zeros(columns.shape[1])
    total = size.sum(axis=0)
    least = np.abs(columns.sum(axis=0)) - 1e-9 * total  # rounding must not separate equal sums
    for rows in _chunks(_FLIPS, max(size.shape)):
        positive = generator.integers(2, size=(rows, len(size)), dtype=np.int8).astype(float)
        extreme += (np.abs(2 * positive @ size - total) >= least).sum(axis=0)
    return (extreme + 1) / (_FLIPS + 1)


def standard_errors(columns: np.ndarray, clusters: Sequence[int] | None = None) -> np.ndarray:
    """Standard error of the mean of each column, whose rows are questions, by the jackknife over passages."""
    return _Clustered(columns, _numbered(clusters, len(columns))).error


def student(freedom: float, probability: float) -> float:
    """Quantile of Student's t."""
    return _t(round(freedom, 6), probability)


class _Clustered:
    """Columns of values of questions in clusters: their means and standard errors.

    A mean is over questions, so a passage with more questions weighs more: it is the ratio of two sums over passages.
    """

    def __init__(self, columns: np.ndarray, clusters: np.ndarray) -> None:
        # The excess over the smallest value keeps the mean of a constant column exact.
        self.columns, self.smallest = columns, columns.min(axis=0)
        sizes = np.bincount(clusters).astype(float)
        sums = _sums(columns - self.smallest, clusters)
        # No statistic combines columns, so each may be sorted, and the order of the questions has no effect.
        order = np.lexsort((sums.T, np.broadcast_to(sizes, sums.T.shape))).T
        self.sizes, self.sums = np.sort(sizes)[:, None], np.take_along_axis(sums, order, axis=0)
        self.n, self.count = len(columns), len(sizes)
        self.repeated = (columns - self.smallest)[sizes[clusters] > 1]  # of questions that are not alone
        self.excess = self.sums.sum(axis=0) / self.n
        self.mean = self.smallest + self.excess
        self.error = self._jackknife()

    def _jackknife(self) -> np.ndarray:
        """Standard error of the means, leaving out one passage at a time (in regression, CR3)."""
        if self.count < 2:
            return np.zeros_like(self.mean)
        deviation = (self.sums - self.excess * self.sizes) / (1 - self.sizes / self.n)
        return np.sqrt((1 - 1 / self.count) * (deviation**2).sum(axis=0)) / self.n

    def quantile(self, probability: float) -> float:
        """Of Student's t with as many degrees of freedom as passages less one; uneven ones count for fewer (Kish)."""
        even = self.n**2 / float((self.sizes**2).sum())
        return _t(round(max(1, even - 1), 6), probability)

    def effective_n(self) -> np.ndarray:
        """The number of questions divided by the design effect: how many independent ones would say as much.

        Where all values are equal the design effect is unknown, and may be the size of a passage.
        """
        variance = (self.columns**2).mean(axis=0) - self.mean**2
        known = (variance > 1e-12) & (self.count > 1)
        effect = np.full_like(variance, self.n / self.count)
        np.divide(self.error**2 * (self.n - 1), variance, out=effect, where=known)
        return self.n / np.maximum(effect, 1)

    def bootstrap_t(self, samples: int, seed: int, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Bootstrap-t over passages (Efron & Tibshirani 1993, ch. 12): each resample is measured by its own error."""
        if self.count < 2:  # nothing is known of how passages differ
            return self.mean - math.inf, self.mean + math.inf
        generator, found = np.random.default_rng(seed), []
        known = self.error > 0
        floor = np.where(known, _SMALLEST_ERROR * self.error, 1)
        for rows in _chunks(samples, max(self.sums.shape)):
            times = _times_drawn(generator, rows, self.count)
            questions = times @ self.sizes
            mean = times @ self.sums / questions
            squares = times @ self.sums**2 - 2 * mean * (times @ (self.sums * self.sizes))
            squares += mean**2 * (times @ self.sizes**2)
            error = np.sqrt(self.count / (self.count - 1) * np.maximum(squares, 0)) / questions
            found.append((mean - self.excess) / np.maximum(error, floor))
        low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2], axis=0)
        uneven = self.quantile((1 + level) / 2) / _t(self.count - 1, (1 + level) / 2)
        return self.mean - high * uneven * self.error, self.mean - low * uneven * self.error

    def all_in(self, *values: float) -> np.ndarray:
        """For each column, whether it has no other values than these, or is constant and between them."""
        equal = (
            (self.columns == self.smallest).all(axis=0) & (self.smallest >= values[0]) & (self.smallest <= values[-1])
        )
        return np.isin(self.columns, values).all(axis=0) | equal

    def intervals(
        self, low: np.ndarray, high: np.ndarray, least: float, most: float, bounded: np.ndarray | bool
    ) -> list[Interval]:
        """The means with these ends; the ends of `bounded` columns lie from `least` to `most`, as their values do."""
        inside = bounded & ((self.columns >= least) & (self.columns <= most)).all(axis=0)
        if self.count < 2:
            low, high = np.where(inside, low, -math.inf), np.where(inside, high, math.inf)
        low = np.where(inside, np.maximum(low, least), low)
        high = np.where(inside, np.minimum(high, most), high)
        low, high = np.minimum(low, self.mean), np.maximum(high, self.mean)  # rounding may put them beyond it
        ends = zip(self.mean.tolist(), low.tolist(), high.tolist(), self.iccs(), strict=True)
        return [Interval(mean, *of_mean, icc=icc) for mean, *of_mean, icc in ends]

    def iccs(self) -> list[float | None]:
        """Intraclass correlation of each column: one-way analysis of variance (Shrout & Fleiss 1979, ICC(1)), over the
        passages with several questions.

        One with a single question says nothing of how alike questions on a passage are. In the analysis it would bring
        the mean size of a passage near 1, and the estimate, which may be as low as -1 / (size - 1), far below -1.
        Without it the size is at least 2, so the estimate lies between -1 and 1, and it varies less from test to test.
        """
        several = self.sizes[:, 0] > 1
        sizes, sums, count = self.sizes[several], self.sums[several], int(several.sum())
        if count < FEWEST_REPEATED:
            return [None] * len(self.mean)
        n = len(self.repeated)
        mean = sums.sum(axis=0) / n
        between = (sizes * (sums / sizes - mean) ** 2).sum(axis=0) / (count - 1)
        total = ((self.repeated - mean) ** 2).sum(axis=0)
        within = np.maximum(total - between * (count - 1), 0) / (n - count)
        size = (n - (sizes**2).sum() / n) / (count - 1)
        spread = between + (size - 1) * within
        return [float(i) if s > 1e-12 else None for i, s in zip((between - within) / np.maximum(spread, 1e-12), spread)]


def _wilson(share: np.ndarray, n: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval (1927) of a share."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(np.maximum(share * (1 - share), 0) / n + z**2 / (4 * n**2))
    return middle - reach, middle + reach


def _smoothed(found: _Clustered) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of -1, 0 and 1 with one question more on either side (Bonett & Price 2012)."""
    n = found.effective_n()
    mean = found.mean * n / (n + 2)
    square = ((found.columns**2).mean(axis=0) * n + 2) / (n + 2)
    return mean, np.sqrt((square - mean**2) / (n + 2))


def _numbered(clusters: Sequence[int] | None, n: int) -> np.ndarray:
    """Numbers from 0 without gaps; without clusters, one for each question."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} clusters for {n} questions; need one each")
    return np.unique(np.asarray(clusters), return_inverse=True)[1].reshape(-1)


def _sums(columns: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The sum of each column over the questions of each passage."""
    sums = np.zeros((int(clusters.max()) + 1, columns.shape[1]))
    np.add.at(sums, clusters, columns)
    return sums


def _times_drawn(generator: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """How often each of n passages is drawn, in `rows` resamples of n passages."""
    drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)


def _chunks(total: int, width: int) -> Iterator[int]:
    """Split `total` rows of `width` values into chunks of about `_CELLS` values; yields their row counts."""
    step = 1 + _CELLS // (1 + width)
    return (min(step, total - start) for start in range(0, total, step))


@lru_cache(maxsize=100)
def _t(freedom: float, probability: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
