"""Shared terminal code of the commands: parser, --quiet and --json, progress bars, tables.

Everything that a command prints passes through here. Texts may come from files, models and servers, so characters that
could write on the terminal are escaped, and rich interprets no markup in them.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from groundtune.commands.parsing import light_parser
from groundtune.system.progress import Lines
from groundtune.system.text import harmless_code, harmless_line, json_to_print

if TYPE_CHECKING:
    from groundtune.evaluation.comparison import Comparison
    from groundtune.evaluation.requirements import Checked


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--json`."""
    section = parser.add_argument_group("output")
    for flag, text in (
        ("--quiet", "Print only results and problems, no progress or notes."),
        ("--json", "Print the result as one JSON object on standard output, and nothing else."),
    ):
        section.add_argument(flag, action="store_true", default=False, help=text)


def data_parser(command: str, usage: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of a command that writes data; arguments that are not given are None."""
    parser = light_parser(f"groundtune {command}", usage, description, f"example:\n  {example}")
    parser.argument_default = None
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file of arguments; flags after it override it")
    return parser


def be_quiet() -> None:
    """Hide notes and progress bars; warnings are still shown."""
    logging.getLogger("groundtune").setLevel(logging.WARNING)
    if "transformers" in sys.modules:
        from transformers.utils import logging as of_transformers

        of_transformers.disable_progress_bar()


@contextmanager
def prints_elsewhere(to_standard_error: bool) -> Iterator[None]:
    """Redirect output of libraries and trackers to standard error, so that standard output has only the JSON object."""
    with redirect_stdout(sys.stderr) if to_standard_error else nullcontext():
        yield


def say(*lines: object) -> None:
    """Print lines on standard output."""
    for line in lines:
        print(harmless_line(str(line)), flush=True)


def complain(*lines: object) -> None:
    """Print lines on standard error."""
    for line in lines:
        print(harmless_line(str(line)), file=sys.stderr)


def tell(checked: Sequence[Checked], quiet: bool = False) -> int:
    """Print what came of each condition, failures on standard error; returns the exit status, 1 if any failed."""
    for one in checked:
        if not one.passed:
            complain(one)
        elif not quiet:
            say(one)
    return int(not all(one.passed for one in checked))


def say_text(text: str, end: str = "\n") -> None:
    """Print a text of several lines, or a part of one as it arrives."""
    print(harmless_code(text), end=end, flush=True)


def say_json(content: object, indent: int | None = 2) -> None:
    """Print one JSON object."""
    print(json_to_print(content, indent=indent), flush=True)


def say_table(table: Any) -> None:
    """Print a table."""
    from rich.console import Console

    Console().print(table)


def show(summary: Mapping[str, Any], table: Any, notes: Sequence[str], arguments: argparse.Namespace) -> None:
    """Print the result of a command that writes data: a table and notes, only notes (--quiet), or JSON."""
    if arguments.json:
        say_json({**summary, "notes": list(notes)})
        return
    if not arguments.quiet:
        say_table(table)
    say(*notes)


def print_comparison(comparison: Comparison) -> None:
    """Print the table, a sentence for each system, the outcomes, and failures."""
    from rich.console import Console

    from groundtune.reporting.comparison_page import comparison_table, failures, outcomes_table
    from groundtune.system.tables import literal

    say_table(comparison_table(comparison))
    say(*map(comparison.verdict, comparison.others))
    if (outcomes := outcomes_table(comparison)) is not None:
        say_table(outcomes)
    if comparison.alike:
        say(comparison.alike)
    for line in failures(comparison):
        Console().print(literal(line, "yellow"))


class Bars:
    """Progress on standard error, one bar with the time left per stage; in a log file, a line every 30 seconds."""

    def __init__(self, shown: bool) -> None:
        from rich import progress as rich
        from rich.console import Console

        columns = (
            rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn(),
        )  # fmt: skip
        console = Console(stderr=True)
        self.shown, drawn = shown, shown and console.is_terminal
        self.live = rich.Progress(*columns, console=console, transient=True, disable=not drawn)
        self.tasks: dict[str, Any] = {}
        self.lines: dict[str, Lines] = {}

    def begin(self, what: str, total: int | None) -> Callable[[int], None]:
        """Start a bar; returns a function to call with the number of newly finished items."""
        self.at(what, 0, total)

        def advance(done: int) -> None:
            self.live.advance(self.tasks[what], done)
            self.lines[what].update(done)

        return advance

    def at(self, what: str, done: int, total: int | None) -> None:
        """Set a bar to `done` items, of `total` if that is known."""
        if what not in self.tasks:
            self.tasks[what] = self.live.add_task(harmless_line(what), total=total)
            self.lines[what] = Lines(what, total, hidden=not (self.shown and self.live.disable), initial=done)
        self.live.update(self.tasks[what], completed=done, total=total)
        self.lines[what].at(done, total)


@contextmanager
def progress(quiet: bool) -> Iterator[Bars]:
    """Progress bars, shown while the block runs."""
    bars = Bars(not quiet)
    with bars.live:
        yield bars
