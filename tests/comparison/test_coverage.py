"""Intervals and verdicts against SciPy where it has the same, and against the truth where it is known: simulated."""

from __future__ import annotations

import numpy as np
import pytest

from groundtune.evaluation.statistics import (
    FEWEST_PASSAGES,
    difference_intervals,
    mean_interval,
    mean_intervals,
    paired_difference,
    sign_flip_p_values,
)

RUNS = 2000
SIZES = {"1": [1], "2": [2], "5": [5], "1 to 5": [1, 2, 5, 1, 3]}  # questions a passage
# Distributions with mean 0 and variance 1. The exponential one, with skewness 2, is as asymmetric as real differences
# of scores get: many small losses, few large gains.
SHAPES = {
    "symmetric": lambda rng, shape: rng.normal(size=shape),
    "asymmetric": lambda rng, shape: rng.exponential(size=shape) - 1,
}


@pytest.mark.parametrize(("right", "n"), [(0, 20), (1, 37), (7, 37), (36, 37), (40, 40)])
def test_a_share_of_independent_questions_has_the_interval_of_wilson(right, n):
    scipy = pytest.importorskip("scipy.stats", reason="the reference is SciPy")
    level = 2 * scipy.norm.cdf(scipy.t.ppf(0.975, n - 1)) - 1  # we use t where Wilson uses z
    expected = scipy.binomtest(right, n).proportion_ci(level, "wilson")
    found = mean_interval([1] * right + [0] * (n - right))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_standard_error_by_passage_is_that_of_the_means_of_passages_of_one_size():
    """With equal sizes, the jackknife is the textbook's standard error of the means; it gives what is detectable."""
    scipy = pytest.importorskip("scipy.stats", reason="the reference is SciPy")
    values = np.random.default_rng(0).random((30, 3))
    found = paired_difference(np.zeros(90), values.ravel(), np.repeat(np.arange(30), 3))
    means = values.mean(axis=1)
    in_errors = scipy.t.ppf(0.975, 29) + scipy.t.ppf(0.8, 29)
    assert found.detectable == pytest.approx(in_errors * scipy.sem(means))
    expected = scipy.ttest_1samp(means, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_the_interval_is_scipys_bootstrap_t_of_passages():
    """Independent passages of several sizes, studentised by hand with SciPy's resampling."""
    scipy = pytest.importorskip("scipy.stats", reason="the reference is SciPy")
    rng = np.random.default_rng(0)
    values = rng.exponential(size=40)
    center, error = values.mean(), scipy.sem(values)
    studentised = scipy.bootstrap(
        (values,), lambda x, axis: (x.mean(axis=axis) - center) / scipy.sem(x, axis=axis), n_resamples=20_000,
        method="percentile", random_state=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    found = mean_interval(values, samples=20_000)
    assert found.low == pytest.approx(center - studentised.high * error, abs=0.02)
    assert found.high == pytest.approx(center - studentised.low * error, abs=0.02)


def test_signs_are_flipped_as_by_scipys_permutation_test():
    scipy = pytest.importorskip("scipy.stats", reason="the reference is SciPy")
    base, tuned = np.random.default_rng(0).random((2, 25))
    expected = scipy.permutation_test(
        (base, tuned), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, random_state=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert paired_difference(base, tuned).p_value == pytest.approx(expected, abs=0.015)


# The simulation


def clusters_of_sizes(passages: int, sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(passages), np.resize(sizes, passages))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("passages", [FEWEST_PASSAGES, 60])
def test_intervals_cover_and_verdicts_are_not_false(shape, passages):
    """There is no true difference, so each verdict is false: at most 6 %, and at least 92 % of intervals hold 0."""
    rng = np.random.default_rng([passages, len(shape)])
    for size, sizes in SIZES.items():
        clusters = clusters_of_sizes(passages, sizes)
        for icc in (0, 0.25, 0.5):
            of_passages, of_questions = (SHAPES[shape](rng, (n, RUNS)) for n in (passages, len(clusters)))
            runs = 0.2 * (np.sqrt(icc) * of_passages[clusters] + np.sqrt(1 - icc) * of_questions)
            intervals, _ = difference_intervals(runs, clusters)
            holds = np.array([found.low <= 0 <= found.high for found in intervals])
            false = ~holds & (sign_flip_p_values(runs, clusters) < 0.05)
            found = f"{shape}, {passages} passages of {size} questions, ICC {icc}"
            print(f"{found}: coverage {holds.mean():.3f}, false verdicts {false.mean():.3f}")
            assert holds.mean() >= 0.92 and false.mean() <= 0.06, found


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_intervals_of_shares_cover(share):
    """Right or wrong, with a probability that differs by passage (beta-binomial).

    The lowest is a share of 0.1 with an ICC of 0.5, where many tests see only one or two passages that are right.
    """
    rng = np.random.default_rng(int(100 * share))
    for passages in (FEWEST_PASSAGES, 60):
        for size, sizes in SIZES.items():
            clusters = clusters_of_sizes(passages, sizes)
            for icc in (0, 0.25, 0.5):
                chance = np.full((passages, RUNS), share)
                if icc:
                    chance = rng.beta(share * (1 / icc - 1), (1 - share) * (1 / icc - 1), (passages, RUNS))
                runs = (rng.random((len(clusters), RUNS)) < chance[clusters]).astype(float)
                intervals = mean_intervals(runs, clusters, samples=1)  # Wilson needs none
                holds = np.mean([interval.low <= share <= interval.high for interval in intervals])
                found = f"share {share}, {passages} passages of {size} questions, ICC {icc}"
                print(f"{found}: coverage {holds:.3f}")
                assert holds >= 0.92, found


@pytest.mark.slow
@pytest.mark.parametrize("shares", [(0.05, 0.05), (0.1, 0.1), (0.3, 0.3), (0.1, 0.02), (0.3, 0.1)])
def test_intervals_of_differences_of_shares_cover(shares):
    """Better and worse, each with its share, which differs by passage (Dirichlet-multinomial)."""
    better, worse = shares
    rng = np.random.default_rng([int(100 * share) for share in shares])
    for passages in (FEWEST_PASSAGES, 60):
        for size, sizes in SIZES.items():
            clusters = clusters_of_sizes(passages, sizes)
            for icc in (0, 0.25, 0.5):
                chances = np.broadcast_to(np.array([better, worse])[:, None, None], (2, passages, RUNS))
                if icc:
                    all_three = np.array([better, worse, 1 - better - worse]) * (1 / icc - 1)
                    chances = np.moveaxis(rng.dirichlet(all_three, (passages, RUNS)), -1, 0)[:2]
                drawn, (up, down) = rng.random((len(clusters), RUNS)), chances[:, clusters]
                runs = (drawn < up).astype(float) - ((drawn >= up) & (drawn < up + down))
                intervals, _ = difference_intervals(runs, clusters, samples=1)  # Bonett & Price need none
                holds = np.array([found.low <= better - worse <= found.high for found in intervals])
                found = f"{better} better, {worse} worse, {passages} passages of {size} questions, ICC {icc}"
                print(f"{found}: coverage {holds.mean():.3f}")
                assert holds.mean() >= 0.92, found
                if better == worse:
                    assert (~holds & (sign_flip_p_values(runs, clusters) < 0.05)).mean() <= 0.06, found
