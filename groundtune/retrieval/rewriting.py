"""A question inside a dialogue -> a question that can be understood alone, written by a language model.

The prompt is `rewrite.txt`, next to this file, or the user's. Replies are kept in the index folder, so that training,
evaluation and serving search for the same question, and no question is asked twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from groundtune.arguments import NO_WRITER, REWRITE, ModelArguments, RetrievalArguments
from groundtune.errors import DataError
from groundtune.model.endpoint import endpoint_at, is_server, lasting
from groundtune.prompts.fences import fenced, introduced
from groundtune.retrieval.queries import Query, query_of
from groundtune.schema import Example, Reply
from groundtune.system.durable import disk_errors
from groundtune.system.inputs import read_text
from groundtune.system.outputs import inside, no_follow
from groundtune.system.text import to_json

if TYPE_CHECKING:
    from groundtune.model.generators import Writer

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("rewrite.txt")
_FIELDS = ("chat_history", "question")
_NEW_TOKENS = 256
_KEPT_EVERY = 32  # replies: what a killed run loses at most


@dataclass
class Rewriter:
    """Turns questions with a chat history into queries; those without one stay as they are.

    `name` and `identity` say who writes; `load` makes the writer when it is first needed, and `close` releases it.
    Replies are kept in the file `path`. A reply that failed, was cut off or says nothing leaves its question to
    `--query_history fused`; all are counted for `note`.
    """

    name: str
    identity: str
    load: Callable[[], Writer]
    prompt: str
    path: Path
    asked: int = 0
    failures: dict[str, str] = field(default_factory=dict)  # by the key of a question; it is not asked again
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def queries(self, examples: Sequence[Example]) -> list[Query]:
        """The query of each example; threads wait for each other.

        Raises `DataError`, `ModelError` or `EndpointError` if nothing can be written.
        """
        with self._one_at_a_time:
            return self._queries(examples)

    def _queries(self, examples: Sequence[Example]) -> list[Query]:
        follow_ups = [example for example in examples if example.chat_history]
        every = {self._key(example): example for example in follow_ups}
        new = [(key, example) for key, example in every.items() if key not in self._kept.keys() | self.failures.keys()]
        self.asked += len(new)
        if new:
            self._ask(new)
            failed = sum(key in self.failures for key, _ in new)
            logger.info("%s wrote %d of %d search queries", self.name, len(new) - failed, len(new))
        return [self._query(example) for example in examples]

    @property
    def note(self) -> list[str]:
        """A line with the number of questions that could not be rewritten; empty if there are none."""
        if not self.failures:
            return []
        return [
            f"{len(self.failures)} of {self.asked} questions were not rewritten by {self.name}, and were searched as "
            f"with --query_history fused; the first reply: {next(iter(self.failures.values()))}"
        ]

    def close(self) -> None:
        """Release the model; the next new question loads it again."""
        self.__dict__.pop("_complete", None)

    def _query(self, example: Example) -> Query:
        if not example.chat_history:
            return Query(example.question)
        if written := self._kept.get(self._key(example)):
            return Query(written)
        return query_of(example.question, example.chat_history, "fused")

    def _ask(self, new: Sequence[tuple[str, Example]]) -> None:
        """Ask for the queries of these examples, and keep them."""
        for start in range(0, len(new), _KEPT_EVERY):
            these = new[start : start + _KEPT_EVERY]
            replies = self._complete([self._messages(example) for _, example in these], _NEW_TOKENS)
            rows = []
            for (key, example), reply in zip(these, replies, strict=True):
                text = " ".join(reply.text.split())
                if failure := _failure(reply, text):
                    self.failures[key] = failure
                else:
                    self._kept[key] = text
                    rows.append({"key": key, "question": example.question, "rewritten": text})
            self._keep(rows)

    @cached_property
    def _complete(self) -> Callable[..., list[Reply]]:
        return lasting(self.load().complete)

    def _messages(self, example: Example) -> list[dict[str, str]]:
        turns = "\n".join(f"{turn.speaker}: {turn.message}" for turn in example.chat_history)
        values = {"chat_history": fenced("conversation", turns), "question": fenced("question", example.question)}
        return [{"role": "user", "content": Template(introduced(self.prompt, "question")).substitute(values)}]

    def _key(self, example: Example) -> str:
        turns = [[turn.speaker, turn.message] for turn in example.chat_history]
        asked = [self.identity, self.prompt, _NEW_TOKENS, turns, example.question]
        return hashlib.sha256(to_json(asked, ensure_ascii=True).encode()).hexdigest()[:32]

    @cached_property
    def _kept(self) -> dict[str, str]:
        """The replies in the file, by key. A line that cannot be read, such as a last one cut off, is asked again."""
        kept: dict[str, str] = {}
        if not os.path.isfile(self.path):
            return kept
        with disk_errors(self.path), open(self.path, "rb", opener=no_follow) as file:
            for line in file:
                try:
                    row = json.loads(line)
                    if isinstance(row["key"], str) and isinstance(row["rewritten"], str):
                        kept[row["key"]] = row["rewritten"]
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
        return kept

    def _keep(self, rows: Sequence[dict[str, str]]) -> None:
        """Append the replies in one write, so that runs at the same time do not mix their lines."""
        if not rows:
            return
        lines = "".join(to_json(row) + "\n" for row in rows)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(inside(self.path.parent, self.path.name), "ab", opener=no_follow) as file:
                file.write(("\n" if _is_cut(self.path) else "").encode() + lines.encode("utf-8", "replace"))


def _failure(reply: Reply, text: str) -> str:
    if reply.failure or not text:
        return reply.failure or "an empty reply"
    return "" if reply.finished else f"cut off after {_NEW_TOKENS} tokens: {text[:60]!r} ..."


def _is_cut(path: Path) -> bool:
    """Whether a killed run left a last line without its end."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        return end > 0 and file.read(1) != b"\n"


