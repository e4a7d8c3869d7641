"""The local page on which people grade answers: what it shows, and the server that keeps every grade.

Only this machine can reach it, by an address that nobody else knows; whoever has it sees the questions and passages.
Requests of other pages are refused by their Host and Origin. A grade is on disk when the page says so.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from groundtune.errors import DataError
from groundtune.evaluation.grades import ASPECTS, TIE, answer_id, question_id, wrong_with
from groundtune.prepare.journal import Journal
from groundtune.schema import Document, Example, Prediction
from groundtune.system.durable import DiskError
from groundtune.system.text import plain, to_json

HOST = "127.0.0.1"
_MOST_BYTES = 64 * 1024  # of a grade with its note
_FILES = {  # by name below the key
    "": ("rate.html", "text/html"), "rate.css": ("rate.css", "text/css"), "rate.js": ("rate.js", "text/javascript"),
}  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Row = dict[str, Any]


# What is graded


@dataclass(frozen=True)
class Item:
    """A question with one answer or two; which system gave them is not shown."""

    example: Example
    answers: tuple[Prediction, ...]

    @property
    def id(self) -> str:
        return question_id(self.example)

    def texts(self) -> dict[str, str]:
        """Each answer once, by its id."""
        return {answer_id(prediction.answer): prediction.answer for prediction in self.answers}

    def shown_to(self, rater: str) -> Row:
        """The item as the page shows it; the order of the answers is random, but always the same for a rater."""
        answers = sorted(self.texts().items(), key=lambda answer: _hash(rater, self.id, answer[0]))
        documents = {document.id: document for prediction in self.answers for document in prediction.read}
        gold = {document.id for document in self.example.gold_documents}
        return {
            "id": self.id,
            "question": self.example.question,
            "history": [[turn.speaker, turn.message] for turn in self.example.chat_history],
            "gold": list(self.example.acceptable_answers) if self.example.answerable else [],
            "answers": [{"id": name, "text": text} for name, text in answers],
            "pair": len(self.answers) > 1,
            "passages": [_passage(document, document.id in gold) for document in documents.values()],
        }


def _passage(document: Document, gold: bool) -> Row:
    return {"text": document.text, "gold": gold}


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def items_of(systems: Sequence[Sequence[Prediction]], most: int = 0) -> list[Item]:
    """Questions that all systems answered, each once, in a random order that is the same for everybody.

    `most`: no more than these, if it is not 0. Raises `DataError` if there are none.
    """
    by_question = [{question_id(p.example): p for p in answers if not p.failure} for answers in systems]
    common = [key for key in by_question[0] if all(key in answers for answers in by_question)]
    if not common:
        raise DataError(["rate: no question was answered by all systems; name predictions for the same questions"])
    random.Random(0).shuffle(common)  # noqa: S311
    chosen = common[:most] if most else common
    return [Item(by_question[0][key].example, tuple(answers[key] for answers in by_question)) for key in chosen]


# What was graded


class Grades:
    """The file of grades; several requests may add to it at the same time."""

    def __init__(self, path: Path, items: Sequence[Item]) -> None:
        self.items = {item.id: item for item in items}
        self.journal = Journal(path, {"grades": 1}, wrong_with, flag="output")
        self._lock = threading.Lock()

    def of(self, rater: str) -> dict[str, Row]:
        """The latest row of a rater for each of the items, of the answers that are shown."""
        return {row["question_id"]: row for row in self.journal.rows if row["rater"] == rater and self._shown(row)}

    def _shown(self, row: Row) -> bool:
        item = self.items.get(row["question_id"])
        return item is not None and {answer["id"] for answer in row["answers"]} == item.texts().keys()

    def add(self, sent: Mapping[str, Any]) -> Row:
        """Keep a grade as the page sent it; it is synced to disk when this returns.

        Raises ValueError with what is wrong with it, and `DiskError`.
        """
        row = self._row(sent)
        if wrong := wrong_with(row):
            raise ValueError(wrong)
        with self._lock:
            self.journal.add([row])
        return row

    def _row(self, sent: Mapping[str, Any]) -> Row:
        item, given = self.items.get(str(sent.get("id"))), sent.get("grades")
        if item is None or not isinstance(given, dict) or set(given) != set(texts := item.texts()):
            raise ValueError("is not of an item on this page; reload the page")
        note, rater = sent.get("note", ""), sent.get("rater")
        if not isinstance(note, str) or not isinstance(rater, str) or not rater.strip() or len(rater) > 80:
            raise ValueError("needs a name of at most 80 characters, and its note must be a text")
        return {
            "rater": rater.strip(),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "question_id": item.id,
            "question": item.example.question,
            "answers": [{"id": key, "text": texts[key], "grades": given[key]} for key in texts],
            "preferred": sent.get("preferred"),
            "note": note,
        }

    @property
    def raters(self) -> dict[str, int]:
        """The number of items that each rater graded."""
        names = sorted({row["rater"] for row in self.journal.rows})
        return {name: len(self.of(name)) for name in names}


# The server


class RatingServer(ThreadingHTTPServer):
    """Serves one page to this machine; `address` is what to open."""

    daemon_threads = True
    request_queue_size = 128  # the standard library's 5 refuses requests that arrive together on a busy machine

    def __init__(self, grades: Grades, port: int = 0) -> None:
        self.grades, self.key = grades, secrets.token_urlsafe(16)
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show a fault of this program; a client that went away is none."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def hosts(self) -> set[str]:
        return {f"{name}:{self.server_address[1]}" for name in (HOST, "localhost")}

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/{self.key}/"


class _Handler(BaseHTTPRequestHandler):
    server: RatingServer
    timeout: ClassVar[float] = 30  # seconds for a client to send what it announced
    server_version, sys_version = "groundtune", ""

    def do_GET(self) -> None:
        if (name := self._asked()) is None:
            return
        if name in _FILES:
            file, kind = _FILES[name]
            self._reply(resources.files("groundtune.serving").joinpath(file).read_bytes(), kind)
        elif name == "items":
            self._send(self._items(unquote(self.headers.get("X-Rater", ""))))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")

    def do_POST(self) -> None:
        if (name := self._asked()) is None:
            return
        origin = self.headers.get("Origin", "")
        if origin not in {f"http://{host}" for host in self.server.hosts}:
            self._refuse(HTTPStatus.FORBIDDEN, "sent by another page")
        elif name != "grade" or self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        else:
            self._grade()

    def _asked(self) -> str | None:
        """What is asked for below the key; None if the request was refused: a page elsewhere may have led here."""
        if self.headers.get("Host", "") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "asked for under another name")
            return None
        key, slash, name = self.path.lstrip("/").partition("/")
        if not slash or not secrets.compare_digest(key.encode(), self.server.key.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "open the whole address that the command printed")
            return None
        return name

    def _items(self, rater: str) -> Row:
        grades = self.server.grades
        return {
            "aspects": ASPECTS,
            "tie": TIE,
            "items": [item.shown_to(rater) for item in grades.items.values()] if rater else [],
            "done": grades.of(rater),
            "raters": grades.raters,
        }

    def _grade(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 < length <= _MOST_BYTES:
                raise ValueError(f"is {length:,} bytes long; at most {_MOST_BYTES:,} are accepted")
            sent = json.loads(self.rfile.read(length))
            if not isinstance(sent, dict):
                raise ValueError("is not an object")
            row = self.server.grades.add(sent)
        except (ValueError, RecursionError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"the grade {error}")
        except (DiskError, DataError) as error:
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
        else:
            self._send({"saved": row})

    def _send(self, content: Row) -> None:
        self._reply(to_json(plain(content)).encode(), "application/json")

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True
        self._reply(to_json({"error": why}).encode(), "application/json", status)

    def _reply(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": f"{kind}; charset=utf-8"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name in the standard library
        """Nothing: the address is a secret, and questions are no business of a log."""
