"""CSV: each row is a text."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from groundtune.errors import DataError
from groundtune.prepare.readers.page import Page, ReadOptions, contents, decoded, unreadable
from groundtune.prepare.readers.rows import page_of

_SEPARATORS = ",;\t|"
_SAMPLE = 1000  # rows by which the separator is found
_NAMED_SEPARATOR = re.compile(r'"?sep=(.)"?,*\n', re.IGNORECASE)  # a first line for Excel


def csv_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    """One page per row: its text column or, if there is none, all of its columns as `name: value` lines."""
    text, notes = decoded(path, contents(path), options.encoding)
    rows = rows_of(text)
    try:
        names = _told_apart(next(rows, (0, []))[1])
        for number, cells in rows:
            where = f"{path}:{number}"
            if any(map(str.strip, cells[len(names) :])):
                raise DataError([f"{where}: has more cells than the first line names; quote cells that hold a comma"])
            row = dict(zip(names, [*cells, *[""] * (len(names) - len(cells))]))
            yield page_of(row, where, f"{source}#{number}", options, notes)
            notes = ()
    except ValueError as error:
        raise unreadable(path, str(error), "write it again") from error


def rows_of(text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, with their line numbers, whatever separates their cells.

    Raises `ValueError` for the line that is not valid CSV.
    """
    csv.field_size_limit(2**31 - 1)  # the default refuses a cell of more than 131,072 characters
    first = _NAMED_SEPARATOR.match(text)
    text, skipped = (text[first.end() :], 1) if first else (text, 0)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=first[1] if first else _separator(text), strict=True)
    try:
        yield from ((rows.line_num + skipped, cells) for cells in rows if cells)
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num + skipped}: is not valid CSV ({error})") from error


def _separator(text: str) -> str:
    """The separator that gives the most rows as many cells as the first row has, and of several the one with most."""

    def fits(separator: str) -> tuple[float, int]:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            counts = [len(row) for row in islice(filter(None, rows), _SAMPLE)]
        except csv.Error:
            return 0, 0
        if not counts or counts[0] < 2:
            return 0, 0
        return Counter(counts)[counts[0]] / len(counts), counts[0]

    best = max(_SEPARATORS, key=fits)
    return best if fits(best) > (0, 0) else "\x1f"  # one column: nothing separates


def _told_apart(columns: Iterable[str]) -> list[str]:
    """Column names, each once: `name (2)`, and `column 3` for one without a name."""
    names: list[str] = []
    for place, column in enumerate(columns, 1):
        column = column.strip() or f"column {place}"
        name, number = column, 2
        while name in names:
            name, number = f"{column} ({number})", number + 1
        names.append(name)
    return names
