"""What the commands that make data share: a parser that is brief about errors, a bar, and how a table is shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from groundtune.files import DataError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of a screen of usage."""

    def __init__(self, command: str, description: str, example: str) -> None:
        super().__init__(
            prog=f"groundtune {command}",
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise DataError([f"{message.removeprefix('argument ')}; {self.prog} -h shows every argument"])


@contextmanager
def progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A function that is told a stage, how much of it is done and how much there is (None: not known).

    It draws a bar with the time left for each stage, on standard error and only where that is a terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        stages: dict[str, Any] = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in stages:
                stages[stage] = bar.add_task(stage)
            bar.update(stages[stage], completed=done, total=total)

        yield report


def show(table: Any, notes: Sequence[str]) -> None:
    from rich.console import Console

    console = Console()
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
