"""A comparison as a table for the terminal, and as a single HTML page without external resources."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.data.files import write_text
from groundtune.evaluation.comparison import HOW_TO_READ, Comparison
from groundtune.evaluation.confidence import Thresholds
from groundtune.evaluation.outcomes import OUTCOMES, WITHOUT_ANSWER, WITHOUT_PASSAGES
from groundtune.reporting.plots import abstention_plot, differences_plot, systems_plot
from groundtune.reporting.report import callout, html_changes, html_pairs, minus, page
from groundtune.reporting.results import cells, questions, verdict_word
from groundtune.system.text import as_json

if TYPE_CHECKING:
    from rich.table import Table

_MEANINGS = OUTCOMES | WITHOUT_PASSAGES | WITHOUT_ANSWER
_IN_PLOTS = 8  # metrics; more would be unreadable


def write_comparisons(
    path: str | os.PathLike[str],
    kind: str,
    title: str,
    comparisons: Sequence[Comparison],
    facts: Mapping[str, str],
    notes: Sequence[str],
    record: Mapping[str, Any],
    abstention: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write the page, and the same numbers as JSON beside it under the same name.

    `abstention`: by context and system, what thresholds on the likelihood of answers would do (`confidence.curve`).
    """
    path = Path(path)
    content = {"facts": dict(facts), "notes": list(notes), "comparisons": [c.to_dict() for c in comparisons]}
    write_text(path.with_suffix(".json"), as_json(content))
    sections = (_section(c, "Side by side" if c.title == title else c.title) for c in comparisons)
    body = f'<dl class="facts">{html_pairs(facts)}</dl>\n{"".join(sections)}'
    body += _html_abstention(abstention or {})
    if notes:
        body = callout(f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>") + body
    write_text(path, page(kind, title, body, record))


def failures(comparison: Comparison) -> list[str]:
    """A line per system with failed answers, failed judgements or questions left out."""
    lines = []
    for name, evaluation in comparison.evaluations.items():
        if evaluation.failed:
            reasons = [p.failure for p in evaluation.predictions if p.failure]
            lines.append(
                f"{name}: {evaluation.failed} of {evaluation.n} answers failed and are excluded from the means (first: "
                f"{reasons[0]})"
            )
        answered = evaluation.n - evaluation.failed
        for judge in dict.fromkeys(judge for p in evaluation.predictions for judge in p.judged):
            scored = evaluation.scored(f"judge/{judge}")
            if scored < answered:
                lines.append(f"{name}: judge {judge}: {scored} scored, {answered - scored} failed, {answered} in total")
        if comparison.left_out[name]:
            lines.append(
                f"{name}: {comparison.left_out[name]} questions are left out because not all systems answered them"
            )
    return lines


# Terminal
def comparison_table(comparison: Comparison) -> Table:
    """A block per metric with a line per system."""
    from groundtune.system.tables import TextTable

    table = TextTable(box=None, padding=(0, 1, 0, 0), title=comparison.title, title_justify="left")
    asked = questions(comparison.evaluations[comparison.reference])
    for heading in (asked, "", "mean [95 %]", "difference [95 %]", ""):
        table.add_column(heading, no_wrap=bool(heading))
    colours = {"better": "green", "worse": "red"}
    for label, lines in _rows(comparison).items():
        for i, (name, mean, difference, word) in enumerate(lines):
            shown = [" ".join(cell).strip() for cell in (mean, difference)]
            table.add_row("" if i else label, name, *shown, word, style=colours.get(word))
    return table


def outcomes_table(comparison: Comparison) -> Table | None:
    """Number of questions per outcome; None if outcomes are not known."""
    from groundtune.system.tables import TextTable

    if not (outcomes := comparison.outcomes()):
        return None
    table = TextTable("outcome", box=None, padding=(0, 2, 0, 0))
    for name in outcomes:
        table.add_column(name, justify="right")
    for kind in _kinds(outcomes):
        table.add_row(kind, *(str(counts.get(kind, 0)) for counts in outcomes.values()))
    return table


def _rows(comparison: Comparison) -> dict[str, list[tuple[str, tuple[str, str], tuple[str, str], str]]]:
    """By metric label, for each system with the metric: name, mean, difference from the reference, and its verdict."""
    rows: dict[str, list[tuple[str, tuple[str, str], tuple[str, str], str]]] = {}
    for metric, label in comparison.labels.items():
        for name, evaluation in comparison.evaluations.items():
            if metric not in evaluation.metrics:
                continue
            scored, found = evaluation.scored(metric), comparison.differences.get(name, {}).get(metric)
            value, interval = cells(evaluation.metrics[metric], comparison.n, metric)
            of = "" if scored == evaluation.n else f" of {scored}"
            difference = cells(found, comparison.n, metric, "+") if found else ("", "")
            line = (name, (value, interval + of), difference, verdict_word(found, metric) if found else "")
            rows.setdefault(label, []).append(line)
    return rows


def _kinds(outcomes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The outcomes counted for any system, in display order."""
    return [kind for kind in (*_MEANINGS, "failed") if any(kind in counts for counts in outcomes.values())]


# HTML
def _section(comparison: Comparison, heading: str) -> str:
    verdicts = "".join(f"<p><strong>{minus(comparison.verdict(name))}.</strong></p>" for name in comparison.others)
    how = " ".join(filter(None, (HOW_TO_READ, comparison.alike)))
    failed = "".join(f"<li>{escape(line)}</li>" for line in failures(comparison))
    return (
        f"<section><h2>{escape(heading)}</h2>{verdicts}{callout(f'<ul>{failed}</ul>') if failed else ''}"
        '<div class="compare"><table class="metrics systems"><thead><tr><th scope="col">System</th>'
        f'<th scope="col">Mean</th><th scope="col">{"Difference" if comparison.others else ""}</th></tr></thead>'
        f"<tbody>{_html_rows(comparison)}</tbody></table>"
        f'<div class="aside">{_plots(comparison)}<p class="small">{escape(how)}</p></div></div></section>'
        f"{_html_outcomes(comparison)}{''.join(_html_answers(comparison, name) for name in comparison.others)}"
    )


def _html_rows(comparison: Comparison) -> str:
    lines = []
    for label, systems in _rows(comparison).items():
        lines.append(f'<tr class="group"><th colspan="3" scope="rowgroup">{escape(label)}</th></tr>')
        for name, mean, difference, word in systems:
            kind = word if word in ("better", "worse") else ""
            chip = f'<span class="chip {kind}">{escape(word)}</span>' if word else ""
            lines.append(
                f'<tr><th scope="row">{escape(name)}</th><td>{_cell(mean)}</td>'
                f'<td><div class="difference"><span>{_cell(difference)}</span>{chip}</div></td></tr>'
            )
    return "".join(lines)


def _cell(shown: tuple[str, str]) -> str:
    return f'{minus(shown[0])} <span class="interval">{minus(shown[1])}</span>'


def _plots(comparison: Comparison) -> str:
    shares = [m for m in comparison.labels if m != "generation/new_tokens"][:_IN_PLOTS]
    means = {
        comparison.labels[m]: [evaluation.metrics.get(m) for evaluation in comparison.evaluations.values()]
        for m in shares
    }
    plots = systems_plot(comparison.title, list(comparison.evaluations), means)
    if comparison.others:
        changes = {
            comparison.labels[m]: [comparison.differences[name].get(m) for name in comparison.others] for m in shares
        }
        plots += differences_plot(comparison.title, comparison.others, changes, comparison.reference)
    return plots


def _html_outcomes(comparison: Comparison) -> str:
    if not (outcomes := comparison.outcomes()):
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in outcomes)
    rows = "".join(
        f'<tr><th scope="row">{escape(kind)}<small>{escape(_MEANINGS.get(kind, ""))}</small></th>'
        + "".join(f"<td>{counts.get(kind, 0)}</td>" for counts in outcomes.values())
        + "</tr>"
        for kind in _kinds(outcomes)
    )
    return (
        f'<section><h2>What became of each question</h2><table class="outcomes"><thead><tr><th></th>{head}'
        f"</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _html_abstention(abstention: Mapping[str, Mapping[str, Any]]) -> str:
    """What thresholds would do to both error rates, if there were unanswerable questions; else empty."""
    plots = "".join(
        abstention_plot(f"{context}, by {_BY[signal]}", {name: found[signal] for name, found in by_system.items()})
        for context, by_system in abstention.items()
        for signal in _BY
        if all("chosen" in found and len(found[signal]) > 1 for found in by_system.values())
    )
    how = (
        "Each point is a threshold: answers below it are withheld. Chosen is the pair of thresholds with the highest "
        "token F1 on these questions; to use it on others, give this folder to --abstain_below."
    )
    chosen = "".join(
        f"<li>{escape(f'{context}, {name}: {_chosen(found)}')}</li>"
        for context, by_system in abstention.items()
        for name, found in by_system.items()
        if "chosen" in found
    )
    if not plots:
        return ""
    return (
        f'<section><h2>If unlikely answers were withheld</h2><p class="small">{escape(how)}</p><ul>{chosen}</ul>'
        f'<div class="pair">{plots}</div></section>'
    )


def _chosen(found: Mapping[str, Any]) -> str:
    point = found["chosen"]
    return (
        f"{Thresholds(point['logprob'], point['score'])}: token F1 {point['f1']:.2f}, unanswerable answered "
        f"{point['unanswerable_answered']:.2f}, answerable refused {point['answerable_refused'] or 0:.2f}"
    )


_BY = {"logprob": "mean log-probability", "score": "retrieval score"}


def _html_answers(comparison: Comparison, name: str) -> str:
    gained, lost = comparison.gained_and_lost(name)
    names = (comparison.reference, name)
    return (
        f"<section><h2>Answers that differ most: {escape(name)} against {escape(comparison.reference)}</h2>"
        f'<p class="small">By token F1 on the same question.</p><div class="pair answers">'
        f'<div class="better"><h3>Won</h3>{html_changes(gained, *names)}</div>'
        f'<div class="worse"><h3>Lost</h3>{html_changes(lost, *names)}</div></div></section>'
    )
