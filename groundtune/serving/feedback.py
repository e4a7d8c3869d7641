"""What people think of the answers: one line for each vote, on disk before it is acknowledged."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from groundtune.schema import Sampling
from groundtune.serving.chat import MOST_AGAIN, Refused
from groundtune.serving.dialogue import Source
from groundtune.system.durable import sync_folder
from groundtune.system.outputs import inside, no_follow
from groundtune.system.text import to_json

_REMEMBERED = 2000  # answers
_MOST_CHARACTERS = 20_000
_OF_ANSWER = ("answer", "sources", "sampled")


class _Turn(BaseModel):
    speaker: Literal["user", "assistant"]
    message: str = Field(max_length=_MOST_CHARACTERS)


class Shown(BaseModel):
    """An answer as the page shows it: used if this process has not given it, because the server was restarted."""

    question: str = Field(max_length=_MOST_CHARACTERS)
    history: list[_Turn] = Field(default_factory=list, max_length=200)
    answer: str = Field(max_length=_MOST_CHARACTERS)
    sources: list[str] = Field(default_factory=list, max_length=200)  # ids of passages
    again: int = Field(0, ge=0, le=MOST_AGAIN)


class Vote(BaseModel):
    """A vote on one answer (up, down), or on two that were shown side by side (left, right, both, neither)."""

    id: str = Field(pattern=r"^[\w-]{8,80}$")
    vote: Literal["up", "down", "left", "right", "both", "neither", ""]
    comment: str = Field("", max_length=_MOST_CHARACTERS)
    correction: str = Field("", max_length=_MOST_CHARACTERS)  # what the answer should have been
    shown: list[Shown] = Field(min_length=1, max_length=2)


class Given:
    """The latest answers of this process by their id, as they go into a line of feedback."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def remember(self, id: str, row: dict[str, Any]) -> None:
        self._rows[id] = row
        while len(self._rows) > _REMEMBERED:
            self._rows.popitem(last=False)

    def get(self, id: str) -> dict[str, Any] | None:
        return self._rows.get(id)


def answered(
    question: str, history: list[dict[str, str]], answer: str, sources: list[Source], sampling: Sampling | None
) -> dict[str, Any]:
    """An answer as a part of a line; `sampled` says how it was drawn, if it was not the most likely one."""
    shown = [{"id": source.document.id, "score": source.score, **source.document.to_dict()} for source in sources]
    row = {"question": question, "history": history, "answer": answer, "sources": shown}
    return row | ({"sampled": asdict(sampling)} if sampling else {})


def line_of(vote: Vote, answers: list[dict[str, Any]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """One line: the question and its history, the answer or both with the models that gave them, and the vote."""
    first = answers[0]
    told: dict[str, Any] = {"question": first["question"], "history": first["history"]}
    if len(answers) == 1:
        told |= {name: first[name] for name in _OF_ANSWER if name in first}
    else:
        told["answers"] = [
            {"side": side, "model": one["model"]} | {name: one[name] for name in _OF_ANSWER if name in one}
            for side, one in zip(("left", "right"), answers, strict=True)
        ]
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    said = {"vote": vote.vote, "comment": vote.comment, "correction": vote.correction}
    return {"id": vote.id, "time": now, **told, **said, **facts}


class FeedbackFile:
    """A file of JSON lines that is only added to; what was acknowledged is on disk, whatever ends the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a line and wait until it is on disk. Raises `Refused` if the disk does not take it."""
        line = to_json(row).encode("utf-8") + b"\n"
        with self._lock:
            try:
                self._write(line)
            except OSError as error:
                raise Refused(507, f"the vote is not saved: {self.path.name}: {error.strerror}") from error

    def _write(self, line: bytes) -> None:
        path = inside(self.path.parent, self.path.name)
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = no_follow(str(path), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            before = os.fstat(handle).st_size
            if before and not _ends_a_line(handle, before):
                # A process that was killed, or a full disk, has left half a line, which stays one by itself.
                line = b"\n" + line
            _write_all(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)
        if is_new:
            sync_folder(path.parent)


def _ends_a_line(handle: int, size: int) -> bool:
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1) == b"\n"


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
