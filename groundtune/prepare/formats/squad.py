"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): the published JSON, and the flat rows of the hub's copies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from groundtune.data.entries import Record
from groundtune.data.passages import format_passage
from groundtune.prepare.formats.format import Converted, Format, Options, child, children, converted, records

_NEED = 'a SQuAD file is {"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers", ...}]}]}]}'
_ROW = 'a row is {"title", "context", "question", "answers": {"text": [...]}}'


def read(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """The context is the gold passage, also for impossible questions, whose answer is `options.unanswerable`."""
    for record in records(path, problems):
        yield from [_row(record, options)] if "context" in record.fields else _published(record, options)


def _published(record: Record, options: Options) -> Iterator[Converted]:
    for article in children(record, "data", _NEED):
        title = article.text("title", _NEED, required=False).replace("_", " ")
        for paragraph in children(article, "paragraphs", _NEED):
            passage = format_passage(paragraph.text("context", _NEED), title=title)
            for question in children(paragraph, "qas", _NEED):
                impossible = question.flag("is_impossible", default=False)
                answers = [answer.text("text", _NEED) for answer in question.records("answers", _NEED)]
                yield converted(
                    question.text("question", _NEED, may_be_blank=True),
                    [options.unanswerable] if impossible else answers,
                    [passage],
                    answerable=not impossible,
                    source=question.where,
                )


def _row(record: Record, options: Options) -> Converted:
    answers = child(record, "answers", _ROW).texts("text", _ROW)
    title = record.text("title", _ROW, required=False).replace("_", " ")
    return converted(
        record.text("question", _ROW, may_be_blank=True),
        answers or [options.unanswerable],
        [format_passage(record.text("context", _ROW), title=title)],
        answerable=bool(answers),
        source=record.where,
    )


SQUAD = Format("SQuAD 1.1 and 2.0: train-v2.0.json, or rows of the hub's copy", read)
