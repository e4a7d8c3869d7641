"""A command line, or the keywords of a call -> arguments: from flags, YAML and JSON, including old flag names.

Training arguments are parsed by transformers' HfArgumentParser, which takes seconds to import; arguments of the other
commands by argparse alone, from the same dataclasses.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NoReturn

from groundtune.arguments import GROUPS, Arguments
from groundtune.commands.config import Entry, entries_of, read_config, split_files
from groundtune.commands.flags import HELP_WIDTH, FlagFormatter, true_or_false
from groundtune.commands.foreign_flags import ELSEWHERE, NOT_HERE
from groundtune.errors import DataError
from groundtune.methods import METHODS
from groundtune.system.guarded import require
from groundtune.system.text import one_line

if TYPE_CHECKING:
    from transformers import HfArgumentParser

    from groundtune.training.arguments import RunArguments

# Flags as they were once spelt -> today's, in each command that has the latter. A share of the steps and a number of
# steps are one flag today.
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
    "endpoint_concurrency": "concurrency",
    "index": "full_dataset_index_path",
    "output": "output_dir",
    "output_file": "output",
}
# Flags that no longer have any effect: accepted, with a warning.
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
TRAINING_USAGE = """groundtune {method} --model_name_or_path MODEL --train_file FILE --eval_file FILE
       --full_dataset_file_path FILE --embedding_model MODEL --output_dir FOLDER [--FLAG VALUE ...]
       groundtune {method} --config FILE.yaml [--FLAG VALUE ...]      flags after the file override it
       groundtune {method} FILE.json                                  all arguments from one file"""
TRAINING_EXAMPLE = """example:
  groundtune {method} --model_name_or_path Qwen/Qwen3-4B --use_peft true --embedding_model intfloat/e5-base-v2 \\
      --train_file qa/train.jsonl --eval_file qa/eval.jsonl --test_file qa/test.jsonl \\
      --full_dataset_file_path documents.jsonl --output_dir runs/my_qa_model"""


logger = logging.getLogger(__name__)


def parse_arguments(
    method: str,
    argv: Sequence[str],
    keywords: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> RunArguments:
    """Flags, `--config FILE.yaml` or one `FILE.json` -> Arguments. `-h` prints every argument and exits.

    `keywords` are arguments by name, from a call in Python; they override files. `defaults` take the place of the
    usual ones. Raises `DataError` with every unknown flag and bad value.
    """
    parser = training_parser(method)
    parser.set_defaults(**{**METHODS[method].defaults, **(defaults or {})})
    argv = _spelt_as_today(_expand_files(_in_full(argv), parser, keywords), _flags(parser))
    try:
        *groups, training, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except (ValueError, ImportError) as error:
        raise DataError(_why_refused(argv, parser) or [f"arguments: {one_line(error)}"]) from error
    if unknown:
        raise DataError(_unknown_flags(unknown, parser))
    names = ("data", "retrieval", "passages", "prompt", "model", "evaluation", "logger", "output")
    arguments = Arguments(method=method, training=training, **dict(zip(names, groups, strict=True)))
    if training.learning_rate is None:
        training.learning_rate = 2e-4 if arguments.model.use_peft else 2e-5
    if arguments.logger.run_group:
        os.environ.setdefault("WANDB_RUN_GROUP", arguments.logger.run_group)
    return arguments


def _why_refused(argv: Sequence[str], parser: HfArgumentParser) -> list[str]:
    """The flags that fail when parsed alone: TrainingArguments checks its values without naming the flag."""
    problems = []
    starts = [i for i, word in enumerate(argv) if word.startswith("--")]
    for start, end in zip(starts, [*starts[1:], len(argv)]):
        try:
            parser.parse_args_into_dataclasses(argv[start:end], return_remaining_strings=True)
        except (ValueError, ImportError) as error:
            why = _missing_package(error) or f"{one_line(error)}; -h describes it"
            problems.append(f"{argv[start].partition('=')[0]}: {why}")
    return problems


def _missing_package(error: Exception) -> str:
    """The package that transformers misses, with the command that installs it; empty for other errors."""
    found = re.search(r"'([\w.-]+)[^']*' distribution was not found", str(error))
    return f"needs the package {found[1]}: pip install {found[1]}" if found else ""


def training_parser(method: str) -> HfArgumentParser:
    """The parser of `groundtune sft` or `swr`, with every argument of `transformers.TrainingArguments`."""
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    from groundtune.training.arguments import QATrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:  # argparse's own prints two hundred lines of usage first
            _bad_value(message)

    groups: Any = [*GROUPS, QATrainingArguments]
    parser = Parser(
        groups,
        prog=f"groundtune {method}",
        usage=TRAINING_USAGE.format(method=method),
        formatter_class=partial(FlagFormatter, width=HELP_WIDTH, max_help_position=34),
        allow_abbrev=False,
    )
    require("python")
    for action in parser._actions:
        if action.type is string_to_bool:  # which does not accept `on` and `off`
            action.type = true_or_false
    return parser


class _LightParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # argparse's own prints the whole usage first
        _bad_value(message, where=f"; {self.prog} -h shows every argument")


def light_parser(prog: str, usage: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """An argparse parser whose errors are `DataError`s; see `flags.add_group` and `given`."""
    require("python")
    return _LightParser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=HELP_WIDTH, max_help_position=34),
    )


def given(
    parser: argparse.ArgumentParser, argv: Sequence[str], keywords: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments given on a command line or in its `--config` file; `-h` prints every argument and exits.

    `keywords` as in `parse_arguments`. Raises `DataError` with every unknown flag, or with the first bad value.
    """
    words = _numbers_joined(_spelt_as_today(_expand_files(argv, parser, keywords), _flags(parser)))
    # Intermixed, because a question may follow flags that follow the model; but then argparse loses words after "--".
    parse = parser.parse_known_args if "--" in words else parser.parse_known_intermixed_args
    namespace, unknown = parse(words)
    if unknown:
        raise DataError(_unknown_flags(unknown, parser))
    return vars(namespace)


