"""One answer for one client: its question in the queue, its passages, and its words as they come."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from groundtune.errors import DataError, ModelError
from groundtune.evaluation.citations import Marked
from groundtune.model.endpoint import EndpointError
from groundtune.schema import Example
from groundtune.serving.batching import Batching, Full, Ticket
from groundtune.serving.chat import DONE, STILL_HERE, Refused, Reply, Request, failed
from groundtune.serving.dialogue import Source
from groundtune.serving.feedback import FeedbackFile, Given, answered
from groundtune.serving.telling import Manner, Told
from groundtune.serving.voices import BASE, TUNED, Writing
from groundtune.system.text import one_line

logger = logging.getLogger(__name__)

_CHARACTERS_PER_TOKEN = 32  # more than texts have: what is longer fits into no prompt
_QUIET_SECONDS = 10.0  # after which a stream says that it is still there
_BLIND = "blind:"  # blind:PAIR:0 and blind:PAIR:1 are the two models of a comparison, in an order that PAIR decides


@dataclass
class Serving:
    """What a server needs: who answers, from what, and where votes go. `name` is the model's name for clients."""

    name: str
    batching: Batching
    feedback: FeedbackFile
    max_new_tokens: int
    most_tokens: int
    allow_system_prompt: bool = False
    api_key: str = ""
    questions: list[str] = field(default_factory=list)  # examples, for the page
    model_sha256: str = ""
    given: Given = field(default_factory=Given)
    manners: Mapping[str, Manner] = field(default_factory=dict)  # by voice
    pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        # Readers of the words; one whose client has left may wait for another server's next word.
        self.pool = ThreadPoolExecutor(2 * self.batching.slots, thread_name_prefix="words")

    @property
    def most_characters(self) -> int:
        return self.most_tokens * _CHARACTERS_PER_TOKEN

    @property
    def names(self) -> dict[str, str]:
        """The models by their names for clients."""
        return {self.name: TUNED} | ({f"{self.name}:base": BASE} if BASE in self.batching.voices else {})

    @property
    def facts(self) -> dict[str, Any]:
        """What a vote is about."""
        hashes = {"run": self.model_sha256, "documents": self.batching.finder.now.sha256}
        return {"model": self.name, "hashes": hashes}

    def voice(self, model: str) -> str:
        """Which model answers; raises `Refused` for an unknown name."""
        if model.startswith(_BLIND) and BASE in self.batching.voices:
            pair, _, side = model.removeprefix(_BLIND).partition(":")
            if pair and side in ("0", "1"):
                return self.order(pair)[int(side)]
        names = self.names
        if model and model not in names:
            known = ", ".join(names)
            raise Refused(404, f"model: {one_line(model, 100)} is not served here; there is {known}", "model_not_found")
        return names.get(model, TUNED)

    def order(self, pair: str) -> tuple[str, str]:
        """The models at the left and at the right of a blind comparison; the same after a restart."""
        digest = hashlib.sha256(f"{pair} {self.model_sha256 or self.name}".encode()).digest()
        return (TUNED, BASE) if digest[0] % 2 else (BASE, TUNED)

    def wanted(self, request: Request) -> Ticket:
        """The question of a request, ready for the queue."""
        if request.system and not self.allow_system_prompt:
            logger.info("a client's system message is ignored; --allow_system_prompt lets it replace the trained one")
        new = min(request.max_new_tokens or self.max_new_tokens, self.max_new_tokens)
        example = Example(request.question, "", (), request.history, source="your question")
        instruction = request.system if self.allow_system_prompt else ""
        writing, voice = Writing(example, new, instruction, request.sampling), self.voice(request.model)
        return Ticket(writing, voice, filter=request.filter, manner=self.manners.get(voice, Manner()))

    def enqueue(self, ticket: Ticket) -> None:
        """Put a ticket into the queue; raises `Refused` if that is full."""
        try:
            self.batching.ask(ticket)
        except Full as full:
            message = f"{self.batching.queue_size} questions are waiting; try again in {full.seconds} seconds"
            raise Refused(429, message, "rate_limit_exceeded", {"retry-after": str(full.seconds)}) from full

    async def words(self, ticket: Ticket) -> AsyncIterator[str | Told | None]:
        """The words of an answer, and at last all of it; None after a while without any."""
        arrived: asyncio.Queue[str | Told | Exception] = asyncio.Queue()
        self.pool.submit(_pump, ticket, asyncio.get_running_loop(), arrived)
        while True:
            try:
                word = await asyncio.wait_for(arrived.get(), _QUIET_SECONDS)
            except asyncio.TimeoutError:
                yield None
                continue
            if isinstance(word, Exception):
                raise word
            yield word
            if isinstance(word, Told):
                self.batching.answered(ticket)
                return


