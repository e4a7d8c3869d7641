"""MS MARCO question answering, 1.1 and 2.1 (Bajaj et al. 2016): search engine questions with ten passages each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from groundtune.data.entries import Record
from groundtune.data.passages import format_passage
from groundtune.prepare.formats.format import Converted, Format, Options, children, converted, records

_NEED = 'a question is {"query", "answers": [...], "passages": [{"passage_text", "is_selected", "url"}]}'
_NO_ANSWER = "No Answer Present."


def read(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """Selected passages are gold, the others hard negatives; well-formed answers come before short ones.

    A question without an answer gets the search engine's first passage as gold, and the others as hard negatives.
    """
    for record in (row for whole in records(path, problems) for row in _questions(whole)):
        passages = [
            (format_passage(row.text("passage_text", _NEED), source=row.text("url", _NEED, required=False)), row)
            for row in children(record, "passages", _NEED)
        ]
        selected = [passage for passage, row in passages if row.fields.get("is_selected")]
        others = [passage for passage, row in passages if not row.fields.get("is_selected")]
        answers = [*_well_formed(record).texts("wellFormedAnswers", _NEED), *record.texts("answers", _NEED)]
        answerable = any(answer.strip() != _NO_ANSWER for answer in answers) or not answers
        answers = [answer for answer in answers if answer.strip() != _NO_ANSWER]
        yield converted(
            record.text("query", _NEED, may_be_blank=True),
            answers if answerable else [options.unanswerable],
            selected if answerable else others[:1],
            negatives=others,
            answerable=answerable,
            source=record.where,
        )


def _questions(record: Record) -> Iterator[Record]:
    """One record per question: the official 2.1 files are one object of columns, each mapping row numbers to values."""
    columns = record.fields
    if not isinstance(columns.get("query"), dict):
        yield record
        return
    for row in columns["query"]:
        fields = {name: column.get(row) for name, column in columns.items() if isinstance(column, dict)}
        yield replace(record, where=f"{record.where}[{row}]", fields=fields)


def _well_formed(record: Record) -> Record:
    """The well-formed answers as a list; if there are none, the official files have the text `[]` instead."""
    value = record.fields.get("wellFormedAnswers")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = [value]
    return replace(record, fields={"wellFormedAnswers": value})


MS_MARCO = Format("MS MARCO question answering: train_v2.1.json.gz, or rows of the hub's copy", read)