def _numbers_joined(words: Sequence[str]) -> list[str]:
    """`--flag -0.7,0.4` as `--flag=-0.7,0.4`: argparse knows a negative number, but takes several for a flag."""
    joined: list[str] = []
    for word in words:
        if _NUMBERS.fullmatch(word) and joined and re.fullmatch(r"--\w+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


_NUMBERS = re.compile(r"-[\d.]+(,-?[\d.]+)+")


def _bad_value(message: str, where: str = "") -> NoReturn:
    raise DataError([message.removeprefix("argument ") + where])


def _in_full(argv: Sequence[str]) -> list[str]:
    """`-o` as --output_dir; `FILE.json` alone as `--config FILE.json`. For training only: elsewhere it may be data."""
    alone = len(argv) == 1 and argv[0].endswith(".json") and not argv[0].startswith("-")
    return ["--config", *argv] if alone else ["--output_dir" if word == "-o" else word for word in argv]


def _expand_files(
    argv: Sequence[str], parser: argparse.ArgumentParser, keywords: Mapping[str, Any] | None = None
) -> list[str]:
    """The arguments of files as flags, then keywords, then the other flags; later ones override earlier ones.

    Raises `DataError` with all problems.
    """
    paths, words = split_files(argv)
    entries: list[Entry] = []
    problems: list[str] = []
    for read in [*(partial(read_config, path) for path in paths), partial(entries_of, keywords or {})]:
        try:
            entries += read()
        except DataError as error:
            problems += error.problems
    for entry in entries:
        # Each one separately: argparse would stop at the first problem, and does not know its line.
        problems += [f"{entry.label}: {problem}" for problem in _problems_of(entry, parser)]
    if problems:
        raise DataError(problems)
    latest = {entry.name: entry for entry in entries}.values()
    # Leading positional words stay first: after the file's flags, a list flag at the end would take them as values.
    first = list(takewhile(lambda word: not word.startswith("-"), words))
    return [*first, *(word for entry in latest for word in _words_of(entry, parser)), *words[len(first) :]]


def _words_of(entry: Entry, parser: argparse.ArgumentParser) -> list[str]:
    """An entry as words of a command line; a flag without a value, such as `--quiet`, is present or absent."""
    action = parser._option_string_actions.get(f"--{entry.name}")
    if action is None or action.nargs != 0 or entry.value is None:
        return entry.flag()
    return [f"--{entry.name}"] if true_or_false(str(entry.value)) else []


def _problems_of(entry: Entry, parser: argparse.ArgumentParser) -> list[str]:
    """Problems that the parser finds with one flag and its values, without the flag's name."""
    if entry.name == "help":
        return ["prints help on the command line and is not an argument here; remove it"]
    try:
        words = _spelt_as_today(_words_of(entry, parser), _flags(parser), tell=False)
        unknown = parser.parse_known_args(words)[1]
    except argparse.ArgumentTypeError as error:
        return [f"{error}; -h describes it"]
    except DataError as error:
        # Missing required arguments are not a problem of this entry.
        ours = [problem for problem in error.problems if "arguments are required" not in problem]
        return [problem.partition(": ")[2].partition("; groundtune")[0] + "; -h describes it" for problem in ours]
    if unknown and unknown[0].startswith("-"):
        return [problem.partition(": ")[2] for problem in _unknown_flags(unknown, parser)]
    return [f"takes one value, not {len(unknown) + 1}; -h describes it"] if unknown else []


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


def at_their_lines(
    problems: Sequence[str], argv: Sequence[str], keywords: Mapping[str, Any] | None = None
) -> list[str]:
    """The problems of a training command; for flags from a file, each begins with the file and line."""
    try:
        paths, words = split_files(_in_full(argv))
        entries = [entry for path in paths for entry in read_config(path)]
    except DataError:
        return list(problems)
    given = {_name_of_today(word) for word in [*(word for word in words if word.startswith("--")), *(keywords or {})]}
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
    """Rename old flag names, and remove flags that no longer have any effect; each is logged if `tell`."""
    today: list[str] = []
    skipping = False
    for word in argv:
        if not word.startswith("--"):
            skipping = skipping and word not in known  # -o is a flag, not a value
            if not skipping:
                today.append(word)
            continue
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        skipping = False
        if flag in known or f"--{name}" in known:
            today.append(word)
        elif f"--{RENAMED.get(name)}" in known:
            if tell:
                logger.info("--%s is now called --%s", name, RENAMED[name])
            today.append(f"--{RENAMED[name]}{equals}{value}")
        elif name in WITHOUT_EFFECT:
            if tell:
                logger.warning("--%s no longer has any effect and is ignored", name)
            skipping = True
        else:
            today.append(word)
    return today


def _unknown_flags(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    known = sorted(flag for flag in _flags(parser) if "-" not in flag[2:])  # HfArgumentParser has both spellings
    problems = []
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("-"):
            problems.append(f"{flag}: no such argument; {_instead(flag, known)}")
    if problems:
        return problems
    if words[0].endswith((".yaml", ".yml", ".json")) and os.path.isfile(words[0]):
        return [
            f"{words[0]}: not expected here; if it is a file of arguments, write: {parser.prog} --config {words[0]}"
        ]
    return [f"{words[0]}: not expected here; every argument is a flag, and --config FILE reads a file of arguments"]


def _instead(flag: str, known: Sequence[str]) -> str:
    """What to write for an unknown flag: what a flag of another tool is called here, or similar flags."""
    name = flag.lstrip("-").replace("-", "_")
    if here := next((f"--{one}" for one in ELSEWHERE.get(name, ()) if f"--{one}" in known), ""):
        return f"here it is {here}"
    if name in NOT_HERE:
        return NOT_HERE[name]
    near = difflib.get_close_matches(flag, known, n=2)
    return f"similar: {', '.join(near)}" if near else "-h lists all arguments"