def _pump(ticket: Ticket, loop: asyncio.AbstractEventLoop, arrived: asyncio.Queue[str | Told | Exception]) -> None:
    """Hand the words to the event loop, until the answer ends or nobody waits for it."""

    def put(item: str | Told | Exception) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    try:
        words = ticket.words
        while not ticket.writing.gone:
            put(next(words))
        words.close()
    except StopIteration as end:
        put(end.value)
    except Exception as error:
        put(error)


def refusal(error: BaseException) -> Refused:
    """What a client is told about a failure: what it can change, or that the server has failed."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, EndpointError):
        logger.warning(error.problems[0])
        return Refused(502, "the model server behind this one has failed")
    if isinstance(error, DataError):
        return Refused(400, error.problems[0].removeprefix("--").partition("; raise --")[0])  # a client has no flags
    if isinstance(error, ModelError):
        return Refused(500, one_line(error))
    logger.error("a request failed: %s: %s", type(error).__name__, one_line(error, 300))
    return Refused(500, "the server failed to answer; its log says why")


@dataclass
class Answer:
    """One answer for one client: what was asked, and what has been said so far."""

    serving: Serving
    request: Request
    ticket: Ticket
    sources: list[Source] = field(default_factory=list)
    told: Told = Told(Marked(""))
    reply: Reply = field(init=False)
    found: asyncio.Future[list[Source]] = field(init=False)

    def __post_init__(self) -> None:
        self.found = asyncio.wrap_future(self.ticket.found)
        self.found.add_done_callback(lambda found: found.cancelled() or found.exception())  # or it would be logged
        model = self.request.model or self.serving.name
        sampling = self.request.sampling
        self.reply = Reply(f"chatcmpl-{secrets.token_hex(12)}", model, int(time.time()), sampling)

    async def find(self) -> None:
        self.sources = await self.found

    async def find_soon(self) -> bool:
        """Whether the sources are there within a few seconds; raises what `find` raises."""
        if done := bool((await asyncio.wait([self.found], timeout=_QUIET_SECONDS))[0]):
            await self.find()
        return done

    async def words(self) -> AsyncIterator[str | None]:
        """The words, or None after a while without any; `told` has all of them at the end."""
        async for word in self.serving.words(self.ticket):
            if isinstance(word, Told):
                self.told = word
            elif word is None or word:
                yield word
        self._remember()

    def _remember(self) -> None:
        history = [{"speaker": turn.speaker, "message": turn.message} for turn in self.request.history]
        row = answered(self.request.question, history, self.told.said.answer, self.sources, self.request.sampling)
        self.serving.given.remember(self.key, row | {"model": self.ticket.voice})

    @property
    def key(self) -> str:
        """The id under which a vote names it; of a blind comparison, the pair and the side."""
        model = self.request.model
        return model.removeprefix(_BLIND) if model.startswith(_BLIND) else self.reply.id

    @property
    def usage(self) -> dict[str, int] | None:
        """The tokens, if they were counted here."""
        writing = self.ticket.writing
        if not writing.prompt_ids:
            return None
        prompt, new = len(writing.prompt_ids), writing.sent
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    async def whole(self) -> str:
        await self.find()
        async for _ in self.words():
            pass
        return self.reply.whole(self.told, self.sources, self.usage)

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events; a failure is the last of them."""
        try:
            while not await self.find_soon():
                yield STILL_HERE
            yield self.reply.first(self.sources)
            async for word in self.words():
                yield STILL_HERE if word is None else self.reply.word(word)
            yield self.reply.last(self.told, self.sources)
            if self.request.include_usage and self.usage:
                yield self.reply.usage(self.usage)
            yield DONE
        except Exception as error:
            yield failed(refusal(error))


async def searched(serving: Serving, request: Request, k: int | None = None) -> list[Source]:
    """The passages for a question, without an answer. Raises `Refused` if the queue is full."""
    ticket = serving.wanted(request)
    ticket.voice, ticket.k = "", k
    serving.enqueue(ticket)
    try:
        return await asyncio.wrap_future(ticket.found)
    finally:
        serving.batching.leave(ticket)
