"""`groundtune convert`: published layouts -> examples and documents, and back."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from groundtune.commands.console import Parser, progress, show
from groundtune.files import DataError


def make_parser() -> argparse.ArgumentParser:
    from groundtune.convert import EXPORTS
    from groundtune.formats import FORMATS

    known = {**{name: known.description for name, known in FORMATS.items()}, **EXPORTS}
    width = max(map(len, known)) + 2
    formats = "".join(f"  {name:{width}}{text}\n" for name, text in known.items())
    parser = Parser(
        "convert",
        "Turn published data into examples and documents, or examples into what other tools read.\n\n"
        f"formats:\n{formats}",
        "groundtune convert squad train-v2.0.json dev-v2.0.json -o squad/",
    )
    parser.add_argument("format", choices=list(known), metavar="FORMAT", help="one of the formats above")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IN", help="files, or the folder of beir; .gz is read")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of what is written")
    parser.add_argument("--limit", type=int, help="take at most so many examples of each input")
    parser.add_argument("--unanswerable", metavar="TEXT", help="the answer that a question without an answer gets")
    parser.add_argument("--evidence", type=Path, metavar="DIR", help="triviaqa: the folder with wikipedia/ and web/")
    parser.add_argument(
        "--prompt_pattern",
        metavar="REGEX",
        help="messages, prompt_completion: finds the groups (?P<passage>...) and (?P<question>...) in a prompt",
    )
    parser.add_argument(
        "--raft_answer", choices=["final", "reasoning"], help="raft: what follows <ANSWER>: (default), or all of it"
    )
    parser.add_argument("--instruction", help="to_messages, to_prompt_completion: the sentence that opens the prompt")
    parser.add_argument("--documents", type=Path, metavar="FILE", help="to_beir: the documents of corpus.jsonl")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns 0; raises `DataError` with what the user can solve."""
    arguments = vars(make_parser().parse_args(argv))

    from groundtune import convert
    from groundtune.arguments import PromptArguments
    from groundtune.formats import Options

    name, inputs, folder = (arguments.pop(key) for key in ("format", "inputs", "output"))
    given = {flag: value for flag, value in arguments.items() if value is not None}
    problems = convert.check(name, inputs, folder, given)
    if "prompt_pattern" in given:
        try:
            given["prompt_pattern"] = re.compile(given["prompt_pattern"], re.DOTALL)
        except re.error as error:
            problems.append(f"--prompt_pattern: {error}; write a regular expression of Python")
    if given.get("limit", 1) < 1:
        problems.append(f"--limit: is {given['limit']}; give 1 or more, or leave it out")
    if problems:
        raise DataError(problems)
    if name in convert.EXPORTS:
        instruction = given.get("instruction", PromptArguments().instruction)
        summary = convert.export(name, inputs, folder, instruction, given.get("documents"))
    else:
        limit = given.pop("limit", 0)
        with progress() as report:
            summary = convert.convert(
                name, inputs, folder, Options(**given), limit, on_example=lambda done: report("examples", done, None)
            )
    show(convert.summary_table(summary), convert.notes(summary))
    written = f" and {summary.documents:,} documents" if summary.documents else ""
    examples = sum(counts["examples"] for counts in summary.files.values())
    print(f"Wrote {examples:,} examples{written} to {folder}")
    return 0
