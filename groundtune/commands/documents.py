"""`groundtune documents`: folders and files -> documents.jsonl."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from groundtune.commands.parsing import given
from groundtune.commands.terminal import add_output_flags, data_parser, progress, show
from groundtune.errors import DataError


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = data_parser(
        "documents",
        "DIR_OR_FILE ... -o FILE --tokenizer MODEL [--FLAG VALUE ...]",
        "Split files into passages and write them as a document database. Reads txt, rst, md, html, pdf, docx, csv\n"
        "and jsonl; a file that cannot be read is reported and skipped.",
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
    add_output_flags(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Returns 0; raises `DataError` for problems that the user can fix."""
    arguments = argparse.Namespace(**given(parser(), argv))

    from groundtune.prepare import corpus
    from groundtune.prepare.chunking import Chunker, load_counter
    from groundtune.prepare.readers.page import ReadOptions
    from groundtune.retrieval.reading_limit import longest_read

    options = ReadOptions(arguments.encoding, arguments.text_field, arguments.title_field, arguments.source_field)
    size, overlap = arguments.chunk_size, arguments.chunk_overlap
    if problems := corpus.check(arguments.inputs, arguments.output, options, size, overlap):
        raise DataError(problems)
    chunker = Chunker(load_counter(arguments.tokenizer), size, overlap)
    with progress(arguments.quiet or arguments.json) as bars:
        summary = corpus.write_corpus(
            arguments.inputs,
            arguments.output,
            chunker,
            options,
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
