"""Several seeds of one method: intervals that know of other seeds, as the analysis of variance says."""

from __future__ import annotations

import numpy as np
import pytest

from groundtune.evaluation.seeds import difference_over_seeds, mean_over_seeds, variance_of_seeds
from groundtune.evaluation.statistics import paired_difference

QUESTIONS = 60


def scores(seeds: int, of_seed: float, left: float = 0.1, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    question = np.random.default_rng(100).uniform(0.2, 0.6, QUESTIONS)
    noise = rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, left, (seeds, QUESTIONS))
    return question + shift + noise


def test_of_one_seed_each_it_is_the_paired_difference():
    a, b = scores(1, 0.0, seed=1), scores(1, 0.0, seed=2, shift=0.1)
    clusters = [i // 2 for i in range(QUESTIONS)]
    assert difference_over_seeds(a, b, clusters) == paired_difference(a[0].tolist(), b[0].tolist(), clusters)


def test_the_variance_between_seeds_is_that_of_a_two_way_analysis_of_variance():
    """(MS of seeds - MS of what is left) / questions, in a layout with one value per cell (Searle et al. 1992)."""
    y = scores(4, 0.05)
    seeds, n = y.shape
    of_seeds = n * ((y.mean(axis=1) - y.mean()) ** 2).sum() / (seeds - 1)
    left = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
    of_rest = (left**2).sum() / ((seeds - 1) * (n - 1))
    assert variance_of_seeds(y, list(range(n))) == pytest.approx((of_seeds - of_rest) / n, rel=1e-9)
    assert variance_of_seeds(np.repeat(y[:1], 3, axis=0), list(range(n))) == 0


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not():
    clusters = list(range(QUESTIONS))
    base = scores(3, 0.0, seed=3)
    same, differing = scores(3, 0.0, seed=4), scores(3, 0.2, seed=4)
    narrow = difference_over_seeds(base, same, clusters)
    wide = difference_over_seeds(base, differing, clusters)
    alone = paired_difference(base.mean(0).tolist(), differing.mean(0).tolist(), clusters)
    assert wide.high - wide.low > 3 * (alone.high - alone.low) > 0
    assert narrow.high - narrow.low < 0.2 and wide.value == pytest.approx(alone.value)
    assert wide.low < wide.value < wide.high


def test_the_interval_widens_with_the_level_and_a_mean_stays_between_0_and_1():
    clusters = list(range(QUESTIONS))
    a, b = scores(3, 0.02, seed=5), scores(2, 0.02, seed=6, shift=0.05)
    usual, corrected = (difference_over_seeds(a, b, clusters, level=level) for level in (0.95, 0.99))
    assert corrected.low < usual.low < usual.value < usual.high < corrected.high
    assert mean_over_seeds(np.clip(scores(3, 0.6, seed=7), 0, 1), clusters).low >= 0


def test_equal_differences_of_all_questions_still_know_of_seeds():
    a = np.full((3, 30), 0.5)
    b = a + np.array([[0.0], [0.1], [0.2]])
    found = difference_over_seeds(a, b, list(range(30)))
    assert found.low < 0 < found.high and found.value == pytest.approx(0.1)


def coverage(seeds: int, of_seed: float, tests: int, method) -> float:
    rng, hits = np.random.default_rng(0), 0
    clusters = [i // 2 for i in range(QUESTIONS)]
    for number in range(tests):
        effect = np.repeat(rng.normal(0, 0.1, QUESTIONS // 2), 2) + rng.normal(0, 0.1, QUESTIONS)
        a = scores(seeds, of_seed, seed=2 * number + 1000)
        b = scores(seeds, of_seed, seed=2 * number + 1001) + effect
        found = method(a, b, clusters)
        hits += found.low <= 0 <= found.high
    return hits / tests


def over_seeds(a, b, clusters):
    return difference_over_seeds(a, b, clusters, samples=300)


def means_alone(a, b, clusters):
    return paired_difference(a.mean(0).tolist(), b.mean(0).tolist(), clusters, samples=300)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seed", [0.0, 0.02, 0.04])
def test_intervals_contain_the_difference_between_methods_as_often_as_they_say(seeds, of_seed):
    assert coverage(seeds, of_seed, 500, over_seeds) >= 0.91


@pytest.mark.slow
def test_without_the_variance_between_seeds_they_would_not():
    assert coverage(3, 0.04, 300, means_alone) < 0.85
