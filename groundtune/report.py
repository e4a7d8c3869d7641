"""What a run leaves behind to be judged: predictions, metrics, the run record, and a report with plots.

Terminal, Markdown and HTML render the same rows. Everything shown is escaped, and the page loads nothing.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from html import escape
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from groundtune.files import sha256_of, write_jsonl
from groundtune.metrics import Interval, PairedDifference, greater_is_better, paired_difference

if TYPE_CHECKING:
    from rich.table import Table

    from groundtune.evaluation import Evaluation
    from groundtune.schema import Prediction

F1 = "generation/f1"
GOLD_LOSS = "eval_loss_with_gold_passage"
MOST = 10  # answers shown on each side
_PACKAGES = ("groundtune", "torch", "transformers", "peft", "sentence-transformers", "faiss-cpu")
_SCORES = {
    F1: "Token F1",
    "generation/rougeL": "ROUGE-L",
    "generation/bleu": "BLEU",
    "generation/exact_match": "Exact match",
    "generation/precision": "Precision",
    "generation/recall": "Recall",
}
_HOW_TO_READ = (
    "Means over questions, in brackets their 95 % bootstrap interval. A difference is better or worse where its paired "
    "interval excludes 0. The verdict rests on token F1 alone; the other rows are not corrected for being many. "
    "The retriever is frozen, so its rows are the same for both models. Seconds are one timing, without an interval."
)


@dataclass(frozen=True)
class Results:
    """What one run found. `base` and `tuned` answer the same examples in the same order."""

    method: str  # "sft" or "swr"
    base: Evaluation  # the untouched model
    tuned: Evaluation  # the chosen checkpoint
    history: Sequence[Mapping[str, Any]]  # transformers' TrainerState.log_history; step 0 is the untouched model
    best_step: int | None  # step of the checkpoint that was chosen, None if the last weights were kept
    selection_metric: str  # what chose it: "generation/f1"
    selected_on_test: bool  # no test file was given: the numbers are of the questions that chose the checkpoint
    notes: Sequence[str]  # warnings that a reader of the numbers must see
    record: Mapping[str, Any]  # of `run_record`: the content of run.json

    @cached_property
    def differences(self) -> dict[str, PairedDifference]:
        return differences(self.base, self.tuned)

    @cached_property
    def verdict(self) -> str:
        return verdict(self.differences, self.base, self.tuned)


def differences(base: Evaluation, tuned: Evaluation, samples: int = 2000) -> dict[str, PairedDifference]:
    """tuned - base of every metric, question by question. Raises ValueError if they answered different examples."""
    if [p.example for p in base.predictions] != [p.example for p in tuned.predictions]:
        raise ValueError("base and tuned answered different examples, or in another order; nothing can be paired")
    return {
        metric: paired_difference(
            base.values(metric), tuned.values(metric), samples=samples, greater_is_better=greater_is_better(metric)
        )
        for metric in base.metrics
    }


def verdict(
    differences: Mapping[str, PairedDifference], base: Evaluation | None = None, tuned: Evaluation | None = None
) -> str:
    """One honest sentence from token F1; with `base` and `tuned` it also says both means."""
    f1 = differences[F1]
    questions = "1 question" if f1.n == 1 else f"{f1.n} questions"
    if f1.wins == f1.losses == 0:
        return f"No difference: both models have the same token F1 on every one of {questions}"
    # As few decimals as still show on which side of 0 an end of the interval lies.
    digits = next((d for d in (2, 3) if min(abs(f1.low), abs(f1.high)) >= 0.5 * 10**-d), 4)
    means = ""
    if base is not None and tuned is not None:
        means = f" {tuned.metrics[F1].value:.{digits}f} against {base.metrics[F1].value:.{digits}f},"
    found = (
        f"token F1{means} {f1.value:+.{digits}f} [{f1.low:.{digits}f}, {f1.high:.{digits}f}] "
        f"on {questions} ({f1.wins} better, {f1.losses} worse, {f1.ties} the same)"
    )
    if f1.verdict != "no clear difference":
        return f"Tuned answers {f1.verdict}: {found}"
    if f1.n < 6:
        return f"No clear difference: {found}; under 6 questions nothing can be concluded"
    # A measured difference is called clear where it exceeds half the width of its interval.
    blind = f"a difference under about {(f1.high - f1.low) / 2:.{digits}f} could not be seen"
    return f"No clear difference: {found}; with this many questions {blind}"


def write_results(output_dir: str | os.PathLike[str], results: Results) -> None:
    """Write metrics.json, run.json, predictions/, report.md and report.html, each as a whole or not at all."""
    folder = Path(output_dir)
    metrics = {
        "base": results.base.to_dict(),
        "tuned": results.tuned.to_dict(),
        "difference": {metric: difference.to_dict() for metric, difference in results.differences.items()},
        "best_step": results.best_step,
        "selection_metric": results.selection_metric,
        "selected_on_test": results.selected_on_test,
        "history": merged_history(results.history),
    }
    # The data come first: should a plot fail, no number is lost.
    write_predictions(folder / "predictions" / "test_base.jsonl", results.base)
    write_predictions(folder / "predictions" / "test_tuned.jsonl", results.tuned)
    for name, content in (("metrics.json", metrics), ("run.json", results.record)):
        _write(folder / name, json.dumps(_plain(content), ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    _write(folder / "report.md", _markdown(results))
    _write(folder / "report.html", _page(results))


def write_predictions(path: str | os.PathLike[str], evaluation: Evaluation) -> None:
    """Write an evaluation's predictions as JSONL, in the order of its examples."""
    write_jsonl(path, (_plain(prediction.to_dict()) for prediction in evaluation.predictions))


