"""Systems are paired question by question, in spite of different orders or extra questions in their files."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_results import COLOURS, F1, evaluation, wrong

from groundtune.cli import main
from groundtune.errors import DataError
from groundtune.evaluation.comparison import compare, find_predictions, read_systems, short_names
from groundtune.evaluation.outcomes import Rightness, with_outcomes
from groundtune.evaluation.predictions import evaluation_of, write_predictions
from groundtune.reporting.comparison_page import comparison_table, failures, outcomes_table, write_comparisons
from groundtune.schema import Turn

NASTY = "a | b <script>alert(1)</script> [red]x[/red] $1$ &amp;"


def answered(answers, **options):
    return list(evaluation(answers, COLOURS, **options).predictions)


def failing(prediction):
    return replace(prediction, answer="", scores={}, failure="timeout")


def rendered(table) -> str:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_questions_are_paired_whatever_their_order():
    a, b = answered(wrong()), answered(COLOURS)
    found = compare("t", {"a": a, "b": b[::-1]})
    difference = found.differences["b"][F1]
    assert (difference.value, difference.wins, difference.losses, difference.n) == (1, 24, 0, 24)
    pairs = zip(*(e.predictions for e in found.evaluations.values()))
    assert all(p.example.question == q.example.question for p, q in pairs)
    assert found.verdict("b").startswith("b answers better than a: token F1 1.00 against 0.00, +1.00")


def test_the_first_is_the_reference_and_any_number_is_compared_with_it():
    found = compare("t", {"a": answered(COLOURS), "b": answered(wrong()), "c": answered(COLOURS)})
    assert found.reference == "a" and found.others == ["b", "c"]
    assert found.differences["b"][F1].verdict == "worse" and found.differences["c"][F1].ties == 24
    assert found.verdict("c").startswith("No difference: c and a have the same token F1 on every one of 24")


def test_questions_that_not_all_have_are_left_out_and_counted():
    found = compare("t", {"a": answered(COLOURS), "b": answered(wrong())[2:], "c": answered(COLOURS)[:9]})
    assert found.n == 7 and found.left_out == {"a": 17, "b": 15, "c": 2}
    assert found.evaluations["a"].n == 7
    assert any("a: 17 questions are left out" in line for line in failures(found))
    (one,) = failures(compare("t", {"a": answered(COLOURS), "b": answered(COLOURS)[1:]}))
    assert one == "a: 1 question is left out because not all systems answered it"


def test_the_banner_of_a_page_keeps_names_as_they_are(tmp_path):
    for other, head, rest in ((wrong(), "<h2>sft: k=4 answers worse than swr: k=4</h2>", "Token F1 0.00"),
                              (COLOURS, "<h2>No difference</h2>", "sft: k=4 and swr: k=4 have the same")):  # fmt: skip
        found = compare("t", {"swr: k=4": answered(COLOURS), "sft: k=4": answered(other)})
        write_comparisons(tmp_path / "page.html", "comparison", "t", [found], {}, [], {})
        page = (tmp_path / "page.html").read_text("utf-8")
        banner = page[page.index('<section class="banner') :]
        assert head in banner and f'<p class="num">{rest}' in banner


def test_an_empty_name_is_refused(tmp_path, capsys):
    for name in "ab":
        write_predictions(tmp_path / f"{name}.jsonl", evaluation_of(answered(COLOURS), 100))
    words = ["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--names", "a"]
    assert main([*words, " "]) == 2 and "--names: a name is empty" in capsys.readouterr().err


def test_the_same_words_after_another_history_are_another_question():
    a = answered(COLOURS)
    other = [replace(p, example=replace(p.example, chat_history=(Turn("user", "Hello"),))) for p in a]
    with pytest.raises(DataError, match="no question is in all of a \\(24\\), b \\(24\\)"):
        compare("t", {"a": a, "b": other})


def test_a_question_asked_twice_is_two_questions():
    a, b = answered(wrong()), answered(COLOURS)
    assert compare("t", {"a": a + a, "b": b + b}).n == 48


def test_a_failed_answer_is_in_no_pair_and_is_counted():
    a, b = answered(wrong()), answered(COLOURS)
    found = compare("t", {"a": a, "b": [failing(b[0]), *b[1:]]})
    assert found.differences["b"][F1].n == 23 and found.evaluations["b"].failed == 1
    assert found.evaluations["a"].metrics[F1].value == 0 and found.evaluations["b"].metrics[F1].value == 1
    assert failures(found) == ["b: 1 of 24 answers failed and are excluded from the means (first: timeout)"]
    assert "of 23" in rendered(comparison_table(found))
    all_failed = compare("t", {"a": a, "b": list(map(failing, b))})
    assert all_failed.verdict("b") == "Nothing to compare: no question was answered by both b and a"


def test_judgements_that_failed_are_counted():
    graded = [
        replace(p, judged={"correctness": "x"}, scores=p.scores | {"judge/correctness": 1.0}) for p in answered(COLOURS)
    ]
    graded[0] = replace(graded[0], scores={k: v for k, v in graded[0].scores.items() if k != "judge/correctness"})
    found = compare("t", {"a": graded})
    assert failures(found) == ["a: judge correctness: 23 scored, 1 failed, 24 in total"]
    assert "Judge: correctness" in rendered(comparison_table(found))


def test_wins_and_losses_are_listed_by_their_size():
    found = compare("t", {"a": answered(["red", *wrong(23)]), "b": answered(["nothing", *COLOURS[1:]])})
    gained, lost = found.gained_and_lost("b")
    assert len(gained) == 10 and [change.value for change in lost] == [-1]
    assert lost[0].base.answer == "red" and lost[0].tuned.answer == "nothing"


def test_outcomes_are_shown_where_they_are_known():
    a = with_outcomes([replace(p, read=tuple(h.document for h in p.hits)) for p in answered(COLOURS)], Rightness())
    found = compare("t", {"a": a})
    assert found.outcomes()["a"]["answered right"] == 24
    assert "retrieval missed" in rendered(outcomes_table(found))
    assert outcomes_table(compare("t", {"a": answered(COLOURS)})) is None


# Paths


def test_a_path_is_a_file_or_the_folder_of_a_run_or_of_an_evaluation(tmp_path):
    run, evaluated = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    write_predictions(run / "predictions" / "test_tuned.jsonl", evaluation(COLOURS, COLOURS))
    write_predictions(run / "predictions" / "test_base.jsonl", evaluation(wrong(), COLOURS))
    write_predictions(evaluated / "predictions" / "retrieved.jsonl", evaluation(wrong(), COLOURS))
    assert find_predictions(str(run)).name == "test_tuned.jsonl"
    base = str(run / "predictions" / "test_base.jsonl")
    systems = read_systems([base, str(run), str(evaluated)])
    assert list(systems) == ["test_base", "one", "two"]
    assert compare("t", systems).differences["one"][F1].value == 1
    assert list(read_systems([str(run), str(run)], ["x", "y"])) == ["x", "y"]


@pytest.mark.skipif(os.name == "nt", reason="not everybody may make links on Windows")
def test_predictions_in_a_folder_are_not_read_through_a_link_that_leads_out_of_it(tmp_path):
    run, mine = tmp_path / "run", tmp_path / "mine.jsonl"
    write_predictions(mine, evaluation(COLOURS, COLOURS))
    (run / "predictions").mkdir(parents=True)
    (run / "predictions" / "test_tuned.jsonl").symlink_to(mine)
    with pytest.raises(DataError, match=r"is a link to .*mine\.jsonl, outside "):
        find_predictions(str(run))
    (tmp_path / "link").symlink_to(mine)
    assert find_predictions(str(tmp_path / "link"))  # it was named


def test_names_are_as_short_as_tells_them_apart():
    assert short_names(["runs/a/predictions/retrieved.jsonl", "runs/b/predictions/retrieved.jsonl"]) == [
        "a/predictions/retrieved", "b/predictions/retrieved",
    ]  # fmt: skip
    assert short_names(["runs/a", "b"]) == ["a", "b"]
    assert short_names(["runs/a", "runs/a"]) == ["runs/a (1)", "runs/a (2)"]
    assert short_names(["runs/qwen2.5-7b", "runs/qwen2.5-3b"]) == ["qwen2.5-7b", "qwen2.5-3b"]
    assert short_names([".", "runs/a"]) == [Path.cwd().name, "a"]


def test_all_paths_that_lead_nowhere_are_named_at_once(tmp_path):
    with pytest.raises(DataError) as caught:
        read_systems([str(tmp_path / "none"), str(tmp_path)])
    assert len(caught.value.problems) == 2
    assert "no such file or folder" in caught.value.problems[0] and "test_tuned.jsonl" in caught.value.problems[1]


# The page


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", ["a$\\frac$", "_old", "測試", "a_b^c"])
@pytest.mark.filterwarnings("error")
def test_a_system_of_any_name_is_in_the_legend_of_the_plots(tmp_path, name):
    found = compare("t", {name: answered(wrong(24)), "other": answered(COLOURS)})
    write_comparisons(tmp_path / "c.html", "comparison", "t", [found], {}, [], {})
    svg = (tmp_path / "c.html").read_text("utf-8").partition("<svg")[2].partition("</svg>")[0]
    assert name in [said.strip() for said in re.findall(r">([^<]+)</text>", svg)]


def test_the_page_loads_nothing_runs_nothing_and_holds_the_numbers(tmp_path):
    questions = [f"{NASTY} {i}" for i in range(24)]
    systems = {NASTY: answered([NASTY, *wrong(23)], questions=questions), "b": answered(COLOURS, questions=questions)}
    found = compare(NASTY, systems)
    write_comparisons(
        tmp_path / "new" / "c.html", "comparison", NASTY, [found, compare("single", {"b": systems["b"]})],
        {"Questions": NASTY}, [NASTY], {"command": NASTY, "inputs": {NASTY: {"path": NASTY, "sha256": "0"}}},
    )  # fmt: skip
    text = (tmp_path / "new" / "c.html").read_text("utf-8")
    page = Page(text)
    assert "script" not in page.tags and text.count("default-src 'none'") == 1
    links = [value for name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]
    assert links == ["c_answers.html"] and "script" not in Page((tmp_path / "new" / links[0]).read_text("utf-8")).tags
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert "$" not in text.replace("$1$", "")  # every part was filled in
    assert NASTY in page.text and "b answers better than" in page.text and page.tags.count("svg") == 3
    numbers = json.loads((tmp_path / "new" / "c.json").read_text("utf-8"))
    assert numbers["comparisons"][0]["differences"]["b"][F1]["wins"] == 24
    assert rendered(comparison_table(found)).count(NASTY) >= 1
