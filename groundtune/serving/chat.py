"""The shapes of OpenAI's API: a request -> a question with its history, an answer -> a reply or chunks of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from groundtune.data.words import places_of, telling_words
from groundtune.filters import filter_problems
from groundtune.schema import ASSISTANT, USER, Sampling, Turn
from groundtune.serving.dialogue import Source
from groundtune.serving.telling import Told
from groundtune.system.text import one_line, to_json

MOST_AGAIN = 2**31 - 1
_TEMPERATURE = 0.7  # of an answer that somebody asks for again, because the most likely one did not please
_MOST_MESSAGES, _LONGEST_FILTER = 2000, 2000


class Refused(Exception):
    """A request that is not answered: the status, and what the client is told."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code or None}}


class _Part(BaseModel):
    type: str
    text: str = ""


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            if odd := [part.type for part in self.content if part.type != "text"]:
                raise Refused(400, f"messages: a part is of the type {one_line(odd[0], 40)}; only text can be read")
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class _StreamOptions(BaseModel):
    include_usage: bool | None = None


class _Request(BaseModel):
    model: str = Field("", max_length=300)
    messages: list[_Message] = Field(min_length=1, max_length=_MOST_MESSAGES)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    filter: str | None = Field(None, max_length=_LONGEST_FILTER)
    again: int = Field(0, ge=0, le=MOST_AGAIN)


@dataclass(frozen=True)
class Request:
    """What a client asks: the last message is the question, and the earlier ones its history."""

    question: str
    history: tuple[Turn, ...] = ()
    model: str = ""
    system: str = ""
    stream: bool = False
    include_usage: bool = False
    max_new_tokens: int | None = None
    filter: str = ""  # only passages whose metadata meet it
    sampling: Sampling | None = None  # another answer than the most likely one


def read_request(body: bytes, most_characters: int) -> Request:
    """The request of a client; the oldest messages beyond `most_characters` are left out, as no prompt holds them.

    Raises `Refused` for what is not a request, or asks for what is not done here.
    """
    asked = parsed(_Request, body)
    _check_supported(asked)
    spoken = [message for message in asked.messages if message.role in (USER, ASSISTANT)]
    if not spoken or asked.messages[-1].role != USER or not spoken[-1].text.strip():
        raise Refused(400, "messages: the last one must be the user's question")
    system = "\n\n".join(m.text for m in asked.messages if m.role not in (USER, ASSISTANT)).strip()
    if len(system) > most_characters:
        raise Refused(400, f"messages: the system message has {len(system):,} characters; at most {most_characters:,}")
    limits = [limit for limit in (asked.max_tokens, asked.max_completion_tokens) if limit]
    turns = [Turn(message.role, text) for message in spoken[:-1] if (text := message.text)]
    return replace(
        request_of(spoken[-1].text, turns, most_characters),
        model=asked.model,
        system=system,
        stream=bool(asked.stream),
        include_usage=bool(asked.stream_options and asked.stream_options.include_usage),
        max_new_tokens=min(limits, default=None),
        filter=checked_filter(asked.filter or ""),
        sampling=sampling_of(asked.again),
    )


def sampling_of(again: int) -> Sampling | None:
    """How an answer is drawn that is asked for again, the first, second ... time; None: the most likely one."""
    return Sampling(_TEMPERATURE, again) if again else None


def checked_filter(text: str) -> str:
    """A condition on metadata, as `--filter` takes it. Raises `Refused` if it cannot be read."""
    if len(text) > _LONGEST_FILTER or (problems := filter_problems(text.strip())):
        raise Refused(400, problems[0].removeprefix("--") if len(text) <= _LONGEST_FILTER else "filter: too long")
    return text.strip()


def request_of(question: str, turns: Sequence[Turn], most_characters: int) -> Request:
    """The request for an answer to a question. Raises `Refused` if there is none, or too much of one."""
    if not question.strip():
        raise Refused(400, "the question is empty")
    if len(question) > most_characters:
        raise Refused(400, f"the question has {len(question):,} characters; at most {most_characters:,}")
    return Request(question, _latest(turns, most_characters))