def run_record(
    arguments: Mapping[str, Any], inputs: Mapping[str, str | os.PathLike[str]], durations: Mapping[str, float], seed: int
) -> dict[str, Any]:
    """What it takes to run this again: command, arguments, versions, device, hashes of the input files.

    The value of an argument that sounds like a token, key, password or secret is "***". An input without a path is
    left out. Raises DataError if an input cannot be read.
    """
    return {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _command(sys.argv),
        "arguments": _without_secrets(arguments),
        "seed": seed,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "platform": platform.platform(),
        "device": _device(),
        "inputs": {
            name: {"path": str(path), "sha256": sha256_of(path), "bytes": os.stat(path).st_size}
            for name, path in inputs.items()
            if str(path)
        },
        "durations": dict(durations),
    }


def merged_history(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per step, in order: Trainer logs the loss and the evaluation of a step apart."""
    steps: dict[int, dict[str, Any]] = {}
    for row in history:
        if row.get("step") is not None:
            steps.setdefault(row["step"], {"step": row["step"]}).update(row)
    return [steps[step] for step in sorted(steps)]


def gained_and_lost(results: Results, most: int = MOST) -> tuple[list[Change], list[Change]]:
    """The answers whose token F1 rose most and fell most, the largest change first; a tie is in neither."""
    pairs = zip(results.base.predictions, results.tuned.predictions, strict=True)
    changes = sorted((Change(base, tuned) for base, tuned in pairs), key=lambda change: change.value)
    gained = [change for change in reversed(changes) if change.value > 0]
    return gained[:most], [change for change in changes if change.value < 0][:most]


def summary_table(results: Results) -> Table:
    """Before and after, for the terminal."""
    from rich.table import Table

    table = Table("", "untouched [95 %]", "tuned [95 %]", "difference [95 %]", "verdict", title=f"{results.base.n} questions")
    colours = {"better": "green", "worse": "red"}
    for row in _comparison(results):
        cells = [" ".join(cell).strip().replace("[", r"\[") for cell in (row.base, row.tuned, row.difference)]
        table.add_row(row.label, *cells, row.verdict, style=colours.get(row.verdict, ""))
    return table


# What is shown, in whatever form
@dataclass(frozen=True)
class Change:
    """One question, answered before and after."""

    base: Prediction
    tuned: Prediction

    @property
    def value(self) -> float:
        return self.tuned.scores[F1] - self.base.scores[F1]

    @property
    def gold_rank(self) -> str:
        """Where the retriever put the gold documents, and whether the prompt had room for the first."""
        gold = {document.id for document in self.tuned.example.gold_documents}
        ranks = [rank for rank, hit in enumerate(self.tuned.hits, 1) if hit.document.id in gold]
        if not ranks:
            return f"not among the {len(self.tuned.hits)} retrieved"
        some = f" ({len(ranks)} of {len(gold)} gold documents)" if len(gold) > 1 else ""
        cut = ", cut from the prompt" if ranks[0] > self.tuned.passages_read else ""
        return f"rank {', '.join(map(str, ranks))}{some}{cut}"


@dataclass(frozen=True)
class _Row:
    """One metric as it is shown: a cell is a value and its interval, either of which may be empty."""

    group: str
    label: str
    base: tuple[str, str]
    tuned: tuple[str, str]
    difference: tuple[str, str]
    verdict: str


def _comparison(results: Results) -> list[_Row]:
    ks = sorted(int(name.split("@")[1]) for name in results.base.metrics if name.startswith("retrieval/recall@"))
    recalls = {f"retrieval/recall@{k}": f"Recall@{k}" for k in (ks[:1] + ks[-1:])}
    groups = {
        "Answers": (_SCORES, 3),
        "Retrieval": ({**recalls, "retrieval/mrr": "Mean reciprocal rank"}, 3),
        "Cost": ({"generation/unfinished": "Unfinished"}, 3),
        "Cost ": ({"generation/new_tokens": "New tokens", "latency/generation_s": "Seconds per answer"}, 2),
    }
    return [
        _row(results, group.strip(), label, metric, digits)
        for group, (labels, digits) in groups.items()
        for metric, label in labels.items()
        if metric in results.differences
    ]


def _row(results: Results, group: str, label: str, metric: str, digits: int) -> _Row:
    base, tuned, difference = (
        _cell(interval, digits, timing=metric.startswith("latency/"), sign=sign)
        for interval, sign in (
            (results.base.metrics[metric], ""), (results.tuned.metrics[metric], ""), (results.differences[metric], "+"),
        )
    )
    found = results.differences[metric]
    same = found.wins == found.losses == 0
    if same and group == "Retrieval":
        return _Row(group, label, base, ("", ""), ("same", ""), "")
    # Every question has its batch's share of the time: any difference would look certain.
    unknown = "" if metric.startswith("latency/") else found.verdict
    return _Row(group, label, base, tuned, difference, "same" if same else unknown)


def _cell(interval: Interval, digits: int, timing: bool, sign: str) -> tuple[str, str]:
    ends = "" if timing else f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    return f"{interval.value:{sign}.{digits}f}", ends


def _evaluations(results: Results) -> list[list[str]]:
    """A row per evaluation during training; the training loss is the mean of those logged since the one before."""
    rows, losses = [], []
    for row in merged_history(results.history):
        losses += [row["loss"]] if "loss" in row else []
        if f"eval_{F1}" in row or GOLD_LOSS in row:
            values = [sum(losses) / len(losses) if losses else None]
            values += [row.get(name) for name in (GOLD_LOSS, f"eval_{F1}", "eval_generation/rougeL")]
            shown = ["" if value is None else f"{value:.3f}" for value in values]
            step = f"{row['step']} (chosen)" if row["step"] == results.best_step else str(row["step"])
            rows.append([step, *shown])
            losses = []
    return rows


_EVALUATION_COLUMNS = ("Step", "Training loss", "Loss with gold passage", "Token F1", "ROUGE-L")


def _facts(results: Results) -> dict[str, str]:
    """What was compared, in a few words each."""
    arguments = _flat(results.record.get("arguments", {}))
    test = arguments.get("test_file") or arguments.get("eval_file")
    embedding = arguments.get("eval_embedding_model") or arguments.get("embedding_model")
    retriever = arguments.get("retriever") or "dense"
    found_by = retriever if retriever == "bm25" or not embedding else f"{embedding} ({retriever})"
    passages = arguments.get("eval_num_to_retrieve") or len(results.base.predictions[0].hits)
    method = {"sft": "SFT: gold passages", "swr": "SwR: gold and retrieved passages"}
    step = "last weights" if results.best_step is None else f"step {results.best_step}, best {results.selection_metric}"
    facts = {
        "Model": arguments.get("model_name_or_path"),
        "Trained by": method.get(results.method, results.method) + (", LoRA" if arguments.get("use_peft") else ""),
        "Checkpoint": step,
        "Questions": f"{results.base.n} from {test}" if test else str(results.base.n),
        "Training file": arguments.get("train_file"),
        "Documents": arguments.get("full_dataset_file_path"),
        "Retriever": f"{found_by}, {passages} passages a question",
        "Seed": results.record.get("seed"),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _warning(results: Results) -> str:
    if not results.selected_on_test:
        return ""
    return (
        "No test file was given: the checkpoint was chosen on the same questions that are reported here, so these numbers "
        "flatter it. Give a separate --test_file for an unbiased verdict."
    )


def _notes(results: Results) -> list[str]:
    bad = [row["step"] for row in results.history if not math.isfinite(row.get("loss", 0.0))]
    return [*results.notes, *([f"The training loss was not finite at step {bad[0]}."] if bad else [])]


def _run_facts(record: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        "Versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
        "Platform": record.get("platform"),
        "Device": record.get("device"),
        "Durations": ", ".join(f"{name} {_duration(s)}" for name, s in record.get("durations", {}).items()),
        "Finished": record.get("finished"),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _inputs(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, path and what identifies the content."""
    rows = []
    for name, about in record.get("inputs", {}).items():
        size = f"{about['rows']} rows, " if "rows" in about else ""
        size += f"{about['bytes']:,} bytes, " if "bytes" in about else ""
        rows.append((name, str(about.get("path", "")), f"{size}SHA-256 {about.get('sha256', 'unknown')}"))
    return rows


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


# Markdown
def _markdown(results: Results) -> str:
    facts = [f"- {_md(name)}: {_md(value)}" for name, value in _facts(results).items()]
    facts += [f"- {_md(name)}: {_md(path)} ({_md(about)})" for name, path, about in _inputs(results.record)]
    warning = _warning(results)
    notes = [f"- {_md(note)}" for note in _notes(results)]
    comparison = [
        [row.label, *(" ".join(cell).strip() for cell in (row.base, row.tuned, row.difference)), row.verdict]
        for row in _comparison(results)
    ]
    gained, lost = gained_and_lost(results)
    run = [f"- {_md(name)}: {_md(value)}" for name, value in _run_facts(results.record).items()]
    evaluations = _evaluations(results)
    blocks = [
        "# Groundtune report",
        f"**{_md(results.verdict)}.**",
        f"> **Chosen on the test questions.** {_md(warning)}" if warning else "",
        "## What was compared", "\n".join(facts),
        "## Before and after",
        _md_table(["", "Untouched [95 %]", "Tuned [95 %]", "Difference [95 %]", "Verdict"], comparison),
        _md(_HOW_TO_READ),
        *(["## Notes", "\n".join(notes)] if notes else []),
        *(["## During training", _md_table(_EVALUATION_COLUMNS, evaluations)] if evaluations else []),
        "## Answers that gained most", _md_changes(gained),
        "## Answers that lost most", _md_changes(lost),
        "## To reproduce", _md_fence(results.record.get("command", "")), "\n".join(run),
    ]  # fmt: skip
    return "\n\n".join(block for block in blocks if block) + "\n"


def _md_changes(changes: Sequence[Change]) -> str:
    rows = [
        [f"{c.value:+.2f}", c.base.example.question, c.base.example.answer, c.base.answer, c.tuned.answer, c.gold_rank]
        for c in changes
    ]
    header = ["F1", "Question", "Gold answer", "Untouched", "Tuned", "Gold document"]
    return _md_table(header, rows) if rows else "None."


def _md_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join("---" if cell == "---" else _md(cell) for cell in line) + " |" for line in lines)


