"""A study as tables for the terminal, and as a section of the page of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING

from groundtune.evaluation.statistics import FEWEST_PASSAGES, Interval, PairedDifference
from groundtune.evaluation.study import Part, Point, Study
from groundtune.evaluation.verdicts import F1
from groundtune.reporting.comparison_page import html_row
from groundtune.reporting.plots import points_plot
from groundtune.reporting.report import callout, minus
from groundtune.reporting.results import cells, verdict_word
from groundtune.system.text import counted

if TYPE_CHECKING:
    from rich.table import Table

    from groundtune.evaluation.forgetting import Forgetting, UnrelatedText
    from groundtune.evaluation.learning_curve import Curve

_HOW = (
    "Token F1 with its 95 % interval. The second column compares a point with the first row that has none, question by "
    "question. The last line of a point says how much more or less it changes for the model than for its base model."
)
_FORGETTING = (
    "How well each model predicts text that it was not trained for, token by token. Intervals treat the tokens of a "
    "text as one group. The continuations are greedy; the prompts have no passages and no instruction."
)
Line = tuple[str, tuple[str, str], tuple[str, str], str]  # name, mean, difference, verdict


def lines_of(part: Part, point: Point) -> Iterator[Line]:
    """A line per system: its mean at a point, and the difference from the reference; then model - base model."""

    def shown(found: PairedDifference | None) -> tuple[tuple[str, str], str]:
        return (cells(found, part.n, F1, "+"), verdict_word(found, F1)) if found else (("", ""), "")

    here = point is part.reference
    for system, evaluation in point.by_system.items():
        mean = _mean(evaluation.metrics.get(F1), part.n)
        yield (system, mean, *(((("", ""), "")) if here else shown(part.change(system, point))))
    if (gain := part.gain(point)) is not None:
        more = (("", ""), "") if here else shown(part.gain_of_change(point))
        yield (" - ".join(reversed(part.systems)), cells(gain, part.n, F1, "+"), *more)
    if (recall := point.recall()) is not None:
        yield ("recall", cells(recall, part.n, F1), ("", ""), "")


def _mean(found: Interval | None, n: int) -> tuple[str, str]:
    return cells(found, n, F1) if found else ("none", "")


def study_tables(study: Study) -> Iterator[Table]:
    """A table per part."""
    from groundtune.system.tables import TextTable

    for part in study.parts:
        table = TextTable(box=None, padding=(0, 1, 0, 0), title=_title(part), title_justify="left")
        for heading in ("", "", "token F1 [95 %]", f"- {part.reference.label} [95 %]", ""):
            table.add_column(heading, no_wrap=bool(heading))
        colours = {"better": "green", "worse": "red"}
        for point in part.points:
            label = point.label.replace("_", " ")  # so that a long one goes on in the next line
            for i, (name, mean, change, word) in enumerate(lines_of(part, point)):
                shown = [" ".join(cell).strip() for cell in (mean, change)]
                table.add_row("" if i else label, name, *shown, word, style=colours.get(word))
        yield table


def _title(part: Part) -> str:
    return f"{part.title}: {counted(part.n, 'question')}"


def html_study(study: Study) -> str:
    """The section of a page; empty if there is nothing to say, because thresholds have a section of their own."""
    if not study.parts and not study.notes:
        return ""
    how = f'<p class="small">{escape(_HOW)}</p>' if study.parts else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in study.notes)
    return (
        f'<section id="study"><h2>Where answers are lost</h2>{how}{callout(f"<ul>{notes}</ul>") if notes else ""}'
        f"{''.join(map(_html_part, study.parts))}</section>"
    )


def _html_part(part: Part) -> str:
    rows = "".join(_html_point(part, point) for point in part.points)
    heads = ("Point", "Token F1", f"From {part.reference.label}")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return (
        f'<h3>{escape(_title(part))}</h3><div class="compare"><table class="metrics systems"><thead><tr>{head}</tr>'
        f'</thead><tbody>{rows}</tbody></table><div class="aside">{_plot(part)}<p class="small">{escape(part.how)}</p>'
        "</div></div>"
    )


def _html_point(part: Part, point: Point) -> str:
    rows = [f'<tr class="group"><th colspan="3" scope="rowgroup">{escape(point.label)}</th></tr>']
    for name, mean, change, word in lines_of(part, point):
        rows.append(html_row(minus(name), mean, change, word))
    return "".join(rows)


def _plot(part: Part) -> str:
    curves = {
        system: [(point.at, point.by_system[system].metrics.get(F1)) for point in part.points]
        for system in part.systems
    }
    recall = [(point.at, point.recall()) for point in part.points]
    if part.name == "k" and any(end for _, end in recall):
        curves["recall"] = recall
    ticks: dict[float, str] = {point.at: point.label for point in part.points} if part.name == "contexts" else {}
    return points_plot(part.title, part.axis, curves, ticks)


def forgetting_lines(found: Forgetting) -> Iterator[str]:
    """The losses, and what became of them, in words."""
    if not found.clusters:
        told = f", but {counted(len(found.continued), 'continuation')}" if found.continued else ""
        yield f"{found.path}: no text has a token to predict, so there is no loss{told}"
    for system in found.by_system:
        if (loss := found.loss(system)) and (perplexity := found.perplexity(system)):
            shown = f"{perplexity:.2f}" if perplexity < 1e6 else f"{perplexity:.1e}"
            yield f"{system}: {loss.value:.3f} nats per token {loss.ends(3)}, perplexity {shown}"
    if change := found.change():
        word = {"better": "lower", "worse": "higher"}.get(change.verdict, "no clear difference")
        word = word if change.passages >= FEWEST_PASSAGES else f"no verdict on fewer than {FEWEST_PASSAGES} texts"
        yield (
            f"Loss on {found.path}: {' - '.join(reversed([*found.by_system]))} {change.value:+.3f} "
            f"{change.ends(3, '+')}, {word} ({counted(change.n, 'token')} of "
            f"{counted(change.passages, 'text')})"
        )


def html_forgetting(found: Forgetting) -> str:
    """The section of a page: the losses, and the continuations side by side."""
    lines = "".join(f"<li>{minus(line)}.</li>" for line in forgetting_lines(found))
    return (
        f'<section id="forgetting"><h2>On other text</h2><p class="small">{escape(_FORGETTING)}</p><ul>{lines}</ul>'
        f'<div class="answers">{"".join(_html_continued(text, said) for text, said in found.continued)}</div></section>'
    )


def _html_continued(text: UnrelatedText, answers: Mapping[str, str]) -> str:
    rows = [("gold", "In the file", text.expected)] if text.expected else []
    rows += [(name if name == "base" else "tuned", name, answer) for name, answer in answers.items()]
    shown = "".join(
        f'<dt>{escape(name)}</dt><dd class="text {kind}" dir="auto">{escape(said) or "no text"}</dd>'
        for kind, name, said in rows
    )
    return f'<details><summary><span dir="auto">{escape(text.prompt)}</span></summary><dl>{shown}</dl></details>'


def html_curve(curve: Curve) -> str:
    """The learning curve as a section of a page: measured points, and the slope of the last piece."""
    points: list[tuple[float, Interval | None]] = [(rows, found) for rows, _, found in curve.points]
    plot = points_plot("Token F1 by training rows", "training rows", {"tuned": points})
    slope = f"<p>{minus(curve.slope())}.</p>"
    return f'<section id="curve"><h2>Learning curve</h2>{slope}<div class="pair">{plot}</div></section>'
