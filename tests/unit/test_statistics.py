"""Means and paired differences over questions that share passages: properties and hand-computed cases.

tests/comparison/test_coverage.py compares them with SciPy and simulates how often they are right.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from groundtune.evaluation import statistics
from groundtune.evaluation.statistics import (
    FEWEST_PASSAGES,
    FEWEST_REPEATED,
    PairedDifference,
    aggregate,
    clusters_of,
    mean_interval,
    paired_difference,
)
from groundtune.schema import Document, Example
from groundtune.system.text import as_json


def ends(interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def width(interval) -> float:
    return interval.high - interval.low


def example(*passages: str, answerable: bool = True) -> Example:
    return Example("Which?", "This.", tuple(map(Document, passages)), answerable=answerable)


# Clusters


def test_questions_belong_together_if_they_share_a_gold_passage():
    assert clusters_of([example("a"), example("b"), example("a"), example("c")]) == [0, 1, 0, 2]


def test_questions_belong_together_by_way_of_a_third_in_whatever_order():
    first, third, link = example("a", "b"), example("c", "d"), example("d", "b")
    assert clusters_of([first, third, example("e"), link]) == [0, 0, 1, 0]
    assert clusters_of([link, example("e"), third, first]) == [0, 1, 0, 0]
    chain = [example(f"p{i}", f"p{i + 1}") for i in range(5000)]
    assert set(clusters_of(chain[::2])) == set(range(2500)) and set(clusters_of(chain)) == {0}


def test_the_same_text_is_the_same_passage_whatever_its_metadata():
    one, other = Document("text", metadata={"seq": 1}), Document(" text\n", metadata={"seq": 2})
    assert clusters_of([Example("q", "a", (one,)), Example("r", "b", (other,))]) == [0, 0]


def test_an_unanswerable_question_and_one_without_a_passage_are_alone():
    examples = [example("a"), example("a", answerable=False), example(), example("a", answerable=False), example()]
    assert clusters_of(examples) == [0, 1, 2, 3, 4]
    assert clusters_of([]) == []


# Intervals of means


def test_interval_goes_into_json():
    found = json.loads(json.dumps(mean_interval([0.5, 1]).to_dict()))
    assert found.keys() == {"value", "low", "high", "icc"}


def test_shares_of_nothing_and_of_everything_are_not_certain():
    """Of 20 questions, 0 right: at most about 16 % (t instead of z: 18 %); on 10 passages as little as 10 questions."""
    none, every = mean_interval([0] * 20), mean_interval([1] * 20)
    t = 2.0930240544
    assert ends(none) == pytest.approx((0, 0, t**2 / (20 + t**2)))
    assert ends(every) == pytest.approx((1, 1 - t**2 / (20 + t**2), 1))
    pairs = mean_interval([0] * 20, [i // 2 for i in range(20)])
    assert ends(pairs) == pytest.approx((0, 0, 2.2621571629**2 / (10 + 2.2621571629**2)))


def test_a_share_by_hand_with_its_design_effect():
    """Two questions a passage that always agree count as one: 3 of 12 passages, not 6 of 24 questions."""
    of_passages = mean_interval([1] * 3 + [0] * 9)
    of_pairs = mean_interval([1] * 6 + [0] * 18, [i // 2 for i in range(24)])
    assert ends(of_pairs) == pytest.approx(ends(of_passages), rel=0.1)
    assert of_pairs.icc == pytest.approx(1)
    as_if_independent = mean_interval([1] * 6 + [0] * 18)
    assert width(of_pairs) > 1.3 * width(as_if_independent)


def test_equal_scores_of_any_size_are_not_certain_either():
    found = mean_interval([0.25] * 30)
    assert found.value == 0.25 and found.low < 0.15 < 0.35 < found.high
    assert ends(mean_interval([64.0] * 30)) == (64, 64, 64)  # tokens at their limit: no score, and no share


def test_of_one_passage_nothing_is_known():
    low_high = mean_interval([0.2, 0.6, 0.4], [0, 0, 0])
    assert ends(low_high) == (pytest.approx(0.4), 0, 1) and low_high.icc is None
    assert low_high.ends(2) == "[0.00, 1.00]"


def test_of_one_passage_the_interval_of_what_is_no_share_is_unknown():
    """A point would look certain, and -1 to 1 are no bounds of a difference of tokens or losses."""
    rows = [{"generation/new_tokens": tokens, "latency/generation_s": 0.5, "loss": 0.4} for tokens in (0, 1)]
    found = [*aggregate(rows, [0, 0]).values(), mean_interval([2.5]), mean_interval([0.5], shares=False)]
    found += [
        paired_difference([8.4], [8.6], shares=False),
        paired_difference([0.4, 0.5], [0.5, 0.7], [0, 0], shares=False),
    ]
    for interval in found:
        assert (interval.low, interval.high, interval.ends(2)) == (-math.inf, math.inf, "[unknown]")
        kept = json.loads(as_json(interval.to_dict()))
        assert kept["value"] == interval.value and kept["low"] is kept["high"] is None
    assert {one.verdict for one in found[-2:]} == {"no clear difference"}
    two = paired_difference([3.0, 3.0, 5.0, 5.0], [4.0, 3.0, 5.9, 5.9], [0, 0, 1, 1], shares=False)
    assert math.isfinite(two.low) and two.high > 1


def test_no_end_of_a_score_lies_beyond_what_scores_can_reach():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 25):
        values = rng.beta(0.2, 5, n)
        found = mean_interval(values)
        assert 0 <= found.low < found.value < found.high <= 1
        difference = paired_difference(values, 1 - values)
        assert -1 <= difference.low <= difference.value <= difference.high <= 1


def test_few_questions_that_differ_do_not_make_an_interval_endless():
    """Many resamples hold none of the three: divided by their error of 0, the interval would reach to 1."""
    found = paired_difference([0.5] * 60, [0.5] * 57 + [0.7, 0.9, 0.6])
    assert 0 <= found.low < 0.005 and 0.03 < found.high < 0.1
    assert found.p_value > 0.05 and found.verdict == "no clear difference"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_failed_score_raises_and_is_not_left_out(bad):
    with pytest.raises(ValueError, match="row 1"):
        mean_interval([0.5, bad, 1.0])
    with pytest.raises(ValueError, match="row 2: loss is"):
        aggregate([{"f1": 1, "loss": 2}, {"f1": 1, "loss": 2}, {"f1": 1, "loss": bad}])


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_failed_score_raises_in_a_comparison(bad):
    for base, tuned in (([0, bad], [0, 1]), ([0, 1], [0, bad]), ([0, bad], [0, bad])):
        with pytest.raises(ValueError, match="row 1"):
            paired_difference(base, tuned)


def test_no_values_raise():
    for call in (lambda: mean_interval([]), lambda: aggregate([]), lambda: paired_difference([], [])):
        with pytest.raises(ValueError, match="no values"):
            call()


def test_clusters_must_be_those_of_the_questions():
    with pytest.raises(ValueError, match="2 clusters for 3 questions"):
        mean_interval([1, 2, 3], [0, 0])


def test_the_numbers_of_clusters_need_not_be_dense():
    values = [0.1, 0.5, 0.3, 0.9, 0.2, 0.7]
    assert mean_interval(values, [7, 7, 3, 3, 900, 900]) == mean_interval(values, [0, 0, 1, 1, 2, 2])


def test_interval_agrees_with_the_normal_approximation_for_many_questions():
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    error = 1.96 * values.std() / math.sqrt(len(values))
    interval = mean_interval(values, samples=4000)
    assert interval.high - interval.value == pytest.approx(error, rel=0.08)
    assert interval.value - interval.low == pytest.approx(error, rel=0.08)


def test_questions_that_repeat_each_other_are_worth_one():
    """Each of 30 values four times: the passages' interval is that of 30, the questions' would be half as wide."""
    values = np.random.default_rng(0).random(30)
    four = np.repeat(values, 4)
    together = mean_interval(four, np.repeat(np.arange(30), 4))
    assert ends(together) == pytest.approx(ends(mean_interval(values)))
    assert together.icc == pytest.approx(1)
    assert width(mean_interval(four)) < 0.55 * width(together)


def test_a_higher_level_gives_a_wider_interval():
    values = np.random.default_rng(0).random(40)
    widths = [width(mean_interval(values, level=level)) for level in (0.5, 0.8, 0.95, 0.99)]
    assert widths == sorted(widths) and widths[0] < widths[-1] / 2


def test_the_order_of_questions_has_no_effect():
    rng = np.random.default_rng(0)
    base, tuned, clusters = rng.random(60), rng.random(60), np.repeat(np.arange(24), [1, 2, 3, 4] * 6)
    order = rng.permutation(60)
    assert mean_interval(base) == mean_interval(base[order])
    assert paired_difference(base, tuned) == paired_difference(base[order], tuned[order])
    found, shuffled = mean_interval(base, clusters), mean_interval(base[order], clusters[order])
    assert found.to_dict() == pytest.approx(shuffled.to_dict())


def test_the_seed_decides_the_interval():
    values = np.random.default_rng(0).random(30)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_working_in_chunks_still_draws_every_resample(monkeypatch):
    rng = np.random.default_rng(0)
    base, tuned = rng.random(100), rng.random(100) + 0.08
    whole, whole_pair = mean_interval(base), paired_difference(base, tuned)
    monkeypatch.setattr(statistics, "_CELLS", 700)
    assert list(statistics._chunks(20, 100)) == [7, 7, 6]
    assert sum(statistics._chunks(2000, 100)) == 2000 and sum(statistics._chunks(5, 10**9)) == 5
    cut, cut_pair = mean_interval(base), paired_difference(base, tuned)
    assert cut.low == pytest.approx(whole.low, abs=0.005) and cut.high == pytest.approx(whole.high, abs=0.005)
    assert cut_pair.p_value == pytest.approx(whole_pair.p_value, abs=0.02) and 0.01 < whole_pair.p_value < 0.3


def test_aggregate_gives_each_metric_the_interval_it_has_alone():
    rng = np.random.default_rng(0)
    rows = [{"loss": 5 * loss, "generation/f1": f1, "right": f1 > 0.6} for loss, f1 in rng.random((40, 2))]
    clusters = [i // 3 for i in range(40)]
    intervals = aggregate(rows, clusters, samples=500, seed=3)
    assert list(intervals) == ["loss", "generation/f1", "right"]
    for name, interval in intervals.items():
        alone = mean_interval([row[name] for row in rows], clusters, samples=500, seed=3)
        assert interval.to_dict() == pytest.approx(alone.to_dict())


def test_aggregate_reads_rows_by_name_and_not_by_position():
    intervals = aggregate([{"a": 1, "b": 0}, {"b": 0, "a": 1}])
    assert (intervals["a"].value, intervals["b"].value) == (1, 0)


def test_aggregate_names_the_metrics_that_only_some_rows_have():
    for odd in ({"a": 1}, {"a": 1, "b": 1, "c": 1}):
        with pytest.raises(ValueError, match=rf"row 2 .*\['{'b' if len(odd) == 1 else 'c'}'\]"):
            aggregate([{"a": 1, "b": 1}, {"a": 1, "b": 1}, odd])


# Intraclass correlation


def test_the_intraclass_correlation_by_hand(monkeypatch):
    """The six targets and four judges of Shrout & Fleiss (1979, table 2), for whom ICC(1,1) is 0.17."""
    monkeypatch.setattr(statistics, "FEWEST_REPEATED", 6)
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    found = mean_interval(np.ravel(ratings), np.repeat(np.arange(6), 4))
    assert found.icc == pytest.approx(0.17, abs=0.005)
    alone = mean_interval([*np.ravel(ratings), 40, -30], [*np.repeat(np.arange(6), 4), 6, 7])
    assert alone.icc == pytest.approx(found.icc)


def test_the_intraclass_correlation_is_none_of_few_passages_and_else_between_minus_one_and_one():
    rng = np.random.default_rng(0)
    for _ in range(100):
        n, passages = (int(rng.integers(*bounds)) for bounds in ((20, 80), (10, 60)))
        clusters = [*range(passages), *rng.integers(passages, size=n)]
        found = mean_interval(rng.beta(1, 3, len(clusters)), clusters, samples=2).icc
        several = int((np.bincount(clusters) > 1).sum())
        assert (found is None) == (several < FEWEST_REPEATED) and -1 <= (found or 0) <= 1
    opposites = mean_interval([0.0, 1.0] * 10 + [0.3] * 20, [*np.repeat(np.arange(10), 2), *range(10, 30)])
    assert opposites.icc == pytest.approx(-1)


def test_the_intraclass_correlation_is_that_of_the_data():
    rng = np.random.default_rng(0)
    sizes = np.tile([1, 2, 3, 5], 500)
    clusters = np.repeat(np.arange(2000), sizes)
    for icc in (0, 0.3, 0.7):
        values = math.sqrt(icc) * rng.normal(size=2000)[clusters] + math.sqrt(1 - icc) * rng.normal(size=len(clusters))
        assert mean_interval(values, clusters, samples=2).icc == pytest.approx(icc, abs=0.05)


def test_there_is_no_intraclass_correlation_of_questions_that_are_alone_or_equal():
    assert mean_interval([0.2, 0.4, 0.9]).icc is None
    assert mean_interval([0.5] * 6, [0, 0, 1, 1, 2, 2]).icc is None


# Comparison


def test_paired_difference_counts_and_keeps_the_sign():
    quality = paired_difference([1, 1, 0, 0.5], [1, 0, 1, 0.75])
    assert quality.value == pytest.approx(0.0625)
    assert (quality.wins, quality.losses, quality.ties, quality.n, quality.passages) == (2, 1, 1, 4, 4)
    latency = paired_difference([1, 1, 0, 0.5], [1, 0, 1, 0.75], greater_is_better=False)
    assert latency.value == pytest.approx(0.0625)
    assert (latency.wins, latency.losses, latency.ties) == (1, 2, 1)
    assert (latency.low, latency.high, latency.p_value) == (quality.low, quality.high, quality.p_value)


@pytest.mark.parametrize(
    ("shift", "greater", "verdict"),
    [(0.3, True, "better"), (-0.3, True, "worse"), (0.3, False, "worse"), (-0.3, False, "better")],
)
def test_verdict_follows_the_interval_and_the_direction(shift, greater, verdict):
    base, noise = np.random.default_rng(0).random((2, 80))
    difference = paired_difference(base, base + shift + 0.1 * (noise - 0.5), greater_is_better=greater)
    assert difference.verdict == verdict == difference.to_dict()["verdict"]
    assert difference.value == pytest.approx(shift, abs=0.02) and difference.p_value < 0.001
    json.dumps(difference.to_dict())


def test_no_verdict_from_noise_or_from_equal_models():
    rng = np.random.default_rng(1)
    base = rng.random(80)
    assert paired_difference(base, rng.random(80)).verdict == "no clear difference"
    same = paired_difference(base, base)
    assert (same.verdict, same.value, same.ties, same.p_value) == ("no clear difference", 0, 80, 1)
    assert same.low < 0 < same.high


def test_no_verdict_from_questions_on_too_few_passages_however_many_they_are():
    assert FEWEST_PASSAGES == 20
    assert paired_difference([0] * 19, [1] * 19).verdict == "no clear difference"
    assert paired_difference([0] * 20, [1] * 20).verdict == "better"
    many = [i % 19 for i in range(500)]
    assert paired_difference([0] * 500, [1] * 500, many).verdict == "no clear difference"


@pytest.mark.parametrize(("low", "high"), [(0, 0.2), (-0.2, 0), (1e-17, 0.2), (-0.2, -1e-17), (-0.1, 0.1)])
def test_an_interval_that_touches_zero_gives_no_verdict(low, high):
    difference = PairedDifference(0.1, low, high, wins=9, losses=1, ties=0, n=30, p_value=0.01, passages=30)
    assert difference.verdict == "no clear difference"


def test_questions_on_the_same_passages_do_not_make_a_difference_clear():
    """25 passages, 8 questions each that agree: 200 questions would be proof, 25 are not."""
    of_passages = np.random.default_rng(4).normal(0.06, 0.2, 25)
    tuned = np.repeat(of_passages, 8)
    alone = paired_difference(np.zeros(200), tuned)
    together = paired_difference(np.zeros(200), tuned, np.repeat(np.arange(25), 8))
    assert alone.verdict == "better" and alone.p_value < 0.01
    assert together.verdict == "no clear difference" and together.p_value > 0.05


def test_pairing_narrows_the_interval_when_the_models_fail_on_the_same_questions():
    rng = np.random.default_rng(0)
    difficulty = rng.random(200)
    base, tuned = difficulty + 0.05 * rng.random(200), difficulty + 0.05 * rng.random(200) + 0.02
    paired = paired_difference(base, tuned)
    apart = [mean_interval(values) for values in (base, tuned)]
    assert width(paired) < math.hypot(*map(width, apart)) / 5
    assert paired.verdict == "better" and apart[1].low < apart[0].high


def test_differences_of_zero_and_one_by_hand():
    """Bonett & Price (2012), table 1 with 15 of 40 better and 5 worse, with t of 39 instead of z."""
    found = paired_difference([0] * 15 + [1] * 5 + [0] * 20, [1] * 15 + [0] * 5 + [0] * 20)
    better, worse, t = 16 / 42, 6 / 42, 2.0226909200
    error = math.sqrt((better + worse - (better - worse) ** 2) / 42)
    assert ends(found) == pytest.approx((0.25, better - worse - t * error, better - worse + t * error))


def test_a_true_difference_of_the_detectable_size_is_found_four_times_in_five():
    rng, found, sizes = np.random.default_rng(0), 0, []
    clusters = np.repeat(np.arange(30), 2)
    for seed in range(300):
        noise = 0.15 * rng.normal(size=30)[clusters] + 0.15 * rng.normal(size=60)
        # Shift by what is detectable on average, as a reader of one report does.
        test = paired_difference(np.zeros(60), noise + 0.0923, clusters, samples=300, seed=seed)
        sizes.append(test.detectable)
        found += test.verdict == "better"
    assert np.mean(sizes) == pytest.approx(0.0923, rel=0.08)
    assert 0.73 < found / 300 < 0.87


@pytest.mark.parametrize("differences", [[1] * 6, [1, 1, 1, -1, 1, 0], [0.1, 0.2, -0.3, 0.4], [0.1] * 7 + [-0.1] * 3])
def test_p_value_agrees_with_counting_all_sign_flips(differences):
    size = np.abs(differences)
    signs = 1 - 2 * ((np.arange(2 ** len(size))[:, None] >> np.arange(len(size))) & 1)
    exact = np.mean(np.abs(signs @ size) >= abs(sum(differences)) - 1e-12)
    p_value = paired_difference([0] * len(differences), differences).p_value
    assert p_value == pytest.approx(exact, abs=0.02)


def test_signs_are_flipped_by_passage():
    """Six passages of three equal questions: 2 of 2 ** 6 flips are as extreme, not 2 of 2 ** 18."""
    found = paired_difference([0] * 18, [1] * 18, [i // 3 for i in range(18)])
    assert found.p_value == pytest.approx(2 / 64, abs=0.006)


def test_p_value_is_two_sided_never_zero_and_fair_under_chance():
    rng = np.random.default_rng(0)
    base, tuned = np.zeros(40), np.ones(40)
    assert paired_difference(base, tuned).p_value == paired_difference(tuned, base).p_value == 1 / 10_001
    under_chance = [paired_difference(*rng.random((2, 20)), samples=1, seed=i).p_value for i in range(150)]
    assert 0.02 <= np.mean(np.array(under_chance) <= 0.1) <= 0.18


def test_models_must_have_answered_the_same_questions():
    with pytest.raises(ValueError, match="base has 2 values, tuned 3"):
        paired_difference([1, 2], [1, 2, 3])
