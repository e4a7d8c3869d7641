"""What a run leaves behind: one set of numbers in JSON, Markdown, HTML and the terminal, none of it executable."""

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

from groundtune import report
from groundtune.evaluation import Evaluation
from groundtune.metrics import aggregate, generation_scores, greater_is_better, paired_difference, retrieval_scores
from groundtune.report import (
    Results,
    differences,
    gained_and_lost,
    merged_history,
    run_record,
    summary_table,
    verdict,
    write_predictions,
    write_results,
)
from groundtune.schema import Document, Example, Hit, Prediction, Turn

NASTY = "a | b\n\n`code` ``` *x* _y_ \\| $1$\r\n# no heading\n<script>alert(1)</script> [a](http://example.com/x) &amp;"
F1 = "generation/f1"
COLOURS = ["red", "green", "blue", "white", "black", "grey", "pink", "gold", "brown", "amber", "coral", "ivory"]


def evaluation(
    answers: list[str], golds: list[str], questions: list[str] | None = None, rank: int | None = 1
) -> Evaluation:
    """Every question has one gold document, found at `rank` of 3, of which the prompt holds the first two."""
    predictions = []
    for number, (answer, gold) in enumerate(zip(answers, golds, strict=True)):
        document = Document(f"the document of question {number}")
        hits = [Hit(Document(f"other {number} {other}"), 1.0 - other / 10) for other in range(3)]
        if rank:
            hits[rank - 1] = Hit(document, 0.9)
        example = Example(questions[number] if questions else f"question {number}?", gold, (document,))
        scores = {
            **generation_scores(answer, gold),
            "generation/unfinished": 0.0,
            "generation/new_tokens": float(len(answer.split())),
            **retrieval_scores([hit.document.id for hit in hits], {document.id}, ks=(1, 3)),
            "latency/generation_s": 0.5,
        }
        predictions.append(Prediction(example, tuple(hits), answer, True, 2, 90, len(answer.split()), scores))
    return Evaluation(aggregate([p.scores for p in predictions], samples=200), tuple(predictions))


def results(base: list[str], tuned: list[str], golds: list[str] = COLOURS, **changes) -> Results:
    questions = changes.pop("questions", None)
    made = Results(
        method="swr",
        base=evaluation(base, golds, questions),
        tuned=evaluation(tuned, golds, questions),
        history=[
            {"step": 0, "eval_loss_with_gold_passage": 3.0, **eval_row(0.1)},
            {"step": 2, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-4},
            {"step": 4, "epoch": 1.0, "loss": 1.0, "grad_norm": float("nan")},
            {"step": 4, "epoch": 1.0, "eval_loss_with_gold_passage": 1.5, **eval_row(0.4)},
        ],
        best_step=4,
        selection_metric=F1,
        selected_on_test=False,
        notes=[],
        record={
            "command": "groundtune swr --model_name_or_path tiny",
            "arguments": {"model": {"model_name_or_path": "owner/tiny"}, "data": {"test_file": "test.jsonl"}},
            "inputs": {"test_file": {"path": "test.jsonl", "sha256": "ab" * 32, "bytes": 1234, "rows": 12}},
            "versions": {"python": "3.12.0"},
            "durations": {"training": 75.0},
        },
    )
    return replace(made, **changes)


def eval_row(value: float) -> dict[str, float]:
    row = {}
    for name in (F1, "generation/rougeL"):
        row |= {f"eval_{name}": value, f"eval_{name}_low": value - 0.05, f"eval_{name}_high": value + 0.05}
    return row


def wrong(count: int = 12) -> list[str]:
    return ["no idea"] * count


