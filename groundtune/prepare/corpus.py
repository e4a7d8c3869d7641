"""`groundtune documents`: folders and files -> one document database, streamed."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.data.files import in_the_way, write_documents
from groundtune.errors import DataError
from groundtune.prepare.chunking import Chunker, load_counter
from groundtune.prepare.pages import READERS, kind_of, missing_libraries, read_pages
from groundtune.prepare.readers.page import ReadOptions
from groundtune.prepare.twins import merge_contained
from groundtune.schema import Document
from groundtune.system.inputs import special
from groundtune.system.text import few, one_line, readable
from groundtune.system.workers import Give, Limits, Result, Run, results

if TYPE_CHECKING:
    from rich.table import Table


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
class Chunks:
    """How files are cut: `tokenizer` is the file of the tokenizer that counts, and the rest as in `Chunker`."""

    tokenizer: Path
    size: int
    overlap: int


@dataclass(frozen=True)
class Found:
    """A file to read, and its source name in the passages, which does not depend on where the folder is."""

    path: Path
    source: str
    kind: str  # ".pdf"


def write_corpus(
    inputs: Sequence[str],
    output: Path,
    chunks: Chunks,
    options: ReadOptions,
    limits: Limits,
    follow_links: bool = False,
    on_file: Callable[[Found, int, int], None] = lambda file, number, total: None,
) -> Summary:
    """Write the passages of all files to `output` (.jsonl or .parquet), in the order of the file names.

    Several files are read at once, each within `limits`; one that exceeds them is left out, like any that cannot be
    read. Passages with the same title and text are written once, because a retriever could not tell them apart. Only
    their hashes are kept in memory. `on_file` is called with each file, its number and the total.

    Raises:
        DataError: an input is missing or has an unsupported type, or there is no passage at all; nothing is written.
    """
    summary = Summary()
    found = find_files(inputs, output, summary, follow_links)
    if problems := missing_libraries(file.kind for file in found):
        raise DataError(problems)
    write_documents(output, _passages(found, output.parent, chunks, options, limits, summary, on_file))
    summary.merged = merge_contained(output)
    return summary


def check(inputs: Sequence[str], output: Path, options: ReadOptions, size: int, overlap: int) -> list[str]:
    """All problems with the arguments; empty if there are none."""
    problems = [f"{name}: no such file or folder; check the path" for name in inputs if not os.path.exists(name)]
    for path in map(Path, inputs):
        if kind := special(path):
            problems.append(f"{path}: is {kind}, not a file; save its contents to a file, and name that")
        elif os.path.isfile(path) and not kind_of(path):
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


def find_files(inputs: Sequence[str], output: Path, summary: Summary, follow_links: bool = False) -> list[Found]:
    """The files to read, sorted within each folder, each once; hidden files and `output` itself are left out.

    The source name of a file in a folder begins with that folder (`docs/install/linux.md`); a file given directly is
    named relative to the current folder, or by its file name if it lies elsewhere. Unless `follow_links`, links are
    followed only to paths inside the inputs: in somebody else's folder they could lead to any file on this machine. The
    summary says what is left out.

    Raises:
        DataError: there are no files.
    """
    found: dict[str, Found] = {}
    here = Path.cwd()
    walk = _Walk([Path(name).resolve() for name in inputs], follow_links)
    for path in walk.named:
        base = path.parent if path.is_dir() or not path.is_relative_to(here) else here
        for file in walk.files(path) if path.is_dir() else [path]:
            source = readable(file.relative_to(base).as_posix())
            if not (kind := kind_of(file)):
                summary.other_kinds.setdefault(readable(file.suffix.lower()) or "no suffix", []).append(source)
            elif what := special(file):
                walk.problems.append(f"{file}: leads to {what}, not to a file; leave it out")
            elif not os.path.isfile(file):
                walk.problems.append(f"{file}: is a link whose target is missing, or a loop of links; leave it out")
            elif walk.may_read(file) and os.path.realpath(file) != os.path.realpath(output):
                found.setdefault(os.path.realpath(file), Found(file, source, kind))
    summary.problems += map(readable, walk.problems)
    if not found:
        nothing = f"{', '.join(inputs)}: no files of a supported type: {', '.join(READERS)}"
        raise DataError(summary.problems or [nothing])
    return list(found.values())


@dataclass
class _Walk:
    """A walk through the folders that were named. No folder is entered twice, so a circle of links ends."""

    named: Sequence[Path]
    follow_links: bool
    entered: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def files(self, folder: Path) -> Iterator[Path]:
        """The files below a folder, those of linked folders last."""
        linked: list[Path] = []
        for root, names, files in os.walk(folder, onerror=self._note):
            self.entered.add(os.path.realpath(root))
            folders = [Path(root) / name for name in sorted(names) if not name.startswith(".")]
            linked += filter(Path.is_symlink, folders)
            names[:] = [path.name for path in folders if self._is_new(path)]  # os.walk does not follow links
            yield from (Path(root) / name for name in sorted(files) if not name.startswith("."))
        for link in linked:
            if self.may_read(link) and self._is_new(link):
                yield from self.files(link)

    def may_read(self, path: Path) -> bool:
        """Whether a path is inside what was named, or may be elsewhere; if not, that is a problem."""
        real = Path(os.path.realpath(path))
        if self.follow_links or any(real.is_relative_to(one) for one in self.named):
            return True
        ways = "to read it, name that path as well, or give --follow_links"
        self.problems.append(f"{path}: is a link to {real}, outside the inputs, and is skipped; {ways}")
        return False

    def _is_new(self, folder: Path) -> bool:
        return os.path.realpath(folder) not in self.entered

    def _note(self, error: OSError) -> None:
        self.problems.append(f"{error.filename}: cannot be entered ({error.strerror}); check its permissions")


def _passages(
    found: Sequence[Found],
    folder: Path,
    chunks: Chunks,
    options: ReadOptions,
    limits: Limits,
    summary: Summary,
    on_file: Callable[[Found, int, int], None],
) -> Iterator[Document]:
    seen: set[bytes] = set()
    settings = {"tokenizer": str(chunks.tokenizer), "size": chunks.size, "overlap": chunks.overlap, **vars(options)}
    tasks = [(str(file.path), file.source) for file in found]
    with closing(results("groundtune.prepare.corpus:file_reader", settings, tasks, limits, folder)) as read:
        for number, (file, result) in enumerate(zip(found, read), 1):
            on_file(file, number, len(found))
            if result.failure:
                summary.unread += 1
                summary.problems.append(readable(_why_unread(file, result, limits)))
                continue
            for passage in (Document(**fields) for fields in result):
                digest = _digest(passage)
                if digest in seen:
                    summary.duplicates[file.kind] += 1
                else:
                    seen.add(digest)
                    summary.passages[file.kind] += 1
                    yield passage
            pages, blank, left_out = result.summary
            summary.files[file.kind] += 1
            summary.pages[file.kind] += pages
            summary.blank += blank
            for what in left_out:
                summary.left_out.setdefault(what, []).append(file.source)
    if not seen:
        names = ", ".join(file.source for file in found[:3]) + (", ..." if len(found) > 3 else "")
        blank = f"{summary.blank} of the texts are blank, " if summary.blank else ""
        problem = f"{names}: none of the files gave a passage: {blank}{summary.unread} files cannot be read"
        raise DataError([*summary.problems, f"{problem}; nothing was written"])


def _why_unread(file: Found, result: Result, limits: Limits) -> str:
    if result.failure == "told":
        return result.why
    reasons = {
        "time": f"is not read after {limits.seconds:g} seconds; raise --file_timeout",
        "memory": f"takes more than {limits.memory_mb:,} MB of memory; raise --max_memory_mb",
        "results": f"gives more than {limits.results_mb:,} MB of passages; shorten its title, or raise --max_file_mb",
        "crash": f"ends the program that reads it ({result.why}), perhaps for lack of memory; raise --max_memory_mb",
        "error": f"cannot be read ({result.why}); save it again",
    }
    return f"{file.path}: {reasons[result.failure]}, or leave the file out"


def file_reader(tokenizer: str, size: int, overlap: int, **options: Any) -> Run:
    """What a process that reads files does: path and source of a file -> its passages, its numbers of texts, and
    what is left out of it."""
    chunker = Chunker(load_counter(Path(tokenizer)), size, overlap)

    def read(task: tuple[str, str], give: Give) -> tuple[int, int, list[str]]:
        pages = [0, 0]  # with text, and blank
        left_out: dict[str, None] = {}
        for page in read_pages(Path(task[0]), task[1], ReadOptions(**options)):
            blank = True
            for passage in chunker.passages(page):
                blank = False
                give(passage.to_dict())
            pages[blank] += 1
            left_out.update(dict.fromkeys(page.left_out))
        return pages[0], pages[1], list(left_out)

    return read


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
    lines += [f"left out: {what}: {few(sources)}" for what, sources in summary.left_out.items()]
    if summary.other_kinds:
        n = sum(map(len, summary.other_kinds.values()))
        kinds = ", ".join(f"{kind} ({few(names)})" for kind, names in summary.other_kinds.items())
        lines.append(f"skipped: {n:,} {'file' if n == 1 else 'files'} of unsupported types: {kinds}")
    return lines