def open_rewriter(retrieval: RetrievalArguments, index_folder: Path) -> Rewriter | None:
    """The rewriter of `--query_history rewrite`; None for other values.

    Raises `DataError` for a prompt that cannot be used, and if there is nothing that writes.
    """
    if retrieval.query_history != REWRITE:
        return None
    name = retrieval.rewriter
    if not name:
        raise DataError([NO_WRITER])
    model, options = retrieval.rewriter_model, retrieval.rewriter_options
    where = os.path.realpath(name) if os.path.isdir(name) else name
    called = f"{model} {options}".strip() if is_server(name) else f"{where} {_files_of(Path(name))}".strip()
    return Rewriter(
        name=model or name,
        identity=called,
        load=partial(_load, name, model, options),
        prompt=read_rewrite_prompt(retrieval.rewrite_prompt),
        path=index_folder / "rewritten.jsonl",
    )


def _load(name: str, model: str, options: str) -> Writer:
    if is_server(name):
        return endpoint_at(name, model, options)
    from groundtune.model.opening import open_writer  # here, because it imports torch, which a server does not need

    return open_writer(name)


def cannot_rewrite(model: ModelArguments) -> list[str]:
    """Why the model that is trained or answers cannot write the questions too; empty if it can."""
    if not (model.gguf_file or model.trust_remote_code or model.model_revision):
        return []
    why = "a model from a GGUF file, of a --model_revision or with code of its own cannot write the question here"
    return [f"--query_history {REWRITE}: {why}; name another model or a server with --rewriter"]


def read_rewrite_prompt(path: str = "") -> str:
    """The prompt of a rewriter, the one that ships if no file is named. Raises `DataError` if it cannot be used."""
    try:
        text = read_text(path or SHIPPED)
    except (OSError, ValueError) as error:
        raise DataError([f"--rewrite_prompt: {path} cannot be read ({error}); name a text file"]) from error
    try:
        Template(text).substitute(dict.fromkeys(_FIELDS, ""))
    except KeyError as error:
        raise DataError(
            [f"--rewrite_prompt: {path}: ${error.args[0]} is unknown; use $chat_history, $question"]
        ) from error
    except ValueError as error:
        raise DataError([f"--rewrite_prompt: {path}: a $ that begins no field; write $$ for a dollar sign"]) from error
    if missing := [f"${name}" for name in _FIELDS if Template(text).safe_substitute({name: "\0"}).find("\0") < 0]:
        raise DataError([f"--rewrite_prompt: {path}: does not use {' and '.join(missing)}; add what is missing"])
    return text


def _files_of(folder: Path) -> list[list[object]]:
    """Name, size and time of the files of a model's folder: another model in its place writes other questions."""
    if not folder.is_dir():
        return []
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors", ".jinja")]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
