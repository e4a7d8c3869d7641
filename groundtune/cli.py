"""The command `groundtune` and its arguments: flags, a YAML or JSON file, and the spellings of earlier days."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import groundtune
from groundtune.arguments import GROUPS, Arguments
from groundtune.config import read_config, split_files
from groundtune.durable import DiskError, disk_errors
from groundtune.files import DataError
from groundtune.signals import Stopped, watched

# Flags as they were once spelt -> today's. A share of the steps and a number of steps are one flag today.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "torch_dtype": "dtype",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "xpu_backend": "ddp_backend",
}
# Flags that once did something and now have nothing to do: accepted, with a line that says so.
WITHOUT_EFFECT = (
    "group_by_length",
    "logging_dir",
    "save_safetensors",
    "include_inputs_for_metrics",
    "include_tokens_per_second",
    "fp16_backend",
    "half_precision_backend",
    "fp16_opt_level",
    "use_ipex",
    "jit_mode_eval",
    "past_index",
    "mp_parameters",
    "ray_scope",
    "tpu_num_cores",
    "tpu_metrics_debug",
    "use_mps_device",
    "dispatch_batches",
    "split_batches",
    "use_legacy_prediction_loop",
    "adafactor",
)

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `groundtune COMMAND ...`; returns 0, 1 if training had to stop, 2 for a problem that the user can solve."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in ("sft", "swr"):
        return train_command(command, rest)
    if command == "doctor":
        return doctor_command(rest)
    if command == "demo":
        return demo_command(rest)
    parser = argparse.ArgumentParser(prog="groundtune", description=groundtune.__doc__)
    parser.add_argument("--version", action="version", version=f"groundtune {groundtune.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    parser.parse_args(argv or ["--help"])
    return 0


COMMANDS = {
    "sft": "train on gold passages, and compare with the untouched model end to end",
    "swr": "train on gold and retrieved passages, and compare with the untouched model end to end",
    "doctor": "all that is wrong with the data of an sft or swr command, without loading a model",
    "demo": "the whole road with a small model, on the Python language reference; needs no hub",
}


def demo_command(argv: Sequence[str]) -> int:
    """Make the demo's data, unpack its models, and train."""
    from groundtune import demo

    parser = argparse.ArgumentParser(prog="groundtune demo", description=demo.DESCRIPTION)
    parser.add_argument(
        "--output_dir", default="runs/demo", help="where data, model and report go (default: runs/demo)"
    )
    folder = parser.parse_args(argv).output_dir
    try:
        flags = demo.prepare(Path(folder))
    except DataError as error:
        return _refuse(error.problems)
    print(f"groundtune swr {shlex.join(flags)}", flush=True)
    return train_command("swr", flags)


DOCTOR = """usage: groundtune doctor [sft|swr] [--json] FLAGS

Everything that is wrong or suspicious in the data, at once, before anything slow. FLAGS are those of `groundtune sft`
and `groundtune swr`, any of them: put `doctor` before the method in the command that you are about to run. Text is
checked in whichever files are named; tokens too if --model_name_or_path is, and what retrieval cannot read if
--embedding_model is. Tokenizers are loaded, weights are not.

--json  one JSON object instead of text: errors, warnings, findings, token_table, row

Exit status: 0 if nothing is wrong (there may be warnings), 2 if something is."""


