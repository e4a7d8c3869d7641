"""Votes on the page of `groundtune serve`: answers that people found good, or wrote better, become examples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from groundtune.data.entries import Record, document_of, turns_of
from groundtune.evaluation.abstention import abstains
from groundtune.prepare.formats.format import Converted, Format, Options, converted, opened
from groundtune.prepare.support import support
from groundtune.schema import UNANSWERABLE, Document

_NEED = "a line is one that `groundtune serve` has written"
_SUPPORTED = 0.6  # the least share of an answer's words that its passage has
_PREFERRED = {"left": ("left",), "right": ("right",), "both": ("left", "right")}


def read(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """The last vote on each answer, as an example if a person stands behind an answer.

    That is what the answer should have been, if somebody has written it; else an answer with thumbs up, or the better
    one of two. The gold passage is the one that supports it best among those that were read, else one that
    `options.search` finds.
    """
    latest: dict[str, Record] = {}
    torn = 0
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # written by a process that was killed, or onto a full disk
                torn += bool(line.strip())
                continue
            record = Record(f"{path}:{number}", row if isinstance(row, dict) else {}, problems)
            latest[record.text("id", _NEED)] = record
    yield from (Converted(left_out="on a line that is not complete") for _ in range(torn))
    for record in latest.values():
        yield _example(record, options)


def _example(record: Record, options: Options) -> Converted:
    answers, read = _answers(record)
    correction = record.text("correction", _NEED, required=False).strip()
    if correction:
        answers = [correction]
    if not answers:
        return Converted(left_out="whose answer nobody found good, and nobody wrote better")
    question = record.text("question", _NEED)
    history = list(turns_of(replace(record, fields={"chat_history": record.fields.get("history")})))
    if abstains(answers[0], [UNANSWERABLE]):
        return converted(question, answers, read, history=history, answerable=False, source=record.where)
    gold = _supporting(answers[0], question, read) or options.search(question, answers[0])
    if not gold:
        return Converted(left_out="whose answer is in no passage that was read; name the documents with --documents")
    return converted(question, answers, gold, history=history, source=record.where)


def _answers(record: Record) -> tuple[list[str], list[Document]]:
    """The answers that the vote prefers, and all passages that were read."""
    vote = record.text("vote", _NEED, required=False)
    if "answers" not in record.fields:
        return [record.text("answer", _NEED)] if vote == "up" else [], _sources(record)
    sides = list(record.records("answers", _NEED))
    good = [side.text("answer", _NEED) for side in sides if side.fields.get("side") in _PREFERRED.get(vote, ())]
    read = {document.id: document for side in sides for document in _sources(side)}
    return good, list(read.values())


def _sources(record: Record) -> list[Document]:
    return list(map(document_of, record.records("sources", _NEED)))


def _supporting(answer: str, question: str, passages: Sequence[Document]) -> list[Document]:
    """The first passage that supports the answer best, if any does."""
    scores = [support(answer, question, passage.text) for passage in passages]
    best = max(scores, default=0.0)
    return [passages[scores.index(best)]] if best >= _SUPPORTED else []


FEEDBACK = Format("votes on the page of `groundtune serve`: good and corrected answers become examples", read)
