"""Tables of questions and answers, as a spreadsheet saves them: CSV, with commas, semicolons or tabs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from groundtune.data.entries import shown
from groundtune.data.passages import format_passage
from groundtune.prepare.formats.format import Converted, Format, Options, converted, opened

# What a column is for -> the names that it may have, in any case.
_COLUMNS = {
    "question": ("question", "query", "prompt", "instruction"),
    "answer": ("answer", "gold_answer", "response", "completion", "output"),
    "passage": ("passage", "context", "gold_passage", "document", "text"),
    "title": ("title",),
    "source": ("source", "url"),
}
_SEPARATORS = ",;\t|"
_LARGEST_CELL = 2**24  # characters; a quotation mark that is never closed would put the rest of the file into one cell


def read(path: Path, options: Options, problems: list[str]) -> Iterator[Converted]:
    """A row with a question and an answer; its passage is in the row, or found by `options.search`."""
    with opened(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            problems.append(f"{path}: not UTF-8 (byte {error.start + 1}); save it as CSV UTF-8")
            return
    csv.field_size_limit(_LARGEST_CELL)
    header, rows = _table(text)
    if missing := [name for name in ("question", "answer") if name not in header]:
        seen, names = shown(text.split("\n", 1)[0].strip()), "question,answer,passage"
        problems += [
            f"{path}:1: {name}: missing; a first line must name the columns, such as {names} (seen: {seen})"
            for name in missing
        ]
        return
    for number, row in rows:
        cell = dict(zip(header, row))
        answer, question = cell["answer"].strip(), cell["question"].strip()
        gold = [format_passage(cell["passage"].strip(), source=cell["source"], title=cell["title"])]
        found = gold if cell["passage"].strip() else options.search(question, answer)
        yield converted(question, [answer], found, source=f"{path}:{number}")


def _table(text: str) -> tuple[Sequence[str], Iterator[tuple[int, list[str]]]]:
    """What each column is for, and the rows with their lines, cells in the order of the header."""
    lines = io.StringIO(text, newline="")
    first = next(lines, "")
    if first.lower().startswith("sep=") and len(first.strip()) == 5:  # written by Excel
        separator = first.strip()[4]
    else:
        separator = max(_SEPARATORS, key=lambda one: len(_uses(first, one)))
        lines.seek(0)
    reader = csv.reader(lines, delimiter=separator)
    uses = _uses_of(next(reader, []))
    return list(_COLUMNS) if {"question", "answer"} <= uses.keys() else list(uses), _rows(reader, uses)


def _rows(reader: Any, uses: dict[str, int]) -> Iterator[tuple[int, list[str]]]:
    for row in reader:
        if any(cell.strip() for cell in row):
            places = [uses.get(name, -1) for name in _COLUMNS]
            yield reader.line_num, [row[place] if 0 <= place < len(row) else "" for place in places]


def _uses(line: str, separator: str) -> dict[str, int]:
    return _uses_of(next(csv.reader([line], delimiter=separator), []))


def _uses_of(cells: Sequence[str]) -> dict[str, int]:
    """What a column is for -> its number, for the columns whose names are known."""
    named = {cell.strip().lower(): i for i, cell in reversed(list(enumerate(cells)))}
    found = {use: next((named[name] for name in names if name in named), None) for use, names in _COLUMNS.items()}
    return {use: place for use, place in found.items() if place is not None}


CSV = Format("tables with columns question, answer and, if known, passage, title, source", read)
