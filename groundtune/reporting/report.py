"""Writes the results of a run: predictions, metrics, the run record, and the report as Markdown and HTML.

Terminal, Markdown and HTML render the same rows. All text is escaped, and the page loads no external resources.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from groundtune.data.files import write_text
from groundtune.errors import DataError
from groundtune.evaluation.outcomes import Rightness, with_outcomes
from groundtune.evaluation.predictions import evaluation_of, read_predictions, write_predictions
from groundtune.evaluation.statistics import PairedDifference
from groundtune.evaluation.verdicts import F1, Change, decimals
from groundtune.reporting.answers import SAMPLED, Answers, all_answers, question_html, sampled, side_by_side
from groundtune.reporting.card import model_card
from groundtune.reporting.markdown import md, md_fence, md_list, md_table
from groundtune.reporting.next_steps import Known, Step, next_steps
from groundtune.reporting.plots import dot_plot, loss_plot, metric_plot
from groundtune.reporting.results import (
    HOW_TO_READ,
    Results,
    comparison,
    evaluations,
    facts,
    flat,
    for_scale,
    gained_and_lost,
    merged_history,
    notes,
    questions,
    warning,
)
from groundtune.runs.record import inputs, run_facts
from groundtune.system.outputs import inside
from groundtune.system.text import as_json

if TYPE_CHECKING:
    from rich.table import Table

    from groundtune.schema import Prediction

# Fields of the results in metrics.json besides the numbers, which are computed from the predictions.
_ABOUT_RESULTS = {
    "history": list, "best_step": int | None, "selection_metric": str | None, "selected_on_test": bool,
}  # fmt: skip
_MOST_SAMPLES = 10**6  # of a bootstrap, so that a stranger's folder cannot cost hours


def write_results(output_dir: str | os.PathLike[str], results: Results) -> None:
    """Write metrics.json, run.json, predictions/, the model card and the reports; each file is written atomically."""
    folder = Path(output_dir)
    metrics = {
        "verdict": results.verdict,
        "base": results.base.to_dict(),
        "tuned": results.tuned.to_dict(),
        "difference": {metric: difference.to_dict() for metric, difference in results.differences.items()},
        "without_a_model": results.without_a_model,
        "best_step": results.best_step,
        "selection_metric": results.selection_metric,
        "selected_on_test": results.selected_on_test,
        "history": merged_history(results.history),
    }
    # Data first, so that no number is lost if a plot fails.
    write_predictions(inside(folder, "predictions", "test_base.jsonl"), results.base)
    write_predictions(inside(folder, "predictions", "test_tuned.jsonl"), results.tuned)
    # The notes name files, so they stay out of metrics.json, which may be published.
    record = {**results.record, "notes": list(results.notes)}
    for name, content in (("metrics.json", metrics), ("run.json", record)):
        write_text(folder / name, as_json(content))
    write_text(folder / "README.md", model_card(results))
    write_text(folder / "report.md", _markdown(results))
    write_text(folder / "report.html", _page(results))
    write_answers(folder / "answers.html", _title(results), _both(results), record)


def read_results(output_dir: str | os.PathLike[str]) -> Results:
    """The results that `write_results` wrote. Raises `DataError` if they are incomplete."""
    folder = Path(output_dir)
    record, metrics = (_read_json(folder / name) for name in ("run.json", "metrics.json"))
    about: dict[str, Any] = {name: metrics.get(name) for name in _ABOUT_RESULTS}
    arguments: dict[str, Any] = record["arguments"] if isinstance(record.get("arguments"), dict) else {}
    samples = flat(arguments).get("bootstrap_samples", 10_000)
    wrong = [f"metrics.json: {name}" for name, kind in _ABOUT_RESULTS.items() if not isinstance(about[name], kind)]
    wrong += [] if isinstance(arguments.get("method"), str) else ["run.json: method"]
    wrong += [] if isinstance(record.get("notes", []), list) else ["run.json: notes"]
    wrong += [] if isinstance(samples, int) and 1 <= samples <= _MOST_SAMPLES else ["run.json: bootstrap_samples"]
    wrong += [] if wrong or all(isinstance(row, dict) for row in about["history"]) else ["metrics.json: history"]
    if wrong:
        problem = f"{folder}: not the results of a run ({', '.join(wrong)}: missing or not as a run writes it)"
        raise DataError([f"{problem}; name another folder"])
    base, tuned = (
        evaluation_of(read_predictions(folder / "predictions" / name), samples)
        for name in ("test_base.jsonl", "test_tuned.jsonl")
    )
    noted = [str(line) for line in record.get("notes", [])]
    return Results(method=arguments["method"], base=base, tuned=tuned, record=record, notes=noted, **about)


def run_steps(results: Results) -> list[Step]:
    """What the numbers of a run mean and which command comes next; the commands name the folder in its record."""
    settings = flat(results.record.get("arguments", {})) | {"command": results.record.get("command", "")}
    run, difference = str(settings.get("output_dir") or ""), results.differences[F1]
    return next_steps(Known(run, results.tuned, settings, difference=difference, method=results.method))


def _both(results: Results) -> dict[str, list[Prediction]]:
    """The answers of both models with their outcomes, which only `evaluate` stores."""
    both = {"Base": results.base.predictions, "Tuned": results.tuned.predictions}
    return {name: with_outcomes(predictions, Rightness()) for name, predictions in both.items()}


def _title(results: Results) -> str:
    model = Path(str(flat(results.record.get("arguments", {})).get("model_name_or_path") or "Model")).name
    return f"{model}, tuned by {results.method.upper().replace('SWR', 'SwR')}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError([f"{path}: cannot be read ({reason}); name the folder of a finished run"]) from error
    return content


def summary_table(results: Results) -> Table:
    """Scores before and after training, for the terminal."""
    from groundtune.system.tables import TextTable

    caption = " ".join(filter(None, (for_scale(results), warning(results))))
    # Without a frame it fits into 80 columns.
    table = TextTable(questions(results.base), box=None, padding=(0, 1, 0, 0), caption=caption)
    for heading in ("base [95 %]", "tuned [95 %]", "difference [95 %]", ""):
        table.add_column(heading, no_wrap=True)
    colours = {"better": "green", "worse": "red"}
    for row in comparison(results):
        cells = (" ".join(cell).strip() for cell in (row.base, row.tuned, row.difference))
        table.add_row(row.label, *cells, row.verdict, style=colours.get(row.verdict))
    return table


# Markdown
def _markdown(results: Results) -> str:
    record, caution, remarks = results.record, warning(results), [f"- {md(note)}" for note in notes(results)]
    before_after = [
        [row.label, *(" ".join(cell).strip() for cell in (row.base, row.tuned, row.difference)), row.verdict]
        for row in comparison(results)
    ]
    gained, lost = gained_and_lost(results)
    (columns, during), shown = evaluations(results), sampled(side_by_side(_both(results)))
    blocks = [
        "# Groundtune report",
        f"**{md(results.verdict)}.**",
        f"> **{md(caution)}**" if caution else "",
        "## What next", "\n".join(map(_md_step, run_steps(results))),
        "## What was compared", md_list(facts(results)),
        "## Before and after",
        md_table(["", "Base [95 %]", "Tuned [95 %]", "Difference [95 %]", "Verdict"], before_after),
        md(for_scale(results)),
        md(HOW_TO_READ),
        *(["## Notes", "\n".join(remarks)] if remarks else []),
        *(["## During training", md_table(columns, during)] if during else []),
        f"## {len(shown)} answers, picked at random", *map(_md_answer, shown),
        "## Answers that gained most", _md_changes(gained),
        "## Answers that lost most", _md_changes(lost),
        "## To reproduce", md_fence(record.get("command", "")), md_list(run_facts(record) | inputs(record)),
    ]  # fmt: skip
    return "\n\n".join(block for block in blocks if block) + "\n"


def _md_step(step: Step) -> str:
    fence = md_fence(step.command).replace("\n", "\n  ")
    return f"- {md(step.text)}:\n\n  {fence}" if step.command else f"- {md(step.text)}."


def _md_answer(answers: Answers) -> str:
    """A question with its answers and the passages that the last system read."""
    *_, last = answers.values()
    said = {"Gold answer": last.example.answer} | {name: p.answer for name, p in answers.items()}
    passages = [md_fence(document.text) for document in last.read or [hit.document for hit in last.hits]]
    return "\n\n".join([f"**{md(last.example.question)}**", md_list(said), *passages])


def _md_changes(changes: Sequence[Change]) -> str:
    rows = [
        [f"{c.value:+.2f}", c.base.example.question, c.base.example.answer, c.base.answer, c.tuned.answer, c.gold_rank]
        for c in changes
    ]
    header = ["F1", "Question", "Gold answer", "Base", "Tuned", "Gold document"]
    return md_table(header, rows) if rows else "None."


# HTML
def _page(results: Results) -> str:
    record, found = results.record, results.differences[F1]
    head, _, rest = results.verdict.partition(": ")
    gained, lost = gained_and_lost(results)
    caution, remarks = warning(results), "".join(f"<li>{escape(note)}</li>" for note in notes(results))
    curves, nothing = metric_plot(results) + loss_plot(results), '<p class="empty">Nothing was logged.</p>'
    between = found.n - len(gained) - len(lost)
    arguments = {k: v for k, v in flat(record.get("arguments", {})).items() if v not in (None, "", [])}
    body = _filled(
        "report.html",
        verdict_class={"better": "better", "worse": "worse"}.get(found.verdict, "unclear"),
        verdict_head=escape(head),
        verdict_rest=minus(f"{rest[:1].upper()}{rest[1:]}. {for_scale(results)}").strip(),
        verdict_change=html_change(found),
        next=html_steps(run_steps(results)),
        warning=callout(f"<p><strong>{escape(caution)}</strong></p>") if caution else "",
        notes=callout(f"<ul>{remarks}</ul>") if remarks else "",
        facts=html_pairs(facts(results)),
        metrics=_html_metrics(results),
        dot_plot=dot_plot(results),
        how_to_read=escape(HOW_TO_READ),
        curves=f'<div class="pair curves">{curves or nothing}</div>',
        history=_html_evaluations(results),
        between=f"Not shown: {between} question{'' if between == 1 else 's'}." if between else "",
        some=str(min(SAMPLED, results.base.n)),
        sampled=html_sample(side_by_side(_both(results))),
        gained=html_changes(gained),
        lost=html_changes(lost),
    )  # fmt: skip
    more = f'<summary>All arguments</summary><dl class="arguments">{html_pairs(arguments)}</dl>'
    return page("report", _title(results), body, record, f'<details style="margin-top: 26px">{more}</details>\n')


def page(kind: str, title: str, body: str, record: Mapping[str, Any], more: str = "") -> str:
    """A full HTML page around `body` (HTML), with how to repeat the run at its end; `more` (HTML) is added there."""
    return _filled(
        "page.html",
        style=resources.files("groundtune.reporting").joinpath("report.css").read_text(encoding="utf-8"),
        kind=escape(kind),
        title=escape(title),
        body=body,
        command=escape(record.get("command", "")),
        run="".join(html_cells(row) for row in run_facts(record).items()),
        inputs="".join(html_cells(row) for row in inputs(record).items()),
        more=more,
    )


def html_steps(steps: Sequence[Step]) -> str:
    """What comes next, each with its command."""
    items = "".join(
        f"<li>{escape(step.text)}{f': <code>{escape(step.command)}</code>' if step.command else '.'}</li>"
        for step in steps
    )
    return f'<section class="next" aria-label="What next"><h2>What next</h2><ul>{items}</ul></section>'


def html_sample(questions: Sequence[Answers]) -> str:
    """Ten answers picked at random, with their passages."""
    return "".join(map(question_html, sampled(questions)))


def write_answers(
    path: Path, title: str, systems: Mapping[str, Sequence[Prediction]], record: Mapping[str, Any],
    references: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write the page with all answers."""
    write_text(path, page("answers", title, all_answers(systems, references), record))


