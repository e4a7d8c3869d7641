"""Words of a command line -> arguments: flags, a YAML or JSON file, and the spellings of earlier days.

The arguments of training go through transformers' HfArgumentParser, which takes seconds to import; those of the other
commands through argparse alone, from the same dataclasses.
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

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
TRAINING_USAGE = """groundtune {method} --model_name_or_path MODEL --train_file FILE --eval_file FILE
       --full_dataset_file_path FILE --embedding_model MODEL --output_dir FOLDER [--FLAG VALUE ...]
       groundtune {method} --config FILE.yaml [--FLAG VALUE ...]      flags after the file win
       groundtune {method} FILE.json                                  all arguments from one file"""
HELP_WIDTH = 110  # of the help, whatever the terminal's: that of the training commands is generated once

logger = logging.getLogger(__name__)


def parse_arguments(method: str, argv: Sequence[str]) -> Arguments:
    """Flags, `--config FILE.yaml` or one `FILE.json` -> Arguments. `-h` prints every argument and exits.

    Raises `DataError` with every unknown flag and bad value.
    """
    parser = training_parser(method)
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


def training_parser(method: str) -> Any:
    """The parser of `groundtune sft` or `swr`, with every argument of `transformers.TrainingArguments`."""
    from transformers import HfArgumentParser

    from groundtune.trainer import QATrainingArguments

    parser = HfArgumentParser(
        [*GROUPS, QATrainingArguments],
        prog=f"groundtune {method}",
        usage=TRAINING_USAGE.format(method=method),
        formatter_class=partial(_Formatter, width=HELP_WIDTH, max_help_position=34),
        allow_abbrev=False,
    )
    parser.error = _bad_value  # argparse's own prints two hundred lines of usage first
    return parser


class _Formatter(argparse.HelpFormatter):
    """One spelling of each flag, its kind of value, and its default where there is one to speak of."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.dest == "help":
            return super()._format_action_invocation(action)
        spelling = next((s for s in action.option_strings if "-" not in s[2:]), action.option_strings[-1])
        if action.choices or action.nargs == 0:
            value = "" if action.nargs == 0 else "{" + ",".join(map(str, action.choices)) + "}"
        else:
            value = "[true|false]" if action.nargs == "?" else "VALUE ..." if action.nargs == "+" else "VALUE"
        return f"{spelling} {value}".strip()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        speaks_of_it = "efault" in (action.help or "") or action.default in (None, "", argparse.SUPPRESS, [])
        return action.help if speaks_of_it or not action.option_strings else f"{action.help} (default: %(default)s)"


def light_parser(prog: str, usage: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """An argparse parser whose errors are `DataError`s; see `add_group` and `given`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=HELP_WIDTH, max_help_position=34),
    )
    parser.error = _bad_value  # argparse's own prints the whole usage first
    return parser


def add_group(
    parser: argparse.ArgumentParser, group: type, names: Sequence[str], helps: Mapping[str, str] | None = None
) -> None:
    """Those fields of an argument group as flags, absent from the result unless given.

    `helps` has the text of those that mean something else here than in training.
    """
    section = parser.add_argument_group(group._argument_group_name)
    for field in fields(group):
        if field.name in names:
            text = (helps or {}).get(field.name) or _help_with_default(field)
            section.add_argument(f"--{field.name}", help=text, **_argparse_options(field))


def given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The arguments that a command line, or the file of its `--config`, names; `-h` prints them all and exits.

    Raises `DataError` with every unknown flag, or with the first bad value.
    """
    known = {flag for action in parser._actions for flag in action.option_strings}
    namespace, unknown = parser.parse_known_args(_spelt_as_today(_expand_files(argv), known))
    if unknown:
        raise DataError(_unknown_flags(unknown, parser))
    return vars(namespace)


def filled(group: type, values: Mapping[str, Any]) -> Any:
    """An argument group with those of `values` that are its fields; the others keep their defaults."""
    return group(**{field.name: values[field.name] for field in fields(group) if field.name in values})


def _argparse_options(field: Any) -> dict[str, Any]:
    """What HfArgumentParser makes of the few types that our own groups have."""
    kind = field.type.removesuffix(" | None")
    if kind == "bool":
        return {"type": _true_or_false, "nargs": "?", "const": True, "metavar": "true|false"}
    if kind == "list[str]":
        return {"nargs": "+", "metavar": "NAME"}
    choices = field.metadata.get("choices")
    options = {"type": {"str": str, "int": int, "float": float}[kind]}
    return (
        {**options, "choices": choices}
        if choices
        else {**options, "metavar": {"str": "TEXT", "int": "N", "float": "X"}[kind]}
    )


def _help_with_default(field: Any) -> str:
    default = field.default_factory() if field.default is MISSING else field.default
    if default in (None, ""):
        return field.metadata["help"]
    shown = " ".join(default) if isinstance(default, list) else default
    return f"{field.metadata['help']} (default: {str(shown).lower() if isinstance(shown, bool) else shown})"


def _true_or_false(text: str) -> bool:
    if text.lower() in ("true", "yes", "1", "t", "y"):
        return True
    if text.lower() in ("false", "no", "0", "f", "n"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


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
