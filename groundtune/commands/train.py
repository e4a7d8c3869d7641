"""`groundtune sft`, `groundtune swr` and `groundtune demo`: train, then print the table."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from groundtune.commands.training_help import training_help
from groundtune.parsing import parse_arguments


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
    """Parse, train, print the table; 1 if the loss was not finite."""
    if "-h" in argv or "--help" in argv:
        print(training_help(method))
        return 0
    arguments = parse_arguments(method, argv)

    from rich.console import Console

    from groundtune.loss import NonFiniteLoss
    from groundtune.report import summary_table
    from groundtune.train import train

    try:
        results = train(arguments)
    except NonFiniteLoss as error:
        print(error, file=sys.stderr)
        return 1
    console = Console()
    console.print(summary_table(results))
    console.print(results.verdict, highlight=False)
    console.print(f"Report: {Path(arguments.training.output_dir) / 'report.html'}", highlight=False)
    return 0
