"""`groundtune documents`: folders and files -> one document database, streamed."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from groundtune.data.files import in_the_way, write_documents
from groundtune.errors import DataError
from groundtune.prepare.chunking import Chunker
from groundtune.prepare.pages import READERS, kind_of, missing_libraries, read_pages
from groundtune.prepare.readers.page import ReadOptions
from groundtune.prepare.twins import merge_contained
from groundtune.schema import Document
from groundtune.system.text import one_line

if TYPE_CHECKING:
    from rich.table import Table

_NAMED = 5  # files in a note


@dataclass
class Summary:
    """Counts by kind of file (`.pdf`), and what was left out, with the reason."""

    files: Counter[str] = field(default_factory=Counter)
    pages: Counter[str] = field(default_factory=Counter)
    passages: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    merged: int = 0  # passages that were part of another one with the same title
    blank: int = 0  # pages without any text
    other_kinds: dict[str, list[str]] = field(default_factory=dict)  # files of unsupported types in folders
    left_out: dict[str, list[str]] = field(default_factory=dict)  # what is not read of files -> their sources
    problems: list[str] = field(default_factory=list)  # a line for each file or folder that could not be read
    unread: int = 0


@dataclass(frozen=True)
class Found:
    """A file to read, and its source name in the passages, which does not depend on where the folder is."""

    path: Path
    source: str
    kind: str  # ".pdf"


def write_corpus(
    inputs: Sequence[str],
    output: Path,
    chunker: Chunker,
    options: ReadOptions,
    on_file: Callable[[Found, int, int], None] = lambda file, number, total: None,
) -> Summary:
    """Write the passages of all files to `output` (.jsonl or .parquet), in the order of the file names.

    Passages with the same title and text are written once, because a retriever could not tell them apart. Only their
    hashes are kept in memory. `on_file` is called with each file, its number and the total.

    Raises:
        DataError: an input is missing or has an unsupported type, or there is no passage at all; nothing is written.
    """
    summary = Summary()
    found = find_files(inputs, output, summary)
    if problems := missing_libraries(file.kind for file in found):
        raise DataError(problems)
    write_documents(output, _passages(found, chunker, options, summary, on_file))
    summary.merged = merge_contained(output)
    return summary


def check(inputs: Sequence[str], output: Path, options: ReadOptions, size: int, overlap: int) -> list[str]:
    """All problems with the arguments; empty if there are none."""
    problems = [f"{name}: no such file or folder; check the path" for name in inputs if not os.path.exists(name)]
    for path in map(Path, inputs):
        if os.path.isfile(path) and not kind_of(path):
            problems.append(f"{path}: unsupported file type; convert it to one of {', '.join(READERS)}")
    if output.suffix.lower() not in (".jsonl", ".parquet"):
        problems.append(f"--output: {output}: unsupported file type; use .jsonl or .parquet")
    problems += in_the_way("output", output)
    if size < 16:
        problems.append(f"--chunk_size: {size} is too small for a passage; give at least 16 tokens")
    if not 0 <= overlap <= size // 2:
        problems.append(f"--chunk_overlap: {overlap}; give 0 or more, and at most half of --chunk_size {size}")
    try:
        codecs.lookup(options.encoding)
    except LookupError:
        problems.append(f"--encoding: {options.encoding} is unknown; common encodings are utf-8, cp1252 and latin-1")
    return problems


def find_files(inputs: Sequence[str], output: Path, summary: Summary) -> list[Found]:
    """The files to read, sorted within each folder, each once; hidden files and `output` itself are left out.

    The source name of a file in a folder begins with that folder (`docs/install/linux.md`); a file given directly is
    named relative to the current folder, or by its file name if it lies elsewhere. Links are followed only to paths
    inside the inputs: in somebody else's folder they could lead to any file on this machine. The summary says what is
    left out.

    Raises:
        DataError: there are no files.
    """
    found: dict[Path, Found] = {}
    entered: set[Path] = set()
    here = Path.cwd()
    named = [Path(name).resolve() for name in inputs]
    for path in named:
        base = path.parent if path.is_dir() or not path.is_relative_to(here) else here
        for file in _walk(path, named, entered, summary.problems) if path.is_dir() else [path]:
            if not (kind := kind_of(file)):
                skipped = summary.other_kinds.setdefault(file.suffix.lower() or "no suffix", [])
                skipped.append(file.relative_to(base).as_posix())
            elif not os.path.isfile(file):
                summary.problems.append(f"{file}: not a regular file, or a link whose target is missing; leave it out")
            elif problem := _leads_out(file, named):
                summary.problems.append(problem)
            elif file.resolve() != output.resolve():
                found.setdefault(file.resolve(), Found(file, file.relative_to(base).as_posix(), kind))
    if not found:
        nothing = f"{', '.join(inputs)}: no files of a supported type: {', '.join(READERS)}"
        raise DataError(summary.problems or [nothing])
    return list(found.values())


def _leads_out(path: Path, named: Sequence[Path]) -> str:
    """A message if a link leads out of all inputs; empty if it does not."""
    real = path.resolve()
    if any(real.is_relative_to(one) for one in named):
        return ""
    return f"{path}: is a link to {real}, outside the inputs, and is skipped; to read it, name that path as well"


def _walk(folder: Path, named: Sequence[Path], entered: set[Path], problems: list[str]) -> Iterator[Path]:
    """The files below a folder, those of linked folders last. No folder is entered twice, so cycles end."""

    def note(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be entered ({error.strerror}); check its permissions")

    linked: list[Path] = []
    for root, names, files in os.walk(folder, onerror=note):
        entered.add(Path(root).resolve())
        folders = [Path(root) / name for name in sorted(names) if not name.startswith(".")]
        linked += filter(Path.is_symlink, folders)
        names[:] = [path.name for path in folders if path.resolve() not in entered]  # os.walk does not follow links
        yield from (Path(root) / name for name in sorted(files) if not name.startswith("."))
    for link in linked:
        if problem := _leads_out(link, named):
            problems.append(problem)
        elif link.resolve() not in entered:
            yield from _walk(link, named, entered, problems)


def _passages(
    found: Sequence[Found],
    chunker: Chunker,
    options: ReadOptions,
    summary: Summary,
    on_file: Callable[[Found, int, int], None],
) -> Iterator[Document]:
    seen: set[bytes] = set()
    for number, file in enumerate(found, 1):
        on_file(file, number, len(found))
        try:
            for passage in _of_file(file, chunker, options, summary):
                digest = _digest(passage)
                if digest in seen:
                    summary.duplicates[file.kind] += 1
                else:
                    seen.add(digest)
                    summary.passages[file.kind] += 1
                    yield passage
            summary.files[file.kind] += 1
        except DataError as error:
            summary.unread += 1
            summary.problems += error.problems[:1]
    if not seen:
        names = ", ".join(file.source for file in found[:3]) + (", ..." if len(found) > 3 else "")
        blank = f"{summary.blank} of the texts are blank, " if summary.blank else ""
        problem = f"{names}: none of the files gave a passage: {blank}{summary.unread} files cannot be read"
        raise DataError([*summary.problems, f"{problem}; nothing was written"])


def _of_file(file: Found, chunker: Chunker, options: ReadOptions, summary: Summary) -> Iterator[Document]:
    for page in read_pages(file.path, file.source, options):
        blank = True
        for passage in chunker.passages(page):
            blank = False
            yield passage
        for what in page.left_out:
            sources = summary.left_out.setdefault(what, [])
            sources += [file.source] if file.source not in sources[-1:] else []
        summary.pages[file.kind] += not blank
        summary.blank += blank


def _digest(passage: Document) -> bytes:
    text = one_line(passage.page_content)
    key = f"{passage.metadata.get('title', '')}\n{text}"
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def summary_table(summary: Summary) -> Table:
    """The counts by kind of file, as a rich table."""
    from groundtune.system.tables import TextTable

    table = TextTable("kind", "files", "texts", "passages", "duplicates dropped")
    for column in table.columns[1:]:
        column.justify = "right"
    counters = (summary.files, summary.pages, summary.passages, summary.duplicates)
    for kind in sorted(summary.files):
        table.add_row(kind, *(f"{counter[kind]:,}" for counter in counters))
    if len(summary.files) > 1:
        table.add_row("all", *(f"{counter.total():,}" for counter in counters))
    return table


def notes(summary: Summary) -> list[str]:
    """Notes beside the table: what was left out, and why."""
    lines = [f"not read: {problem}" for problem in summary.problems]
    if summary.merged:
        lines.append(f"merged: {summary.merged:,} passages that are part of another one with the same title")
    if summary.blank:
        lines.append(f"skipped: {summary.blank:,} blank texts")
    lines += [f"left out: {what}: {_named(sources)}" for what, sources in summary.left_out.items()]
    if summary.other_kinds:
        n = sum(map(len, summary.other_kinds.values()))
        kinds = ", ".join(f"{kind} ({_named(names)})" for kind, names in summary.other_kinds.items())
        lines.append(f"skipped: {n:,} {'file' if n == 1 else 'files'} of unsupported types: {kinds}")
    return lines


def _named(sources: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(sources) - _NAMED:,} more" if len(sources) > _NAMED else ""
    return f"{', '.join(sources[:_NAMED])}{more}"
