"""The commands that make data: documents, convert, questions. Parsers and printing; the work is elsewhere."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from groundtune.files import DataError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of a screen of usage."""

    def __init__(self, command: str, description: str, example: str) -> None:
        super().__init__(
            prog=f"groundtune {command}",
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise DataError([f"{message.removeprefix('argument ')}; {self.prog} -h shows every argument"])


def run(command: str, argv: Sequence[str]) -> int:
    """Run one of `COMMANDS`; returns 0, or 2 with a line for each problem that the user can solve."""
    try:
        return COMMANDS[command](argv)
    except DataError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{error.filename or command}: {error.strerror or error}; check the path and the space", file=sys.stderr)
    return 2


def documents_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "documents",
        "Cut files into passages and write them as a document database. Reads txt, rst, md, html, pdf, docx, csv and\n"
        "jsonl; a file that cannot be read is reported and left out as a whole.",
        "groundtune documents handbook/ faq.pdf -o documents.jsonl --tokenizer intfloat/e5-base-v2",
    )
    parser.add_argument("inputs", nargs="+", metavar="DIR_OR_FILE", help="folders, searched to the bottom, and files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="documents.jsonl, or .parquet")
    parser.add_argument(
        "--tokenizer", required=True, help="whose tokens are counted: the embedding model, by hub name or folder"
    )
    parser.add_argument(
        "--chunk_size", type=int, default=400, help="tokens of a passage, source and title included (default: 400)"
    )
    parser.add_argument(
        "--chunk_overlap", type=int, default=50, help="tokens that neighbouring passages may share (default: 50)"
    )
    parser.add_argument("--text_field", default="", help="JSONL field or CSV column with the text (default: text)")
    parser.add_argument("--title_field", default="", help="the one with the title (default: title, if there is one)")
    parser.add_argument("--source_field", default="", help="the one that says where the text is from (default: source)")
    parser.add_argument("--encoding", default="utf-8", help="of txt, rst, md and csv (default: utf-8)")
    return parser


def documents_command(argv: Sequence[str]) -> int:
    """Folders and files -> documents.jsonl."""
    arguments = documents_parser().parse_args(argv)

    from groundtune import corpus
    from groundtune.chunking import Chunker, load_counter
    from groundtune.pages import ReadOptions

    options = ReadOptions(arguments.encoding, arguments.text_field, arguments.title_field, arguments.source_field)
    size, overlap = arguments.chunk_size, arguments.chunk_overlap
    if problems := corpus.check(arguments.inputs, arguments.output, options, size, overlap):
        raise DataError(problems)
    chunker = Chunker(load_counter(arguments.tokenizer), size, overlap)
    with _progress("files") as (total, step):
        summary = corpus.write_corpus(
            arguments.inputs, arguments.output, chunker, options, on_files=total, on_file=lambda _: step(1)
        )
    _show(corpus.summary_table(summary), corpus.notes(summary))
    print(f"Wrote {summary.passages.total():,} passages to {arguments.output}")
    return 0


def convert_parser() -> argparse.ArgumentParser:
    from groundtune.convert import EXPORTS
    from groundtune.formats import FORMATS

    known = {**{name: known.description for name, known in FORMATS.items()}, **EXPORTS}
    width = max(map(len, known)) + 2
    formats = "".join(f"  {name:{width}}{text}\n" for name, text in known.items())
    parser = _Parser(
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


def convert_command(argv: Sequence[str]) -> int:
    """Published layouts -> examples and documents, and back."""
    arguments = vars(convert_parser().parse_args(argv))

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
        with _progress("examples") as (_, step):
            summary = convert.convert(name, inputs, folder, Options(**given), limit, on_example=lambda: step(1))
    _show(convert.summary_table(summary), convert.notes(summary))
    written = f" and {summary.documents:,} documents" if summary.documents else ""
    examples = sum(counts["examples"] for counts in summary.files.values())
    print(f"Wrote {examples:,} examples{written} to {folder}")
    return 0


class _progress:
    """A bar on standard error with the time left: two functions, one told the total and one each step."""

    def __init__(self, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(unit, total=None)

    def __enter__(self) -> tuple[Callable[[int], None], Callable[[int], None]]:
        self._bar.start()
        return (
            lambda total: self._bar.update(self._task, total=total),
            lambda steps: self._bar.advance(self._task, steps),
        )

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()


def _show(table: Any, notes: Sequence[str]) -> None:
    from rich.console import Console

    console = Console()
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"documents": documents_command, "convert": convert_command}
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {"documents": documents_parser, "convert": convert_parser}