def _md(text: str) -> str:
    """Text that stays text in Markdown and in a table cell, on one line."""
    text = escape(str(text), quote=False).strip()
    for character in "\\|`":  # entities: tables are cut at pipes before backslashes are read, in ways that differ
        text = text.replace(character, f"&#{ord(character)};")
    return re.sub(r"\s*[\r\n\v\f\x85\u2028\u2029]+\s*", "<br>", re.sub(r"([*_\[\]~#$])", r"\\\1", text))


def _md_fence(text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}" if text else ""


# HTML
def _page(results: Results) -> str:
    template = Template(resources.files("groundtune").joinpath("report.html").read_text(encoding="utf-8"))
    record, found = results.record, results.differences[F1]
    model = Path(str(_flat(record.get("arguments", {})).get("model_name_or_path") or "Model")).name
    head, _, rest = results.verdict.partition(": ")
    gained, lost = gained_and_lost(results)
    warning, notes = _warning(results), "".join(f"<li>{escape(note)}</li>" for note in _notes(results))
    between = found.n - len(gained) - len(lost)
    arguments = {k: v for k, v in _flat(record.get("arguments", {})).items() if v not in (None, "", [])}
    return template.substitute(
        eyebrow="Groundtune report",
        title=escape(f"{model}, tuned by {results.method.upper().replace('SWR', 'SwR')}"),
        verdict_class={"better": "better", "worse": "worse"}.get(found.verdict, "unclear"),
        verdict_head=escape(head),
        verdict_rest=_minus(rest[:1].upper() + rest[1:]) + ".",
        verdict_change=_html_change(found),
        warning=f'<div class="callout" role="note"><p><strong>Chosen on the test questions.</strong> {escape(warning)}</p></div>'
        if warning else "",
        notes=f'<div class="callout" role="note"><ul>{notes}</ul></div>' if notes else "",
        facts="".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(results).items()),
        metrics=_html_metrics(results),
        dot_plot=_dot_plot(results),
        how_to_read=escape(_HOW_TO_READ),
        curves=f'<div class="pair">{_metric_plot(results)}{_loss_plot(results)}</div>',
        history=_html_evaluations(results),
        between=f"{between} other question{'' if between == 1 else 's'}",
        gained=_html_changes(gained),
        lost=_html_changes(lost),
        command=escape(record.get("command", "")),
        run="".join(_html_cells(row) for row in _run_facts(record).items()),
        inputs="".join(_html_cells(row) for row in _inputs(record)),
        arguments="".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in arguments.items()),
    )  # fmt: skip


