"""What the commands share at the terminal: quiet, JSON and progress."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from groundtune.comparison import Comparison


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--json`."""
    section = parser.add_argument_group("output")
    for flag, text in (
        ("--quiet", "No progress and no notes; results and problems only."),
        ("--json", "The result as one JSON object on standard output, and nothing else."),
    ):
        section.add_argument(flag, action="store_true", default=False, help=text)


def be_quiet() -> None:
    """Warnings still come."""
    logging.getLogger("groundtune").setLevel(logging.WARNING)
    if "transformers" in sys.modules:
        from transformers.utils import logging as of_transformers

        of_transformers.disable_progress_bar()


def print_comparison(comparison: Comparison) -> None:
    """The table, a sentence for each system, the outcomes, and what failed."""
    from rich.console import Console

    from groundtune.comparison_page import comparison_table, failures, outcomes_table

    console = Console()
    console.print(comparison_table(comparison))
    for name in comparison.others:
        console.print(comparison.verdict(name), highlight=False, markup=False)
    if (outcomes := outcomes_table(comparison)) is not None:
        console.print(outcomes)
    for line in failures(comparison):
        console.print(line, style="yellow", markup=False)


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
