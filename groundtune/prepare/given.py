"""Given questions instead of written ones: each is answered from the first retrieved passage that answers it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundtune.data.entries import Record, json_object
from groundtune.errors import DataError
from groundtune.prepare.gates import GateResult, not_answered_by, pairs_in
from groundtune.prepare.journal import Journal
from groundtune.prepare.questions import Asked, Asker, Settings, answer
from groundtune.prepare.written import own_question
from groundtune.retrieval.retrievers import Retriever
from groundtune.schema import Document
from groundtune.system.inputs import read_text
from groundtune.system.text import few, one_line

_NEED = 'every line needs a "question" with the text of the question'
_OTHER_KINDS = (".csv", ".tsv", ".xlsx", ".parquet", ".json", ".pkl", ".docx", ".pdf")


def read_questions(path: Path) -> list[str]:
    """The questions of a file: a text with one on each line, or JSON objects, one a line, with `question`.

    Raises `DataError` with every problem.
    """
    if path.suffix.lower() in _OTHER_KINDS:
        raise DataError([f"--questions: {path} is a {path.suffix} file; give a text with one question on each line"])
    try:
        text = read_text(path).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        why = "it is a folder" if os.path.isdir(path) else one_line(error, 200)
        raise DataError([f"--questions: {path} cannot be read ({why}); name a text file in UTF-8"]) from error
    problems: list[str] = []
    lines = [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    in_json = bool(lines) and lines[0][1].lstrip().startswith("{")
    read = [_from_json(where, line, problems) if in_json else own_question(line) for where, line in lines]
    if problems:
        raise DataError(problems)
    if not (questions := list(filter(None, read))):
        raise DataError([f"--questions: {path} has no question; write one on each line"])
    return questions


def _from_json(where: str, line: str, problems: list[str]) -> str:
    try:
        record = Record(where, json_object(line.encode()), problems)
    except ValueError as error:
        problems.append(f"{where}: line: {error}")
        return ""
    if record.fields.get("chat_history"):
        record.note("chat_history", "a question must make sense alone here; rewrite it, and remove the history")
    return " ".join(record.text("question", _NEED).split())


@dataclass(frozen=True)
class Given:
    """Given questions, each with the passages that may answer it, best first."""

    questions: Sequence[tuple[str, Sequence[Document]]]

    def write(self, settings: Settings, ask: Asker, check: Callable[[Sequence[Asked]], None]) -> None:
        """Ask for an answer from the first passage of each question; from the next one if that does not answer it.

        A question whose request failed waits for the next run.
        """
        for rank in range(settings.passages_tried):
            pair_of = pairs_in(ask.journal, settings)
            open_ = []
            for question, passages in self.questions:
                earlier = [pair_of(passage, question) for passage in passages[:rank]]
                if rank < len(passages) and all(pair and not_answered_by(pair, settings) for pair in earlier):
                    open_.append((passages[rank], question))
            answer(open_, settings, ask)
            check(open_)

    def asked(self, journal: Journal) -> Sequence[tuple[str, Sequence[Document]]]:
        return self.questions

    def read(self, journal: Journal) -> list[Document]:
        """The passages that have been read for an answer."""
        read = {row["passage"] for row in journal.rows if "answer" in row}
        found = {passage.id: passage for _, passages in self.questions for passage in passages}
        return [passage for passage in found.values() if passage.id in read]


def find(questions: Sequence[str], settings: Settings, retriever: Retriever) -> Given:
    """The questions with the passages that are retrieved for them."""
    hits = retriever.search(questions, settings.passages_tried)
    return Given([(q, tuple(hit.document for hit in found)) for q, found in zip(questions, hits, strict=True)])


def left_out(result: GateResult) -> list[str]:
    """Names the questions that were left out, by reason."""
    names: dict[str, list[str]] = {}
    for row in result.rejected:
        names.setdefault(row["why"], []).append(f'"{one_line(row["question"], 100)}"')
    return [f"{len(these):,} left out, {why}: {few(these)}" for why, these in names.items()]
