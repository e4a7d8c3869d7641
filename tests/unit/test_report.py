"""A run's reports: the same numbers in JSON, Markdown, HTML and the terminal, and nothing executable."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from test_results import COLOURS, F1, eval_row, evaluation, results, wrong

from groundtune.data.files import write_text
from groundtune.evaluation.predictions import write_predictions
from groundtune.reporting import report
from groundtune.reporting.plots import _steps_axis, metric_plot
from groundtune.reporting.report import summary_table, write_results
from groundtune.reporting.results import Results
from groundtune.schema import Document, Turn

NASTY = "a | b\n\n`code` ``` *x* _y_ \\| $1$\r\n# no heading\n<script>alert(1)</script> [a](http://example.com/x) &amp;"


@pytest.fixture
def nasty() -> Results:
    """Results in which everything from files or a model is hostile."""
    questions = [f"{NASTY} {number}" for number in range(24)]
    record = {"command": f"groundtune --x '{NASTY}'", "arguments": {"train_file": NASTY}, "platform": NASTY,
              "inputs": {NASTY: {"path": NASTY, "sha256": NASTY}}, "versions": {NASTY: NASTY}}  # fmt: skip
    golds = [f"{NASTY} {colour}" for colour in COLOURS]
    made = results([NASTY, *golds[1:]], [golds[0], *wrong(23)], golds, questions=questions, notes=[NASTY])
    made, turns = replace(made, record=record), (Turn("user", NASTY),)
    return replace(made, **{
        side: replace(getattr(made, side), predictions=tuple(
            replace(p, example=replace(p.example, chat_history=turns)) for p in getattr(made, side).predictions
        ))
        for side in ("base", "tuned")
    })  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def written(tmp_path, made: Results, name: str) -> str:
    write_results(tmp_path, made)
    return (tmp_path / name).read_text(encoding="utf-8")


def strict_json(text: str):
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# Files
def test_a_run_leaves_these_files_and_no_temporary_ones(tmp_path):
    write_results(tmp_path / "new" / "folder", results(wrong(), COLOURS))
    found = {str(path.relative_to(tmp_path / "new" / "folder")) for path in tmp_path.rglob("*") if path.is_file()}
    predictions = {"predictions/test_base.jsonl", "predictions/test_tuned.jsonl"}
    assert {name.replace("\\", "/") for name in found} == predictions | {
        "metrics.json", "run.json", "README.md", "report.md", "report.html", "answers.html",
    }  # fmt: skip


def test_metrics_json_has_exactly_these_keys_and_the_evaluations_numbers(tmp_path):
    made = results(wrong(), COLOURS)
    metrics = strict_json(written(tmp_path, made, "metrics.json"))
    assert set(metrics) == {
        "verdict", "base", "tuned", "difference", "without_a_model", "best_step", "selection_metric",
        "selected_on_test", "history",
    }  # fmt: skip
    assert metrics["base"] == made.base.to_dict() and metrics["verdict"] == made.verdict
    assert metrics["tuned"]["n"] == 24 and metrics["tuned"][F1] == made.tuned.metrics[F1].to_dict()
    assert set(metrics["difference"]) == set(made.base.metrics) - {"latency/generation_s"}
    assert (metrics["best_step"], metrics["selection_metric"], metrics["selected_on_test"]) == (4, F1, False)


def test_json_files_hold_no_nan_and_unknown_objects_as_text(tmp_path):
    made = results(wrong(), COLOURS, record={"bad": float("inf"), "path": tmp_path, "nested": [{"x": float("nan")}]})
    assert strict_json(written(tmp_path, made, "metrics.json"))["history"][-1]["grad_norm"] is None
    run = strict_json((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run == {"bad": None, "path": str(tmp_path), "nested": [{"x": None}], "notes": []}


def test_predictions_are_written_in_order(tmp_path):
    made = evaluation(wrong(), COLOURS)
    write_predictions(tmp_path / "step_4.jsonl", made)
    rows = [strict_json(line) for line in (tmp_path / "step_4.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [prediction.to_dict() for prediction in made.predictions]


def test_numbers_are_on_disk_even_if_a_plot_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no plots today")

    monkeypatch.setattr(report, "_page", fail)
    with pytest.raises(RuntimeError):
        write_results(tmp_path, results(wrong(), COLOURS))
    assert (tmp_path / "metrics.json").exists() and (tmp_path / "report.md").exists()


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "report.md").write_text("old", encoding="utf-8")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "report.md", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "old"


# Terminal, and content common to all forms
def test_history_table_means_the_training_loss_since_the_evaluation_before(tmp_path):
    made = results(wrong(), COLOURS)
    more = [{"step": 6, "loss": 0.5}, {"step": 6, **eval_row(0.3)}]
    text = written(tmp_path, replace(made, history=[*made.history, *more]), "report.md")
    assert "| 0 |  | 3.000 | 0.100 | 0.100 |" in text
    assert "| 4 (chosen) | 1.500 | 1.500 | 0.400 | 0.400 |" in text
    assert "| 6 | 0.500 |  | 0.300 | 0.300 |" in text


def test_a_training_loss_that_was_not_finite_is_said(tmp_path):
    history = [{"step": 2, "loss": float("nan")}, {"step": 2, **eval_row(0.2)}]
    text = written(tmp_path, results(wrong(), COLOURS, history=history), "report.html")
    assert "not finite at step 2" in text


def test_summary_table_shows_retrieval_once_and_no_verdict_on_time():
    from rich.console import Console

    console = Console(width=80, file=io.StringIO())
    console.print(summary_table(results(wrong(), COLOURS)))
    lines = console.file.getvalue().splitlines()
    shown = {label: re.sub(" +", " ", line[len(label) :]).strip() for line in lines for label in [line[:15].strip()]}
    assert shown["Token F1"] == "0.00 [0.00, 0.15] 1.00 [0.85, 1.00] +1.00 [0.77, 1.00] better"
    assert shown["Recall@3"] == "1.00 [0.85, 1.00] same"
    assert shown["New tokens"].endswith("fewer")  # two words before, one after: cheaper, which is not better
    assert shown["Seconds/answer"] == "0.50 0.50 +0.00"


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_no_separate_test_is_said_in_every_report(tmp_path, name):
    assert "No separate test" not in written(tmp_path, results(wrong(), COLOURS), name)
    made = results(wrong(), COLOURS, selected_on_test=True)
    assert "No separate test: the checkpoint was selected on the questions" in written(tmp_path, made, name)
    assert "No separate test" in summary_table(made).caption


# HTML
def test_html_shows_hostile_text_as_text(tmp_path, nasty):
    page = Page(written(tmp_path, nasty, "report.html"))
    assert "script" not in page.tags and "h4" not in page.tags
    shown = page.text.count("<script>alert(1)</script>")
    # each of the answers shown has a gold answer, something said before and one answer that quotes the gold one
    assert shown >= 12 * 4


HOSTILE = {
    "a tag": "<img src=x onerror=alert(1)>",
    "an attribute": '" onmouseover="alert(1)" x="',
    "single quotes": "' onload='alert(1)",
    "the end of the style": "</style></title></details><script>alert(1)</script>",
    "a comment": "<!-- --> --!>",
    "CDATA": "]]>",
    "a template": "$verdict_head ${title} $$",
    "an entity": "&lt;script&gt;&#60;b&#62;",
    "a link": "javascript:alert(1)",
    "drawing": '<svg/onload=alert(1)><use href="http://example.com/x.svg#a">',
    "a form": "<form action=http://example.com>",
    "characters": "\u202e\u2028\x00\ufeff\U0001f600",
}


def with_text(text: str) -> Results:
    """Results in which everything that comes from files, models or flags is `text`."""
    questions = [f"{text}{number}" for number in range(24)]
    golds = [f"{text} {colour}" for colour in COLOURS]
    record = {"command": text, "arguments": {"train_file": text}, "platform": text, "device": text, "finished": text,
              "inputs": {"train_file": {"path": text, "sha256": text}}, "versions": {"torch": text}}  # fmt: skip
    made = results([text, *golds[1:]], [golds[0], *wrong(23)], golds, questions=questions, notes=[text])
    turns, hostile = (Turn("user", text), Turn("assistant", text)), (Document(text, text, {text: text}),)
    return replace(made, record=record, **{
        side: replace(getattr(made, side), predictions=tuple(
            replace(p, example=replace(p.example, chat_history=turns, gold_documents=hostile, source=text))
            for p in getattr(made, side).predictions
        ))
        for side in ("base", "tuned")
    })  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Page:
    return Page(written(tmp_path_factory.mktemp("plain"), with_text("text"), "report.html"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_page_has_the_same_tags_and_attributes_whatever_its_texts_hold(tmp_path, plain, text):
    hostile = Page(written(tmp_path, with_text(text), "report.html"))
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    assert not [name for name, value in hostile.attributes if text in (value or "")]


def test_html_loads_nothing(tmp_path, nasty):
    text = written(tmp_path, nasty, "report.html")
    page = Page(text)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert value.startswith(("#", "data:")) or value == "answers.html", f"{name}={value}"
        assert not name.startswith("on"), name
    assert not {"link", "script", "iframe", "object", "embed", "base", "img"} & set(page.tags)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def test_a_curve_at_the_top_or_at_the_bottom_of_its_plot_is_not_cut_in_half():
    from matplotlib.figure import Figure

    for losses in ([1.6, 1.6001], [1.6, 0.0], [0.0, 0.0]):
        axes = Figure().add_subplot()
        axes.plot([0, 9], losses)
        _steps_axis(axes)
        low, high = axes.get_ylim()
        assert low < 0 and high >= 1.05 * max(losses) > 0 or high > 0 == max(losses)


def test_the_curves_say_of_how_many_questions_they_are_where_these_are_not_all():
    made = results(wrong(), COLOURS)
    assert "Eval questions evaluated during training" in metric_plot(made)
    made.record["arguments"]["evaluation"] = {"eval_max_samples": 16}
    made.record["inputs"]["eval_file"] = {"path": "eval.jsonl", "rows": 73}
    assert "16 of the 73 eval questions evaluated during training" in metric_plot(made)


def test_plots_are_well_formed_described_and_follow_the_pages_colours(tmp_path):
    svgs = re.findall(r"<svg.*?</svg>", written(tmp_path, results(wrong(), COLOURS), "report.html"), re.DOTALL)
    assert len(svgs) == 3
    ids: list[str] = []
    for svg in svgs:
        whole = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        root = ElementTree.fromstring(whole)  # noqa: S314  made here
        assert root.get("role") == "img" and len(root.get("aria-label")) > 20
        assert "var(--" in svg and "#00000" not in svg
        ids += [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_a_run_without_history_is_reported_too(tmp_path):
    made = results(wrong(), COLOURS, history=[], best_step=None, selection_metric=None, record={})
    text = written(tmp_path, made, "report.html")
    assert text.count("<svg") == 1 and "Nothing was logged" in text


@pytest.mark.parametrize(
    ("base", "tuned", "kind"),
    [(wrong(), COLOURS, "better"), (COLOURS, wrong(), "worse"), (COLOURS, COLOURS, "unclear")],
)
def test_the_banner_has_the_verdicts_colour_and_words(tmp_path, base, tuned, kind):
    made = results(base, tuned)
    text = written(tmp_path, made, "report.html")
    assert f'class="banner {kind}"' in text and made.verdict.split(": ")[0] in Page(text).text


# Markdown
def test_markdown_tables_keep_their_columns_whatever_the_answers_hold(tmp_path, nasty):
    markdown_it = pytest.importorskip("markdown_it")
    text = written(tmp_path, nasty, "report.md")
    html = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    columns = {5: 0, 6: 0}
    for table in re.findall(r"<table>.*?</table>", html, re.DOTALL):
        wide = {len(re.findall("<t[hd]", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)}
        assert len(wide) == 1
        columns[wide.pop()] += 1
    assert columns == {5: 2, 6: 2}  # metrics and history; gained and lost
    rows = [line for line in text.splitlines() if re.match(r"\| [+-]\d", line)]
    assert len(rows) == 11 and all(line.count("|") == 7 for line in rows)


def test_markdown_shows_hostile_text_as_text(tmp_path, nasty):
    markdown_it = pytest.importorskip("markdown_it")
    text = written(tmp_path, nasty, "report.md")
    page = Page(markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    assert not {"script", "a", "em", "img"} & set(page.tags)
    assert page.tags.count("h1") == 1
    for part in ("a | b", "`code` ``` *x* _y_ \\| $1$", "# no heading", "[a](http://example.com/x) &amp;"):
        assert page.text.count(part) >= 12 * 3


# Imports
def test_importing_the_report_loads_no_plotting_and_no_model_library():
    code = (
        "import sys, groundtune.reporting.report\n"
        "print([m for m in ('torch', 'matplotlib', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
