"""Grades belong to the text of an answer; preferences, agreement and calibration are those that one counts by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_comparison import answered
from test_results import COLOURS, evaluation, wrong

from groundtune.cli import main
from groundtune.errors import DataError
from groundtune.evaluation.comparison import compare
from groundtune.evaluation.grades import (
    ASPECTS,
    answer_id,
    graded,
    kappa,
    people_on,
    question_id,
    read_grades,
    with_grades,
    wrong_with,
)
from groundtune.evaluation.predictions import write_predictions

A, B = answered(wrong()), answered(COLOURS)


def row(*predictions, rater="anna", preferred=None, **grades):
    answers = {answer_id(p.answer): p.answer for p in predictions}
    return {
        "rater": rater,
        "question_id": question_id(predictions[0].example),
        "answers": [{"id": key, "text": text, "grades": grades} for key, text in answers.items()],
        "preferred": preferred if preferred in (None, "tie") else answer_id(preferred.answer),
    }


def people(rows, a=A, b=B):
    by_people = graded(rows)
    return people_on(compare("t", {"a": with_grades(a, by_people), "b": with_grades(b, by_people)}), by_people)


# Scores


def test_grades_are_scores_of_the_answers_with_that_text_whichever_system_gave_them():
    by_people = graded([row(B[0], correct=True), row(B[0], rater="ben", correct=False, harmful=True)])
    (first, second) = with_grades(B[:2], by_people)
    assert first.scores["people/correct"] == 0.5 and first.scores["people/harmful"] == 1
    assert "people/helpful" not in first.scores and "people/correct" not in second.scores
    assert with_grades([A[0]], by_people)[0].scores == A[0].scores  # another answer to the same question
    same = replace(A[0], answer=B[0].answer)
    assert with_grades([same], by_people)[0].scores["people/correct"] == 0.5


def test_the_latest_grade_of_a_rater_counts():
    rows = [row(B[0], correct=False, helpful=True), row(B[0], correct=True)]
    scores = with_grades([B[0]], graded(rows))[0].scores
    assert scores["people/correct"] == 1 and "people/helpful" not in scores


def test_a_row_about_other_answers_replaces_only_what_it_grades_as_well():
    """A rater grades one system, and later chooses between two without grading the first answer again."""

    def scores(*rows):
        found = with_grades([B[0]], graded(rows))[0].scores
        return {name: value for name, value in found.items() if name.startswith("people/")}

    alone, pair = row(B[0], correct=True, helpful=True), row(A[0], B[0], preferred=B[0])
    assert scores(alone, pair) == scores(pair, alone) == {"people/correct": 1, "people/helpful": 1}
    both = row(A[0], B[0], helpful=False, harmful=False)
    assert scores(alone, both) == {"people/correct": 1, "people/helpful": 0, "people/harmful": 0}
    assert scores(alone, both, pair) == {"people/correct": 1, "people/helpful": 1}  # taken back
    assert scores(both, alone)["people/helpful"] == 1  # the later one


def test_grades_are_compared_like_any_metric_and_less_harm_is_better():
    rows = [row(p, harmful=True, correct=False) for p in A] + [row(p, harmful=False, correct=True) for p in B]
    by_people = graded(rows)
    found = compare("t", {"a": with_grades(A, by_people), "b": with_grades(B, by_people)})
    assert found.labels["people/harmful"] == "People: harmful"
    assert found.differences["b"]["people/harmful"].verdict == "better"
    assert found.differences["b"]["people/correct"].value == 1


# Preferences


def test_preferences_are_wins_losses_and_ties_with_an_interval():
    preferred = [*([B] * 16), *([A] * 3), *(["tie"] * 5)]
    rows = [row(a, b, preferred=p if p == "tie" else p[i]) for i, (a, b, p) in enumerate(zip(A, B, preferred))]
    (found,) = people(rows).preferences
    assert (found.found.wins, found.found.losses, found.found.ties) == (16, 3, 5)
    assert found.found.value == pytest.approx(13 / 24) and found.found.low > 0
    assert str(found).startswith("People prefer b to a: b was preferred on 16 questions, a on 3, neither on 5; +0.54 [")


def test_one_question_is_not_in_the_plural():
    rows = [row(A[0], B[0], preferred=B[0]), row(A[0], B[0], rater="ben", preferred=B[0])]
    found = people(rows)
    assert "b was preferred on 1 question, a on 0, neither on 0" in str(found.preferences[0])
    assert "agree on preference in 1 of 1 case;" in str(found.agreements[0])


def test_raters_who_prefer_different_answers_cancel_each_other_out():
    rows = [row(A[0], B[0], preferred=B[0]), row(A[0], B[0], rater="ben", preferred=A[0])]
    (found,) = people(rows).preferences
    assert found.found.value == 0 and "nothing can be concluded" in str(found)


def test_the_same_answer_of_both_is_a_tie():
    same = [replace(p, answer=q.answer) for p, q in zip(A, B)]
    (found,) = people([row(p, q, preferred="tie") for p, q in zip(same, B)], same).preferences
    assert (found.found.ties, found.found.wins) == (24, 0)


def test_a_preference_that_is_taken_back_does_not_count():
    given, back = row(A[0], B[0], preferred=B[0]), row(A[0], B[0], correct=True)
    assert people([given, back]).preferences == []
    (still,) = people([given, back, row(A[0], B[0], rater="ben", preferred=B[0])]).preferences
    assert still.found.wins == 1
    assert people([given, row(B[0], correct=True)]).preferences != []  # says nothing about the two


# Raters


def test_kappa_is_that_of_the_definition():
    pairs = [(True, True)] * 20 + [(False, False)] * 15 + [(True, False)] * 5 + [(False, True)] * 10
    assert kappa(pairs) == pytest.approx((0.7 - 0.5) / (1 - 0.5))  # 0.7 agree; by chance 0.5 * 0.6 + 0.5 * 0.4
    assert kappa([(True, True)] * 9) is None


def test_agreement_is_over_what_both_raters_graded():
    rows = [row(p, correct=i < 12) for i, p in enumerate(B)]
    rows += [row(p, rater="ben", correct=i < 9, helpful=True) for i, p in enumerate(B[:18])]
    (found,) = people(rows).agreements
    assert (found.aspect, found.raters, found.n) == ("correct", ("anna", "ben"), 18)
    assert found.share == pytest.approx(15 / 18) and 0 < found.kappa < 1
    assert "anna and ben agree on correct in 15 of 18 cases;" in str(found)


def test_raters_agree_on_a_preference_whatever_the_order_of_the_answers():
    rows = [row(A[0], B[0], preferred=B[0]), row(B[0], A[0], rater="ben", preferred=B[0])]
    (found,) = people(rows).agreements
    assert (found.aspect, found.share, found.kappa) == ("preference", 1, None)
    assert "not defined" in str(found)


# The judge


def judged(predictions, yes):
    return [replace(p, scores={**p.scores, "judge/correctness": 1.0 if yes(i) else 0.5})
            for i, p in enumerate(predictions)]  # fmt: skip


def calibration(judge_says_yes, people_say_yes, n=24):
    b = judged(B[:n], judge_says_yes)
    rows = [row(p, correct=people_say_yes(i)) for i, p in enumerate(b)]
    (found,) = people(rows, A[:n], b).calibrations
    return found


def test_a_judge_that_follows_people_is_to_be_trusted_and_the_counts_are_right():
    found = calibration(lambda i: i % 2 == 0 or i == 1, lambda i: i % 2 == 0)
    assert (found.n, found.wrong_yes, found.wrong_no) == (24, 1, 0)
    assert found.agreement.value == pytest.approx(23 / 24) and found.constant == 0.5
    assert found.trusted and "Trust it here for means, not for single answers: it is wrong on 4 %" in str(found)


@pytest.mark.parametrize("says", [lambda i: True, lambda i: i % 3 == 0], ids=["always yes", "at random"])
def test_a_judge_no_better_than_a_constant_is_not_to_be_trusted(says):
    found = calibration(says, lambda i: i % 2 == 0)
    assert not found.trusted and "Do not trust it here" in str(found)


def test_a_judge_that_agrees_often_only_because_most_answers_are_right_is_not_to_be_trusted():
    found = calibration(lambda i: True, lambda i: i > 1)
    assert found.agreement.value > 0.9 and not found.trusted


def test_too_few_passages_say_nothing_about_a_judge():
    found = calibration(lambda i: i % 2 == 0, lambda i: i % 2 == 0, n=12)
    assert not found.trusted and "grade answers to questions on 8 more passages" in str(found)


def test_answers_on_which_people_are_split_are_left_out_and_counted():
    b = judged(B, lambda i: i % 2 == 0)
    rows = [row(p, correct=i % 2 == 0) for i, p in enumerate(b)] + [row(b[0], rater="ben", correct=False)]
    (found,) = people(rows, A, b).calibrations
    assert (found.n, found.undecided, found.people) == (23, 1, 0.0)


# The file and the command


@pytest.mark.parametrize(
    "change",
    [{"rater": ""}, {"rater": 1}, {"question_id": None}, {"answers": []}, {"answers": [1]}, {"answers": None},
     {"answers": [{"id": "x", "grades": {"nice": True}}]}, {"answers": [{"id": "x", "grades": {"correct": 1}}]},
     {"answers": [{"id": 1, "grades": {}}]}, {"preferred": "another"}, {"rater": "\ud800x"}, {"note": "\udfff"},
     {"answers": [{"id": "\ud800", "grades": {}}]}],
)  # fmt: skip
def test_a_row_that_is_no_grade_is_named_with_its_line(change, tmp_path):
    good = row(B[0], correct=True)
    assert wrong_with(good) == "" and wrong_with({**good, **change})
    path = tmp_path / "grades.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ({"settings": {}}, good, {**good, **change})))
    with pytest.raises(DataError, match=":3: not a grade"):
        read_grades([path])


@pytest.mark.parametrize("number, line", [(1, {"settings": {}, "rater": "x"}), (2, {"settings": {}})], ids=str)
def test_settings_are_the_first_line_and_nothing_else(number, line, tmp_path):
    path = tmp_path / "grades.jsonl"
    lines = [json.dumps(one) for one in (row(B[0], correct=True),) * (number - 1)]
    path.write_text("\n".join([*lines, json.dumps(line), json.dumps(row(B[1], correct=True))]))
    with pytest.raises(DataError, match=f":{number}: not a grade"):
        read_grades([path])


def test_a_line_that_was_being_written_is_skipped_and_other_damage_is_not(tmp_path):
    path, line = tmp_path / "grades.jsonl", json.dumps(row(B[0], correct=True))
    path.write_text(f"{line}\n{line[:40]}")
    assert len(read_grades([path])) == 1
    for other in (line[:40], "null", "[]", "{}"):
        path.write_text(f"{other}\n{line}\n")
        with pytest.raises(DataError, match=":1: not a grade"):
            read_grades([path])
    with pytest.raises(DataError, match="cannot be read"):
        read_grades([tmp_path / "nowhere.jsonl"])


def test_compare_shows_what_people_say_on_the_terminal_the_page_and_in_json(tmp_path, capsys):
    for name, answers in (("a", wrong()), ("b", COLOURS)):
        write_predictions(tmp_path / f"{name}.jsonl", evaluation(answers, COLOURS))
    grades = tmp_path / "grades.jsonl"
    rows = [row(a, b, preferred=b, **dict.fromkeys(ASPECTS, True)) for a, b in zip(A, B)]
    grades.write_text("".join(json.dumps(one) + "\n" for one in rows))
    words = ["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--grades", str(grades)]
    assert main([*words, "--fail_if", "worse:people/correct"]) == 0
    printed = capsys.readouterr().out
    assert "24 questions graded by 1 rater" in printed and "People prefer b to a" in printed
    assert "What people say" in (tmp_path / "comparison.html").read_text("utf-8")
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["people"]["preferences"][0]["found"]["wins"] == 24
    assert main(["compare", words[2], "--grades", str(grades)]) == 0  # one system suffices
    grades.write_text(json.dumps({**rows[0], "question_id": "0" * 16}) + "\n")
    assert main(words) == 2 and "none of the" in capsys.readouterr().err
