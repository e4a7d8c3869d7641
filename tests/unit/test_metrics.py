"""Properties and hand-computed cases of metrics, intervals and the paired comparison."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest

from groundtune.evaluation import metrics
from groundtune.evaluation.metrics import (
    METRICS,
    Interval,
    PairedDifference,
    aggregate,
    bleu,
    bootstrap_mean,
    exact_match,
    generation_scores,
    greater_is_better,
    ndcg_at_k,
    paired_difference,
    recall_at_k,
    reciprocal_rank,
    retrieval_scores,
    rouge,
    token_f1,
    token_precision,
    token_recall,
)

WORDS = ["the", "a", "an", "Paris,", "capital", "of", "France!", "in", "1889", "tower;", "U.S.", "don't"]


def random_text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(0, 12)))


# Generation


@pytest.mark.parametrize(
    ("answer", "gold", "precision", "recall", "f1", "exact"),
    [
        ("Paris", "paris", 1, 1, 1, 1),
        ("The  Eiffel\nTower!", "eiffel tower", 1, 1, 1, 1),
        ("a cat sat down", "the cat sat", 2 / 3, 1, 0.8, 0),
        ("cat cat cat", "cat dog", 1 / 3, 1 / 2, 0.4, 0),
        ("cat cat", "cat cat dog", 1, 2 / 3, 0.8, 0),
        ("sat cat", "cat sat", 1, 1, 1, 0),
        ("U.S.", "us", 1, 1, 1, 1),
        ("theatre", "atre", 0, 0, 0, 0),
        ("re-use", "re use", 0, 0, 0, 0),
        ("red", "blue", 0, 0, 0, 0),
        ("", "", 1, 1, 1, 1),
        ("The!", " a ", 1, 1, 1, 1),
        ("", "blue", 0, 0, 0, 0),
        ("blue", "the", 0, 0, 0, 0),
    ],
)
def test_token_scores_match_hand_computed_cases(answer, gold, precision, recall, f1, exact):
    assert token_precision(answer, gold) == pytest.approx(precision)
    assert token_recall(answer, gold) == pytest.approx(recall)
    assert token_f1(answer, gold) == pytest.approx(f1)
    assert exact_match(answer, gold) == exact


def test_rouge_matches_hand_computed_cases():
    # Words in common 3 of 4 and 4; pairs in common 1 ("sat on") of 3 and 3; longest subsequence "the sat on".
    scores = rouge("the dog sat on", "the cat sat on")
    assert scores == pytest.approx({"rouge1": 0.75, "rouge2": 1 / 3, "rougeL": 0.75})
    # An answer that is half of gold: precision 1, recall 1/2, for pairs 1/3.
    scores = rouge("the cat", "the cat sat on")
    assert scores == pytest.approx({"rouge1": 2 / 3, "rouge2": 0.5, "rougeL": 2 / 3})
    # The same words in the other order share every word, but no pair, and a subsequence of one.
    assert rouge("b a", "a b") == pytest.approx({"rouge1": 1, "rouge2": 0, "rougeL": 0.5})


def test_rouge_stems_words():
    assert rouge("retrieving", "retrieved")["rouge1"] == 1


def test_bleu_matches_a_hand_computed_case():
    # n-gram precisions 4/5, 2/4, 0/3 and 0/2; smoothing puts 1/2 and 1/4 for the zeros; no brevity penalty.
    expected = (4 / 5 * 2 / 4 * (1 / 2) / 3 * (1 / 4) / 2) ** 0.25
    assert bleu("the cat sat on mats", "the cat is on mats") == pytest.approx(expected)


@pytest.mark.parametrize("text", ["Paris", "in 1889", "the tower of Paris", "one two three four five six"])
def test_bleu_of_a_perfect_answer_is_one_however_short(text):
    assert bleu(text, text) == pytest.approx(1) and bleu(text, text) <= 1


def test_bleu_punishes_an_answer_that_is_too_short():
    assert bleu("one two three four", "one two three four five six") == pytest.approx(math.exp(1 - 6 / 4))


def test_every_generation_score_is_a_known_metric_in_the_unit_range():
    rng = random.Random(0)
    for _ in range(50):
        scores = generation_scores(random_text(rng), random_text(rng))
        assert set(scores) == {
            "generation/exact_match", "generation/numeric_match", "generation/f1", "generation/precision",
            "generation/recall", "generation/rouge1", "generation/rouge2", "generation/rougeL", "generation/bleu",
        }  # fmt: skip
        assert set(scores) <= set(METRICS)
        assert all(isinstance(score, float) and 0 <= score <= 1 for score in scores.values())


def test_of_several_acceptable_answers_each_score_takes_its_best():
    answer, golds = "it was built in 1889", ["1889", "built in the year 1889 it was", "no idea"]
    scores = generation_scores(answer, golds)
    assert scores == {name: max(generation_scores(answer, g)[name] for g in golds) for name in scores}
    assert scores["generation/recall"] == 1 > generation_scores(answer, golds[1])["generation/recall"]
    assert scores["generation/f1"] > generation_scores(answer, golds[0])["generation/f1"]
    assert generation_scores(answer, ["1889"]) == generation_scores(answer, "1889")
    with pytest.raises(ValueError, match="no gold answer"):
        generation_scores(answer, [])


def test_generation_scores_puts_each_metric_under_its_own_name():
    answer, gold = "it was built in 1889 in Paris", "built 1889, in the city of Paris"
    scores = generation_scores(answer, gold)
    assert scores["generation/precision"] == token_precision(answer, gold) == pytest.approx(4 / 7)
    assert scores["generation/recall"] == token_recall(answer, gold) == pytest.approx(4 / 6)
    assert scores["generation/f1"] == token_f1(answer, gold) == pytest.approx(8 / 13)
    assert scores["generation/exact_match"] == exact_match(answer, gold) == 0
    assert scores["generation/bleu"] == bleu(answer, gold) > 0
    for name, score in rouge(answer, gold).items():
        assert scores[f"generation/{name}"] == score > 0


def test_precision_and_recall_change_places_with_the_texts_and_f1_stays():
    rng = random.Random(1)
    for _ in range(100):
        one, other = random_text(rng), random_text(rng)
        assert token_precision(one, other) == token_recall(other, one)
        assert token_f1(one, other) == pytest.approx(token_f1(other, one))
        assert exact_match(one, other) <= token_f1(one, other)


def test_a_script_without_spaces_is_compared_by_characters():
    assert token_f1("東京タワー", "東京タワー") == 1
    assert token_f1("東京タワー", "東京") == pytest.approx(4 / 7)


# Retrieval


RANKED = ["d1", "d2", "d3", "d4"]


@pytest.mark.parametrize(
    ("relevant", "k", "recall", "ndcg"),
    [
        ({"d1"}, 1, 1, 1),
        ({"d2"}, 1, 0, 0),
        ({"d2"}, 4, 1, 1 / math.log2(3)),
        ({"d1", "d2"}, 1, 0.5, 1),
        ({"d1", "d4"}, 4, 1, (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3))),
        ({"d3", "elsewhere"}, 4, 0.5, (1 / 2) / (1 + 1 / math.log2(3))),
        ({"elsewhere"}, 4, 0, 0),
        ({"d4"}, 100, 1, 1 / math.log2(5)),
    ],
)
def test_retrieval_scores_match_hand_computed_cases(relevant, k, recall, ndcg):
    assert recall_at_k(RANKED, relevant, k) == pytest.approx(recall)
    assert ndcg_at_k(RANKED, relevant, k) == pytest.approx(ndcg)


@pytest.mark.parametrize(("relevant", "expected"), [({"d1"}, 1), ({"d4", "d3"}, 1 / 3), ({"elsewhere"}, 0)])
def test_reciprocal_rank_is_that_of_the_first_relevant_document(relevant, expected):
    assert reciprocal_rank(RANKED, relevant) == pytest.approx(expected)


def test_a_duplicate_counts_once_and_still_takes_up_its_place():
    assert recall_at_k(["a", "a", "b"], {"a", "b"}, 2) == 0.5
    assert recall_at_k(["a", "a", "b"], {"a", "b"}, 3) == 1
    assert reciprocal_rank(["x", "x", "a"], {"a"}) == pytest.approx(1 / 3)
    assert ndcg_at_k(["a", "a"], {"a"}, 2) == 1
    assert ndcg_at_k(["a", "a", "b"], {"a", "b"}, 3) == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))


def test_duplicates_among_the_relevant_change_nothing():
    assert retrieval_scores(RANKED, ["d2", "d2"]) == retrieval_scores(RANKED, {"d2"})


def test_an_empty_ranking_scores_zero():
    assert set(retrieval_scores([], {"a"}).values()) == {0.0}


@pytest.mark.parametrize("score", [recall_at_k, ndcg_at_k])
def test_retrieval_without_gold_or_with_k_below_one_is_refused(score):
    with pytest.raises(ValueError, match="relevant document"):
        score(RANKED, set(), 1)
    with pytest.raises(ValueError, match="k is 0"):
        score(RANKED, {"d1"}, 0)
    with pytest.raises(ValueError, match="relevant document"):
        reciprocal_rank(RANKED, [])


def test_retrieval_scores_names_and_values():
    expected = {"retrieval/recall@1": 0, "retrieval/recall@4": 1, "retrieval/mrr": 0.5}
    expected["retrieval/ndcg@4"] = 1 / math.log2(3)
    assert retrieval_scores(RANKED, {"d2"}) == pytest.approx(expected)
    names = list(retrieval_scores(RANKED, {"d2"}, ks=(10, 3)))
    assert names == ["retrieval/recall@10", "retrieval/recall@3", "retrieval/mrr", "retrieval/ndcg@10"]
    assert all(greater_is_better(name) for name in names)
    with pytest.raises(ValueError):
        retrieval_scores(RANKED, {"d2"}, ks=())


def test_recall_never_falls_as_k_grows():
    rng = random.Random(2)
    for _ in range(50):
        ranked = rng.sample(range(20), 10)
        relevant = set(rng.sample(range(20), rng.randint(1, 5)))
        curve = [recall_at_k(ranked, relevant, k) for k in range(1, 12)]
        assert curve == sorted(curve)
        assert all(0 <= ndcg_at_k(ranked, relevant, k) <= 1 for k in range(1, 12))


# Directions


@pytest.mark.parametrize("prefix", ["", "eval_", "test_"])
@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("generation/f1", True),
        ("generation/exact_match", True),
        ("generation/rougeL", True),
        ("generation/bleu", True),
        ("generation/unfinished", False),
        ("generation/new_tokens", False),
        ("retrieval/recall@1", True),
        ("retrieval/recall@1000", True),
        ("retrieval/mrr", True),
        ("retrieval/ndcg@10", True),
        ("latency/retrieval_s", False),
        ("latency/generation_s", False),
        ("latency/total_s", False),
        ("loss", False),
        ("train_loss", False),
        ("loss_with_gold_passage", False),
    ],
)
def test_direction_of_every_metric(prefix, metric, greater):
    assert greater_is_better(prefix + metric) is greater


def test_every_listed_metric_has_a_direction_and_says_so_where_lower_is_better():
    for name, explanation in METRICS.items():
        assert ("lower" in explanation) is not greater_is_better(name)


@pytest.mark.parametrize(
    "unknown",
    ["f1", "generation/f2", "retrieval/recall", "retrieval/recall@0", "retrieval/recall@x",
     "eval_test_generation/f1", "_generation/f1",
     "generation/f1@3", "dev_generation/f1", ""],
)  # fmt: skip
def test_an_unknown_metric_is_refused_and_the_known_ones_are_listed(unknown):
    with pytest.raises(ValueError, match=r"generation/f1.*retrieval/recall@k.*loss") as error:
        greater_is_better(unknown)
    assert repr(unknown) in str(error.value)


# Bootstrap


def test_interval_goes_into_json():
    assert json.loads(json.dumps(bootstrap_mean([0.5, 1]).to_dict())).keys() == {"value", "low", "high"}


def test_one_value_is_its_own_interval_and_so_is_a_constant():
    assert bootstrap_mean([0.3]) == Interval(0.3, 0.3, 0.3)
    assert bootstrap_mean([0.1] * 7) == Interval(0.1, 0.1, 0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_failed_score_raises_and_is_not_left_out(bad):
    with pytest.raises(ValueError, match="row 1"):
        bootstrap_mean([0.5, bad, 1.0])
    with pytest.raises(ValueError, match="row 2: loss is"):
        aggregate([{"f1": 1, "loss": 2}, {"f1": 1, "loss": 2}, {"f1": 1, "loss": bad}])


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_failed_score_raises_in_a_comparison(bad):
    for base, tuned in (([0, bad], [0, 1]), ([0, 1], [0, bad]), ([0, bad], [0, bad])):
        with pytest.raises(ValueError, match="row 1"):
            paired_difference(base, tuned)


def test_no_values_raise():
    for call in (lambda: bootstrap_mean([]), lambda: aggregate([]), lambda: paired_difference([], [])):
        with pytest.raises(ValueError, match="no values"):
            call()


def test_value_is_the_mean_and_lies_in_the_interval():
    rng = np.random.default_rng(0)
    for n in (2, 5, 50):
        values = rng.random(n)
        interval = bootstrap_mean(values)
        assert interval.value == pytest.approx(values.mean())
        assert values.min() <= interval.low < interval.value < interval.high <= values.max()


def test_interval_of_two_values_is_exact():
    # Means drawn from (0, 1) are 0, 1/2 and 1 in 1/4, 1/2 and 1/4 of cases: over 2.5 %, under 30 % at an end.
    assert bootstrap_mean([0, 1]) == Interval(0.5, 0, 1)
    assert bootstrap_mean([0, 1], level=0.4) == Interval(0.5, 0.5, 0.5)


def test_interval_agrees_with_the_normal_approximation_for_many_questions():
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    error = 1.96 * values.std() / math.sqrt(len(values))
    interval = bootstrap_mean(values, samples=4000)
    assert interval.high - interval.value == pytest.approx(error, rel=0.08)
    assert interval.value - interval.low == pytest.approx(error, rel=0.08)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.random(50), samples=400, seed=i, level=0.9) for i in range(400)]
    covered = np.mean([interval.low <= 0.5 <= interval.high for interval in intervals])
    assert 0.85 <= covered <= 0.94


def test_a_higher_level_gives_a_wider_interval():
    values = np.random.default_rng(0).random(40)
    widths = [(i := bootstrap_mean(values, level=level)).high - i.low for level in (0.5, 0.8, 0.95, 0.99)]
    assert widths == sorted(widths) and widths[0] < widths[-1] / 2


def test_the_order_of_questions_has_no_effect():
    rng = np.random.default_rng(0)
    base, tuned = rng.random(60), rng.random(60)
    order = rng.permutation(60)
    assert bootstrap_mean(base) == bootstrap_mean(base[order])
    assert paired_difference(base, tuned) == paired_difference(base[order], tuned[order])


def test_the_seed_decides_the_interval():
    values = np.random.default_rng(0).random(30)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_working_in_chunks_still_draws_every_resample(monkeypatch):
    rng = np.random.default_rng(0)
    base, tuned = rng.random(100), rng.random(100) + 0.08
    whole, whole_pair = bootstrap_mean(base), paired_difference(base, tuned)
    monkeypatch.setattr(metrics, "_CELLS", 700)
    assert list(metrics._chunks(20, 100)) == [7, 7, 6]
    assert sum(metrics._chunks(2000, 100)) == 2000 and sum(metrics._chunks(5, 10**9)) == 5
    cut, cut_pair = bootstrap_mean(base), paired_difference(base, tuned)
    assert cut.low == pytest.approx(whole.low, abs=0.005) and cut.high == pytest.approx(whole.high, abs=0.005)
    assert cut_pair.p_value == pytest.approx(whole_pair.p_value, abs=0.02) and 0.01 < whole_pair.p_value < 0.3


def test_aggregate_gives_each_metric_the_interval_it_has_alone():
    rng = np.random.default_rng(0)
    rows = [{"loss": 5 * loss, "generation/f1": f1} for loss, f1 in rng.random((40, 2))]
    intervals = aggregate(rows, samples=500, seed=3)
    assert list(intervals) == ["loss", "generation/f1"]
    for name, interval in intervals.items():
        alone = bootstrap_mean([row[name] for row in rows], samples=500, seed=3)
        assert interval.to_dict() == pytest.approx(alone.to_dict())


def test_aggregate_reads_rows_by_name_and_not_by_position():
    intervals = aggregate([{"a": 1, "b": 0}, {"b": 0, "a": 1}])
    assert intervals == {"a": Interval(1, 1, 1), "b": Interval(0, 0, 0)}


def test_aggregate_names_the_metrics_that_only_some_rows_have():
    for odd in ({"a": 1}, {"a": 1, "b": 1, "c": 1}):
        with pytest.raises(ValueError, match=rf"row 2 .*\['{'b' if len(odd) == 1 else 'c'}'\]"):
            aggregate([{"a": 1, "b": 1}, {"a": 1, "b": 1}, odd])


# Comparison


def test_paired_difference_counts_and_keeps_the_sign():
    quality = paired_difference([1, 1, 0, 0.5], [1, 0, 1, 0.75])
    assert quality.value == pytest.approx(0.0625)
    assert (quality.wins, quality.losses, quality.ties, quality.n) == (2, 1, 1, 4)
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


def test_no_verdict_from_noise_from_equal_models_or_from_a_handful_of_questions():
    rng = np.random.default_rng(1)
    base = rng.random(80)
    assert paired_difference(base, rng.random(80)).verdict == "no clear difference"
    same = paired_difference(base, base)
    assert (same.verdict, same.value, same.ties, same.p_value) == ("no clear difference", 0, 80, 1)
    assert paired_difference([0] * 5, [1] * 5).verdict == "no clear difference"
    assert paired_difference([0] * 6, [1] * 6).verdict == "better"


@pytest.mark.parametrize(("low", "high"), [(0, 0.2), (-0.2, 0), (1e-17, 0.2), (-0.2, -1e-17), (-0.1, 0.1)])
def test_an_interval_that_touches_zero_gives_no_verdict(low, high):
    difference = PairedDifference(0.1, low, high, wins=9, losses=1, ties=0, n=10, p_value=0.01)
    assert difference.verdict == "no clear difference"


def test_few_questions_need_more_than_an_interval_that_excludes_zero():
    """More than one in ten such samples without a true difference has an interval that excludes 0."""
    difference = paired_difference([0.5] * 10, [0.5] * 6 + [0.4, 0.3, 0.1, 0.2])
    assert difference.high < 0 and difference.p_value > 0.05 and difference.verdict == "no clear difference"
    rng, skewed = np.random.default_rng(0), np.array([-0.3, -0.1, -0.05, 0.0, 0.02, 0.04, 0.39])
    verdicts, excluded = 0, 0
    for _ in range(200):
        found = paired_difference(np.zeros(8), rng.choice(skewed - skewed.mean(), 8), samples=400)
        verdicts += found.verdict != "no clear difference"
        excluded += found.low > 0 or found.high < 0
    assert verdicts <= 16 < excluded


def test_answers_that_share_as_many_tokens_have_the_same_f1_to_the_last_digit():
    """5 common tokens of 30 and 16, and of 16 and 30: by precision and recall they differ in the last digit."""
    gold, words = " ".join(f"w{i}" for i in range(23)), [f"x{i}" for i in range(60)]
    for common, length in ((5, 23), (4, 20), (3, 7)):
        answer = " ".join([f"w{i}" for i in range(common)] + words[: length - common])
        assert token_f1(answer, gold) == token_f1(gold, answer) == 2 * common / (length + 23)
    tie = paired_difference([0.2173913043478261, 0.5], [0.21739130434782608, 0.7])
    assert (tie.wins, tie.losses, tie.ties) == (1, 0, 1)


def test_pairing_narrows_the_interval_when_the_models_fail_on_the_same_questions():
    rng = np.random.default_rng(0)
    difficulty = rng.random(200)
    base, tuned = difficulty + 0.05 * rng.random(200), difficulty + 0.05 * rng.random(200) + 0.02
    paired = paired_difference(base, tuned)
    apart = [bootstrap_mean(values) for values in (base, tuned)]
    unpaired_width = math.hypot(*(interval.high - interval.low for interval in apart))
    assert paired.high - paired.low < unpaired_width / 5
    assert paired.verdict == "better" and apart[1].low < apart[0].high


def test_paired_interval_is_the_bootstrap_of_the_differences():
    base, tuned = np.random.default_rng(0).random((2, 30))
    pair = paired_difference(base, tuned, samples=300, seed=5)
    assert Interval(pair.value, pair.low, pair.high) == bootstrap_mean(tuned - base, samples=300, seed=5)


@pytest.mark.parametrize("differences", [[1] * 6, [1, 1, 1, -1, 1, 0], [0.1, 0.2, -0.3, 0.4], [0.1] * 7 + [-0.1] * 3])
def test_p_value_agrees_with_counting_all_sign_flips(differences):
    size = np.abs(differences)
    signs = 1 - 2 * ((np.arange(2 ** len(size))[:, None] >> np.arange(len(size))) & 1)
    exact = np.mean(np.abs(signs @ size) >= abs(sum(differences)) - 1e-12)
    p_value = paired_difference([0] * len(differences), differences).p_value
    assert p_value == pytest.approx(exact, abs=0.02)


def test_p_value_is_two_sided_never_zero_and_fair_under_chance():
    rng = np.random.default_rng(0)
    base, tuned = np.zeros(40), np.ones(40)
    assert paired_difference(base, tuned).p_value == paired_difference(tuned, base).p_value == 1 / 10_001
    under_chance = [paired_difference(*rng.random((2, 20)), samples=1, seed=i).p_value for i in range(150)]
    assert 0.02 <= np.mean(np.array(under_chance) <= 0.1) <= 0.18


def test_models_must_have_answered_the_same_questions():
    with pytest.raises(ValueError, match="base has 2 values, tuned 3"):
        paired_difference([1, 2], [1, 2, 3])


def test_importing_the_module_loads_no_scorer():
    code = (
        "import sys, groundtune.evaluation.metrics; "
        "sys.exit(any(m in sys.modules for m in ('rouge_score', 'sacrebleu', 'nltk', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
