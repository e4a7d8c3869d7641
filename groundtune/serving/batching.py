"""Questions of many users: one thread searches and generates for all of them, in batches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from groundtune.errors import DataError, ModelError
from groundtune.schema import Hit
from groundtune.serving.dialogue import Source, sources_of
from groundtune.serving.finding import Finder
from groundtune.serving.telling import Manner, Told, telling, withholding
from groundtune.serving.voices import TUNED, Voice, Writing

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 120  # seconds that a client is asked to wait, at most


class Full(Exception):
    """The queue is full; `seconds` says when there may be room."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(eq=False)
class Ticket:
    """A question in the queue. `found` gets its passages when its turn comes; `voice` is empty for a search alone."""

    writing: Writing
    voice: str = TUNED
    k: int | None = None
    filter: str = ""
    found: Future[list[Source]] = field(default_factory=Future)
    begun: float = field(default_factory=time.monotonic)
    manner: Manner = Manner()
    hits: Sequence[Hit] = ()

    @property
    def words(self) -> Generator[str, None, Told]:
        """The words of the answer, for one reader in a thread of its own; after `found`."""
        if self.writing.words is None:
            raise ValueError("a search has no words")
        words = withholding(self.writing.words, self.hits, self.manner.least)
        return telling(words, self.writing.read, self.manner.citations)


class Batching:
    """The thread, and the queue before it: at most `queue_size` questions wait for a slot."""

    def __init__(self, finder: Finder, voices: Mapping[str, Voice], queue_size: int) -> None:
        self.finder, self.voices, self.queue_size = finder, voices, queue_size
        self.waiting: deque[Ticket] = deque()
        self.seconds_per_answer = 5.0  # a guess, until there is an answer
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Finish what is in the queue, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def slots(self) -> int:
        return sum(voice.free + voice.busy for voice in self.voices.values())

    @property
    def busy(self) -> int:
        """How many answers are being written."""
        return sum(voice.busy for voice in self.voices.values())

    def ask(self, ticket: Ticket) -> None:
        """Put a question into the queue. Raises `Full`."""
        with self._changed:
            # What would begin at once does not wait.
            room = self.queue_size + sum(max(0, voice.free) for voice in self.voices.values())
            if len(self.waiting) >= room:
                turns = (len(self.waiting) + 1) / max(1, self.slots)
                raise Full(min(_LONGEST_WAIT, max(1, math.ceil(turns * self.seconds_per_answer))))
            self.waiting.append(ticket)
            self._changed.notify()

    def leave(self, ticket: Ticket) -> None:
        """The asker is gone or has all words: what holds the ticket's slot is given back."""
        with self._changed:
            if ticket in self.waiting:
                self.waiting.remove(ticket)
            ticket.writing.leave()
            if ticket.voice:
                self.voices[ticket.voice].ended(ticket.writing)
            self._changed.notify()

    def answered(self, ticket: Ticket) -> None:
        """Note how long an answer took, from which the wait of others is guessed."""
        seconds = time.monotonic() - ticket.begun
        self.seconds_per_answer += 0.2 * (seconds - self.seconds_per_answer)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._next() or any(voice.steps for voice in self.voices.values())):
                    self._changed.wait(timeout=1.0)
                    self.finder.refresh()
                new = self._take()
                if self._closed and not new and not self.waiting and not self.busy:
                    return
            self.finder.refresh()
            self._begin(new)
            for voice in self.voices.values():
                if voice.steps:
                    voice.step()
            if self._closed and not new:
                time.sleep(0.01)  # the last answers of another server

    def _next(self) -> bool:
        return any(not t.voice or self.voices[t.voice].free > 0 for t in self.waiting)

    def _take(self) -> list[Ticket]:
        """The tickets whose turn it is: searches, and as many questions as there are free slots."""
        free = {name: voice.free for name, voice in self.voices.items()}
        taken, left = [], deque[Ticket]()
        for ticket in self.waiting:
            if ticket.voice and free[ticket.voice] <= 0:
                left.append(ticket)
                continue
            taken.append(ticket)
            if ticket.voice:
                free[ticket.voice] -= 1
        self.waiting = left
        return taken

    def _begin(self, tickets: Sequence[Ticket]) -> None:
        """Search for all tickets in one go, and begin their answers."""
        for k, filter in {(ticket.k, ticket.filter) for ticket in tickets}:
            these = [ticket for ticket in tickets if (ticket.k, ticket.filter) == (k, filter)]
            try:
                hits = self.finder.search([ticket.writing.example for ticket in these], k, filter)
            except Exception as error:
                if not isinstance(error, DataError):
                    logger.exception("a search failed")
                for ticket in these:
                    _settle(ticket, error)
                continue
            for ticket, found in zip(these, hits, strict=True):
                self._begin_one(ticket, found)

    def _begin_one(self, ticket: Ticket, hits: Sequence[Hit]) -> None:
        if not ticket.voice:
            _settle(ticket, [Source(hit.document, hit.score) for hit in hits])
            return
        voice, ticket.hits = self.voices[ticket.voice], hits
        try:
            voice.begin(ticket.writing, hits)
        except Exception as error:
            if not isinstance(error, (DataError, ModelError)):
                logger.exception("a question failed")
            _settle(ticket, error)
        else:
            _settle(ticket, sources_of(ticket.writing.read, hits))
            if ticket.writing.gone:
                voice.ended(ticket.writing)


def _settle(ticket: Ticket, result: list[Source] | Exception) -> None:
    with suppress(InvalidStateError):  # the asker has left, and cancelled it
        if isinstance(result, Exception):
            ticket.found.set_exception(result)
        else:
            ticket.found.set_result(result)
