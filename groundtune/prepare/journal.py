"""A file to which every finished piece of work is appended, so that a stopped run can resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from groundtune.errors import DataError
from groundtune.system.durable import disk_errors
from groundtune.system.outputs import inside, no_follow


class Journal:
    """Rows in the order in which they were finished; the first line contains the settings that they were made with.

    An incomplete last line, left by a killed run, is dropped. Raises `DataError` if the file was made with other
    settings, contains a damaged line, or is a link.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = inside(path.parent, path.name)
        self.rows: list[dict[str, Any]] = []
        self._unwritten = [{"settings": settings}]  # the file is created with the first row
        if path.exists():
            self._read(settings)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; they are synced to disk when this returns. Raises `DiskError`."""
        rows = list(rows)
        if rows:
            with disk_errors(self.path, hint="; its contents are kept: free some space and run the same command again"):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._append(self._unwritten + rows)
            self._unwritten = []
            self.rows += rows

    def _read(self, settings: dict[str, Any]) -> None:
        with open(self.path, "rb+", opener=no_follow) as file:
            whole = file.read().rpartition(b"\n")[0]
            file.truncate(len(whole) + 1 if whole else 0)
        rows = list(self._parsed(whole))
        if not rows:
            return
        made_with = rows[0].get("settings", {})
        changed = [name for name, value in settings.items() if made_with.get(name) != value]
        if changed:
            what = ", ".join(f"{name} was {made_with.get(name)}, now {settings[name]}" for name in changed)
            way_out = "name another --output_dir or delete it"
            raise DataError([f"{self.path}: was made with other settings: {what}; {way_out}"])
        self.rows, self._unwritten = rows[1:], []

    def _parsed(self, whole: bytes) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError([f"{self.path}:{number}: damaged ({error}); delete the line, or the file"]) from error
            yield row

    def _append(self, rows: list[dict[str, Any]]) -> None:
        with open(self.path, "ab", opener=no_follow) as file:
            file.write(b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
