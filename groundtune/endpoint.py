"""An OpenAI-compatible server: many prompts at once, each answered or counted as failed."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from groundtune.files import DataError
from groundtune.schema import Reply

Messages = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}, ...]


@dataclass(frozen=True)
class Endpoint:
    """A model on an OpenAI-compatible server; `url` ends where the paths of its API begin, usually in `/v1`.

    Retries with growing waits, and the waits that a server asks for, are the openai package's. The key is read from
    OPENAI_API_KEY; servers on one's own machine need none.
    """

    url: str
    model: str
    concurrency: int = 8
    retries: int = 5
    timeout: float = 120.0  # seconds for one request
    requests_per_minute: float = 0.0  # 0: no limit

    def check(self, flag: str) -> list[str]:
        """What is wrong with it as given by `flag` ("generator"), without asking the server."""
        problems = []
        if not self.url.startswith(("http://", "https://")):
            problems.append(f"--{flag}: {self.url!r} is no address; as in openai:http://localhost:8000/v1")
        if not self.model:
            problems.append(f"--{flag}_model: missing; name a model as the server calls it")
        if importlib.util.find_spec("openai") is None:
            problems.append(f'--{flag}: a server needs the package openai; pip install "groundtune[endpoint]"')
        return problems

    def complete(self, messages_list: Sequence[Messages], max_tokens: int) -> list[Reply]:
        """What the model says to each conversation, in their order; a request that fails is a `Reply` that says so.

        Raises `DataError` if the first request shows that none can succeed: no server, a wrong key, no such model.
        """
        if not messages_list:
            return []
        wait = _pace(self.requests_per_minute)
        # The first goes alone: what is wrong with address or key is said at once, and not once for each prompt.
        first = self._ask(messages_list[0], max_tokens, wait, decides=True)
        with ThreadPoolExecutor(self.concurrency) as pool:
            return [first, *pool.map(lambda messages: self._ask(messages, max_tokens, wait), messages_list[1:])]

    @cached_property
    def _client(self) -> Any:
        from openai import OpenAI

        key = os.environ.get("OPENAI_API_KEY") or "none"
        return OpenAI(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=self.retries)

    def _ask(self, messages: Messages, max_tokens: int, wait: Callable[[], None], decides: bool = False) -> Reply:
        from openai import APIConnectionError, AuthenticationError, NotFoundError, OpenAIError, PermissionDeniedError

        wait()
        try:
            answered = self._client.chat.completions.create(
                model=self.model, messages=list(messages), max_tokens=max_tokens, temperature=0
            )
            return Reply(text=(answered.choices[0].message.content or "").strip())
        except OpenAIError as error:
            reason = " ".join(str(error).split())[:300]
            hopeless = (APIConnectionError, AuthenticationError, NotFoundError, PermissionDeniedError)
            if decides and isinstance(error, hopeless):
                way_out = "check the address, the name of the model, and the key in OPENAI_API_KEY"
                raise DataError([f"{self.url}: {reason}; {way_out}"]) from error
            return Reply(failure=reason)
        except (AttributeError, IndexError, TypeError) as error:  # a page of HTML with status 200, say
            return Reply(failure=f"not a reply of an OpenAI-compatible server ({error})")


def _pace(per_minute: float) -> Callable[[], None]:
    """A function that lets callers through at most so many times a minute, from any thread."""
    seconds, lock, next_turn = (60 / per_minute if per_minute else 0.0), threading.Lock(), [0.0]

    def wait() -> None:
        with lock:
            turn = max(next_turn[0], time.monotonic())
            next_turn[0] = turn + seconds
        time.sleep(max(0.0, turn - time.monotonic()))

    return wait
