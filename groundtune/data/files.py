"""Reading and writing examples and documents: JSONL, Parquet, and LocalRQA's pickle, which is not executed.

All problems of a file are reported at once, one line each: `train.jsonl:17: question: missing; <what to do>`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from groundtune.data.entries import Record, document_of, example_of, json_object, questions_of
from groundtune.data.other_kinds import not_documents, not_examples
from groundtune.data.safe_pickle import RefusedPickle, load_fields
from groundtune.errors import DataError
from groundtune.schema import Document, Example
from groundtune.system.durable import disk_errors
from groundtune.system.inputs import NotAFile, open_file
from groundtune.system.outputs import in_place_of, is_link, links_at
from groundtune.system.packages import pip_install
from groundtune.system.text import few, one_line, to_json

logger = logging.getLogger(__name__)

FilePath = str | os.PathLike[str]
T = TypeVar("T")
Rows = Iterator[tuple[int, dict[str, Any]]]
Reader = Callable[[FilePath, list[str]], Rows]  # yields readable rows and appends problems to the list

_DOCUMENT_COLUMNS = ("page_content", "fmt_content", "metadata")
_BEGINNING = 2**20  # bytes in which to find the first object of a file
_IN_MEMORY = 128 * 2**20  # bytes of a JSONL file up to which all of its documents are held in memory
_BATCH = 4096  # Parquet rows in memory at a time
_LARGEST_PICKLE = 4 * 2**30  # bytes of the file, and of its documents when written out
# First bytes of files that are not UTF-8 text: reported as one problem, not one for every line.
_OTHER_KINDS = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"\x80\x04\x95": "a pickle",
}


@dataclass(frozen=True)
class Contents(Generic[T]):
    """The contents of a file: its valid entries, each with its place ("train.jsonl:17"), and its problems.

    `problems` are lines as in `DataError`; `suspicions` are lines about things that can be read but look unintended.
    """

    entries: list[tuple[str, T]]
    problems: list[str]
    suspicions: list[str]


def scan_examples(path: FilePath) -> Contents[Example]:
    """Like `read_examples`, but return every valid example and every problem instead of raising."""
    return _explained(path, _scan(path, json_rows, example_of), not_examples)


def scan_questions(path: FilePath) -> Contents[Example]:
    """Like `scan_examples`, for retrievers: lines need no answer, and may have several `questions`, as in LocalRQA."""
    found = _explained(path, _scan(path, json_rows, questions_of), not_examples)
    examples = [(where, example) for where, these in found.entries for example in these]
    return Contents(examples, found.problems, found.suspicions)


def scan_documents(path: FilePath) -> Contents[Document]:
    """Like `read_documents`, but return every valid document and every problem instead of raising."""
    suffix = Path(path).suffix.lower()
    if suffix not in _READERS:
        return Contents([], [f"{path}: unsupported file type for documents; use {', '.join(_READERS)}"], [])
    return _explained(path, _scan(path, _READERS[suffix], document_of), not_documents)


def read_examples(path: FilePath) -> list[Example]:
    """Read questions, gold passages and answers from JSONL, one example per line; blank lines are skipped.

    A line is `{"question", "gold_docs": [document], "gold_answer", "chat_history": [turn], "hard_neg_docs":
    [document], "gold_answers": [text], "answerable": bool}`, the last four optional; other keys are ignored. An
    example with a blank question or answer is left out with a warning: published data has such lines, and they give
    nothing to learn or to score.

    Raises:
        DataError: the file cannot be read, contains no example, or any line is wrong; it lists all problems.
    """
    examples = _entries(scan_examples(path))
    usable = [example for example in examples if example.question.strip() and example.answer.strip()]
    if not usable:
        raise DataError([f"{path}: every question or answer is blank; write at least one example"])
    if blank := [example.source for example in examples if not (example.question.strip() and example.answer.strip())]:
        logger.warning("%s: left out %d examples with a blank question or answer: %s", path, len(blank), few(blank))
    return usable


def read_documents(path: FilePath) -> Sequence[Document]:
    """Read a document database: `.jsonl`, `.parquet` or `.pkl`. Of documents with equal texts, the first is kept.

    A list; the documents of a large JSONL file stay in it, and each is read when it is asked for.

    A Parquet file has a column `page_content` and may have `fmt_content` and `metadata` (struct, map or JSON text);
    other columns go into the metadata, except bytes and vectors. `documents.parquet:17` is its 17th document.

    Raises:
        DataError: the file type is unsupported, the file cannot be read or contains no document, or any document is
            wrong.
    """
    if Path(path).suffix.lower() == ".jsonl" and os.path.isfile(path) and os.path.getsize(path) > _IN_MEMORY:
        return _mapped(path)
    documents = _entries(scan_documents(path))
    distinct: dict[str, Document] = {}
    for document in documents:
        distinct.setdefault(document.text, document)
    if len(distinct) < len(documents):
        dropped = len(documents) - len(distinct)
        logger.info("%s: dropped %d of %d documents as duplicates", path, dropped, len(documents))
    return list(distinct.values())


def _mapped(path: FilePath) -> Sequence[Document]:
    """The documents of a large JSONL file, after the checks that every file gets."""
    from groundtune.data.mapped import MappedDocuments, id_number, kept_places, known_places  # numpy, not always needed

    checksum = sha256_of(path)
    if (known := known_places(checksum)) is not None:
        return MappedDocuments(path, *known)
    problems: list[str] = []
    seen: dict[int, int] = {}
    rows = 0
    for place, number, row in _placed_rows(path, problems):
        rows += 1
        before = len(problems)
        document = document_of(Record(f"{path}:{number}", row, problems, []))
        if len(problems) == before:
            seen.setdefault(id_number(document.id), place)
    if problems:
        raise DataError(problems)
    if len(seen) < rows:
        logger.info("%s: dropped %d of %d documents as duplicates", path, rows - len(seen), rows)
    return MappedDocuments(path, *kept_places(checksum, seen))


def stream_documents(path: FilePath) -> Iterator[Document]:
    """The documents of a file, one at a time. Raises `DataError` at the first problem."""
    problems: list[str] = []
    for number, row in _READERS[Path(path).suffix.lower()](path, problems):
        document = document_of(Record(f"{path}:{number}", row, problems, []))
        if problems:
            raise DataError(problems)
        yield document


def write_documents(path: FilePath, documents: Iterable[Document]) -> None:
    """Write a document database as `.jsonl` or `.parquet`, atomically.

    Raises:
        DataError: the suffix is unsupported, or pyarrow is missing for Parquet.
        OSError: the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        write_jsonl(path, (document.to_dict() for document in documents))
    elif suffix == ".parquet":
        _write_parquet(path, documents)
    else:
        raise DataError([f"{path}: unsupported file type; use .jsonl or .parquet"])


