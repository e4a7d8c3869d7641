"""`groundtune sft`, `groundtune swr` and `groundtune demo`: train, then print the table."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from groundtune.commands.parsing import at_their_lines, parse_arguments
from groundtune.commands.training_help import training_help
from groundtune.durable import disk_errors
from groundtune.files import DataError
from groundtune.signals import Stopped, watched


def sft(argv: Sequence[str]) -> int:
    """Train on gold passages."""
    return _train("sft", argv)


def swr(argv: Sequence[str]) -> int:
    """Train on gold and retrieved passages."""
    return _train("swr", argv)


def demo(argv: Sequence[str]) -> int:
    """Make the demo's data, unpack its models, and train."""
    from groundtune.demo import DESCRIPTION, prepare

    parser = argparse.ArgumentParser(prog="groundtune demo", description=DESCRIPTION)
    parser.add_argument(
        "--output_dir", default="runs/demo", help="where data, model and report go (default: runs/demo)"
    )
    flags = prepare(Path(parser.parse_args(argv).output_dir))
    print(f"groundtune swr {shlex.join(flags)}", flush=True)
    return _train("swr", flags)


def _train(method: str, argv: Sequence[str]) -> int:
    """Train and print the table: 0, or 1 if the training diverged, 143 and 130 after SIGTERM and SIGINT."""
    if {"-h", "--help"} & set(argv):
        print(training_help(method))
        return 0
    try:
        with watched():
            return _run(method, argv)
    except DataError as error:
        raise DataError(at_their_lines(error.problems, argv)) from error
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from the last checkpoint", file=sys.stderr)
        return stopped.exit_status


def _run(method: str, argv: Sequence[str]) -> int:
    arguments = parse_arguments(method, argv)

    from groundtune.loss import NonFiniteLoss
    from groundtune.resume import AlreadyFinished
    from groundtune.train import train

    try:
        with disk_errors(arguments.training.output_dir):
            results = train(arguments)
    except NonFiniteLoss as error:
        print(error, file=sys.stderr)
        return 1
    except AlreadyFinished as finished:
        print(finished)
        return 0

    from rich.console import Console

    from groundtune.reporting.report import summary_table

    console = Console()
    console.print(summary_table(results))
    console.print(results.verdict, highlight=False)
    console.print(f"Report: {Path(arguments.training.output_dir) / 'report.html'}", highlight=False)
    return 0
