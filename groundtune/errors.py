"""Errors that a user can fix: every problem on one line, with what to do about it; exit status 2."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MANY = 5  # up to this many problems of one kind in one file get a line each


class DataError(Exception):
    """All `problems` with a file or with arguments, one line each. `str` shows the first 20 of different kinds."""

    def __init__(self, problems: list[str]) -> None:
        # A file given twice, for example as eval and as test file, is reported once.
        self.problems = list(dict.fromkeys(problems))
        super().__init__(self.problems)

    def __str__(self) -> str:
        lines = gathered(self.problems)
        more = len(lines) - 20
        return "\n".join(lines[:20] + ([f"... and {more} more"] if more > 0 else []))


class ModelError(DataError):
    """The model cannot be loaded as requested; the message says why and what to do."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


def gathered(problems: Sequence[str]) -> list[str]:
    """The problems to print: of many of one kind in one file, the first one with their number.

    Problems are of one kind if they differ only in line, numbers and quoted values.
    """
    kinds: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        kinds.setdefault(_kind(problem), []).append(problem)
    lines = []
    for problem in problems:
        same = kinds[_kind(problem)]
        if len(same) <= _MANY:
            lines.append(problem)
        elif problem is same[0]:
            lines.append(f"{problem} ({len(same):,} such problems, the last in {_place(same[-1])})")
    return lines


_PLACED = re.compile(r"(?P<place>(?P<file>.*?):\d+): (?P<what>.*)", re.DOTALL)


def _kind(problem: str) -> tuple[str, str]:
    parts = _PLACED.match(problem)
    if parts is None:
        return problem, ""
    return parts["file"], re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "", parts["what"])


def _place(problem: str) -> str:
    parts = _PLACED.match(problem)
    return parts["place"].rpartition("/")[2] if parts else ""
