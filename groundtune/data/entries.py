"""One JSON object -> an example or a document, with all problems in it; knows nothing of files."""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from groundtune.schema import ASSISTANT, USER, Document, Example, Turn
from groundtune.system.text import HALF_A_CHARACTER, encodable

# The historical format calls the assistant "system".
_USERS = ["user", "human", "customer", "client", "question"]
_ASSISTANTS = ["assistant", "system", "bot", "chatbot", "gpt", "ai", "agent", "model", "answer"]
_SPEAKERS = {**dict.fromkeys(_USERS, USER), **dict.fromkeys(_ASSISTANTS, ASSISTANT)}
_A_DOCUMENT = 'a document is {"page_content": "its text", ...}'
_A_TURN = 'a turn is {"speaker": "user", "message": "the text of the turn"}'


@dataclass(frozen=True)
class Record:
    """An object in a file: its place, its fields, and the `problems` and `suspicions` of the whole file so far.

    Methods record problems and return a harmless value instead of raising, so that one pass finds every problem.
    """

    where: str  # "train.jsonl:17"
    fields: dict[str, Any]
    problems: list[str]
    suspicions: list[str] = field(default_factory=list)
    prefix: str = ""  # "gold_docs[0]."

    def note(self, key: str, problem: str) -> None:
        """Add a problem with the field `key`."""
        self.problems.append(f"{self.where}: {self.prefix}{key}: {problem}")

    def text(self, key: str, need: str, required: bool = True, may_be_blank: bool = False) -> str:
        """The text at `key`, "" if there is none; `need` tells the user what belongs there."""
        value = self.fields.get(key)
        if value is None:
            value = ""
            if required:
                self.note(key, f"missing{self.other_spelling(key)}; {need}")
        elif not isinstance(value, str):
            self.note(key, f"is {shown(value)}, not text; {need}")
        elif required and not may_be_blank and not value.strip():
            self.note(key, f"is blank ({shown(value)}); {need}")
        elif not encodable(value):
            self.note(key, f"{shown(value)} {HALF_A_CHARACTER}")
        return value if isinstance(value, str) else ""

    def other_spelling(self, key: str) -> str:
        """A hint if the record has a field with a name similar to the missing `key`."""
        names = {name.lower(): name for name in self.fields if name != key}
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
        return f" (there is {shown(names[near[0]])})" if near else ""

    def suspect_misspelt(self, *optional: str, required: Sequence[str] = ()) -> None:
        """Record unknown fields that look like a misspelt optional one, which would otherwise be ignored silently."""
        absent = [name for name in optional if name not in self.fields]
        for key in self.fields:
            if absent and key not in (*optional, *required):
                for meant in difflib.get_close_matches(key.lower(), absent, n=1, cutoff=0.8):
                    problem = f"is ignored; did you mean {meant}?"
                    self.suspicions.append(f"{self.where}: {self.prefix}{_shown_name(key)}: {problem}")

    def texts(self, key: str, need: str) -> list[str]:
        """The texts in the list at `key`, blank ones left out; missing, null and "" mean none."""
        values = self.fields.get(key)
        if values is None or values == "":
            return []
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self.note(key, f"is {shown(values)}, not a list of texts; {need}")
            return []
        if not encodable(values):
            self.note(key, HALF_A_CHARACTER)
        return [value for value in values if value.strip()]

    def flag(self, key: str, default: bool) -> bool:
        """True or false at `key`, `default` if it is missing or null."""
        value = self.fields.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.note(key, f"is {shown(value)}; write true or false, or remove it")
        return value is True

    def metadata(self) -> dict[str, Any]:
        """The object at `metadata`, an empty one if there is none."""
        value = self.fields.get("metadata")
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.note("metadata", f"is {shown(value)}, not an object; write one or remove it")
            return {}
        if not encodable(value):
            self.note("metadata", HALF_A_CHARACTER)
        return value

    def records(self, key: str, each: str) -> Iterator[Record]:
        """The objects in the list at `key`; missing, null and "" mean none."""
        values = self.fields.get(key)
        if values is None or values == "":
            return
        if not isinstance(values, list):
            self.note(key, f"is {shown(values)}, not a list; {each}")
            return
        for position, value in enumerate(values):
            if isinstance(value, dict):
                prefix = f"{self.prefix}{key}[{position}]."
                yield Record(self.where, value, self.problems, self.suspicions, prefix)
            else:
                self.note(f"{key}[{position}]", f"is {shown(value)}, not an object; {each}")


def example_of(record: Record) -> Example:
    """An example as `files.read_examples` describes it; not usable if a problem was recorded."""
    question = record.text("question", 'every line needs a "question" with the text of the question', may_be_blank=True)
    answer = record.text(
        "gold_answer", 'every line needs a "gold_answer" with the text of the answer', may_be_blank=True
    )
    return _example(record, question, answer)


