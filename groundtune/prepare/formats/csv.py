"""Tables of questions and answers, as a spreadsheet saves them: CSV, with commas, semicolons or tabs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from groundtune.data.entries import shown
from groundtune.data.passages import format_passage
from groundtune.prepare.formats.format import Converted, Format, Options, converted, opened
from groundtune.prepare.readers.tables import rows_of

# What a column is for -> the names that it may have, in any case.
_COLUMNS = {
    "question": ("question", "query", "prompt", "instruction"),
    "answer": ("answer", "gold_answer", "response", "completion", "output"),
    "passage": ("passage", "context", "gold_passage", "document", "text"),
    "title": ("title",),
    "source": ("source", "url"),
}


def read(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """A row with a question and an answer; its passage is in the row, or found by `options.search`."""
    with opened(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            problems.append(f"{path}: not UTF-8 (byte {error.start + 1}); save it as CSV UTF-8")
            return
    rows = rows_of(text.replace("\r\n", "\n").replace("\r", "\n"))
    try:
        places = _places(next(rows, (0, []))[1])
        if missing := [name for name in ("question", "answer") if name not in places]:
            seen, names = shown(text.split("\n", 1)[0].strip()), "question,answer,passage"
            problems += [
                f"{path}:1: {name}: missing; a first line must name the columns, such as {names} (seen: {seen})"
                for name in missing
            ]
            return
        for number, cells in rows:
            if any(map(str.strip, cells)):
                yield _example(cells, places, options, f"{path}:{number}")
    except ValueError as error:
        problems.append(f"{path}: {error}; write it again")


def _example(cells: Sequence[str], places: dict[str, int], options: Options, source: str) -> Converted:
    cell = {use: cells[place].strip() if place < len(cells) else "" for use, place in places.items()}
    question, answer, passage = cell["question"], cell["answer"], cell.get("passage", "")
    gold = [format_passage(passage, source=cell.get("source", ""), title=cell.get("title", ""))]
    return converted(question, [answer], gold if passage else options.search(question, answer), source=source)


def _places(cells: Sequence[str]) -> dict[str, int]:
    """What a column is for -> its number, for the columns whose names are known."""
    named = {cell.strip().lower(): i for i, cell in reversed(list(enumerate(cells)))}
    found = {use: next((named[name] for name in names if name in named), None) for use, names in _COLUMNS.items()}
    return {use: place for use, place in found.items() if place is not None}


CSV = Format("tables with columns question, answer and, if known, passage, title, source", read)