@pytest.fixture
def nasty() -> Results:
    """Whatever comes from files or a model is hostile."""
    questions = [f"{NASTY} {number}" for number in range(12)]
    record = {"command": f"groundtune --x '{NASTY}'", "arguments": {"train_file": NASTY}, "platform": NASTY,
              "inputs": {NASTY: {"path": NASTY, "sha256": NASTY}}, "versions": {NASTY: NASTY}}  # fmt: skip
    golds = [f"{NASTY} {colour}" for colour in COLOURS]
    made = results([NASTY, *golds[1:]], [golds[0], *wrong(11)], golds, questions=questions, notes=[NASTY])
    made, turns = replace(made, record=record), (Turn("user", NASTY),)
    return replace(made, **{
        side: replace(getattr(made, side), predictions=tuple(
            replace(p, example=replace(p.example, chat_history=turns)) for p in getattr(made, side).predictions
        ))
        for side in ("base", "tuned")
    })  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would find them."""

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
        "metrics.json", "run.json", "report.md", "report.html",
    }  # fmt: skip


def test_metrics_json_has_exactly_these_keys_and_the_evaluations_numbers(tmp_path):
    made = results(wrong(), COLOURS)
    metrics = strict_json(written(tmp_path, made, "metrics.json"))
    assert set(metrics) == {
        "base", "tuned", "difference", "best_step", "selection_metric", "selected_on_test", "history",
    }  # fmt: skip
    assert metrics["base"] == made.base.to_dict()
    assert metrics["tuned"]["n"] == 12 and metrics["tuned"][F1] == made.tuned.metrics[F1].to_dict()
    assert set(metrics["difference"]) == set(made.base.metrics)
    assert (metrics["best_step"], metrics["selection_metric"], metrics["selected_on_test"]) == (4, F1, False)


def test_json_files_hold_no_nan_and_unknown_objects_as_text(tmp_path):
    made = results(wrong(), COLOURS, record={"bad": float("inf"), "path": tmp_path, "nested": [{"x": float("nan")}]})
    assert strict_json(written(tmp_path, made, "metrics.json"))["history"][-1]["grad_norm"] is None
    run = strict_json((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run == {"bad": None, "path": str(tmp_path), "nested": [{"x": None}]}


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

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report._write(tmp_path / "report.md", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "old"


# Differences and the verdict
def test_differences_are_those_of_the_metrics_module():
    base, tuned = evaluation(wrong(), COLOURS), evaluation(COLOURS[:6] + wrong(6), COLOURS)
    found = differences(base, tuned, samples=300)
    assert set(found) == set(base.metrics)
    for metric, difference in found.items():
        assert difference == paired_difference(
            base.values(metric), tuned.values(metric), samples=300, greater_is_better=greater_is_better(metric)
        )
    assert found[F1].wins == 6 and not found["generation/new_tokens"].greater_is_better


def test_differences_of_other_examples_are_refused():
    base = evaluation(wrong(), COLOURS)
    with pytest.raises(ValueError, match="different examples"):
        differences(base, Evaluation(base.metrics, base.predictions[::-1]))


def test_verdict_better_says_both_means_the_interval_and_the_counts():
    made = results(wrong(), COLOURS[:9] + wrong(3))
    f1 = made.differences[F1]
    assert made.verdict == (
        f"Tuned answers better: token F1 0.75 against 0.00, +0.75 [{f1.low:.2f}, {f1.high:.2f}] "
        "on 12 questions (9 better, 0 worse, 3 the same)"
    )
    assert verdict(made.differences) == made.verdict.replace(" 0.75 against 0.00,", "")


def test_verdict_worse_is_said_as_plainly():
    made = results(COLOURS, COLOURS[:3] + wrong(9))
    assert made.verdict.startswith("Tuned answers worse: token F1 0.25 against 1.00, -0.75 [-")
    assert "(0 better, 9 worse, 3 the same)" in made.verdict


def test_unclear_verdict_says_what_could_not_have_been_seen():
    made = results(COLOURS[:6] + wrong(6), wrong(5) + COLOURS[5:])
    f1 = made.differences[F1]
    assert made.verdict.startswith("No clear difference: token F1 0.58 against 0.50, +0.08 [")
    assert f"a difference under about {(f1.high - f1.low) / 2:.2f} could not be seen" in made.verdict


def test_verdict_on_few_or_equal_answers_claims_nothing():
    few = results(wrong(5), COLOURS[:5], COLOURS[:5])
    assert few.verdict.startswith("No clear difference") and "under 6 questions nothing can be concluded" in few.verdict
    same = results(COLOURS, COLOURS)
    assert same.verdict == "No difference: both models have the same token F1 on every one of 12 questions"


def test_verdict_never_rounds_an_interval_end_to_the_other_side_of_zero():
    difference = paired_difference([0.0] * 400, [0.004] * 399 + [0.0])
    assert "+0.004 [0.004, 0.004]" in verdict({F1: difference})


# What is shown
def test_gained_and_lost_hold_only_real_changes_largest_first_and_never_overlap():
    golds = ["one two three four"] * 30
    base = ["zero"] * 10 + ["one two three four"] * 15 + ["one"] * 5
    tuned = ["one two three four"] * 4 + ["one"] * 6 + ["one"] * 11 + ["zero"] * 4 + ["one"] * 5
    gained, lost = gained_and_lost(results(base, tuned, golds))
    assert len(gained) == len(lost) == 10
    assert [change.value for change in gained] == sorted((change.value for change in gained), reverse=True)
    assert [change.value for change in lost] == sorted(change.value for change in lost)
    assert gained[0].value == 1.0 and lost[0].value == -1.0
    assert all(change.value > 0 for change in gained) and all(change.value < 0 for change in lost)
    assert not {c.base.example.question for c in gained} & {c.base.example.question for c in lost}


def test_fewer_changes_give_shorter_lists():
    gained, lost = gained_and_lost(results(wrong(), [COLOURS[0], *wrong(11)]))
    assert ([change.tuned.answer for change in gained], lost) == (["red"], [])


@pytest.mark.parametrize(
    ("rank", "said"), [(1, "rank 1"), (3, "rank 3, cut from the prompt"), (None, "not among the 3 retrieved")]
)
def test_the_rank_of_the_gold_document_is_said(rank, said):
    found = evaluation(wrong(1), COLOURS[:1], rank=rank).predictions[0]
    assert report.Change(found, found).gold_rank == said


def test_history_is_merged_per_step_and_sorted():
    rows = [{"step": 4, "loss": 1.0}, {"step": 0, "eval_x": 0.1}, {"step": 4, "eval_x": 0.3}, {"no": "step"}]
    assert merged_history(rows) == [{"step": 0, "eval_x": 0.1}, {"step": 4, "loss": 1.0, "eval_x": 0.3}]


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
    assert shown["Token F1"] == "0.00 [0.00, 0.00] 1.00 [1.00, 1.00] +1.00 [1.00, 1.00] better"
    assert shown["Recall@3"] == "1.00 [1.00, 1.00] same"
    assert shown["New tokens"].endswith("fewer")  # two words before, one after: cheaper, which is not better
    assert shown["Seconds/answer"] == "0.50 0.50 +0.00 same"


def test_a_difference_in_time_has_no_verdict():
    made = results(wrong(), COLOURS)
    slow = [replace(p, scores={**p.scores, "latency/generation_s": 0.9}) for p in made.tuned.predictions]
    made = replace(made, tuned=Evaluation(aggregate([p.scores for p in slow], samples=200), tuple(slow)))
    row = next(row for row in report._comparison(made) if row.label == "Seconds/answer")
    assert (row.difference, row.verdict) == (("+0.40", ""), "")


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_no_separate_test_is_said_in_every_report(tmp_path, name):
    assert "No separate test" not in written(tmp_path, results(wrong(), COLOURS), name)
    made = results(wrong(), COLOURS, selected_on_test=True)
    assert "No separate test: the checkpoint was chosen on the same questions" in written(tmp_path, made, name)
    assert "No separate test" in summary_table(made).caption


# HTML
def test_html_shows_hostile_text_as_text(tmp_path, nasty):
    page = Page(written(tmp_path, nasty, "report.html"))
    assert "script" not in page.tags and "h4" not in page.tags
    shown = page.text.count("<script>alert(1)</script>")
    # 12 questions, of which each has a gold answer, something said before and one answer that quotes the gold one
    assert shown >= 12 * 4


def test_html_loads_nothing(tmp_path, nasty):
    text = written(tmp_path, nasty, "report.html")
    page = Page(text)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert value.startswith(("#", "data:")), f"{name}={value}"
        assert not name.startswith("on"), name
    assert not {"link", "script", "iframe", "object", "embed", "base", "img"} & set(page.tags)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def test_plots_are_well_formed_described_and_follow_the_pages_colours(tmp_path):
    svgs = re.findall(r"<svg.*?</svg>", written(tmp_path, results(wrong(), COLOURS), "report.html"), re.DOTALL)
    assert len(svgs) == 3
    ids: list[str] = []
    for svg in svgs:
        root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
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


# The run record
@pytest.fixture
def record(tmp_path, monkeypatch):
    (tmp_path / "test.jsonl").write_bytes(b"abc")
    monkeypatch.setattr(sys, "argv", [
        "/somewhere/bin/groundtune", "swr", "--hub_token", "hf_SECRET", "--api-key=SECRET", "--max_new_tokens", "64",
        "--milvus_uri", "http://me:SECRET@host:1/", "--output_dir", "my runs",
    ])  # fmt: skip
    arguments = {
        "model": {"model_name_or_path": "tiny", "hub_token": "hf_SECRET", "api_keys": ["SECRET"]},
        "Password": "SECRET", "client_secret": 12345, "push_token": None, "max_new_tokens": 64,
        "average_tokens_across_devices": True, "uri": "http://me:SECRET@host:1/", "deep": [{"key": "SECRET"}],
        "learning_rate": float("nan"),
    }  # fmt: skip
    return run_record(arguments, {"test_file": tmp_path / "test.jsonl", "train_file": ""}, {"training": 1.5}, seed=7)


def test_secrets_are_hidden_and_counts_of_tokens_are_not(record):
    assert "SECRET" not in json.dumps(record) and "12345" not in json.dumps(record["arguments"])
    arguments = record["arguments"]
    assert arguments["model"] == {"model_name_or_path": "tiny", "hub_token": "***", "api_keys": ["***"]}
    assert arguments["max_new_tokens"] == 64 and arguments["average_tokens_across_devices"] is True
    assert arguments["push_token"] is None
    assert record["command"] == (
        "groundtune swr --hub_token '***' '--api-key=***' --max_new_tokens 64 "
        "--milvus_uri 'http://***@host:1/' --output_dir 'my runs'"
    )


def test_the_record_says_what_it_takes_to_run_again(record):
    assert strict_json(json.dumps(record)) == record
    assert record["seed"] == 7 and record["durations"] == {"training": 1.5} and record["device"]
    assert set(record["versions"]) == {
        "python", "groundtune", "torch", "transformers", "peft", "sentence-transformers", "faiss-cpu",
    }  # fmt: skip
    assert list(record["inputs"]) == ["test_file"]
    about = record["inputs"]["test_file"]
    assert about["bytes"] == 3
    assert about["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_importing_the_report_loads_no_plotting_and_no_model_library():
    code = "import sys, groundtune.report; print([m for m in ('torch', 'matplotlib', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
