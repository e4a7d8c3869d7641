"""Answers with their passages as HTML: a few of them in a report, and all of them on a page with filters.

The filters are style sheets, not scripts: whatever the answers hold, nothing on the page runs or is loaded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from groundtune.evaluation.statistics import TIE
from groundtune.evaluation.verdicts import F1

if TYPE_CHECKING:
    from groundtune.schema import Document, Prediction

SAMPLED = 10
Answers = Mapping[str, "Prediction"]  # what each system answered to one question, by the system's name
_NOTHING = '<span class="empty">no text</span>'


def sampled(questions: Sequence[Answers]) -> list[Answers]:
    """Some questions, always the same ones, in their order."""
    chosen = random.Random(0).sample(range(len(questions)), min(SAMPLED, len(questions)))  # noqa: S311
    return [questions[i] for i in sorted(chosen)]


def side_by_side(systems: Mapping[str, Sequence[Prediction]]) -> list[Answers]:
    """The answers to each question; all systems answered the same questions in the same order."""
    return [dict(zip(systems, answers, strict=True)) for answers in zip(*systems.values(), strict=True)]


# One question


def question_html(answers: Answers, aside: str = "", classes: str = "") -> str:
    """A question that opens to what each system answered and read; `aside` (HTML) stands beside the question."""
    example = next(iter(answers.values())).example
    said = "".join(f"{turn.speaker}: {turn.message}\n" for turn in example.chat_history)
    golds = [] if not example.answerable else example.acceptable_answers[1:]
    texts = [
        *([("", "Said before", said)] if said else []),
        ("gold", "Gold answer" if example.answerable else "Gold answer: there is none", example.answer),
        *(("gold", "Also right", answer) for answer in golds),
        *(("base" if i == 0 < len(answers) - 1 else "tuned", _heading(name, prediction), prediction.answer)
          for i, (name, prediction) in enumerate(answers.items())),
    ]  # fmt: skip
    shown = "".join(
        f'<dt>{escape(name)}</dt><dd class="text {kind}" dir="auto">{escape(text) or _NOTHING}</dd>'
        for kind, name, text in texts
    )
    opened = f' class="{classes}"' if classes else ""
    return (
        f'<details{opened}><summary><span dir="auto">{escape(example.question)}</span>{aside}</summary>'
        f"<dl>{shown}</dl>{''.join(_passages(answers))}</details>"
    )


def _heading(name: str, prediction: Prediction) -> str:
    if prediction.failure:
        return f"{name}, failed: {prediction.failure}"
    said = [name, *([f"F1 {prediction.scores[F1]:.2f}"] if F1 in prediction.scores else []), prediction.outcome]
    return ", ".join(filter(None, [*said, "" if prediction.finished else "cut at the token limit"]))


def _passages(answers: Answers) -> Iterator[str]:
    """The passages of each system, once if all have the same."""
    found = {name: _listed(prediction) for name, prediction in answers.items()}
    if len(set(found.values())) == 1:
        found = {"": next(iter(found.values()))}
    for name, listed in found.items():
        whose = f": {escape(name)}" if name else ""
        yield f'<details class="passages"><summary>Passages{whose}</summary>{listed}</details>'


def _listed(prediction: Prediction) -> str:
    """What was read, then what was found but not read, then gold passages that were not found."""
    gold = {document.id: document for document in prediction.example.gold_documents}
    read = list(prediction.read) or [hit.document for hit in prediction.hits[: prediction.passages_read]]
    found = [hit.document for hit in prediction.hits]
    seen = {document.id for document in read}
    rest = [document for document in found if document.id not in seen]
    seen |= {document.id for document in rest}
    rows = [*((d, "") for d in read), *((d, "found, not read") for d in rest)]
    rows += [(d, "not found") for d in gold.values() if d.id not in seen] if prediction.example.answerable else []
    items = "".join(_passage(document, document.id in gold, state) for document, state in rows)
    return f"<ol>{items}</ol>" if items else '<p class="empty">None.</p>'


def _passage(document: Document, gold: bool, state: str) -> str:
    chips = '<span class="chip better">gold</span>' if gold else ""
    chips += f'<span class="chip">{escape(state)}</span>' if state else ""
    return f'<li>{chips}<div class="text" dir="auto">{escape(document.text) or _NOTHING}</div></li>'


# All questions, with filters


def all_answers(systems: Mapping[str, Sequence[Prediction]], references: Mapping[str, str] | None = None) -> str:
    """The body of a page with all questions, filtered by outcome and by what a system gained or lost.

    `references`: for each system that is compared, the system that it is compared with. Default: with the first.
    """
    first = next(iter(systems))
    references = {name: first for name in systems if name != first} if references is None else references
    questions = side_by_side(systems)
    groups = [group for name in systems for group in _groups(name, systems, references)]
    rules, forms, classes = [], [], [[] for _ in questions]  # type: ignore[var-annotated]
    for number, (legend, of_each) in enumerate(groups):
        names = [name for name in dict.fromkeys(sorted(set(of_each), key=_order)) if name]
        forms.append(_fieldset(f"g{number}", legend, {name: of_each.count(name) for name in names}, len(questions)))
        for value, name in enumerate(names, 1):
            rules.append(f"main:has(#g{number}v{value}:checked) .question:not(.g{number}v{value}) {{ display: none; }}")
            for i, what in enumerate(of_each):
                classes[i] += [f"g{number}v{value}"] * (what == name)
    shown = "".join(
        question_html(answers, _aside(answers, references), " ".join(["question", *classes[i]]))
        for i, answers in enumerate(questions)
    )
    return (
        f"<style>{' '.join(rules)}</style>"
        f'<form class="filters" aria-label="Which answers are shown">{"".join(forms)}</form>'
        f'<section class="answers counted" aria-label="Answers">{shown}</section>'
    )


def _order(name: str) -> tuple[int, str]:
    changes = ("gained", "lost", "the same")
    return (changes.index(name), "") if name in changes else (len(changes), name)


def _groups(
    name: str, systems: Mapping[str, Sequence[Prediction]], references: Mapping[str, str]
) -> Iterator[tuple[str, list[str]]]:
    """The filters for a system: a legend, and for each question the one value that it has; empty if none."""
    answers, only = systems[name], len(systems) == 1
    if any(prediction.outcome for prediction in answers):
        legend = "Outcome" if only else f"Outcome: {name}"
        yield legend, ["failed" if p.failure else p.outcome for p in answers]
    elif any(prediction.failure for prediction in answers):
        yield f"Answered: {name}", ["failed" if p.failure else "answered" for p in answers]
    if name in references:
        before = systems[references[name]]
        yield f"{name} against {references[name]}", [_change(*pair) for pair in zip(before, answers, strict=True)]


def _change(before: Prediction, after: Prediction) -> str:
    if F1 not in before.scores or F1 not in after.scores:
        return ""
    change = after.scores[F1] - before.scores[F1]
    return "gained" if change > TIE else "lost" if change < -TIE else "the same"


def _fieldset(key: str, legend: str, counts: Mapping[str, int], total: int) -> str:
    options = [("all", total), *counts.items()]
    radios = "".join(
        f'<label><input type="radio" name="{key}" id="{key}v{value}"{" checked" * (value == 0)}>'
        f"<span>{escape(name)} <small>{count}</small></span></label>"
        for value, (name, count) in enumerate(options)
    )
    return f"<fieldset><legend>{escape(legend)}</legend>{radios}</fieldset>"


def _aside(answers: Answers, references: Mapping[str, str]) -> str:
    """Token F1 of the last system, and how it changed."""
    name, prediction = list(answers.items())[-1]
    if F1 not in prediction.scores:
        return '<span class="num">failed</span>'
    before = answers[references[name]] if name in references else None
    if before is None or F1 not in before.scores:
        return f'<span class="num">{prediction.scores[F1]:.2f}</span>'
    change = _change(before, prediction)
    value = f"{prediction.scores[F1] - before.scores[F1]:+.2f}".replace("-", "\N{MINUS SIGN}")
    tint = {"gained": " better", "lost": " worse"}.get(change, "")
    return f'<span class="num{tint}">{value if change != "the same" else "0.00"}</span>'
