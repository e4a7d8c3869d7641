"""The command `groundtune`: its subcommands, and how problems are shown to the user."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import NoReturn

import groundtune
from groundtune.commands.parsing import parse_arguments
from groundtune.commands.terminal import complain
from groundtune.errors import DataError, gathered
from groundtune.methods import METHODS
from groundtune.system.durable import DiskError
from groundtune.system.guarded import problems_of
from groundtune.system.out_of_memory import OutOfMemory, is_out_of_memory, reason
from groundtune.system.panics import is_panic, panic_line
from groundtune.system.progress import in_log_file
from groundtune.system.signals import Stopped, ending
from groundtune.system.streams import ReaderGone, standard_streams
from groundtune.system.text import HarmlessFormatter, HarmlessRecord

__all__ = ["COMMANDS", "all_commands", "main", "parse_arguments", "train_command"]

# Name -> its line in the help, and the function that takes the words after the name and returns the exit status.
# The function is imported when the command runs, so that `groundtune -h` loads no library.
COMMANDS = {
    "documents": ("split a folder of files into passages: the document database", "commands.documents:main"),
    "questions": ("let an LLM write questions and answers about your documents", "commands.questions:main"),
    "convert": ("convert SQuAD, BEIR, chats ... to examples and documents, and back", "commands.convert:main"),
    "split": ("split examples into train, eval and test without a common passage", "commands.split:main"),
    "doctor": ("list every problem in the data of a training command", "commands.doctor:main"),
    "evaluate": ("evaluate any model or server end to end, in four contexts", "commands.evaluate:main"),
    "rate": ("let people grade answers on a local page, blind if there are two systems", "commands.rate:main"),
    "sweep": ("try settings: train and compare every cell of a plan", "commands.sweep:main"),
    "compare": ("compare runs side by side: paired intervals, wins and losses", "commands.compare:main"),
    "index": ("embed the documents in advance, or measure a retriever", "commands.index:main"),
    "retriever": ("train an embedding model or a reranker, if that finds more", "commands.retriever:main"),
    "export": ("write a run's model for other servers, and prove that it answers alike", "commands.export:main"),
    "ask": ("ask a model about the documents, once or in a dialogue", "commands.ask:main"),
    "serve": ("serve a model: chat page, OpenAI-compatible API, tools for agents", "commands.serve:main"),
    "demo": ("train and compare a small bundled model; needs no hub", "commands.train:demo"),
}


_LESS_MEMORY = (
    "use a smaller model, lower --embedding_batch_size or --max_seq_length, or lower --per_device_train_batch_size "
    "and raise --gradient_accumulation_steps by the same factor"
)


def all_commands() -> dict[str, tuple[str, str]]:
    """`COMMANDS` and one command for each training method, listed before `doctor`."""
    first = list(COMMANDS).index("doctor")
    listed = list(COMMANDS.items())
    trained = [(name, (method.help, "commands.train:train_by")) for name, method in METHODS.items()]
    return dict([*listed[:first], *trained, *listed[first:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run `groundtune COMMAND ...`.

    Returns 0 on success; 1 if the work began but could not be finished; 2 for a problem that the user can fix; 3 if the
    disk is full or fails; 4 if a run is finished but was not pushed to the hub; 143 after SIGTERM, 130 after SIGINT,
    129 after SIGHUP.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    return run_command(argv[0], argv[1:]) if argv and argv[0] in all_commands() else _run(partial(_help, argv))


def _help(argv: Sequence[str]) -> int:
    """Print what `argv`, which names no command, asks for: help, the version, or what is wrong with it."""
    known = all_commands()
    listed = "".join(f"  {name:11}{text}\n" for name, (text, _) in known.items())
    parser = _Parser(
        prog="groundtune",
        description=groundtune.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listed}\ngroundtune COMMAND -h shows the arguments of a command and an example.",
    )
    parser.add_argument("--version", action="version", version=f"groundtune {groundtune.__version__}")
    parser.add_argument("command", choices=known, metavar="COMMAND", help="one of the commands below")
    parser.parse_args(argv or ["--help"])
    return 0


class _Parser(argparse.ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:  # argparse's own quotes what was typed
        if message:
            complain(*message.splitlines())
        sys.exit(status)


def run_command(name: str, argv: Sequence[str], reference: str = "") -> int:
    """Run one command, or the function at `reference` in its place; problems go to standard error, one per line."""
    module, _, function = (reference or all_commands()[name][1]).partition(":")
    words = [name, *argv] if name in METHODS else list(argv)
    return _run(lambda: getattr(import_module(f"groundtune.{module}"), function)(words))


def _run(work: Callable[[], int]) -> int:
    """The exit status of `work`, and of printing its output."""
    with standard_streams(), ending():
        _set_up_output()
        _set_up_logging()
        try:
            try:
                status = work()
            except SystemExit:  # argparse has printed the help
                sys.stdout.flush()
                raise
            sys.stdout.flush()
            return status
        except ReaderGone:
            return 0
        except Stopped as stopped:
            complain(stopped)
            return stopped.exit_status
        except KeyboardInterrupt:
            complain("interrupted")
            return 130
        except BaseException as error:
            lines, status = _problems(error)
            if not lines:
                raise
            complain(*lines)
            return status


def _problems(error: BaseException) -> tuple[Sequence[object], int]:
    """What to tell the user about an error, and the exit status; no lines for an error of our own making."""
    if isinstance(error, DataError):
        return gathered(error.problems), 2
    if isinstance(error, DiskError):
        return [error], 3
    if isinstance(error, OutOfMemory):
        return [error], 1
    if isinstance(error, PermissionError) and error.filename:
        return [f"{error.filename}: permission denied; change its permissions, or name another"], 2
    if isinstance(error, (ImportError, AttributeError, TypeError)):
        return problems_of(), 2  # a library lacks names that we need
    if isinstance(error, (RuntimeError, MemoryError)) and is_out_of_memory(error):
        return [f"out of memory: {reason(error)}; {_LESS_MEMORY}"], 1
    if is_panic(error):
        return [f"a model cannot read a text: {panic_line(error)}"], 2
    return [], 1


def train_command(method: str, argv: Sequence[str]) -> int:
    """Train as the LocalRQA scripts in scripts/train do: `groundtune sft` or `swr` with their own defaults."""
    return run_command(method, argv, "commands.train:train_as_localrqa")


def _set_up_output() -> None:
    """Make sure that no character ends a command: a Windows console or pipe cannot encode every script."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper) or stream.encoding.lower().replace("-", "") == "utf8":
            continue
        chosen = stream.isatty() or "PYTHONIOENCODING" in os.environ
        stream.reconfigure(encoding=None if chosen else "utf-8", errors="backslashreplace")


def _set_up_logging() -> None:
    logging.setLogRecordFactory(HarmlessRecord)
    logging.captureWarnings(True)  # they quote files as well
    handler = logging.StreamHandler()
    handler.setFormatter(HarmlessFormatter("%(message)s"))
    # transformers has its own handler, and propagates as well where the environment variable CI is set.
    handler.addFilter(lambda record: not record.name.startswith("transformers."))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("groundtune").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").propagate = False  # it has its own handler, and would log twice
    if in_log_file():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars follow it too
    # These warnings are for developers of libraries; a user cannot act on them.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch")


if __name__ == "__main__":
    sys.exit(main())
