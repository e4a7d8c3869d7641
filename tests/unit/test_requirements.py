"""The gates for CI pass only where nothing is missing and the numbers allow it, and say why."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_comparison import answered, failing
from test_results import COLOURS, evaluation, wrong

from groundtune.cli import main
from groundtune.errors import DataError
from groundtune.evaluation.comparison import compare
from groundtune.evaluation.predictions import write_predictions
from groundtune.evaluation.requirements import (
    Limit,
    Worse,
    check_limits,
    check_worse,
    metric_named,
    not_measured,
    read_limits,
    read_worse,
)

F1 = "generation/f1"
WORSE = Worse(F1)


def checked(reference, candidate, *conditions):
    return check_worse(compare("t", {"a": reference, "b": candidate}), conditions)


# As typed


def test_a_condition_names_its_metric_in_full_or_by_its_last_part():
    assert read_worse(["worse", "worse:f1", "worse:recall@4:0.05", "worse:judge/correctness"]) == [
        Worse(F1), Worse(F1), Worse("retrieval/recall@4", 0.05), Worse("judge/correctness"),
    ]  # fmt: skip
    assert metric_named("grounded/tokens") == "grounded/tokens"
    assert read_limits(["f1=0.3"], ["unfinished=0.05"]) == [
        Limit(F1, 0.3), Limit("generation/unfinished", 0.05, over=True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "word", ["better", "worse:", "worse:nonsense", "worse::0.1", "worse:f1:", "worse:f1:x", "worse:f1:0", "worse:f1:-1",
             "worse:f1:nan", "worse:f1:inf", "worse:f1:1", "worse:f1:0.1:2", "worse:latency/generation_s", "worse:loss",
             "worse:recall@0", "worse0.02", ""],
)  # fmt: skip
def test_a_condition_that_could_be_misread_is_refused_with_its_word(word):
    with pytest.raises(DataError, match="^.*--fail_if: ") as caught:
        read_worse(["worse", word, "worse:also_wrong"])
    assert len(caught.value.problems) == 2 and word in caught.value.problems[0]


@pytest.mark.parametrize("word", ["f1", "f1=", "f1=high", "f1=nan", "=0.3", "nonsense=0.3", "loss=1"])
def test_a_limit_that_could_be_misread_is_refused(word):
    with pytest.raises(DataError, match="--fail_under: "):
        read_limits([word], [])
    with pytest.raises(DataError, match="--fail_over: "):
        read_limits([], [word])


def test_limits_on_what_will_not_be_measured_are_named_before_any_work():
    limits = read_limits(["judge/brevity=0.5", "recall@9=0.5", "mrr=0.1", "recall@1=0.1", "f1=0.1"], [])
    assert len(not_measured(limits, ["correctness"], 4)) == 2
    assert len(not_measured(limits, ["brevity"], 9)) == 0
    assert len(not_measured(limits, [], 0)) == 4  # closed_book: nothing is retrieved


# worse


def test_a_condition_may_name_any_metric_that_both_have_also_one_that_no_table_shows():
    (words, order) = checked(answered(COLOURS), answered(wrong()), *read_worse(["worse:rouge1", "worse:ndcg@3"]))
    assert not words.passed and "b is significantly worse: generation/rouge1 -1.00" in words.reason
    assert order.passed and "retrieval/ndcg@3 +0.00" in order.reason
    with pytest.raises(DataError, match="have no judge/correctness on the same questions; measured: .*rouge1") as error:
        checked(answered(COLOURS), answered(wrong()), *read_worse(["worse:judge/correctness"]))
    assert "latency" not in str(error.value)


def test_a_clearly_worse_system_fails_and_a_better_or_equal_one_passes():
    (one,) = checked(answered(COLOURS), answered(wrong()), WORSE)
    assert not one.passed and "b is significantly worse" in one.reason and "-1.00" in one.reason
    assert "finds a difference of" in one.reason and one.detectable > 0
    assert checked(answered(wrong()), answered(COLOURS), WORSE)[0].passed
    assert checked(answered(COLOURS), answered(COLOURS), WORSE)[0].passed


def test_worse_looks_at_the_side_that_is_better_for_the_metric():
    """More unfinished answers are worse, although the number is higher."""
    cut = [replace(p, scores={**p.scores, "generation/unfinished": 1.0}) for p in answered(COLOURS)]
    condition = Worse("generation/unfinished")
    assert not checked(answered(COLOURS), cut, condition)[0].passed
    assert checked(cut, answered(COLOURS), condition)[0].passed
    assert not checked(answered(COLOURS), cut, Worse("generation/unfinished", 0.5))[0].passed


def test_on_few_passages_nothing_is_worse_but_no_margin_is_met_either():
    few = slice(0, 9)
    a, b = answered(COLOURS)[few], answered(wrong())[few]
    (plain,) = checked(a, b, WORSE)
    assert plain.passed and "nothing can be concluded" in plain.reason
    better = checked(b, a, Worse(F1, 0.5))[0]
    assert not better.passed and "nothing can be concluded" in better.reason


def test_a_margin_must_lie_outside_the_interval():
    a, b = answered(COLOURS), answered([*COLOURS[:22], "no idea", "no idea"])
    found = compare("t", {"a": a, "b": b}).differences["b"][F1]
    assert found.low < 0
    just, short = Worse(F1, round(-found.low + 0.001, 3)), Worse(F1, round(-found.low - 0.001, 3))
    assert checked(a, b, just)[0].passed
    refused = checked(a, b, short)[0]
    assert not refused.passed and "was not shown to be less than" in refused.reason


def test_the_same_answers_are_not_inferior_by_any_margin():
    """Their interval is not a point: equal scores on 24 questions do not show that others would be equal."""
    assert checked(answered(COLOURS), answered(COLOURS), Worse(F1, 0.001))[0].passed
    other_words = answered([*COLOURS[:23], "no clue"])
    assert not checked(answered([*COLOURS[:23], "no idea"]), other_words, Worse(F1, 0.001))[0].passed


def test_a_system_without_all_answers_does_not_pass():
    a, b = answered(wrong()), answered(COLOURS)
    failed = checked(a, [failing(b[0]), *b[1:]], WORSE)[0]
    assert not failed.passed and "1 of 24 answers of b failed" in failed.reason
    fewer = checked(a, b[:22], WORSE)[0]
    assert not fewer.passed and "2 of 24 questions of a were not answered" in fewer.reason
    assert checked(a[:22], b, WORSE)[0].passed  # more than the reference is no fault


def test_a_reference_without_all_answers_is_no_measure():
    """Of 24 answers of the reference 19 failed, and of the other 5 nothing can be concluded."""
    a, b = answered(COLOURS), answered(wrong())
    (found,) = checked([*a[:5], *map(failing, a[5:])], b, WORSE)
    assert not found.passed and "19 of 24 answers of a failed" in found.reason


JUDGED = "judge/correctness"


def graded(answers, of: int, score: float):
    """The first `of` answers with a grade; the judge failed on the others."""
    scored = [replace(p, scores={**p.scores, JUDGED: score}) for p in answers[:of]]
    return [*scored, *(replace(p, judged={"correctness": "?"}) for p in answers[of:])]


@pytest.mark.parametrize("condition", [Worse(JUDGED), Worse(JUDGED, 0.2)], ids=str)
def test_a_judge_that_failed_on_either_side_lets_nothing_pass(condition):
    a = answered(COLOURS)
    for reference, candidate in (((24, 0.75), (1, 0.0)), ((23, 0.75), (24, 0.75)), ((24, 0.5), (23, 0.5))):
        (found,) = checked(graded(a, *reference), graded(a, *candidate), condition)
        assert not found.passed and "have no judge/correctness" in found.reason
    assert checked(graded(a, 24, 0.5), graded(a, 24, 0.5), condition)[0].passed
    assert checked(graded(a, 1, 0.5), graded(a, 1, 0.5), WORSE)[0].passed  # the judge is no part of it


def test_a_metric_that_few_answers_can_have_needs_no_more():
    """Of quotes, for example: an answer without any fails no gate, and the same answers are those to all questions."""
    a = [replace(p, scores={**p.scores, **({"grounded/quotes": 1.0} if i < 20 else {})})
         for i, p in enumerate(answered(COLOURS))]  # fmt: skip
    (found,) = checked(a, a, Worse("grounded/quotes", 0.1))
    assert found.passed and "the same answers as a to all 24 questions" in found.reason


def test_every_other_system_is_checked_by_every_condition():
    systems = {"a": answered(COLOURS), "b": answered(COLOURS), "c": answered(wrong())}
    found = check_worse(compare("t", systems), [WORSE, Worse(F1, 0.1)])
    assert [(one.system, one.passed) for one in found] == [("b", True), ("c", False)] * 2


def test_a_metric_that_was_not_measured_is_a_mistake():
    with pytest.raises(DataError, match="no judge/correctness on the same questions; measured: .*generation/f1"):
        checked(answered(COLOURS), answered(COLOURS), Worse("judge/correctness"))


# Limits


def test_a_mean_under_or_over_its_limit_fails_with_interval_and_detectable_difference():
    half = evaluation([*COLOURS[:12], *wrong(12)], COLOURS)
    limits = [Limit(F1, 0.4), Limit(F1, 0.5), Limit(F1, 0.6), Limit(F1, 0.6, over=True), Limit(F1, 0.4, over=True)]
    found = check_limits(half, limits, "m")
    assert [one.passed for one in found] == [True, True, False, True, False]
    assert "m is under 0.6: 0.50 [" in found[2].reason and "may be chance" in found[2].reason
    assert 0 < found[2].detectable < 0.6 and "finds a difference" in found[2].reason
    (absent,) = check_limits(half, [Limit("judge/correctness", 0.1)], "m")
    assert not absent.passed and "was not measured" in absent.reason


# The command


def files(tmp_path, **answers):
    for name, given in answers.items():
        write_predictions(tmp_path / f"{name}.jsonl", evaluation(given, COLOURS))
    return [str(tmp_path / f"{name}.jsonl") for name in answers]


def test_compare_ends_with_status_1_and_the_reason_only_if_a_condition_fails(tmp_path, capsys):
    words = ["compare", *files(tmp_path, a=COLOURS, b=wrong()), "-o", str(tmp_path / "c.html"), "--fail_if"]
    assert main([*words, "worse"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("Failed: --fail_if worse:generation/f1: b is significantly worse")
    assert main([*words, "worse:recall@1", "worse"]) == 1
    printed = capsys.readouterr()
    assert "Passed: --fail_if worse:retrieval/recall@1" in printed.out and printed.err.count("Failed") == 1
    assert main([*words, "worse:recall@1"]) == 0
    assert main([*words, "worst"]) == 2
    assert main([*words, "worse:judge/x"]) == 2


def test_json_holds_what_came_of_each_condition(tmp_path, capsys):
    words = ["compare", *files(tmp_path, a=COLOURS, b=wrong()), "-o", str(tmp_path / "c.html"), "--json"]
    assert main([*words, "--fail_if", "worse", "worse:f1:0.02"]) == 1
    found = json.loads(capsys.readouterr().out)["checked"]
    assert [one["passed"] for one in found] == [False, False]
    assert found[1]["condition"] == "--fail_if worse:generation/f1:0.02" and found[0]["detectable"] is not None
    assert main(words) == 0
    assert "checked" not in json.loads(capsys.readouterr().out)


def test_a_condition_that_would_not_be_looked_at_is_refused(tmp_path, capsys):
    """A learning curve names its own systems and compares them with the base model; one system has no other."""
    one, other = files(tmp_path, a=COLOURS, b=wrong())
    flags = (["--fail_if", "worse"], ["--grades", one], ["--names", "x", "y"])
    for more in (*flags, sum(flags, [])):
        assert main(["compare", "--curve", one, other, *more]) == 2
        problems = capsys.readouterr().err
        for flag, *_ in flags:
            assert (f"{flag}: does not go with --curve" in problems) == (flag in more)
    assert main(["compare", one, "--grades", other, "--fail_if", "worse"]) == 2
    assert "--fail_if: 1 system is given" in capsys.readouterr().err
    assert not (tmp_path / "comparison.html").exists()
