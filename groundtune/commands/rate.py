"""`groundtune rate PREDICTIONS ...`: a local page on which people grade answers."""

from __future__ import annotations

import argparse
import shlex
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from groundtune.commands.compare import beside
from groundtune.commands.parsing import given, light_parser
from groundtune.commands.terminal import add_output_flags, say, say_json
from groundtune.data.files import in_the_way
from groundtune.errors import DataError
from groundtune.system.locks import alone

if TYPE_CHECKING:
    from groundtune.serving.rating import Grades

USAGE = "A [B] [-o FILE] [--questions N] [--port N]"
DESCRIPTION = """Open a local page on which people grade answers: of one system, or of two side by side without saying
which is which. A system is a run folder, a folder written by `groundtune evaluate`, or a prediction file. Each
answer is graded as correct, helpful, grounded and harmful; of two, the better one is chosen. Every grade is saved
as it is given, so the command can be stopped and started again, and several people can grade one after another.
Nothing leaves the machine. `groundtune compare ... --grades FILE` shows what the grades say."""
EXAMPLES = """examples:
  groundtune rate runs/my_qa_model
  groundtune rate runs/swr/predictions/test_base.jsonl runs/swr -o grades.jsonl --questions 50"""


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = light_parser("groundtune rate", USAGE, DESCRIPTION, EXAMPLES)
    made.add_argument("systems", nargs="+", metavar="A", help="One run, evaluation folder or prediction file, or two.")
    made.add_argument(
        "-o", "--output", metavar="FILE",
        help="File of the grades (.jsonl); it is continued if it exists. Default: grades.jsonl beside the first one.",
    )  # fmt: skip
    made.add_argument(
        "--questions", type=int, default=0, metavar="N",
        help="Number of questions, picked at random but always the same ones. (default: 0, all)",
    )  # fmt: skip
    made.add_argument("--port", type=int, default=0, metavar="N", help="Port on 127.0.0.1. (default: 0, a free one)")
    made.add_argument("--no_browser", action="store_true", default=False, help="Only print the address.")
    add_output_flags(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C, then say what was graded."""
    words = given(parser(), argv)
    systems = words["systems"]
    path = Path(words.get("output") or Path(beside(systems[0])).with_name("grades.jsonl"))
    _check(systems, path, words["questions"], words["port"])

    from groundtune.evaluation.comparison import read_systems
    from groundtune.serving.rating import Grades, RatingServer, items_of

    items = items_of(list(read_systems(systems).values()), words["questions"])
    with alone(path.parent, path.name, "output"):
        grades = Grades(path, items)
        try:
            server = RatingServer(grades, words["port"])
        except OSError as error:
            raise DataError([f"--port: {words['port']} cannot be used ({error.strerror}); name another"]) from error
        with server:
            if words["json"]:
                say_json({"address": server.address, "grades": str(path), "questions": len(items)}, indent=None)
            else:
                say(f"{len(items)} questions: {server.address}", "Ctrl-C ends it; every grade is already saved.")
            if not words["no_browser"]:
                webbrowser.open(server.address)
            with suppress(KeyboardInterrupt):
                server.serve_forever()
    if not words["json"]:
        _show(grades, systems, path)
    return 0


def _show(grades: Grades, systems: Sequence[str], path: Path) -> None:
    for rater, number in grades.raters.items():
        say(f"{rater}: {number} of {len(grades.items)} questions graded")
    if grades.raters:
        say(f"Next: groundtune compare {shlex.join(systems)} --grades {shlex.quote(str(path))}")


def _check(systems: Sequence[str], path: Path, questions: int, port: int) -> None:
    problems = in_the_way("output", path)
    if len(systems) > 2:
        problems.append(f"rate: {len(systems)} systems are given; name one, or two to compare")
    if path.suffix != ".jsonl":
        problems.append(f"--output: {path} does not end in .jsonl")
    if questions < 0:
        problems.append(f"--questions: is {questions}; give 0 (all) or more")
    if not 0 <= port <= 65535:
        problems.append(f"--port: is {port}; give 0 (a free one) to 65535")
    if problems:
        raise DataError(problems)
