"""A comparison as a table for the terminal, and as a single HTML page without external resources."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from groundtune.data.files import write_text
from groundtune.evaluation.comparison import HOW_TO_READ, Comparison
from groundtune.evaluation.confidence import Thresholds
from groundtune.evaluation.outcomes import OUTCOMES, WITHOUT_ANSWER, WITHOUT_PASSAGES
from groundtune.evaluation.verdicts import ERRORS, F1
from groundtune.reporting.answers import SAMPLED, side_by_side
from groundtune.reporting.plots import abstention_plot, differences_plot, systems_plot
from groundtune.reporting.report import (
    callout,
    html_change,
    html_changes,
    html_difference,
    html_pairs,
    html_sample,
    html_score,
    html_steps,
    minus,
    page,
    write_answers,
)
from groundtune.reporting.results import cells, questions, verdict_word
from groundtune.system.text import as_json

if TYPE_CHECKING:
    from rich.table import Table

    from groundtune.evaluation.grades import People
    from groundtune.reporting.next_steps import Step
    from groundtune.schema import Prediction

_MEANINGS = OUTCOMES | WITHOUT_PASSAGES | WITHOUT_ANSWER
_SECTION = re.compile(r'<section id="(\w+)"><h2>([^<]+)</h2>')
_IN_PLOTS = 8  # metrics; more would be unreadable


def write_comparisons(
    path: str | os.PathLike[str],
    kind: str,
    title: str,
    comparisons: Sequence[Comparison],
    facts: Mapping[str, str],
    notes: Sequence[str],
    record: Mapping[str, Any],
    steps: Sequence[Step] = (),
    verdict: Comparison | None = None,
    answers: Mapping[str, Sequence[Prediction]] | None = None,
    references: Mapping[str, str] | None = None,
    people: People | None = None,
    abstention: Mapping[str, Mapping[str, Any]] | None = None,
    more: str = "",
) -> None:
    """Write the page, the same numbers as JSON beside it under the same name, and a page with all answers.

    `verdict` is the comparison whose verdict comes first, by default the only one. `answers` are those of all systems,
    by default of the first comparison, and `references` what each system is compared with, by default the first.
    `abstention`: by context and system, what thresholds on the likelihood of answers would do (`confidence.curve`).
    `more` (HTML) is shown before the answers.
    """
    path = Path(path)
    content = {"facts": dict(facts), "notes": list(notes), "comparisons": [c.to_dict() for c in comparisons]}
    content |= {"people": people.to_dict()} if people else {}
    write_text(path.with_suffix(".json"), as_json(content))
    first = comparisons[0]
    above = verdict or (first if len(comparisons) == 1 else None)
    systems = answers or {name: evaluation.predictions for name, evaluation in first.evaluations.items()}
    headings = ["Side by side" if c.title == title else c.title for c in comparisons]
    withheld = _html_abstention(abstention or {})
    parts = [
        _banner(above, steps),
        html_steps(steps) if steps else "",
        _contents({"people": "What people say"} if people else {}, headings, dict(_SECTION.findall(more + withheld))),
        callout(f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>") if notes else "",
        f'<dl class="facts">{html_pairs(facts)}</dl>\n',
        _html_people(people) if people else "",
        *(_section(c, heading, f"c{i}", c is not above) for i, (c, heading) in enumerate(zip(comparisons, headings))),
        more,
        withheld,
        f'<section id="answers"><h2>{min(SAMPLED, first.n)} answers, picked at random</h2><p class="small">With the '
        f'passages that were read. <a href="{quote(answers_beside(path).name)}">All answers, with filters</a></p>'
        f'<div class="answers">{html_sample(side_by_side(systems))}</div></section>',
    ]
    write_text(path, page(kind, title, "".join(parts), record))
    write_answers(answers_beside(path), title, systems, record, references)


def _html_people(people: People) -> str:
    items = "".join(f"<li>{minus(line)}.</li>" for line in people)
    return f'<section id="people"><h2>What people say</h2><ul>{items}</ul></section>'


def answers_beside(page: Path) -> Path:
    """The page with all answers beside a page of comparisons."""
    return page.with_name(f"{page.stem}_answers.html")


def _contents(first: Mapping[str, str], headings: Sequence[str], more: Mapping[str, str]) -> str:
    links = {**first, **{f"c{i}": heading for i, heading in enumerate(headings)}, **more}
    links |= {"answers": "Answers picked at random", "run": "The run"}
    items = "".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in links.items())
    return f'<nav aria-label="Contents"><ul class="contents">{items}</ul></nav>'


def _banner(comparison: Comparison | None, steps: Sequence[Step]) -> str:
    """The verdict of each system that is compared, or how many questions were answered right."""
    if comparison is None or not comparison.others:
        head = steps[0].text if steps else ""
        return f'<section class="banner unclear" aria-label="Result"><h2>{escape(head)}</h2></section>' if head else ""
    return "".join(_verdict(comparison, name) for name in comparison.others)


def _verdict(comparison: Comparison, name: str) -> str:
    head, rest = comparison.verdict_parts(name)
    found = comparison.differences[name].get(F1)
    kind = {"better": "better", "worse": "worse"}.get(found.verdict if found else "", "unclear")
    rest = rest if rest.startswith(name) else f"{rest[:1].upper()}{rest[1:]}"
    return (
        f'<section class="banner {kind}" aria-label="Verdict"><div><h2>{escape(head)}</h2>'
        f'<p class="num">{minus(rest)}.</p></div>'
        f"{html_change(found) if found else ''}</section>"
    )


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
        if left_out := comparison.left_out[name]:
            are = "question is left out because not all systems answered it"
            if left_out > 1:
                are = "questions are left out because not all systems answered them"
            lines.append(f"{name}: {left_out} {are}")
    return lines


# Terminal
def comparison_table(comparison: Comparison, only: Collection[str] = ()) -> Table:
    """A block per metric with a line per system; `only` the metrics with these labels, if any."""
    from groundtune.system.tables import TextTable

    asked = questions(comparison.evaluations[comparison.reference])
    table = TextTable(box=None, padding=(0, 1, 0, 0), title=f"{comparison.title}: {asked}", title_justify="left")
    for heading in ("", "", "mean [95 %]", "difference [95 %]", ""):
        table.add_column(heading, no_wrap=bool(heading))
    colours = {"better": "green", "worse": "red"}
    rows = _rows(comparison)
    for label, lines in rows.items():
        if only and label not in only:
            continue
        for i, (name, mean, difference, word) in enumerate(lines):
            shown = [" ".join(cell).strip() for cell in (mean, difference)]
            table.add_row("" if i else label, name, *shown, word, style=colours.get(word))
    return table


def essential(comparison: Comparison) -> list[str]:
    """The labels of the metrics that fit on one screen: what the verdict rests on, and the usual suspects."""
    recalls = [metric for metric in comparison.labels if "/recall@" in metric]
    shown = [F1, "generation/contradiction", "generation/unfinished", *ERRORS, *recalls[-1:]]
    return [label for m, label in comparison.labels.items() if m in shown or m.startswith("judge/")]


def outcomes_table(comparison: Comparison) -> Table | None:
    """Number of questions per outcome; None if outcomes are not known."""
    outcomes = comparison.outcomes()
    return table_of_outcomes(outcomes) if outcomes else None


def table_of_outcomes(outcomes: Mapping[str, Mapping[str, int]]) -> Table:
    """Number of questions by outcome, with a column per system."""
    from groundtune.system.tables import TextTable

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
def _section(comparison: Comparison, heading: str, anchor: str, with_verdict: bool) -> str:
    said = comparison.others if with_verdict else []
    verdicts = "".join(f"<p><strong>{minus(comparison.verdict(name))}.</strong></p>" for name in said)
    how = " ".join(filter(None, (HOW_TO_READ, comparison.alike)))
    failed = "".join(f"<li>{escape(line)}</li>" for line in failures(comparison))
    return (
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>{verdicts}'
        f"{callout(f'<ul>{failed}</ul>') if failed else ''}{_html_outcomes(comparison)}"
        '<div class="compare"><table class="metrics systems"><thead><tr><th scope="col">System</th>'
        f'<th scope="col">Mean</th><th scope="col">{"Difference" if comparison.others else ""}</th></tr></thead>'
        f"<tbody>{_html_rows(comparison)}</tbody></table>"
        f'<div class="aside">{_plots(comparison)}<p class="small">{escape(how)}</p></div></div></section>'
        f"{''.join(_html_answers(comparison, name) for name in comparison.others)}"
    )


def _html_rows(comparison: Comparison) -> str:
    lines = []
    for label, systems in _rows(comparison).items():
        lines.append(f'<tr class="group"><th colspan="3" scope="rowgroup">{escape(label)}</th></tr>')
        for name, mean, difference, word in systems:
            lines.append(html_row(escape(name), mean, difference, word))
    return "".join(lines)


def html_row(name: str, mean: tuple[str, str], difference: tuple[str, str], word: str) -> str:
    """A row of a table: a name, which is HTML, a mean and a difference, each with its interval, and the verdict."""
    return f'<tr><th scope="row">{name}</th><td>{html_score(mean)}</td>{html_difference(difference, word)}</tr>'


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
        f'<h3>What became of each question</h3><table class="outcomes"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _html_abstention(abstention: Mapping[str, Mapping[str, Any]]) -> str:
    """What thresholds would do to both error rates, if there were unanswerable questions; else empty."""
    plots = "".join(
        abstention_plot(f"{context}, by {_BY[signal]}", {name: found[signal] for name, found in by_system.items()})
        for context, by_system in abstention.items()
        for signal in _BY
        if all("chosen" in found and _has_curve(found[signal]) for found in by_system.values())
    )
    how = (
        "Each point is a threshold: answers below it are withheld. Chosen is the pair of thresholds with the highest "
        "token F1 on these questions; to use it on others, give this folder to --abstain_below."
    )
    if not plots:
        return ""
    chosen = "".join(f"<li>{minus(line)}</li>" for line in thresholds_chosen(abstention))
    return (
        f'<section id="withheld"><h2>If unlikely answers were withheld</h2><p class="small">{escape(how)}</p>'
        f'<ul>{chosen}</ul><div class="pair">{plots}</div></section>'
    )


def _has_curve(points: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are several points, of questions with and without an answer: else one of the rates is unknown."""
    return len(points) > 1 and None not in (points[0]["unanswerable_answered"], points[0]["answerable_refused"])


def thresholds_chosen(abstention: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """By context and system, the thresholds that were chosen, and the error rates with and without them."""
    return [
        f"{context}, {name}: answers withheld: {Thresholds(best['logprob'], best['score'])}; {_rates(best)}; without "
        f"thresholds {_rates(found['logprob'][0])}"
        for context, by_system in abstention.items()
        for name, found in by_system.items()
        if (best := found.get("chosen"))
    ]


def _rates(point: Mapping[str, Any]) -> str:
    names = {"token F1": "f1", "unanswerable answered": "unanswerable_answered",
             "answerable refused": "answerable_refused"}  # fmt: skip
    return ", ".join(f"{text} {point[name]:.2f}" for text, name in names.items() if point[name] is not None)


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