def doctor_command(argv: Sequence[str]) -> int:
    """Print the token table, one row and every finding; returns 2 if an error is among them, else 0."""
    if {"-h", "--help"} & set(argv):
        print(DOCTOR)
        return 0
    _set_up_logging()
    method, flags = (argv[0], argv[1:]) if argv and argv[0] in ("sft", "swr") else ("sft", argv)
    flags = [word for word in flags if word != "--json"]
    try:
        arguments = parse_arguments(method, flags)
    except DataError as error:
        return _refuse(_at_their_lines(error.problems, flags))
    if problems := arguments.check(complete=False):
        return _refuse(_at_their_lines(problems, flags))

    from groundtune.doctor import diagnose, shown

    diagnosis = diagnose(arguments)
    if "--json" in argv:
        print(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        print(shown(diagnosis))
    return 2 if diagnosis.errors else 0


def train_command(method: str, argv: Sequence[str]) -> int:
    """Parse, train, print the table; problems go to standard error, one a line.

    Returns 0, or 1 if the training diverged, 2 for what the user can solve, 3 if the disk is full or fails, 143 and 130
    after SIGTERM and SIGINT.
    """
    _set_up_logging()
    try:
        with watched():
            return _train_command(method, argv)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from the last checkpoint", file=sys.stderr)
        return stopped.exit_status


def _train_command(method: str, argv: Sequence[str]) -> int:
    try:
        arguments = parse_arguments(method, argv)
    except DataError as error:
        return _refuse(_at_their_lines(error.problems, argv))

    from groundtune.loss import NonFiniteLoss
    from groundtune.models import ModelError
    from groundtune.resume import AlreadyFinished
    from groundtune.train import train

    try:
        with disk_errors(arguments.training.output_dir):
            results = train(arguments)
    except DataError as error:
        return _refuse(_at_their_lines(error.problems, argv))
    except ModelError as error:
        return _refuse(_at_their_lines([str(error)], argv))
    except NonFiniteLoss as error:
        print(error, file=sys.stderr)
        return 1
    except DiskError as error:
        print(error, file=sys.stderr)
        return 3
    except AlreadyFinished as finished:
        print(finished)
        return 0

    from rich.console import Console

    from groundtune.report import summary_table

    console = Console()
    console.print(summary_table(results))
    console.print(results.verdict, highlight=False)
    console.print(f"Report: {Path(arguments.training.output_dir) / 'report.html'}", highlight=False)
    return 0


def _refuse(problems: Sequence[str]) -> int:
    print(*problems, sep="\n", file=sys.stderr)
    return 2


def parse_arguments(method: str, argv: Sequence[str]) -> Arguments:
    """Flags, `--config FILE.yaml` or one `FILE.json` -> Arguments. `-h` prints every argument and exits.

    Raises `DataError` with every unknown flag and bad value.
    """
    parser = _parser(method)
    argv = _spelt_as_today(_expand_files(argv, parser), _flags(parser))
    try:
        *groups, training, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except (ValueError, ImportError) as error:
        raise DataError(_why_refused(argv, parser) or [f"arguments: {_one_line(error)}"]) from error
    if unknown:
        raise DataError(_unknown_flags(unknown, parser))
    names = ("data", "retrieval", "prompt", "model", "evaluation", "logger")
    arguments = Arguments(method=method, training=training, **dict(zip(names, groups, strict=True)))
    if training.learning_rate is None:
        training.learning_rate = 2e-4 if arguments.model.use_peft else 2e-5
    if arguments.logger.run_group:
        os.environ.setdefault("WANDB_RUN_GROUP", arguments.logger.run_group)
    return arguments


def _why_refused(argv: Sequence[str], parser: Any) -> list[str]:
    """Trainer's arguments object checks its values and names no flag: whichever fails by itself is one to blame."""
    problems = []
    starts = [i for i, word in enumerate(argv) if word.startswith("--")]
    for start, end in zip(starts, [*starts[1:], len(argv)]):
        try:
            parser.parse_args_into_dataclasses(argv[start:end], return_remaining_strings=True)
        except (ValueError, ImportError) as error:
            problems.append(f"{argv[start].partition('=')[0]}: {_one_line(error)}; -h describes it")
    return problems


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parser(method: str) -> Any:
    from transformers import HfArgumentParser

    from groundtune.methods import METHODS
    from groundtune.trainer import QATrainingArguments

    parser = HfArgumentParser(
        [*GROUPS, QATrainingArguments],
        prog=f"groundtune {method}",
        description=f"{METHODS[method].description}; evaluated end to end while it trains.".capitalize(),
        epilog="Instead of flags: --config FILE.yaml (flags after it win), or one FILE.json.",
        allow_abbrev=False,
    )
    parser.error = _bad_value  # argparse's own prints two hundred lines of usage first
    return parser


def _bad_value(message: str) -> NoReturn:
    raise DataError([message.removeprefix("argument ")])


def _expand_files(argv: Sequence[str], parser: Any) -> list[str]:
    """The arguments of files as flags, then the other flags, which win. Raises `DataError` with all that is wrong."""
    paths, words = split_files(argv)
    entries, problems = [], []
    for path in paths:
        try:
            entries += read_config(path)
        except DataError as error:
            problems += error.problems
    for entry in entries:
        # Each by itself: argparse would stop at the first, and not know the line.
        problems += [f"{entry.where}: {entry.name}: {problem}" for problem in _problems_of(entry.flag(), parser)]
    if problems:
        raise DataError(problems)
    return [word for entry in entries for word in entry.flag()] + words


def _problems_of(words: Sequence[str], parser: Any) -> list[str]:
    """What the parser has against one flag and its values, without its name."""
    words = _spelt_as_today(words, _flags(parser), tell=False)
    try:
        unknown = parser.parse_known_args(words)[1]
    except DataError as error:
        return [problem.partition(": ")[2] + "; -h describes it" for problem in error.problems]
    if unknown and unknown[0].startswith("-"):
        return [problem.partition(": ")[2] for problem in _unknown_flags(unknown, parser)]
    return [f"takes one value, and not {len(unknown) + 1}; -h describes it"] if unknown else []


def _flags(parser: Any) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


def _at_their_lines(problems: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Problems of flags that come from a file name its line."""
    try:
        paths, words = split_files(argv)
        entries = [entry for path in paths for entry in read_config(path)]
    except DataError:
        return list(problems)
    given = {_name_of_today(word) for word in words if word.startswith("--")}
    origins = {_name_of_today(entry.name): entry for entry in entries}
    placed = []
    for problem in problems:
        flag, _, rest = problem.partition(": ")
        name = _name_of_today(flag) if flag.startswith("--") else ""
        entry = origins.get(name) if name not in given else None
        placed.append(f"{entry.where}: {entry.name}: {rest}" if entry else problem)
    return placed


def _name_of_today(flag: str) -> str:
    name = flag.partition("=")[0].removeprefix("--").replace("-", "_")
    return RENAMED.get(name, name)


def _spelt_as_today(argv: Sequence[str], known: set[str], tell: bool = True) -> list[str]:
    """Old spellings renamed; flags that have nothing to do any more left out, each with a line in the log."""
    today: list[str] = []
    skipping = False
    for word in argv:
        if not word.startswith("--"):
            if not skipping:
                today.append(word)
            continue
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        skipping = False
        if flag in known or f"--{name}" in known:
            today.append(word)
        elif name in RENAMED:
            if tell:
                logger.info("--%s is called --%s today", name, RENAMED[name])
            today.append(f"--{RENAMED[name]}{equals}{value}")
        elif name in WITHOUT_EFFECT:
            if tell:
                logger.warning("--%s has no effect any more and is ignored", name)
            skipping = True
        else:
            today.append(word)
    return today


def _unknown_flags(words: Sequence[str], parser: Any) -> list[str]:
    known = sorted(_flags(parser))
    problems = []
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("-"):
            near = difflib.get_close_matches(flag, known, n=2)
            problems.append(f"{flag}: no such argument; " + (f"near: {', '.join(near)}" if near else "-h lists all"))
    return problems or [f"{words[0]}: not expected here; every argument is a flag, or one FILE.json"]


def _set_up_logging() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("groundtune").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own; once is enough
    # Libraries' notes to each other's developers; a user can do nothing about them.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch")


if __name__ == "__main__":
    sys.exit(main())
