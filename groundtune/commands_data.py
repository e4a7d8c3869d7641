"""The commands that make data: documents, convert, questions. Parsers and printing; the work is elsewhere."""

from __future__ import annotations

import argparse
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


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"documents": documents_command}
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {"documents": documents_parser}