def write_jsonl(path: FilePath, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line in UTF-8, atomically.

    Raises:
        OSError: the file cannot be written.
        TypeError, ValueError: a row is not JSON, or UTF-8 cannot encode its text; an existing file stays unchanged.
    """
    with replacing(path) as file:
        for row in rows:
            file.write(to_json(row).encode("utf-8") + b"\n")


def write_text(path: FilePath, text: str) -> None:
    """Write a text file in UTF-8 with "\\n" line endings, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def sha256_of(path: FilePath) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        DataError: the file cannot be opened.
    """
    digest = hashlib.sha256()
    with _open(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _scan(path: FilePath, rows: Reader, build: Callable[[Record], T]) -> Contents[T]:
    """Build an entry from every valid row of a file, and collect the problems of the others."""
    found: Contents[T] = Contents([], [], [])
    try:
        for number, row in rows(path, found.problems):
            problems_before = len(found.problems)
            record = Record(f"{path}:{number}", row, found.problems, found.suspicions)
            entry = build(record)
            if len(found.problems) == problems_before:
                found.entries.append((record.where, entry))
    except DataError as error:  # about the whole file
        found.problems.extend(error.problems)
    if not found.entries and not found.problems:
        found.problems.append(f"{path}: is empty; it needs at least one entry")
    return found


def _explained(path: FilePath, found: Contents[T], what_else: Callable[[FilePath, bytes], str]) -> Contents[T]:
    """The contents of a file in which nothing is valid as a single problem, if it is known what the file is instead."""
    if found.entries or not os.path.isfile(path):
        return found
    with _open(path) as file:
        explained = what_else(path, file.read(_BEGINNING))
    return Contents([], [explained], []) if explained else found


def _entries(found: Contents[T]) -> list[T]:
    if found.problems:
        raise DataError(found.problems)
    return [entry for _, entry in found.entries]


def json_rows(path: FilePath, problems: list[str]) -> Rows:
    """Line number and object of every line that is not blank; lines without an object become problems."""
    return ((number, row) for _, number, row in _placed_rows(path, problems))


def _placed_rows(path: FilePath, problems: list[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The rows of `json_rows`, each with the place of its first byte before its line number."""
    with _open(path) as file:
        after = 0
        for number, line in enumerate(file, 1):
            place, after = after, after + len(line)
            if number == 1:
                if kind := next((kind for magic, kind in _OTHER_KINDS.items() if line.startswith(magic)), None):
                    raise DataError([f"{path}:1: line: the file is {kind}; it must be JSON lines in UTF-8"])
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                yield place, number, json_object(line)
            except ValueError as error:
                problems.append(f"{path}:{number}: line: {error}")


def parquet_rows(path: FilePath) -> Rows:
    """Row number and columns of every row, without binary columns and vectors.

    Raises:
        DataError: pyarrow is missing, or this is not a Parquet file.
    """
    pa, pq = _pyarrow(path)
    with _open(path) as file:
        try:
            parquet = pq.ParquetFile(file)
            columns = [column.name for column in parquet.schema_arrow if not _is_no_text(pa, column.type)]
            batches = parquet.iter_batches(_BATCH, columns=columns)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = one_line(error, 200)
            raise DataError([f"{path}: not a readable Parquet file ({reason}); create it again"]) from error


def _is_no_text(pa: Any, kind: Any) -> bool:
    """Whether a column holds bytes or vectors, such as embeddings."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return kind in (pa.binary(), pa.large_binary()) or (lists and pa.types.is_floating(kind.value_type))


def _document_rows(path: FilePath, problems: list[str]) -> Rows:
    for number, row in parquet_rows(path):
        if number == 1 and not {"page_content", "fmt_content"} & row.keys():
            seen = ", ".join(row) or "none"
            problems.append(f"{path}: page_content: missing; add a column of this name (columns: {seen})")
            return
        yield number, _document_fields(row)


def _document_fields(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its metadata as an object that includes the other columns; dates and similar values become text."""
    fields = {name: row.pop(name, None) for name in _DOCUMENT_COLUMNS}
    metadata = fields["metadata"]
    try:
        if isinstance(metadata, str):
            metadata = json.loads(metadata)
        elif isinstance(metadata, list) and all(isinstance(entry, tuple) for entry in metadata):
            metadata = dict(metadata)  # a map column
        if metadata is None or isinstance(metadata, dict):
            fields["metadata"] = json.loads(to_json({**row, **(metadata or {})}, default=str))
    except (ValueError, RecursionError):
        pass  # left unchanged, and reported by `Record.metadata`
    return fields


def _write_parquet(path: FilePath, documents: Iterable[Document]) -> None:
    pa, pq = _pyarrow(path)
    schema = pa.schema([(name, pa.string()) for name in _DOCUMENT_COLUMNS])
    rows = ({**d.to_dict(), "metadata": to_json(d.metadata)} for d in documents)
    with replacing(path) as file, pq.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, _BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def _pyarrow(path: FilePath) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError([f"{path}: Parquet needs pyarrow; {pip_install('parquet')}"]) from error
    return pyarrow, pyarrow.parquet


def _pickle_rows(path: FilePath, problems: list[str]) -> Rows:
    """The documents of LocalRQA's pickle, a list of `local_rqa.schema.document.Document`; nothing is executed."""
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST_PICKLE:
            raise DataError([f"{path}: {size:,} bytes, over the limit of {_LARGEST_PICKLE:,}; save it as .jsonl"])
        data = file.read(size)
    try:
        yield from enumerate(load_fields(data, _LARGEST_PICKLE), 1)
    except RefusedPickle as error:
        problem = f"{path}: refused, nothing in it was executed: {one_line(error, 200)}"
        accepted = "only a list of local_rqa Documents of plain data, in pickle protocol 2 to 5, is read"
        raise DataError([f"{problem}; {accepted}: save the documents as .jsonl"]) from error


_READERS = {".jsonl": json_rows, ".parquet": _document_rows, ".pkl": _pickle_rows, ".pickle": _pickle_rows}


def _open(path: FilePath) -> BinaryIO:
    try:
        return open_file(path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError([_why_not_opened(Path(path), error)]) from error


def _why_not_opened(path: Path, error: Exception) -> str:
    if os.path.isdir(path):  # unlike Path.is_dir, this never raises
        return f"no such file: {path} is a folder; name a file in it"
    if isinstance(error, NotAFile):
        return f"{path}: {error.strerror}; save its contents to a file, and name that"
    if not isinstance(error, FileNotFoundError):
        return f"{path}: cannot be opened ({one_line(error, 200)}); check its name and permissions"
    folder = path.parent
    if not os.path.isdir(folder):
        return f"no such file: {path}; there is no folder {folder} either"
    names = sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []
    near = difflib.get_close_matches(path.name, names)
    return f"no such file: {path}; " + (f"did you mean {' or '.join(near)}?" if near else "check the path")


def in_folder(folder: Path, *names: str) -> Path:
    """`folder`/names, for reading. Raises `DataError` if a link leads out of the folder, which may be untrusted."""
    path = folder.joinpath(*names)
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise DataError([f"{path} is a link to {os.path.realpath(path)}, outside {folder}; replace it with a copy"])
    return path


def in_the_way(flag: str, path: FilePath, folder: bool = False) -> list[str]:
    """Reasons why a file (or a folder, with `folder`) cannot be created at `path`; empty if it can."""
    path = Path(path)
    if is_link(path) and not (folder and os.path.isdir(path)):
        return links_at([path], flag)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # will be created, or is reported below
    except (OSError, ValueError) as error:  # a name that is too long, another user's home, a null character
        why, kind = one_line(error, 200), "folder" if folder else "file"
        return [f"--{flag}: {path} cannot be created ({why}); name another {kind}"]
    above = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not os.path.isdir(above):
        return [f"--{flag}: {path} cannot be created: {above} is a file; name another {'folder' if folder else 'file'}"]
    if folder and os.path.exists(path) and not os.path.isdir(path):
        return [f"--{flag}: {path} is a file; name a new or existing folder"]
    if not folder and os.path.isdir(path):
        return [f"--{flag}: {path} is a folder; name a file"]
    if not os.access(path if os.path.isdir(path) else above, os.W_OK):
        return [f"--{flag}: {path} cannot be written; change its permissions, or name another"]
    return []


@contextmanager
def replacing(path: FilePath) -> Iterator[BinaryIO]:
    """A file that atomically replaces `path` when the block ends, and is deleted if the block raises.

    Its folder is created. Raises `DiskError`, and `DataError` if `path` is a link.
    """
    with disk_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with in_place_of(path) as file:
            yield file