def questions_of(record: Record) -> list[Example]:
    """The examples of a line for retrievers: `questions` as in LocalRQA, else its `question`; no answer is needed."""
    record.suspect_misspelt("question", "questions")
    asked = record.texts("questions", 'it is a list of questions: ["...", "..."]')
    if not asked:
        need = 'every line needs a "question", or "questions" with a list of them'
        asked = [record.text("question", need, may_be_blank=True)]
    answer = record.text("gold_answer", "it is the text of the answer", required=False)
    first = _example(record, asked[0], answer)
    return [first, *(replace(first, question=question) for question in asked[1:])]


def _example(record: Record, question: str, answer: str) -> Example:
    record.suspect_misspelt(
        "chat_history", "hard_neg_docs", "gold_answers", "answerable", required=("question", "gold_docs", "gold_answer")
    )
    if record.fields.get("gold_docs") in (None, "") and record.fields.get("answerable") is not False:
        state = "empty" if "gold_docs" in record.fields else "missing" + record.other_spelling("gold_docs")
        need = (
            'give the passages that contain the answer, or [] if none is known, or "answerable": false if none exists'
        )
        record.note("gold_docs", f"{state}; {need}")
    return Example(
        question=question,
        answer=answer,
        gold_documents=tuple(map(document_of, record.records("gold_docs", _A_DOCUMENT))),
        chat_history=tuple(turns_of(record)),
        hard_negatives=tuple(map(document_of, record.records("hard_neg_docs", _A_DOCUMENT))),
        gold_answers=tuple(record.texts("gold_answers", "it lists the acceptable answers, each a text")),
        answerable=record.flag("answerable", default=True),
        source=record.where,
    )


def turns_of(record: Record) -> Iterator[Turn]:
    """The turns before the question: the record's `chat_history`, if there is one.

    A turn of "system" before the first one of the user is an instruction and left out, with a suspicion; elsewhere it
    is the assistant's, as LocalRQA writes it.
    """
    turns = list(record.records("chat_history", _A_TURN))
    if len(turns) > 1 and _speaker(turns[0]) == "system" and _SPEAKERS.get(_speaker(turns[1])) == USER:
        problem = "is 'system' before the first user turn: an instruction, so it is left out; use --instruction"
        record.suspicions.append(f"{turns[0].where}: {turns[0].prefix}speaker: {problem}")
        turns = turns[1:]
    return map(_turn, turns)


def _speaker(turn: Record) -> str:
    return str(turn.fields.get("speaker")).strip().lower()


def _turn(record: Record) -> Turn:
    name = record.text("speaker", _A_TURN)
    if name.strip() and name.strip().lower() not in _SPEAKERS:
        record.note("speaker", f"{shown(name)} is unknown; use one of {', '.join(_SPEAKERS)}")
    return Turn(_SPEAKERS.get(name.strip().lower(), USER), record.text("message", _A_TURN))


def document_of(record: Record) -> Document:
    """A document as `files.read_documents` describes it; not usable if a problem was recorded."""
    record.suspect_misspelt("fmt_content", "metadata")
    formatted = record.text("fmt_content", "it is the page content with its metadata", required=False)
    page = record.text("page_content", _A_DOCUMENT, required=not formatted.strip())
    return Document(page, formatted, record.metadata())


class _GivenTwice(ValueError):
    """A name appears twice in one JSON object; the standard library would silently keep the last."""


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _GivenTwice(f"{_shown_name(twice)} appears twice in one object; keep one")
    return fields


_decode = json.JSONDecoder(object_pairs_hook=_each_name_once).decode


def json_object(line: bytes) -> dict[str, Any]:
    """The JSON object in a line of UTF-8. Raises ValueError, with a message for the user, for any invalid line."""
    try:
        value = _decode(line.decode("utf-8").rstrip())  # otherwise an error at the end would be on "line 2 column 1"
    except UnicodeDecodeError as error:
        seen = f"byte {error.start + 1} is {line[error.start]:#04x}"
        raise ValueError(f"not UTF-8 ({seen}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        problem = f"not valid JSON at column {error.colno}: {error.msg}"
        raise ValueError(f"{problem}; every line must be one complete JSON object") from error
    except _GivenTwice:
        raise
    except RecursionError as error:
        raise ValueError("is nested too deeply to be read; flatten it") from error
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"contains a number that cannot be read ({error}); write it as text") from error
    if not isinstance(value, dict):
        raise ValueError(f"is {shown(value)}, not an object; every line must be one JSON object")
    return value


def shown(value: object) -> str:
    """A value shortened for a message: one line of about 60 characters, however large or deep it is."""
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = 60
    shorten.maxlevel = 2
    shown = shorten.repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _shown_name(name: str) -> str:
    """A field's name for a message, in quotes if it contains spaces or unprintable characters."""
    return name if re.fullmatch(r"[\w.-]{1,40}", name) else shown(name)
