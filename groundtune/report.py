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
from enum import Enum
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
_COST = {
    "generation/unfinished": "Unfinished",
    "generation/new_tokens": "New tokens",
    "latency/generation_s": "Seconds/answer",
}
_HOW_TO_READ = (
    "Means over questions with their 95 % bootstrap intervals. A difference is better or worse where its paired "
    "interval excludes 0, else unclear. The verdict rests on token F1 alone; the other rows are not corrected for "
    "being many. The retriever is frozen: its scores are the same for both models. Seconds are one timing and have "
    "no interval."
)


@dataclass(frozen=True)
class Results:
    """What one run found. `base` and `tuned` answer the same examples in the same order."""

    method: str  # "sft" or "swr"
    base: Evaluation  # the untouched model
    tuned: Evaluation  # the chosen checkpoint
    history: Sequence[Mapping[str, Any]]  # transformers' TrainerState.log_history; step 0 is the untouched model
    best_step: int | None  # step of the checkpoint that was chosen, None if the last weights were kept
    selection_metric: str | None  # what chose it: "generation/f1"
    selected_on_test: bool  # no test file was given: the numbers are of the questions that chose the checkpoint
    notes: Sequence[str]  # warnings that a reader of the numbers must see
    record: Mapping[str, Any]  # of `run_record`: the content of run.json

    @cached_property
    def differences(self) -> dict[str, PairedDifference]:
        samples = _flat(self.record.get("arguments", {})).get("bootstrap_samples", 2000)
        return differences(self.base, self.tuned, samples=samples)

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
    digits, means = _digits(f1), ""
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


