"""Shared by all formats: opening files, reading records, and building examples."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from groundtune.data.entries import Record, shown
from groundtune.data.files import parquet_rows
from groundtune.errors import DataError
from groundtune.prompts.thoughts import after_thoughts
from groundtune.schema import UNANSWERABLE, Document, Example, Turn
from groundtune.system.inputs import NotAFile, special
from groundtune.system.text import one_line


@dataclass(frozen=True)
class Options:
    """Options of formats; `convert.FLAGS` lists the formats that use each of them."""

    unanswerable: str = UNANSWERABLE  # the answer to a question that has none
    evidence: Path | None = None  # TriviaQA: the folder with `wikipedia/` and `web/`
    prompt_pattern: re.Pattern[str] | None = None  # chats: finds (?P<passage>...) and (?P<question>...) in a prompt
    raft_answer: str = "final"  # or "reasoning"
    # Finds the passage that supports (question, answer), for examples that come without one.
    search: Callable[[str, str], Sequence[Document]] = lambda question, answer: ()


@dataclass(frozen=True)
class Unsaid:
    """What a dialogue contains that an example has no place for: an instruction, and messages of tools."""

    instruction: str = ""
    tools: int = 0


@dataclass(frozen=True)
class Converted:
    """One step of a conversion: an example or the reason why there is none, and documents for the database.

    An example's own documents need not be repeated in `documents`. `split` names the output file if the format has
    its own splits.
    """

    example: Example | None = None
    left_out: str = ""
    documents: tuple[Document, ...] = ()
    split: str = ""
    unsaid: Unsaid = Unsaid()


@dataclass(frozen=True)
class Format:
    """A published format: a one-line description, and `read(path, options, problems)`.

    `read` yields what it can read and appends every problem to `problems`, one line each.
    """

    description: str
    read: Callable[[Path, Options, list[str]], Iterator[Converted]]


def converted(
    question: str,
    answers: Sequence[str],
    gold: Sequence[Document],
    *,
    negatives: Sequence[Document] = (),
    documents: Sequence[Document] = (),
    history: Sequence[Turn] = (),
    answerable: bool = True,
    source: str = "",
) -> Converted:
    """An example that learns the first of `answers` and is scored against all of them, or why there is none.

    Thoughts of a model are not part of its answers.
    """
    said = [after_thoughts(answer)[0] for answer in answers]
    acceptable = tuple(dict.fromkeys(filter(None, said)))
    texts = {document.text for document in gold}
    missing = [("a question", question.strip()), ("an answer", acceptable), ("a passage", texts - {""})]
    left_out = next((f"without {name}" for name, value in missing if not value), "")
    if left_out:
        return Converted(left_out=left_out, documents=(*gold, *negatives, *documents))
    example = Example(
        question=question.strip(),
        answer=acceptable[0],
        gold_documents=tuple(gold),
        chat_history=tuple(history),
        hard_negatives=tuple(document for document in negatives if document.text not in texts),
        source=source,
        gold_answers=acceptable if len(acceptable) > 1 else (),
        answerable=answerable,
    )
    return Converted(example, documents=tuple(documents))


def children(record: Record, key: str, need: str, pair: tuple[str, str] | None = None) -> Iterator[Record]:
    """The objects in the list at `key`, which is required.

    Two other layouts are accepted: an object of columns, as in Parquet files, and, if `pair` names their parts, lists
    of length two.
    """
    value = record.fields.get(key)
    if value is None:
        record.note(key, f"missing; {need}")
        return
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, items)) for items in zip(*value.values())]
    elif pair and isinstance(value, list):
        value = [dict(zip(pair, item)) if isinstance(item, list) and len(item) == 2 else item for item in value]
    yield from replace(record, fields={**record.fields, key: value}).records(key, need)


def child(record: Record, key: str, need: str) -> Record:
    """The object at `key`; an empty one, with a problem recorded, if there is no object."""
    value = record.fields.get(key)
    if not isinstance(value, dict):
        record.note(key, f"missing; {need}" if value is None else f"is {shown(value)}, not an object; {need}")
        value = {}
    return replace(record, fields=value, prefix=f"{record.prefix}{key}.")


def records(path: Path, problems: list[str]) -> Iterator[Record]:
    """The objects in a file: lines of JSON, one JSON value (an object, or a list of them), or rows of Parquet.

    The first line decides which kind of JSON it is; `.gz` files are unpacked.

    Raises:
        DataError: the file cannot be opened or has an unsupported type.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from (Record(f"{path}:{number}", row, problems) for number, row in parquet_rows(path))
    elif not name.endswith((".json", ".jsonl", ".ndjson")):
        raise DataError([f"{path}: unsupported file type; use .json, .jsonl or .parquet"])
    elif _is_json_lines(path):
        yield from _lines(path, problems)
    else:
        yield from _whole(path, problems)


def opened(path: Path) -> io.BufferedIOBase:
    """The file opened for reading bytes, unpacked if its name ends in .gz. Raises `DataError`."""
    try:
        if kind := special(path):
            raise NotAFile(kind, path)
        return gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb")
    except OSError as error:
        raise DataError([f"{path}: cannot be opened ({error.strerror or error}); check the path"]) from error


def _is_json_lines(path: Path) -> bool:
    with _readable(path) as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return not path.name.lower().removesuffix(".gz").endswith(".json")  # JSON lines whose first line is invalid


def _lines(path: Path, problems: list[str]) -> Iterator[Record]:
    with _readable(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                reason = one_line(error, 150)
                problems.append(f"{path}:{number}: not valid JSON ({reason}); every line must be one object")
                continue
            if isinstance(value, dict):
                yield Record(f"{path}:{number}", value, problems)
            else:
                problems.append(f"{path}:{number}: is {shown(value)}, not an object; every line must be one")


def _whole(path: Path, problems: list[str]) -> Iterator[Record]:
    with _readable(path) as file:
        try:
            value = json.loads(file.read().decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise DataError(
                [f"{path}:{error.lineno}: not valid JSON ({error.msg}); download the file again"]
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError([f"{path}: not valid JSON ({one_line(error, 150)}); download the file again"]) from error
    if isinstance(value, dict):
        yield Record(str(path), value, problems)
        return
    if not isinstance(value, list):
        raise DataError([f"{path}: is {shown(value)}; it must hold an object or a list of objects"])
    for number, item in enumerate(value):
        if isinstance(item, dict):
            yield Record(f"{path}[{number}]", item, problems)
        else:
            problems.append(f"{path}[{number}]: is {shown(item)}, not an object; a list must hold objects")


class _readable:
    """An opened file; errors while it is unpacked become a `DataError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> io.BufferedIOBase:
        self.file = opened(self.path)
        return self.file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, EOFError | OSError):
            raise DataError([f"{self.path}: cannot be unpacked ({one_line(error, 150)}); download it again"]) from error
