"""What the commands share at the terminal: quiet, JSON and progress."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def add_output_flags(parser: argparse.ArgumentParser, json: bool = True) -> None:
    section = parser.add_argument_group("output")
    section.add_argument(
        "--quiet", action="store_true", default=False, help="No progress and no notes; results and problems only."
    )
    if json:
        section.add_argument("--json", action="store_true", default=False, help="One JSON object on standard output.")


def be_quiet() -> None:
    """Warnings still come."""
    logging.getLogger("groundtune").setLevel(logging.WARNING)
    if "transformers" in sys.modules:
        from transformers.utils import logging as of_transformers

        of_transformers.disable_progress_bar()


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """A bar with the time left for each thing that is done, on standard error.

    Gives a function (what, how many) -> a function that is told how many more are done.
    """
    if quiet:
        yield lambda what, total: lambda done: None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn(),
        rich.TextColumn("left"), rich.TimeRemainingColumn(),
    )  # fmt: skip
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:

        def begin(what: str, total: int) -> Callable[[int], None]:
            task = bars.add_task(what, total=total)
            return lambda done: bars.advance(task, done)

        yield begin
