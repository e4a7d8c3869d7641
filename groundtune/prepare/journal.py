"""A file to which every finished piece of work is appended, so that a stopped run can resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from groundtune.errors import DataError
from groundtune.system.durable import disk_errors
from groundtune.system.outputs import in_place_of, inside, no_follow
from groundtune.system.text import one_line, to_json

Row = dict[str, Any]


class Journal:
    """Rows in the order in which they were finished; the first line contains the settings that they were made with.

    An incomplete last line, left by a killed run, is dropped when the next row is added; until then, the file is only
    read. Raises `DataError` if the file is anything but a journal made with these settings: `wrong_with` says what is
    wrong with a row, "" if nothing is.
    """

    def __init__(self, path: Path, settings: Row, wrong_with: Callable[[Row], str], flag: str = "output_dir") -> None:
        self._another = f"name another --{flag}"  # the way out of every problem
        self.path = inside(path.parent, path.name)
        self.rows: list[Row] = []
        self._end = 0  # of the rows in the file, in bytes; 0: there is no journal yet
        self._unwritten: list[Row] = [{"settings": settings}]  # the file is created with the first row
        if os.path.lexists(path) and (data := self._bytes()):
            self._understand(data, settings, wrong_with)

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows; they are synced to disk when this returns. Raises `DiskError`."""
        rows = list(rows)
        if rows:
            with disk_errors(self.path, hint="; its contents are kept: free some space and run the same command again"):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._write(b"".join(_line(row) for row in self._unwritten + rows))
            self._unwritten = []
            self.rows += rows

    def _bytes(self) -> bytes:
        if not os.path.isfile(self.path):
            raise DataError([f"{self.path}: is not a regular file; {self._another}, or move the file away"])
        try:
            with open(self.path, "rb", opener=no_follow) as file:
                return file.read()
        except OSError as error:
            raise DataError(
                [f"{self.path}: cannot be read ({error.strerror}); {self._another}, or move the file away"]
            ) from error

    def _understand(self, data: bytes, settings: Row, wrong_with: Callable[[Row], str]) -> None:
        whole, newline, rest = data.rpartition(b"\n")
        first, *lines = whole.split(b"\n") if newline else [data]
        try:
            header = _parsed(first) if newline else {}
        except ValueError:
            header = {}
        made_with = header.get("settings")
        if not isinstance(made_with, dict) or len(header) > 1:
            problem = f"{self.path}: is not a journal of this command: its first line holds no settings"
            raise DataError([f"{problem}; {self._another}, or move the file away"])
        if changed := [name for name, value in settings.items() if made_with.get(name) != value]:
            was = {name: one_line(made_with.get(name), 80) for name in changed}
            what = ", ".join(f"{name} was {was[name]}, now {settings[name]}" for name in changed)
            raise DataError(
                [f"{self.path}: was made with other settings: {what}; {self._another}, or move the file away"]
            )
        self.rows = [self._row(line, number, wrong_with) for number, line in enumerate(lines, 2)]
        self._end, self._unwritten = len(whole) + 1, []
        if rest and not _is_cut(rest):  # a row whose line feed is missing: some editors remove it
            self._unwritten = [self._row(rest, len(lines) + 2, wrong_with)]
            self.rows += self._unwritten

    def _row(self, line: bytes, number: int, wrong_with: Callable[[Row], str]) -> Row:
        try:
            row = _parsed(line)
            wrong = wrong_with(row)
        except ValueError as error:
            wrong = f"damaged ({one_line(error, 200)})"
        if wrong:
            raise DataError([f"{self.path}:{number}: {wrong}; delete the line, or {self._another}"])
        return row

    def _write(self, lines: bytes) -> None:
        if not self._end:  # complete or not at all, so that a file without a first line is never a journal
            with in_place_of(self.path) as new:
                new.write(lines)
            self._end = len(lines)
            return
        with open(self.path, "rb+", opener=no_follow) as file:
            file.truncate(self._end)
            file.seek(self._end)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(lines)


def _line(row: Row) -> bytes:
    return to_json(row).encode("utf-8", "replace") + b"\n"


def _parsed(line: bytes) -> Row:
    """The object in a line. Raises ValueError for anything else."""
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object")
    return row


def _is_cut(line: bytes) -> bool:
    """Whether a last line without a line feed is the beginning of a row."""
    try:
        return not _parsed(line)
    except ValueError:
        return line.startswith(b"{")
