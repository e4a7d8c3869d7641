"""Properties and hand-computed cases of metrics."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest

from groundtune.evaluation.metrics import (
    METRICS,
    bleu,
    exact_match,
    generation_scores,
    greater_is_better,
    is_share,
    largest,
    ndcg_at_k,
    recall_at_k,
    reciprocal_rank,
    retrieval_scores,
    rouge,
    token_f1,
    token_precision,
    token_recall,
)
from groundtune.evaluation.statistics import paired_difference

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


def test_answers_that_share_as_many_tokens_have_the_same_f1_to_the_last_digit():
    """5 common tokens of 30 and 16, and of 16 and 30: by precision and recall they differ in the last digit."""
    gold, words = " ".join(f"w{i}" for i in range(23)), [f"x{i}" for i in range(60)]
    for common, length in ((5, 23), (4, 20), (3, 7)):
        answer = " ".join([f"w{i}" for i in range(common)] + words[: length - common])
        assert token_f1(answer, gold) == token_f1(gold, answer) == 2 * common / (length + 23)
    tie = paired_difference([0.2173913043478261, 0.5], [0.21739130434782608, 0.7])
    assert (tie.wins, tie.losses, tie.ties) == (1, 0, 1)


def test_importing_the_module_loads_no_scorer():
    code = (
        "import sys, groundtune.evaluation.metrics; "
        "sys.exit(any(m in sys.modules for m in ('rouge_score', 'sacrebleu', 'nltk', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["judge/glossary", "judge/closs", "test_judge/latency", "generation/f1"])
def test_a_judge_of_any_name_gives_shares(name):
    assert is_share(name) and largest(name) == 1 and greater_is_better(name)


@pytest.mark.parametrize(
    "name", ["eval_loss", "loss_with_gold_passage", "latency/retrieval_s", "generation/new_tokens"]
)
def test_times_losses_and_counts_are_no_shares(name):
    assert not is_share(name)