def _digits(interval: Interval) -> int:
    """As few decimals, from 2, as still show on which side of 0 the interval ends."""
    ends = [abs(end) for end in (interval.low, interval.high) if end]
    return next((digits for digits in (2, 3) if min(ends, default=1) >= 0.5 * 10**-digits), 4)


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
    arguments: Mapping[str, Any],
    inputs: Mapping[str, str | os.PathLike[str]],
    durations: Mapping[str, float],
    seed: int,
) -> dict[str, Any]:
    """What it takes to run this again: command, arguments, versions, device, hashes of the input files.

    The value of an argument that sounds like a token, key, password or secret is "***". An input without a path is
    left out. Raises DataError if an input cannot be read.
    """
    return {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _command(sys.argv),
        "arguments": _plain(_without_secrets(arguments)),
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
    from rich.markup import escape
    from rich.table import Table

    # Without a frame it fits into 80 columns.
    table = Table(f"{results.base.n} questions", box=None, padding=(0, 1, 0, 0))
    for heading in ("untouched [95 %]", "tuned [95 %]", "difference [95 %]", ""):
        table.add_column(escape(heading), no_wrap=True)
    colours = {"better": "green", "worse": "red"}
    for row in _comparison(results):
        cells = (" ".join(cell).strip() for cell in (row.base, row.tuned, row.difference))
        table.add_row(row.label, *map(escape, cells), row.verdict, style=colours.get(row.verdict))
    table.caption = escape(_warning(results))
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
    retrieval = {f"retrieval/recall@{k}": f"Recall@{k}" for k in ks[:1] + ks[-1:]} | {"retrieval/mrr": "MRR"}
    return [
        _row(results, group, label, metric)
        for group, labels in (("Answers", _SCORES), ("Retrieval", retrieval), ("Cost", _COST))
        for metric, label in labels.items()
        if metric in results.differences
    ]


def _row(results: Results, group: str, label: str, metric: str) -> _Row:
    base, tuned, found = results.base.metrics[metric], results.tuned.metrics[metric], results.differences[metric]
    # More decimals than the intervals allow would only be noise.
    digits = 1 if metric == "generation/new_tokens" else 2 if results.base.n < 1000 else 3
    timing = metric.startswith("latency/")

    def cell(interval: Interval, sign: str = "") -> tuple[str, str]:
        ends = "" if timing else f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
        return f"{interval.value:{sign}.{digits}f}", ends

    verdict = "unclear" if found.verdict == "no clear difference" else found.verdict
    if found.wins == found.losses == 0:
        verdict = "same"
        if group == "Retrieval":
            return _Row(group, label, cell(base), ("", ""), ("same", ""), "")
    elif timing:  # a question's time is its batch's share: whatever the difference, it would look certain
        verdict = ""
    elif metric == "generation/new_tokens":  # short answers are cheap, not good
        verdict = {"better": "fewer", "worse": "more"}.get(verdict, verdict)
    return _Row(group, label, cell(base), cell(tuned), cell(found, "+"), verdict)


_EVALUATION_COLUMNS = ("Step", "Training loss", "Loss with gold passage", "Token F1", "ROUGE-L")


def _evaluations(results: Results) -> list[list[str]]:
    """A row per evaluation during training; the training loss is the mean of those logged since the one before."""
    rows, losses = [], []
    for row in merged_history(results.history):
        losses += [row["loss"]] if _finite(row.get("loss")) else []
        if f"eval_{F1}" in row or GOLD_LOSS in row:
            values = [sum(losses) / len(losses) if losses else None]
            values += [row.get(name) for name in (GOLD_LOSS, f"eval_{F1}", "eval_generation/rougeL")]
            shown = ["" if value is None else f"{value:.3f}" for value in values]
            step = f"{row['step']} (chosen)" if row["step"] == results.best_step else str(row["step"])
            rows.append([step, *shown])
            losses = []
    return rows


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
    chosen = "these questions were also evaluated during training"
    if results.best_step is not None:
        chosen = "the checkpoint was chosen on the same questions that are reported here, so these numbers flatter it"
    return f"No separate test: {chosen}. Give --test_file for an unbiased verdict."


def _notes(results: Results) -> list[str]:
    bad = [row["step"] for row in results.history if "loss" in row and not _finite(row["loss"])]
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


def _inputs(record: Mapping[str, Any]) -> dict[str, str]:
    shown = {}
    for name, about in record.get("inputs", {}).items():
        size = "".join(f"{about[unit]:,} {unit}, " for unit in ("rows", "bytes") if unit in about)
        shown[name] = f"{about.get('path', '')} ({size}SHA-256 {about.get('sha256', 'unknown')})"
    return shown


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


# Markdown
def _markdown(results: Results) -> str:
    record, warning, notes = results.record, _warning(results), [f"- {_md(note)}" for note in _notes(results)]
    comparison = [
        [row.label, *(" ".join(cell).strip() for cell in (row.base, row.tuned, row.difference)), row.verdict]
        for row in _comparison(results)
    ]
    gained, lost = gained_and_lost(results)
    evaluations = _evaluations(results)
    blocks = [
        "# Groundtune report",
        f"**{_md(results.verdict)}.**",
        f"> **{_md(warning)}**" if warning else "",
        "## What was compared", _md_list(_facts(results)),
        "## Before and after",
        _md_table(["", "Untouched [95 %]", "Tuned [95 %]", "Difference [95 %]", "Verdict"], comparison),
        _md(_HOW_TO_READ),
        *(["## Notes", "\n".join(notes)] if notes else []),
        *(["## During training", _md_table(_EVALUATION_COLUMNS, evaluations)] if evaluations else []),
        "## Answers that gained most", _md_changes(gained),
        "## Answers that lost most", _md_changes(lost),
        "## To reproduce", _md_fence(record.get("command", "")), _md_list(_run_facts(record) | _inputs(record)),
    ]  # fmt: skip
    return "\n\n".join(block for block in blocks if block) + "\n"


def _md_list(pairs: Mapping[str, str]) -> str:
    return "\n".join(f"- {_md(name)}: {_md(value)}" for name, value in pairs.items())


def _md_changes(changes: Sequence[Change]) -> str:
    rows = [
        [f"{c.value:+.2f}", c.base.example.question, c.base.example.answer, c.base.answer, c.tuned.answer, c.gold_rank]
        for c in changes
    ]
    header = ["F1", "Question", "Gold answer", "Untouched", "Tuned", "Gold document"]
    return _md_table(header, rows) if rows else "None."


def _md_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [map(_md, header), ["---"] * len(header), *(map(_md, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    """Text that stays text in Markdown and in a table cell, on one line."""

    def plain(match: re.Match[str]) -> str:
        # Entities where renderers differ: tables are cut at pipes before or after backslashes are read.
        character = match.group()
        return f"&#{ord(character)};" if character in "&<>\\|`]" else f"\\{character}"

    text = re.sub(r"[&<>\\|`*_~#$]|\](?=[(\[:])", plain, text.strip())  # "](" would make a link
    return re.sub(r"\s*[\r\n\v\f\x85\u2028\u2029]+\s*", "<br>", text)


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
    curves, nothing = _metric_plot(results) + _loss_plot(results), '<p class="empty">Nothing was logged.</p>'
    between = found.n - len(gained) - len(lost)
    arguments = {k: v for k, v in _flat(record.get("arguments", {})).items() if v not in (None, "", [])}
    return template.substitute(
        title=escape(f"{model}, tuned by {results.method.upper().replace('SWR', 'SwR')}"),
        verdict_class={"better": "better", "worse": "worse"}.get(found.verdict, "unclear"),
        verdict_head=escape(head),
        verdict_rest=_minus(rest[:1].upper() + rest[1:]) + ".",
        verdict_change=_html_change(found),
        warning=_callout(f"<p><strong>{escape(warning)}</strong></p>") if warning else "",
        notes=_callout(f"<ul>{notes}</ul>") if notes else "",
        facts=_pairs(_facts(results)),
        metrics=_html_metrics(results),
        dot_plot=_dot_plot(results),
        how_to_read=escape(_HOW_TO_READ),
        curves=f'<div class="pair curves">{curves or nothing}</div>',
        history=_html_evaluations(results),
        between=f"{between} other question{'' if between == 1 else 's'}",
        gained=_html_changes(gained),
        lost=_html_changes(lost),
        command=escape(record.get("command", "")),
        run="".join(_html_cells(row) for row in _run_facts(record).items()),
        inputs="".join(_html_cells(row) for row in _inputs(record).items()),
        arguments=_pairs(arguments),
    )  # fmt: skip


def _callout(content: str) -> str:
    return f'<div class="callout" role="note">{content}</div>'


def _pairs(pairs: Mapping[str, Any]) -> str:
    return "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in pairs.items())


def _minus(text: str) -> str:
    """Escaped, with a real minus before numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", escape(text))


def _html_change(found: PairedDifference) -> str:
    counts = {"wins": (found.wins, "better"), "ties": (found.ties, "the same"), "losses": (found.losses, "worse")}
    bar = "".join(f'<i class="{name}" style="flex: {n}"></i>' for name, (n, _) in counts.items() if n)
    legend = "".join(f'<span class="{name}">{n} {what}</span>' for name, (n, what) in counts.items())
    return (
        f'<div class="change num"><b>{_minus(f"{found.value:+.{_digits(found)}f}")}</b><small>token F1</small></div>'
        f'<div class="tally" aria-hidden="true">{bar}</div><div class="legend small num">{legend}</div>'
    )


def _html_metrics(results: Results) -> str:
    def cell(shown: tuple[str, str]) -> str:
        return f'{_minus(shown[0])} <span class="interval">{_minus(shown[1])}</span>'

    lines, group = [], ""
    for row in _comparison(results):
        if row.group != group:
            group = row.group
            lines.append(f'<tr class="group"><th colspan="4" scope="rowgroup">{escape(group)}</th></tr>')
        both = f"<td>{cell(row.base)}</td><td>{cell(row.tuned)}</td>"
        one = f'<td colspan="2">{cell(row.base)}</td>'
        kind = row.verdict if row.verdict in ("better", "worse") else ""
        chip = f'<span class="chip {kind}">{escape(row.verdict)}</span>' if row.verdict else ""
        difference = f'<td><div class="difference"><span>{cell(row.difference)}</span>{chip}</div></td>'
        lines.append(f'<tr><th scope="row">{escape(row.label)}</th>{both if row.tuned[0] else one}{difference}</tr>')
    return "".join(lines)


def _html_evaluations(results: Results) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in _EVALUATION_COLUMNS)
    rows = "".join(map(_html_cells, _evaluations(results)))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _html_cells(row: Sequence[str]) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
    return f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>'


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
    nothing = '<span class="empty">no text</span>'
    shown = "".join(
        f'<dt>{escape(name)}</dt><dd class="text {kind}" dir="auto">{escape(text) or nothing}</dd>'
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
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "text.color": c["ink"], "grid.color": c["grid"],
        "xtick.color": c["muted"], "ytick.color": c["muted"], "xtick.major.size": 3, "ytick.major.size": 0,
        "axes.edgecolor": c["muted"], "axes.labelcolor": c["muted"], "axes.grid": True, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
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
    # Most ids are the same in every figure, and a page may hold an id only once: keep what is referred to.
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if f"#{found[1]}" in svg else "", svg)
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
            axes.plot([end.value for end in ends], at, "o", color=colour, markersize=6, label=label, clip_on=False)
        axes.set_yticks(range(len(labels)), labels.values(), color=_COLOURS["ink"])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", pad=8)  # room for a dot at 0
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, frameon=False, handletextpad=0.1)

    values = zip(labels.values(), pairs, strict=True)
    alt = "; ".join(f"{name}: untouched {base.value:.2f}, tuned {tuned.value:.2f}" for name, (base, tuned) in values)
    return _figure("before_after", (3.7, 3.9), "Means with 95 % intervals", "", alt, draw)


def _metric_plot(results: Results) -> str:
    names = dict.fromkeys([(results.selection_metric or F1).removeprefix("eval_"), F1, "generation/rougeL"])
    curves = [(name, _points(results, f"eval_{name}")) for name in names if name in _SCORES]
    curves = [(_SCORES[name], rows) for name, rows in curves if rows][:2]
    if not curves:
        return ""
    highest = max(rows[-1][1] for _, rows in curves)

    def draw(axes: Any) -> None:
        for (name, rows), colour in zip(reversed(curves), ("muted", "tuned")[-len(curves) :], strict=True):
            steps, values, lows, highs = zip(*rows, strict=True)
            main, colour = colour == "tuned", _COLOURS[colour]
            if main:  # two bands on each other could not be told apart
                axes.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
                axes.vlines(steps[:1], lows[:1], highs[:1], colour, linewidth=1, alpha=0.5)
            axes.plot(steps, values, "o-", color=colour, linewidth=1.8 if main else 1.1, markersize=4 if main else 3)
            at = (7, 1 if values[-1] == highest else -8)  # points from the curve's end, away from the other's name
            axes.annotate(name, (steps[-1], values[-1]), at, textcoords="offset points", color=colour)
            if main and results.best_step in steps:
                best = steps.index(results.best_step)
                axes.axvline(steps[best], color=_COLOURS["muted"], linewidth=1, linestyle=(0, (2, 3)), zorder=0)
                axes.plot(steps[best], values[best], "o", color=_COLOURS["paper"], mec=colour, ms=9, mew=2)
        _steps_axis(axes)

    name, rows = curves[0]
    alt = f"{name} by step: " + ", ".join(f"{value:.2f} at step {step}" for step, value, *_ in rows)
    ring = "" if results.best_step is None else f" The ring marks the chosen checkpoint, step {results.best_step}."
    explanation = f"Questions evaluated during training, {name} with its 95 % interval; step 0 is untouched.{ring}"
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
        axes.legend(loc="upper right", frameon=False)

    explanation = "Nats per answer token: on the training rows, and on the evaluated questions with their gold passage."
    alt = "; ".join(
        f"{name} loss {rows[0][1]:.2f} at step {rows[0][0]}, {rows[-1][1]:.2f} at step {rows[-1][0]}"
        for name, rows in (("training", training), ("evaluation", gold)) if rows
    )  # fmt: skip
    return _figure("loss", (5.2, 3.0), "Loss", explanation, alt, draw)


def _points(results: Results, name: str) -> list[tuple[int, float, float, float]]:
    """(step, value, low, high) wherever the history has a finite value."""
    rows = (row for row in merged_history(results.history) if _finite(row.get(name)))
    return [(r["step"], r[name], r.get(f"{name}_low", r[name]), r.get(f"{name}_high", r[name])) for r in rows]


def _steps_axis(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("step")
    axes.grid(axis="x", visible=False)
    axes.set_ylim(bottom=0)


# The run record
def _without_secrets(value: Any, name: str = "") -> Any:
    """`value` with "***" for whatever has a name that sounds like a secret, at any depth, and in addresses."""
    if isinstance(value, Mapping):
        return {key: _without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item, name) for item in value]
    # --max_new_tokens is a count and no token
    count = "tokens" in name and re.fullmatch(r"[\d.]+|true|false|no", str(value), re.IGNORECASE)
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
    details = Path("/proc/cpuinfo")  # on Linux platform knows only "x86_64"
    names = re.findall(r"model name\s*: (.+)", details.read_text(errors="replace")) if details.exists() else []
    cpu = names[0] if names else cpu
    return f"{cpu}, {torch.get_num_threads()} threads"


# Values and files
def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without their groups."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        flat.update(_flat(value) if isinstance(value, Mapping) else {name: value})
    return flat


def _finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """What JSON can say: NaN and infinity become null, objects that it does not know become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return _plain(value.value)
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
