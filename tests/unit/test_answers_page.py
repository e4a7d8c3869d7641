"""All answers on one page: filtered without a script, everything escaped, and nothing loaded."""

from __future__ import annotations

import re
from dataclasses import replace

from test_report import NASTY, Page
from test_results import COLOURS, evaluation, results, wrong

from groundtune.evaluation.outcomes import Rightness, with_outcomes
from groundtune.reporting.answers import all_answers, question_html, sampled, side_by_side
from groundtune.reporting.report import write_answers, write_results
from groundtune.schema import Document


def read(answers, rank=1):
    predictions = evaluation(answers, COLOURS, rank=rank).predictions
    shown = [replace(p, read=tuple(hit.document for hit in p.hits[: p.passages_read])) for p in predictions]
    return with_outcomes(shown, Rightness())


BASE, TUNED = read(["no idea", "green", *wrong(22)]), read(["red", "no idea", *wrong(22)])


def hidden(body: str, *chosen: str) -> int:
    """How many questions a browser hides if these options are chosen."""
    rules = dict(re.findall(r"main:has\(#(g\d+v\d+):checked\) \.question:not\(\.(\w+)\)", body))
    classes = re.findall(r'<details class="question ([^"]*)"', body)
    return sum(any(rules[option] not in of.split() for option in chosen) for of in classes)


def options(body: str) -> dict[str, str]:
    """The id of every option by its legend and text."""
    found = {}
    for legend, inside in re.findall(r"<legend>(.*?)</legend>(.*?)</fieldset>", body):
        for name, text, count in re.findall(r'id="(\w+)"[^>]*><span>(.*?) <small>(\d+)</small>', inside):
            found[f"{legend}/{text}"] = name
            assert text == "all" or 24 - hidden(body, name) == int(count)
    return found


def test_answers_are_filtered_by_outcome_and_by_what_was_gained_or_lost_and_by_both():
    body = all_answers({"Base": BASE, "Tuned": TUNED})
    by = options(body)
    assert set(by) == {
        "Outcome: Base/all", "Outcome: Base/answered right", "Outcome: Base/found but answered wrong",
        "Outcome: Tuned/all", "Outcome: Tuned/answered right", "Outcome: Tuned/found but answered wrong",
        "Tuned against Base/all", "Tuned against Base/gained", "Tuned against Base/lost", "Tuned against Base/the same",
    }  # fmt: skip
    assert 24 - hidden(body, by["Tuned against Base/gained"], by["Outcome: Tuned/answered right"]) == 1
    assert 24 - hidden(body, by["Tuned against Base/lost"], by["Outcome: Tuned/answered right"]) == 0


def test_each_question_shows_every_answer_its_passages_and_which_of_them_is_gold():
    found = Page(question_html({"Base": BASE[0], "Tuned": TUNED[0]}))
    for text in (
        "question 0?",
        "Gold answer",
        "no idea",
        "Tuned, F1 1.00, answered right",
        "the document of question 0",
    ):
        assert text in found.text
    assert found.text.count("the document of question 0") == 1 and found.text.count("gold") == 1  # both read the same
    other = replace(TUNED[0], hits=(), read=(), passages_read=0)
    assert Page(question_html({"Base": BASE[0], "Tuned": other})).text.count("the document of question 0") == 2
    assert "not found" in Page(question_html({"Tuned": other})).text
    assert Page(question_html({"Tuned": TUNED[0]})).text.count("found, not read") == 1  # the prompt holds two of three


def test_ten_answers_are_picked_where_nothing_changed_too_and_always_the_same(tmp_path):
    made = results(COLOURS, COLOURS)
    write_results(tmp_path / "a", made)
    write_results(tmp_path / "b", made)
    shown = (tmp_path / "a/report.html").read_text("utf-8").partition("picked at random")[2].partition("<section>")[0]
    assert shown.count("<summary><span dir") == 10 and "the document of question" in shown
    assert (tmp_path / "a/report.md").read_text("utf-8").count("\n- Tuned: ") == 10
    assert (tmp_path / "a/answers.html").read_bytes() == (tmp_path / "b/answers.html").read_bytes()
    questions = side_by_side({"Tuned": TUNED})
    assert sampled(questions) == sampled(questions) and len(sampled(questions[:3])) == 3


def test_an_answer_that_failed_has_its_own_filter():
    failed = [replace(TUNED[0], answer="", scores={}, failure="timeout", outcome=""), *TUNED[1:]]
    assert "Outcome: Tuned/failed" in options(all_answers({"Base": BASE, "Tuned": failed}))
    unknown = [replace(p, outcome="") for p in failed]
    assert "Answered: Tuned/failed" in options(all_answers({"Base": BASE, "Tuned": unknown}))


def test_hostile_texts_stay_text_and_the_page_runs_and_loads_nothing(tmp_path):
    example = replace(TUNED[0].example, question=NASTY, answer=NASTY, gold_documents=(Document(NASTY),))
    nasty = replace(TUNED[0], example=example, answer=NASTY, outcome=NASTY, read=(Document(NASTY),))
    write_answers(tmp_path / "answers.html", NASTY, {NASTY: [nasty], f"{NASTY} 2": [nasty]}, {"command": NASTY})
    text = (tmp_path / "answers.html").read_text("utf-8")
    page = Page(text)
    assert set(page.tags) & {"script", "a", "img", "link", "iframe"} == set() and "default-src 'none'" in text
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "action")]
    assert page.text.count("<script>alert(1)</script>") > 6