def _filled(template: str, **parts: str) -> str:
    text = resources.files("groundtune.reporting").joinpath(template).read_text(encoding="utf-8")
    return Template(text).substitute(parts)


def callout(content: str) -> str:
    return f'<div class="callout" role="note">{content}</div>'


def html_pairs(pairs: Mapping[str, Any]) -> str:
    return "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in pairs.items())


def minus(text: str) -> str:
    """`text` escaped, with a typographic minus sign before numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", escape(text))


def html_change(found: PairedDifference) -> str:
    counts = {"wins": (found.wins, "better"), "ties": (found.ties, "the same"), "losses": (found.losses, "worse")}
    bar = "".join(f'<i class="{name}" style="flex: {n}"></i>' for name, (n, _) in counts.items() if n)
    legend = "".join(f'<span class="{name}">{n} {what}</span>' for name, (n, what) in counts.items())
    return (
        f'<div class="change num"><b>{minus(f"{found.value:+.{decimals(found)}f}")}</b><small>token F1</small></div>'
        f'<div class="tally" aria-hidden="true">{bar}</div><div class="legend small num">{legend}</div>'
    )


def _html_metrics(results: Results) -> str:
    lines, group = [], ""
    for row in comparison(results):
        if row.group != group:
            group = row.group
            lines.append(f'<tr class="group"><th colspan="4" scope="rowgroup">{escape(group)}</th></tr>')
        both = f"<td>{html_score(row.base)}</td><td>{html_score(row.tuned)}</td>"
        one = f'<td colspan="2">{html_score(row.base)}</td>'
        difference = html_difference(row.difference, row.verdict)
        lines.append(f'<tr><th scope="row">{escape(row.label)}</th>{both if row.tuned[0] else one}{difference}</tr>')
    return "".join(lines)


def html_score(shown: tuple[str, str]) -> str:
    """A value and its interval."""
    return f'{minus(shown[0])} <span class="interval">{minus(shown[1])}</span>'


def html_difference(shown: tuple[str, str], word: str) -> str:
    """A cell of a table: a difference with its interval, and the verdict."""
    kind = word if word in ("better", "worse") else ""
    chip = f'<span class="chip {kind}">{escape(word)}</span>' if word else ""
    return f'<td><div class="difference"><span>{html_score(shown)}</span>{chip}</div></td>'


def _html_evaluations(results: Results) -> str:
    columns, during = evaluations(results)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    rows = "".join(map(html_cells, during))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def html_cells(row: Sequence[str]) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
    return f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>'


def html_changes(changes: Sequence[Change], base: str = "Base", tuned: str = "Tuned") -> str:
    """The two answers to each question, as HTML."""
    shown = (
        question_html({base: c.base, tuned: c.tuned}, f'<span class="num">{minus(f"{c.value:+.2f}")}</span>')
        for c in changes
    )
    return "".join(shown) or '<p class="empty">None.</p>'