def _minus(text: str) -> str:
    """Escaped, with a real minus before numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", escape(text))


def _html_change(found: PairedDifference) -> str:
    counts = {"wins": (found.wins, "better"), "ties": (found.ties, "the same"), "losses": (found.losses, "worse")}
    bar = "".join(f'<i class="{name}" style="flex: {n}"></i>' for name, (n, _) in counts.items() if n)
    legend = "".join(f'<span class="{name}">{n} {what}</span>' for name, (n, what) in counts.items())
    return (
        f'<div class="change num"><b>{_minus(f"{found.value:+.2f}")}</b><small>token F1</small></div>'
        f'<div class="tally" aria-hidden="true">{bar}</div><div class="legend small num">{legend}</div>'
    )


def _html_metrics(results: Results) -> str:
    def cell(value: str, interval: str, chip: str = "") -> str:
        interval = f' <span class="interval">{_minus(interval)}</span>' if interval else ""
        kind = chip if chip in ("better", "worse") else ""
        return f"{_minus(value)}{interval}" + (f' <span class="chip {kind}">{escape(chip)}</span>' if chip else "")

    lines, group = [], ""
    for row in _comparison(results):
        if row.group != group:
            lines.append(f'<tr class="group"><th colspan="4" scope="rowgroup">{escape(row.group)}</th></tr>')
            group = row.group
        tuned = [("", *row.base), ("", *row.tuned)] if any(row.tuned) else [(' colspan="2"', *row.base)]
        cells = "".join(f"<td{span}>{cell(*shown)}</td>" for span, *shown in tuned)
        lines.append(f'<tr><th scope="row">{escape(row.label)}</th>{cells}<td>{cell(*row.difference, row.verdict)}</td></tr>')
    return "".join(lines)


def _html_evaluations(results: Results) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in _EVALUATION_COLUMNS)
    rows = "".join(
        f'<tr class="{"chosen" if "chosen" in row[0] else ""}">' + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>"
        for row in _evaluations(results)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _html_cells(row: Sequence[str]) -> str:
    return f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"


def _html_changes(changes: Sequence[Change]) -> str:
    return "".join(map(_html_answer, changes)) or '<p class="empty">None.</p>'


def _html_answer(change: Change) -> str:
    example = change.base.example
    said = "".join(f"{turn.speaker}: {turn.message}\n" for turn in example.chat_history)
    texts = (
        ("", "Said before", said),
        ("gold", "Gold answer", example.answer),
        ("base", f"Untouched, F1 {change.base.scores[F1]:.2f}", change.base.answer),
        ("tuned", f"Tuned, F1 {change.tuned.scores[F1]:.2f}", change.tuned.answer),
    )
    shown = "".join(
        f'<dt>{escape(name)}</dt><dd class="text {kind}" dir="auto">{escape(text) or "<span class=empty>no text</span>"}</dd>'
        for kind, name, text in texts
        if text or kind
    )
    return (
        f'<details><summary><span dir="auto">{escape(example.question)}</span>'
        f'<span class="num">{_minus(f"{change.value:+.2f}")}</span></summary>'
        f"<dl>{shown}<dt>Gold document</dt><dd>{escape(change.gold_rank)}</dd></dl></details>"
    )


# Plots: inline SVG whose colours are the page's variables, so that they follow light, dark and print
_COLOURS = dict(ink="#000001", muted="#000002", grid="#000003", tuned="#000004", base="#000005", paper="#000006")


def _figure(name: str, size: tuple[float, float], caption: str, explanation: str, alt: str, draw: Any) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    c = _COLOURS
    style = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "text.color": c["ink"], "axes.labelcolor": c["muted"],
        "axes.edgecolor": c["muted"], "xtick.color": c["muted"], "ytick.color": c["muted"], "grid.color": c["grid"],
        "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
        "axes.spines.left": False, "xtick.major.size": 3, "ytick.major.size": 0, "lines.linewidth": 1.8,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        svg = _svg(figure, alt)
    return f"<figure>{svg}<figcaption><b>{escape(caption)}</b>{escape(explanation)}</figcaption></figure>"


def _svg(figure: Any, alt: str) -> str:
    from io import StringIO

    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg).group()
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # the same in every figure, and an id may be in a page only once
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {box} {links} role="img" aria-label="{escape(alt)}">{svg}'


def _dot_plot(results: Results) -> str:
    labels = {metric: label for metric, label in _SCORES.items() if metric in results.differences}
    pairs = [(results.base.metrics[metric], results.tuned.metrics[metric]) for metric in labels]

    def draw(axes: Any) -> None:
        for kind, offset, name in ((0, -0.14, "base"), (1, 0.14, "tuned")):
            at = [position + offset for position in range(len(pairs))]
            ends = [pair[kind] for pair in pairs]
            colour = _COLOURS[name]
            axes.hlines(at, [end.low for end in ends], [end.high for end in ends], colour, linewidth=2, alpha=0.5)
            label = "untouched" if name == "base" else name
            axes.plot([end.value for end in ends], at, "o", color=colour, markersize=6, label=label)
        axes.set_yticks(range(len(labels)), labels.values(), color=_COLOURS["ink"])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, frameon=False, handletextpad=0.1)

    alt = "; ".join(f"{n}: untouched {b.value:.2f}, tuned {t.value:.2f}" for n, (b, t) in zip(labels.values(), pairs, strict=True))
    return _figure("before_after", (4.2, 4.3), "Before and after", "Means with 95 % intervals.", alt, draw)


def _metric_plot(results: Results) -> str:
    names = dict.fromkeys([results.selection_metric.removeprefix("eval_"), F1, "generation/rougeL"])
    points = {name: _points(results, f"eval_{name}") for name in names if name in _SCORES}
    points = dict([(name, rows) for name, rows in points.items() if rows][:2])
    if not points:
        return ""
    (chosen_by, first), styles = next(iter(points.items())), (("tuned", 1.8, 0.16), ("muted", 1.2, 0.10))

    def draw(axes: Any) -> None:
        for (name, rows), (colour, width, shade) in zip(points.items(), styles, strict=False):
            steps, values, lows, highs = zip(*rows, strict=True)
            colour = _COLOURS[colour]
            axes.fill_between(steps, lows, highs, color=colour, alpha=shade, linewidth=0)
            axes.plot(steps, values, "o-", color=colour, linewidth=width, markersize=4)
            axes.annotate(_SCORES[name], (steps[-1], values[-1]), (7, -3), textcoords="offset points", color=colour)
        chosen = [row for row in first if row[0] == results.best_step]
        for step, value, *_ in chosen:
            axes.plot(step, value, "o", color=_COLOURS["paper"], markeredgecolor=_COLOURS["tuned"], markersize=9, markeredgewidth=2)
            axes.axvline(step, color=_COLOURS["muted"], linewidth=1, linestyle=(0, (2, 3)), zorder=0)
        _steps_axis(axes)
        axes.set_ylim(bottom=0)

    alt = f"{_SCORES[chosen_by]} by step: " + ", ".join(f"{value:.2f} at step {step}" for step, value, *_ in first)
    ring = "" if results.best_step is None else f" The ring marks the chosen checkpoint, step {results.best_step}."
    explanation = f"On the questions evaluated during training, with 95 % intervals; step 0 is the untouched model.{ring}"
    return _figure("metric", (5.2, 3.0), "Answers, end to end", explanation, alt, draw)


def _loss_plot(results: Results) -> str:
    training, gold = _points(results, "loss"), _points(results, GOLD_LOSS)
    if not training and not gold:
        return ""

    def draw(axes: Any) -> None:
        for rows, marker, colour, name in ((training, "-", "muted", "training"), (gold, "o-", "tuned", "evaluation")):
            if rows:
                steps, values, *_ = zip(*rows, strict=True)
                marker = "o" if len(rows) == 1 else marker
                axes.plot(steps, values, marker, color=_COLOURS[colour], linewidth=1.4, markersize=4, label=name)
        _steps_axis(axes)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right", frameon=False)

    explanation = "Nats per answer token: on the training rows, and on the evaluated questions with their gold passage."
    alt = "; ".join(
        f"{name} loss {rows[0][1]:.2f} at step {rows[0][0]}, {rows[-1][1]:.2f} at step {rows[-1][0]}"
        for name, rows in (("training", training), ("evaluation", gold)) if rows
    )  # fmt: skip
    return _figure("loss", (5.2, 3.0), "Loss", explanation, alt, draw)


def _points(results: Results, name: str) -> list[tuple[int, float, float, float]]:
    """(step, value, low, high) wherever the history has a finite value."""
    rows = [row for row in merged_history(results.history) if math.isfinite(row.get(name, math.nan))]
    return [(row["step"], row[name], row.get(f"{name}_low", row[name]), row.get(f"{name}_high", row[name])) for row in rows]


def _steps_axis(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("step")
    axes.grid(axis="x", visible=False)


# The run record
def _without_secrets(value: Any, name: str = "") -> Any:
    """`value` with "***" for whatever has a name that sounds like a secret, at any depth, and in addresses."""
    if isinstance(value, Mapping):
        return {key: _without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item, name) for item in value]
    # --max_new_tokens is a count and no token
    count = "tokens" in name and re.fullmatch(r"[\d.]+|True|False", str(value), re.IGNORECASE)
    if re.search("token|key|password|secret", name, re.IGNORECASE) and value not in (None, "") and not count:
        return "***"
    return re.sub(r"://[^/@\s]+@", "://***@", value) if isinstance(value, str) else value


def _command(argv: Sequence[str]) -> str:
    program = ["python", argv[0]] if argv[0].endswith(".py") else [Path(argv[0]).name]
    words, flag = [], ""
    for word in argv[1:]:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            words.append(flag + equals + str(_without_secrets(value, flag)))
        else:
            words.append(str(_without_secrets(word, flag)))
    return shlex.join(program + words)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return f"Apple GPU, {platform.machine()}"
    cpu = platform.processor() or platform.machine()
    if sys.platform == "linux":  # where platform knows only "x86_64"
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
        cpu = names[0] if names else cpu
    return f"{cpu}, {torch.get_num_threads()} threads"


# Files
def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without their groups."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        flat.update(_flat(value) if isinstance(value, Mapping) else {name: value})
    return flat


def _plain(value: Any) -> Any:
    """What JSON can say: NaN and infinity become null, objects that it does not know become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
