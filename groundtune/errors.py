"""What a user can solve: all that is wrong, one line each, with the ways out; exit status 2."""

from __future__ import annotations


class DataError(Exception):
    """What is wrong with a file, all of it: `problems`, one line each. As a string, the first 20 of them."""

    def __init__(self, problems: list[str]) -> None:
        # One file given twice (as eval and as test, say) is wrong only once.
        self.problems = list(dict.fromkeys(problems))
        super().__init__(self.problems)

    def __str__(self) -> str:
        more = len(self.problems) - 20
        return "\n".join(self.problems[:20] + ([f"... and {more} more"] if more > 0 else []))


class ModelError(DataError):
    """The model cannot be loaded as asked for; the message says why and what to do."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])
