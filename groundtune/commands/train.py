"""`groundtune sft`, `groundtune swr` and `groundtune demo`: train, then print the table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from groundtune.arguments import GOLD_FIRST, OutputArguments
from groundtune.commands.parsing import at_their_lines, light_parser, parse_arguments
from groundtune.commands.terminal import (
    add_output_flags,
    be_quiet,
    complain,
    prints_elsewhere,
    say,
    say_json,
    say_table,
    say_text,
)
from groundtune.commands.training_help import training_help
from groundtune.data.files import write_text
from groundtune.errors import DataError
from groundtune.methods import METHODS
from groundtune.system.durable import disk_errors
from groundtune.system.signals import Stopped, watched
from groundtune.system.text import as_json

if TYPE_CHECKING:
    from groundtune.reporting.results import Results
    from groundtune.training.arguments import RunArguments


T = TypeVar("T")


def train_by(argv: Sequence[str]) -> int:
    """Train with the method named by the first word of `argv`."""
    return _train(argv[0], argv[1:])


# Defaults of the two historical scripts: as in LocalRQA, whatever `groundtune sft` and `swr` learn to do better.
LOCALRQA_DEFAULTS = {"retriever": "dense", "query_history": "none", "passage_order": GOLD_FIRST}


def train_as_localrqa(argv: Sequence[str]) -> int:
    """Train with the method named by the first word of `argv`, with the defaults of the historical scripts."""
    return _train(argv[0], argv[1:], LOCALRQA_DEFAULTS)


def demo(argv: Sequence[str]) -> int:
    """Write the demo's data, unpack its models, and train."""
    from groundtune.demo import DECODER, DESCRIPTION, METHOD, link_models, prepare

    example = "example: groundtune demo --output_dir runs/demo"
    parser = light_parser("groundtune demo", "[--FLAG VALUE ...]", DESCRIPTION, example)
    parser.argument_default = None
    parser.add_argument(
        "-o", "--output_dir", default="runs/demo", help="folder for data, model and report (default: runs/demo)"
    )
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help=f"only unpack the two models, to DIR/{DECODER} and DIR/minilm"
    )
    add_output_flags(parser)
    arguments = parser.parse_args(argv)
    if arguments.models:
        with prints_elsewhere(arguments.json):
            models = link_models(arguments.models)
        if arguments.json:
            say_json({"models": list(map(str, models))}, indent=None)
        else:
            say(*models)
        return 0
    with prints_elsewhere(arguments.json):
        with disk_errors(arguments.output_dir):
            flags = prepare(Path(arguments.output_dir))
        if not arguments.quiet:
            say(f"groundtune {METHOD} {shlex.join(flags)}")
    return _train(METHOD, [*flags, f"--quiet={arguments.quiet}", f"--json={arguments.json}"])


def _train(method: str, argv: Sequence[str], defaults: Mapping[str, Any] | None = None) -> int:
    """Train and print the table; returns 0, 1 if the training diverged, 143 after SIGTERM, or 130 after SIGINT."""
    if {"-h", "--help"} & set(argv):
        say_text(training_help(method))
        for whose, theirs in ((method, METHODS[method].defaults), ("this script", defaults)):
            if theirs:
                say_text(f"\ndefaults of {whose}: {', '.join(f'--{n} {_as_words(v)}' for n, v in theirs.items())}")
        return 0
    try:
        return until_stopped(lambda: _run(method, argv, defaults))
    except DataError as error:
        raise DataError(at_their_lines(error.problems, argv)) from error


def until_stopped(run: Callable[[], int]) -> int:
    """The exit status of a training command: that of `run`, or of the signal that has stopped it."""
    try:
        with watched():
            return run()
    except Stopped as stopped:
        complain(f"{stopped}; the same command resumes from the last checkpoint")
        return stopped.exit_status


def trained(
    train: Callable[[], T],
    show: Callable[[T | None], int],
    output: OutputArguments,
    folder: str,
    main_process: bool = True,
) -> int:
    """What `show` returns for the results of `train`, or for None if the run had finished before; 1 if it diverged."""
    from groundtune.runs.resume import AlreadyFinished
    from groundtune.training.safe_trainer import NonFiniteLoss

    if output.quiet or output.json or not main_process:
        be_quiet()
    results = None
    try:
        # Always: a reader of the results that has gone, such as `head`, is no reason to stop training.
        with prints_elsewhere(True), disk_errors(folder):
            results = train()
    except NonFiniteLoss as error:
        complain(error)
        return 1
    except AlreadyFinished as finished:
        if main_process and not output.quiet:
            (complain if output.json else say)(finished)
    return show(results) if main_process else 0


def _as_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _run(method: str, argv: Sequence[str], defaults: Mapping[str, Any] | None) -> int:
    arguments = parse_arguments(method, argv, defaults=defaults)

    from groundtune.recipes.train import train

    training = arguments.training
    main_process = training.process_index == 0
    return trained(
        lambda: train(arguments),
        lambda results: _shown(arguments, results),
        arguments.output,
        training.output_dir,
        main_process,
    )


def _shown(arguments: RunArguments, results: Results | None) -> int:
    """Print the results of a run, or its address and metrics alone if it had finished before; 4 if it is not pushed."""
    from groundtune.runs.hub import NotPushed

    output = arguments.output
    if results is not None and not output.json:
        _print_results(results, arguments)
    address, status = "", 0
    with prints_elsewhere(output.json):
        try:
            address = pushed(arguments)
        except NotPushed as error:
            complain(error)
            status = 4
        if address and not output.quiet:
            say(f"Pushed: {address}")
    if output.json:
        _print_json(Path(arguments.training.output_dir), address, results)
    return status


def pushed(arguments: RunArguments) -> str:
    """Push a finished run if --push_to_hub is set; returns its address on the hub, or "". Raises `NotPushed`."""
    training = arguments.training
    if not training.push_to_hub:
        return ""

    from groundtune.runs.hub import Hub

    folder = Path(training.output_dir)
    return Hub(training).push(folder, arguments.output.push_report, lambda name: _name_on_card(folder, name))


def _name_on_card(folder: Path, name: str) -> None:
    """Add the run's hub name to card and record: the run may have ended before the name was known."""
    from groundtune.reporting.card import published_as
    from groundtune.runs.remembered import record_own_run

    record, card = (folder / file for file in ("run.json", "README.md"))
    run = json.loads(record.read_text("utf-8"))
    if run.get("hub_repository") != name and card.is_file():
        write_text(card, published_as(name, card.read_text("utf-8"), run))
        run["hub_repository"] = name
        write_text(record, as_json(run))
        record_own_run(folder, run["arguments"]["data"]["full_dataset_index_path"])


def _print_results(results: Results, arguments: RunArguments) -> None:
    from groundtune.reporting.report import run_steps, summary_table

    say_table(summary_table(results))
    say(results.verdict)
    if not arguments.output.quiet:
        folder = arguments.training.output_dir
        say(*run_steps(results), f"Report: {Path(folder) / 'report.html'}")


def _print_json(output_dir: Path, pushed: str, results: Results | None) -> None:
    """Print metrics.json without its history, what comes next, the paths of the run, and its hub address if pushed."""
    from groundtune.reporting.report import read_results, run_steps

    metrics = json.loads((output_dir / "metrics.json").read_text("utf-8"))
    del metrics["history"]
    where = {"output_dir": str(output_dir), "report": str(output_dir / "report.html")}
    steps = map(str, run_steps(results or read_results(output_dir)))
    say_json({**metrics, "next": list(steps), **where, **({"pushed": pushed} if pushed else {})})
