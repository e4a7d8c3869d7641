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
from groundtune.files import DataError

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
    "overwrite_output_dir",
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
    if command == "demo":
        return demo_command(rest)
    if command in ("documents", "convert", "questions"):
        return data_command(command, rest)
    parser = argparse.ArgumentParser(prog="groundtune", description=groundtune.__doc__)
    parser.add_argument("--version", action="version", version=f"groundtune {groundtune.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    parser.parse_args(argv or ["--help"])
    return 0


COMMANDS = {
    "documents": "cut a folder of files into passages: the document database",
    "questions": "let an LLM write questions and answers on your documents, with gates",
    "convert": "turn SQuAD, BEIR, chats and other published data into examples and documents, and back",
    "sft": "train on gold passages, and compare with the untouched model end to end",
    "swr": "train on gold and retrieved passages, and compare with the untouched model end to end",
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


def data_command(command: str, argv: Sequence[str]) -> int:
    """Make documents, or examples, from what the user has."""
    from importlib import import_module

    _set_up_logging()
    try:
        return import_module(f"groundtune.commands.{command}").main(argv)
    except DataError as error:
        return _refuse([str(error)])
    except OSError as error:
        return _refuse([f"{error.filename or command}: {error.strerror or error}; check the path and the free space"])


def train_command(method: str, argv: Sequence[str]) -> int:
    """Parse, train, print the table; problems go to standard error, one a line."""
    _set_up_logging()
    try:
        arguments = parse_arguments(method, argv)
    except DataError as error:
        return _refuse(error.problems)

    from groundtune.loss import NonFiniteLoss
    from groundtune.models import ModelError
    from groundtune.train import train

    try:
        results = train(arguments)
    except DataError as error:
        return _refuse(error.problems)
    except ModelError as error:
        return _refuse([str(error)])
    except NonFiniteLoss as error:
        print(error, file=sys.stderr)
        return 1

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
    argv = _spelt_as_today(_expand_files(argv), {flag for a in parser._actions for flag in a.option_strings})
    try:
        *groups, training, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except (ValueError, ImportError) as error:
        raise DataError([f"arguments: {error}"]) from error
    if unknown:
        raise DataError(_unknown_flags(unknown, parser))
    names = ("data", "retrieval", "prompt", "model", "evaluation", "logger")
    arguments = Arguments(method=method, training=training, **dict(zip(names, groups, strict=True)))
    if training.learning_rate is None:
        training.learning_rate = 2e-4 if arguments.model.use_peft else 2e-5
    if arguments.logger.run_group:
        os.environ.setdefault("WANDB_RUN_GROUP", arguments.logger.run_group)
    return arguments


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


def _expand_files(argv: Sequence[str]) -> list[str]:
    """One argument that ends in .json, or `--config FILE`, becomes the flags it holds; other flags follow and win."""
    argv = list(argv)
    if len(argv) == 1 and argv[0].endswith(".json") and not argv[0].startswith("-"):
        return _flags_of(argv[0])
    from_files: list[str] = []
    while any(a == "--config" or a.startswith("--config=") for a in argv):
        i = next(i for i, a in enumerate(argv) if a == "--config" or a.startswith("--config="))
        if "=" in argv[i]:
            path, width = argv[i].partition("=")[2], 1
        elif i + 1 < len(argv):
            path, width = argv[i + 1], 2
        else:
            raise DataError(["--config: missing; name a YAML or JSON file"])
        from_files += _flags_of(path)
        del argv[i : i + width]
    return from_files + argv


def _flags_of(path: str) -> list[str]:
    import yaml

    try:
        text = Path(path).read_text("utf-8")
        values = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except OSError as error:
        raise DataError([f"{path}: {error.strerror or error}; name a YAML or JSON file of arguments"]) from error
    except (ValueError, yaml.YAMLError) as error:
        raise DataError([f"{path}: not valid: {' '.join(str(error).split())}"]) from error
    if not isinstance(values, dict):
        raise DataError([f"{path}: holds {type(values).__name__}; it must map argument names to values"])
    return [word for name, value in values.items() if value is not None for word in _flag(name, value)]


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    # One word, so that a value may begin with a dash; numbers as YAML 1.1 reads them ("1e-4" is a string to it).
    return [f"--{name}={json.dumps(value) if isinstance(value, dict | bool) else value}"]


def _spelt_as_today(argv: Sequence[str], known: set[str]) -> list[str]:
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
            logger.info("--%s is called --%s today", name, RENAMED[name])
            today.append(f"--{RENAMED[name]}{equals}{value}")
        elif name in WITHOUT_EFFECT:
            logger.warning("--%s has no effect any more and is ignored", name)
            skipping = True
        else:
            today.append(word)
    return today


def _unknown_flags(words: Sequence[str], parser: Any) -> list[str]:
    known = [flag for action in parser._actions for flag in action.option_strings]
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
