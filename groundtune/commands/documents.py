"""`groundtune documents`: folders and files -> documents.jsonl."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from groundtune.commands.parsing import given
from groundtune.commands.terminal import add_output_flags, data_parser, progress, show
from groundtune.errors import DataError
from groundtune.system.locks import alone

_RESULTS = 10  # a file's passages may be this many times its size: they repeat its title, and what adjacent ones share


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = data_parser(
        "documents",
        "DIR_OR_FILE ... -o FILE --tokenizer MODEL [--FLAG VALUE ...]",
        "Split files into passages and write them as a document database. Reads txt, rst, md, html, pdf, docx, csv\n"
        "and jsonl; a file that cannot be read, or exceeds a limit, is reported and skipped.",
        "groundtune documents handbook/ faq.pdf -o documents.jsonl --tokenizer intfloat/e5-base-v2",
    )
    made.add_argument(
        "inputs", nargs="+", metavar="DIR_OR_FILE", help="files, and folders, which are searched recursively"
    )
    made.add_argument("-o", "--output", type=Path, required=True, help="documents.jsonl, or .parquet")
    made.add_argument(
        "--tokenizer", required=True, help="tokenizer that counts tokens: the embedding model, by hub name or folder"
    )
    made.add_argument(
        "--chunk_size",
        type=int,
        default=400,
        help="maximum tokens per passage, including source and title (default: 400)",
    )
    made.add_argument(
        "--chunk_overlap", type=int, default=50, help="maximum tokens shared by adjacent passages (default: 50)"
    )
    made.add_argument("--text_field", default="", help="JSONL field or CSV column with the text (default: text)")
    made.add_argument(
        "--title_field", default="", help="field or column with the title (default: title, if there is one)"
    )
    made.add_argument(
        "--source_field", default="", help="field or column with the source of the text (default: source)"
    )
    made.add_argument("--encoding", default="utf-8", help="encoding of txt, rst, md and csv files (default: utf-8)")
    made.add_argument(
        "--follow_links", action="store_true", help="also follow links that lead outside the given files and folders"
    )
    made.add_argument(
        "--file_timeout",
        type=float,
        default=60,
        metavar="SECONDS",
        help="time for reading and splitting a file; it starts again after each MB of passages (default: 60)",
    )
    made.add_argument(
        "--max_file_mb",
        type=int,
        default=1000,
        metavar="MB",
        help="largest file, and the most that a docx file may unpack to (default: 1000)",
    )
    made.add_argument(
        "--max_memory_mb",
        type=int,
        default=2000,
        metavar="MB",
        help="memory for reading and splitting a file; several files are read at once (default: 2000)",
    )
    add_output_flags(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Returns 0; raises `DataError` for problems that the user can fix."""
    arguments = argparse.Namespace(**given(parser(), argv))

    from groundtune.prepare import corpus
    from groundtune.prepare.chunking import counter_file
    from groundtune.prepare.pages import ReadOptions
    from groundtune.retrieval.reading_limit import longest_read
    from groundtune.system.workers import Limits

    fields = (arguments.text_field, arguments.title_field, arguments.source_field)
    options = ReadOptions(arguments.encoding, *fields, max_mb=arguments.max_file_mb)
    limits = Limits(arguments.file_timeout, arguments.max_memory_mb, _RESULTS * arguments.max_file_mb)
    size, overlap = arguments.chunk_size, arguments.chunk_overlap
    problems = corpus.check(arguments.inputs, arguments.output, options, size, overlap)
    if problems := problems + _too_small(arguments):
        raise DataError(problems)
    chunks = corpus.Chunks(counter_file(arguments.tokenizer), size, overlap)
    output = arguments.output
    with alone(output.parent, output.name, "output"), progress(arguments.quiet or arguments.json) as bars:
        summary = corpus.write_corpus(
            arguments.inputs,
            output,
            chunks,
            options,
            limits,
            follow_links=arguments.follow_links,
            on_file=lambda file, number, total: bars.at("files", number - 1, total),
        )
    notes = corpus.notes(summary)
    if (reads := longest_read(arguments.tokenizer)) and reads < size:
        notes.append(
            f"{arguments.tokenizer} reads {reads} tokens of a passage, but these have up to {size}: a search does not "
            f"see the ends of longer ones. --chunk_size {reads - 16} also leaves room for its prompt"
        )
    written = f"Wrote {summary.passages.total():,} passages to {arguments.output}"
    show(vars(summary), corpus.summary_table(summary), [*notes, written], arguments)
    return 0


def _too_small(arguments: argparse.Namespace) -> list[str]:
    least = {"file_timeout": 1, "max_file_mb": 1, "max_memory_mb": 256}
    return [
        f"--{name}: {value} is too small; the minimum is {least[name]}"
        for name, value in vars(arguments).items()
        if name in least and not value >= least[name]  # `not >=` also catches NaN
    ]
