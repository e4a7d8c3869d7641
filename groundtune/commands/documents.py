"""`groundtune documents`: folders and files -> documents.jsonl."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from groundtune.commands.parsing import given
from groundtune.commands.terminal import add_output_flags, data_parser, progress, show
from groundtune.errors import DataError
from groundtune.system.locks import alone

_LONGEST = 400  # tokens of a passage, unless more are asked for
_PROMPT = 16  # tokens for the prompt and the special tokens of an embedding model
_RESULTS = 10  # a file's passages may be this many times its size: they repeat its title, and what adjacent ones share


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = data_parser(
        "documents",
        "DIR_OR_FILE ... -o FILE --tokenizer MODEL [--FLAG VALUE ...]",
        "Split files into passages and write them as a document database. Reads txt, rst, md, html, pdf, docx, pptx,\n"
        "xlsx, csv, tsv, jsonl, json and ipynb. A file that cannot be read, or exceeds a limit,\n"
        "is reported and skipped; so is what is left out of the others.",
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
        default=None,
        help="maximum tokens per passage, including source and title (default: what the embedding model reads, without "
        "16 tokens for its prompt, but at most 400)",
    )
    made.add_argument(
        "--chunk_overlap",
        type=int,
        default=None,
        help="maximum tokens shared by adjacent passages of a section (default: 50, at most a quarter of --chunk_size)",
    )
    made.add_argument("--text_field", default="", help="JSON field or CSV column with the text (default: text)")
    made.add_argument(
        "--title_field", default="", help="field or column with the title (default: title, if there is one)"
    )
    made.add_argument(
        "--source_field", default="", help="field or column with the source of the text (default: source)"
    )
    made.add_argument("--encoding", default="utf-8", help="encoding of text files that are not UTF-8")
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
        help="largest file, and the most that an Office file may unpack to (default: 1000)",
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
    from groundtune.prepare.readers.page import ReadOptions
    from groundtune.retrieval.reading_limit import longest_read
    from groundtune.system.workers import Limits

    fields = (arguments.text_field, arguments.title_field, arguments.source_field)
    options = ReadOptions(arguments.encoding, *fields, max_mb=arguments.max_file_mb)
    limits = Limits(arguments.file_timeout, arguments.max_memory_mb, _RESULTS * arguments.max_file_mb)
    reads = longest_read(arguments.tokenizer)
    size, overlap = _lengths(arguments, reads)
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
    if reads and reads < size:
        notes.append(
            f"{arguments.tokenizer} reads {reads} tokens of a passage, but these have up to {size}: a search does not "
            f"see the ends of longer ones. --chunk_size {reads - _PROMPT} also leaves room for its prompt"
        )
    written = f"Wrote {summary.passages.total() - summary.merged:,} passages to {arguments.output}"
    show(vars(summary), corpus.summary_table(summary), [*notes, written], arguments)
    return 0


def _lengths(arguments: argparse.Namespace, reads: int | None) -> tuple[int, int]:
    """The size and the overlap of passages: what was given, or else what fits a model that `reads` so many."""
    size, overlap = arguments.chunk_size, arguments.chunk_overlap
    size = max(16, min(_LONGEST, (reads or 1000) - _PROMPT)) if size is None else size
    return size, min(50, size // 4) if overlap is None else overlap


def _too_small(arguments: argparse.Namespace) -> list[str]:
    least = {"file_timeout": 1, "max_file_mb": 1, "max_memory_mb": 256}
    return [
        f"--{name}: {value} is too small; the minimum is {least[name]}"
        for name, value in vars(arguments).items()
        if name in least and not value >= least[name]  # `not >=` also catches NaN
    ]
