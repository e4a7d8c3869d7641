"""`groundtune convert`: published formats -> examples and documents, and back."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from groundtune.commands.parsing import given
from groundtune.commands.terminal import add_output_flags, data_parser, progress, show
from groundtune.errors import DataError
from groundtune.system.locks import alone


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    from groundtune.prepare.convert import EXPORTS
    from groundtune.prepare.formats import FORMATS

    known = {**{name: known.description for name, known in FORMATS.items()}, **EXPORTS}
    width = max(map(len, known)) + 2
    formats = "".join(f"  {name:{width}}{text}\n" for name, text in known.items())
    made = data_parser(
        "convert",
        "FORMAT IN ... -o DIR [--FLAG VALUE ...]",
        "Convert published data into examples and documents, or examples into formats of other "
        f"tools.\n\nformats:\n{formats}",
        "groundtune convert squad train-v2.0.json dev-v2.0.json -o squad/",
    )
    made.add_argument("format", choices=list(known), metavar="FORMAT", help="one of the formats above")
    made.add_argument(
        "inputs", nargs="+", type=Path, metavar="IN", help="input files, or the folder for beir; .gz files are unpacked"
    )
    made.add_argument("-o", "--output_dir", type=Path, required=True, metavar="DIR", help="output folder")
    made.add_argument("--limit", type=int, help="maximum number of examples from each input")
    made.add_argument("--unanswerable", metavar="TEXT", help="gold answer for questions without an answer")
    made.add_argument("--evidence", type=Path, metavar="DIR", help="triviaqa: the folder with wikipedia/ and web/")
    made.add_argument(
        "--prompt_pattern",
        metavar="REGEX",
        help="messages, prompt_completion, sharegpt: regular expression with the groups (?P<passage>...) and "
        "(?P<question>...) in a prompt",
    )
    made.add_argument(
        "--raft_answer",
        choices=["final", "reasoning"],
        help="raft: final: only the text after <ANSWER>: (default); reasoning: all of it",
    )
    made.add_argument("--instruction", help="to_messages, to_prompt_completion: instruction at the start of the prompt")
    made.add_argument(
        "--documents",
        type=Path,
        metavar="FILE",
        help="to_beir: the documents for corpus.jsonl; messages, prompt_completion, sharegpt, alpaca, csv, feedback: "
        "where to find the passage of an example that has none, by the words of its question and answer",
    )
    add_output_flags(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Returns 0; raises `DataError` for problems that the user can fix."""
    arguments = argparse.Namespace(**given(parser(), argv))

    from groundtune.arguments import PromptArguments
    from groundtune.data.files import read_documents
    from groundtune.prepare import convert
    from groundtune.prepare.formats import Options

    name, inputs, folder = arguments.format, arguments.inputs, arguments.output_dir
    ours = {"format", "inputs", "output_dir", "quiet", "json"}
    options = {flag: value for flag, value in vars(arguments).items() if value is not None and flag not in ours}
    problems = convert.check(name, inputs, folder, options)
    if "prompt_pattern" in options:
        try:
            options["prompt_pattern"] = re.compile(options["prompt_pattern"], re.DOTALL)
        except re.error as error:
            problems.append(f"--prompt_pattern: {error}; write a Python regular expression")
    if options.get("limit", 1) < 1:
        problems.append(f"--limit: is {options['limit']}; give 1 or more, or remove the flag")
    if problems:
        raise DataError(problems)
    with alone(folder), progress(arguments.quiet or arguments.json) as bars:
        if name in convert.EXPORTS:
            instruction = options.get("instruction", PromptArguments().instruction)
            summary = convert.export(name, inputs, folder, instruction, options.get("documents"))
        else:
            limit, database = options.pop("limit", 0), options.pop("documents", None)
            documents = read_documents(database) if database else []
            summary = convert.convert(
                name,
                inputs,
                folder,
                Options(**options),
                limit,
                documents,
                on_example=lambda done: bars.at("examples", done, None),
            )
    written_documents = f" and {summary.documents:,} documents" if summary.documents else ""
    examples = sum(counts["examples"] for counts in summary.files.values())
    written = f"Wrote {examples:,} examples{written_documents} to {folder}"
    show(vars(summary), convert.summary_table(summary), [*convert.notes(summary), written], arguments)
    return 0
