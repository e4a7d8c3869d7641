"""Errors that a user can fix: every problem on one line, with what to do about it; exit status 2."""

from __future__ import annotations


class DataError(Exception):
    """All `problems` with a file or with arguments, one line each. `str` shows the first 20."""

    def __init__(self, problems: list[str]) -> None:
        # A file given twice, for example as eval and as test file, is reported once.
        self.problems = list(dict.fromkeys(problems))
        super().__init__(self.problems)

    def __str__(self) -> str:
        more = len(self.problems) - 20
        return "\n".join(self.problems[:20] + ([f"... and {more} more"] if more > 0 else []))


class ModelError(DataError):
    """The model cannot be loaded as requested; the message says why and what to do."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])
