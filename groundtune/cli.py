"""The command `groundtune`: its subcommands, and how problems are shown to the user."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

import groundtune
from groundtune.commands.parsing import parse_arguments
from groundtune.errors import DataError, gathered
from groundtune.methods import METHODS
from groundtune.system.durable import DiskError
from groundtune.system.guarded import problems_of
from groundtune.system.out_of_memory import OutOfMemory, is_out_of_memory, reason
from groundtune.system.text import HarmlessRecord, harmless_lines

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
    "compare": ("compare runs side by side: paired intervals, wins and losses", "commands.compare:main"),
    "index": ("embed the documents in advance, or measure a retriever", "commands.index:main"),
    "ask": ("ask a model about the documents, once or in a dialogue", "commands.ask:main"),
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
    disk is full or fails; 4 if a run is finished but was not pushed to the hub; 143 after SIGTERM, 130 after SIGINT.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    known = all_commands()
    if argv and argv[0] in known:
        return run_command(argv[0], argv[1:])
    listed = "".join(f"  {name:11}{text}\n" for name, (text, _) in known.items())
    parser = argparse.ArgumentParser(
        prog="groundtune",
        description=groundtune.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listed}\ngroundtune COMMAND -h shows the arguments of a command and an example.",
    )
    parser.add_argument("--version", action="version", version=f"groundtune {groundtune.__version__}")
    parser.add_argument("command", choices=known, metavar="COMMAND", help="one of the commands below")
    parser.parse_args(argv or ["--help"])
    return 0


def run_command(name: str, argv: Sequence[str]) -> int:
    """Run one command; problems go to standard error, one per line."""
    _set_up_output()
    _set_up_logging()
    module, _, function = all_commands()[name][1].partition(":")
    words = [name, *argv] if name in METHODS else list(argv)
    try:
        return getattr(import_module(f"groundtune.{module}"), function)(words)
    except DataError as error:
        print(harmless_lines(gathered(error.problems)), file=sys.stderr)
        return 2
    except DiskError as error:
        print(harmless_lines([error]), file=sys.stderr)
        return 3
    except OutOfMemory as error:
        print(harmless_lines([error]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ImportError, AttributeError, TypeError):
        if not (problems := problems_of()):
            raise
        print(*problems, sep="\n", file=sys.stderr)  # a library lacks names that we need
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(harmless_lines([f"out of memory: {reason(error)}; {_LESS_MEMORY}"]), file=sys.stderr)
        return 1


def train_command(method: str, argv: Sequence[str]) -> int:
    """Run `groundtune sft` or `groundtune swr`; used by the LocalRQA scripts in scripts/train."""
    return run_command(method, argv)


def _set_up_output() -> None:
    """Make sure that no character ends a command: a Windows console or pipe cannot encode every script."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper) or stream.encoding.lower().replace("-", "") == "utf8":
            continue
        chosen = stream.isatty() or "PYTHONIOENCODING" in os.environ
        stream.reconfigure(encoding=None if chosen else "utf-8", errors="backslashreplace")


def _set_up_logging() -> None:
    logging.setLogRecordFactory(HarmlessRecord)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("groundtune").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").propagate = False  # it has its own handler, and would log twice
    # These warnings are for developers of libraries; a user cannot act on them.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch")


if __name__ == "__main__":
    sys.exit(main())