def parsed(kind: type[Any], body: bytes) -> Any:
    """The JSON of a request as a pydantic model; raises `Refused` with the first problem."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(400, one_line(f"{where}: {first['msg']}" if where else first["msg"], 300)) from error


def _check_supported(asked: _Request) -> None:
    kind = (asked.response_format or {}).get("type", "text")
    unsupported = {
        "n": asked.n not in (None, 1),
        "stop": bool(asked.stop),
        "logprobs": bool(asked.logprobs),
        "response_format": kind != "text",
    }
    if names := [name for name, is_so in unsupported.items() if is_so]:
        raise Refused(400, f"{', '.join(names)}: not supported here; leave it out", "unsupported_parameter")


def _latest(turns: Sequence[Turn], most_characters: int) -> tuple[Turn, ...]:
    """The last turns that have at most `most_characters` together; questions and answers are left out in pairs."""
    length, first = 0, len(turns)
    while first > 0 and length + len(turns[first - 1].message) <= most_characters:
        first -= 1
        length += len(turns[first].message)
    return tuple(turns[first + first % 2 :])


@dataclass(frozen=True)
class Reply:
    """The fixed part of a reply, and what it is made of."""

    id: str
    model: str
    created: int
    sampling: Sampling | None = None

    def whole(self, told: Told, sources: Sequence[Source], usage: dict[str, int] | None) -> str:
        """A reply that is not streamed."""
        said = {"content": told.said.answer, "refusal": None, "annotations": url_citations(told, sources)}
        ended = "stop" if told.finished else "length"
        choice = {"index": 0, "message": {"role": "assistant", **said}, "logprobs": None, "finish_reason": ended}
        of_all = self._of_all(told, sources) | ({"usage": usage} if usage else {})
        return to_json(self._of("chat.completion", [choice]) | of_all)

    def first(self, sources: Sequence[Source]) -> str:
        """The first chunk: the passages, before any word."""
        return self._chunk({"role": "assistant", "content": ""}, sources=[shown_source(source) for source in sources])

    def word(self, text: str) -> str:
        return self._chunk({"content": text})

    def last(self, told: Told, sources: Sequence[Source]) -> str:
        """The last chunk: the reason why it ended, and the passages with the places of the answer's words."""
        delta = {"annotations": url_citations(told, sources)}
        return self._chunk(delta, "stop" if told.finished else "length", **self._of_all(told, sources))

    def _of_all(self, told: Told, sources: Sequence[Source]) -> dict[str, Any]:
        """What is known of a whole answer, besides OpenAI's fields."""
        return {
            "sources": [shown_source(source, told.said.answer) for source in sources],
            **({"cited": told.said.marked} if told.said.marked else {}),
            **({"sampled": asdict(self.sampling)} if self.sampling else {}),
        }

    def usage(self, usage: dict[str, int]) -> str:
        return _event(self._of("chat.completion.chunk", []) | {"usage": usage})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event(self._of("chat.completion.chunk", [choice]) | more)

    def _of(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


DONE = "data: [DONE]\n\n"
STILL_HERE = ": waiting\n\n"  # a comment of an event stream, so that nobody on the way gives up


def failed(refused: Refused) -> str:
    """The event that ends a stream which cannot go on."""
    return _event(refused.body)


def _event(content: dict[str, Any]) -> str:
    return f"data: {to_json(content, ensure_ascii=True)}\n\n"  # some clients end lines at rarer characters, too


def url_citations(told: Told, sources: Sequence[Source]) -> list[dict[str, Any]]:
    """OpenAI's citations: of each sentence, if the answer cites, else of the whole answer for every passage; none of an
    answer that was withheld.

    `number` is the place of a passage in `sources`, from 1.
    """
    said = told.said
    whole = [] if told.withheld else [(0, len(said.answer), number) for number in range(1, len(sources) + 1)]
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": begin, "end_index": end, "title": sources[number - 1].title,
                "url": sources[number - 1].file, "number": number,
            },
        }
        for begin, end, number in (said.places if said.marked else whole)
        if 0 < number <= len(sources)
    ]  # fmt: skip


def shown_source(source: Source, answer: str | None = None) -> dict[str, Any]:
    """A passage as clients get it; with the `answer`, `used` says where its words are: [begin, end] in characters."""
    text = source.document.text
    shown = {
        "id": source.document.id, "title": source.title, "file": source.file, "page": source.page,
        "place": source.place, "score": source.score, "text": text,
    }  # fmt: skip
    return shown if answer is None else shown | {"used": places_of(set(telling_words(answer)), text)}
