"""An OpenAI-compatible server that answers prompts: many at once, each answered or counted as failed, none lost.

Requests, retries with growing waits and the server's own Retry-After are the openai package's. The key is read from the
environment when a request is made, and is kept nowhere. What is asked goes to the address that was named and, whatever
the server says, to no other: redirects are not followed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from groundtune.errors import DataError
from groundtune.schema import Reply
from groundtune.system.text import hide_secrets, one_line

KEYS = ("GROUNDTUNE_API_KEY", "OPENAI_API_KEY")  # the first that is set; servers on one's own machine need none

Messages = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}, ...]

T = TypeVar("T")
P = TypeVar("P")

# What reading it raises where status 200 comes with a page of HTML, say, or with half of a JSON object.
_NO_REPLY = (AttributeError, LookupError, TypeError, ValueError, RecursionError)


SERVER = "openai:"  # before the address of a server, where a model's name may stand too


def is_server(name: str) -> bool:
    """Whether `name` is a server's ("openai:http://localhost:8000/v1") and no model's."""
    return name.startswith(SERVER)


def endpoint_at(name: str, model: str, options: str = "", **limits: Any) -> Endpoint:
    """The endpoint that `name` ("openai:URL") stands for. `options` is JSON; `limits` are further fields of `Endpoint`.

    Call `server_problems` first.
    """
    return Endpoint(name.removeprefix(SERVER), model, json.loads(options or "{}"), **limits)


def server_problems(flag: str, name: str, model: str, options: str = "") -> list[str]:
    """What is wrong with a server as `--flag`, `--flag_model` and `--flag_options` name it, without asking it."""
    problems = []
    if not is_server(name):
        problems.append(
            f"--{flag}: {name!r} is not a server; write openai:URL, such as openai:http://localhost:8000/v1"
        )
    try:
        if not isinstance(json.loads(options or "{}"), dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        problems.append(f'--{flag}_options: not a JSON object ({error}); write one such as {{"seed": 1}}')
    return problems or endpoint_at(name, model, options).check(flag)


class EndpointError(DataError):
    """The server cannot be used as asked for; the message says why and what to do."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


@dataclass(frozen=True)
class Endpoint:
    """A model on an OpenAI-compatible server (vLLM, SGLang, llama.cpp, Ollama, OpenAI ...).

    `url` ends where the paths of the API begin, usually in `/v1`. `options` go into every request and win over our own
    fields; a value of None takes a field out. A request that fails is sent again up to `retries` times if that may help
    (no connection, timeout, status 408, 409, 429 or 5xx).
    """

    url: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    retries: int = 5
    timeout: float = 120.0  # seconds for one request
    requests_per_minute: float = 0.0  # at most so many; 0: no limit

    def check(self, flag: str) -> list[str]:
        """What is wrong with it as given by `flag` ("generator"), without asking the server."""
        problems = []
        if not self.url.startswith(("http://", "https://")):
            problems.append(
                f"--{flag}: {self.url!r} is not an address; write one such as openai:http://localhost:8000/v1"
            )
        if not self.model:
            problems.append(f"--{flag}_model: missing; give the server's name for the model")
        if importlib.util.find_spec("openai") is None:
            problems.append(f'--{flag}: a server needs the package openai; pip install "groundtune[endpoint]"')
        return problems

    def complete(
        self,
        messages_list: Sequence[Messages],
        max_tokens: int,
        *,
        temperature: float = 0.0,
        on_done: Callable[[int], None] = lambda done: None,
    ) -> list[Reply]:
        """What the model says to each conversation, in their order, by `/chat/completions`.

        The server writes the prompt from the messages with its model's own chat template. Raises `EndpointError` if the
        first request shows that none can succeed: no server there, a wrong key, an unknown model. Any other request
        that fails is a `Reply` that says so.
        """
        body = self._body(max_tokens, temperature)
        create = self._client.chat.completions.create

        def ask(messages: Messages) -> Any:
            return create(model=self.model, messages=list(messages), extra_body=body)

        return self._replies(ask, messages_list, lambda choice: choice.message.content, on_done)

    def continue_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        *,
        stop: Sequence[str] = (),
        on_done: Callable[[int], None] = lambda done: None,
    ) -> list[Reply]:
        """The model's continuation of each prompt, in their order, by `/completions`; raises as `complete` does.

        Prompts are token ids and not text: a server puts its own beginning-of-sequence token before a text that has one
        already, but reads ids as they are.
        """
        body = self._body(max_tokens, 0.0) | ({"stop": list(stop)[:4]} if stop else {})  # the API takes four at most
        create = self._client.completions.create

        def ask(ids: Sequence[int]) -> Any:
            return create(model=self.model, prompt=list(ids), extra_body=body)

        return self._replies(ask, prompts, lambda choice: choice.text, on_done)

    def stream(self, messages: Messages, max_tokens: int) -> Iterator[str]:
        """`complete` for one conversation, its words as they come. Raises `EndpointError` if the request fails."""
        create = self._client.chat.completions.create
        body = self._body(max_tokens, 0.0)
        yield from self._words(
            lambda: create(model=self.model, messages=list(messages), stream=True, extra_body=body),
            lambda choice: choice.delta.content,
        )

    def stream_prompt(self, ids: Sequence[int], max_tokens: int, *, stop: Sequence[str] = ()) -> Iterator[str]:
        """`continue_prompts` for one prompt, its words as they come. Raises `EndpointError` if the request fails."""
        create = self._client.completions.create
        body = self._body(max_tokens, 0.0) | ({"stop": list(stop)[:4]} if stop else {})
        yield from self._words(
            lambda: create(model=self.model, prompt=list(ids), stream=True, extra_body=body), lambda choice: choice.text
        )

    def _words(self, ask: Callable[[], Any], text_of: Callable[[Any], str | None]) -> Iterator[str]:
        from openai import OpenAIError

        streamed = False
        try:
            for chunk in ask():
                streamed = True
                if chunk.choices and (text := text_of(chunk.choices[0])):
                    yield _words_of(text)
        except OpenAIError as error:
            raise EndpointError(self._problem(error)) from error
        except _NO_REPLY as error:
            raise EndpointError(f"{hide_secrets(self.url)}: {_no_reply(error)}; check the server log") from error
        if not streamed:
            problem = 'answered without a stream; it must support "stream": true'
            raise EndpointError(f"{hide_secrets(self.url)}: {problem}")

    @cached_property
    def _client(self) -> Any:
        from openai import DefaultHttpxClient, OpenAI

        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "none")
        stays = DefaultHttpxClient(follow_redirects=False)
        limits: dict[str, Any] = {"timeout": self.timeout, "max_retries": self.retries}
        client = OpenAI(base_url=self.url, api_key=key, http_client=stays, **limits)
        if not f".{urlsplit(self.url).hostname or ''}".endswith(".openai.com"):
            client.organization = client.project = None  # OPENAI_ORG_ID and OPENAI_PROJECT_ID, which go nowhere else
        return client

    @cached_property
    def _pace(self) -> _Pace:
        return _Pace(self.requests_per_minute)

    def _body(self, max_tokens: int, temperature: float) -> dict[str, Any]:
        fields = {"max_tokens": max_tokens, "temperature": temperature, **self.options}
        return {name: value for name, value in fields.items() if value is not None}

    def _replies(
        self,
        ask: Callable[[P], Any],
        prompts: Sequence[P],
        text_of: Callable[[Any], str | None],
        on_done: Callable[[int], None],
    ) -> list[Reply]:
        def reply(prompt: P, first: bool = False) -> Reply:
            self._pace()
            answered = self._reply(ask, prompt, text_of, first)
            on_done(1)
            return answered

        if not prompts:
            return []
        # The first goes alone: a wrong address or key is said at once, and not once for each prompt.
        return [reply(prompts[0], first=True), *_in_threads(reply, prompts[1:], self.concurrency)]

    def _reply(self, ask: Callable[[P], Any], prompt: P, text_of: Callable[[Any], str | None], first: bool) -> Reply:
        from openai import APIConnectionError, AuthenticationError, NotFoundError, OpenAIError, PermissionDeniedError

        try:
            answered = ask(prompt)
            choice, usage = answered.choices[0], getattr(answered, "usage", None)
            return Reply(
                text=_words_of(text_of(choice) or "").strip(),
                finished=choice.finish_reason != "length",
                prompt_tokens=_count(getattr(usage, "prompt_tokens", None)),
                new_tokens=_count(getattr(usage, "completion_tokens", None)),
            )
        except OpenAIError as error:
            hopeless = (APIConnectionError, AuthenticationError, NotFoundError, PermissionDeniedError)
            redirects = _redirect(error) is not None
            if first and (redirects or isinstance(error, hopeless)):
                raise EndpointError(self._problem(error)) from error
            return Reply(failure=self._problem(error) if redirects else _with_its_cause(error))
        except _NO_REPLY as error:
            return Reply(failure=_no_reply(error))

    def _problem(self, error: Exception) -> str:
        ways_out = {
            "APIConnectionError": "is the server running, and is the address right?",
            "APITimeoutError": f"no reply within {self.timeout:g} s; raise --endpoint_timeout",
            "AuthenticationError": f"set the environment variable {' or '.join(KEYS)} to its key",
            "PermissionDeniedError": f"is the key in {' or '.join(KEYS)} allowed to use this model?",
            "NotFoundError": f"does the address end in /v1, and does the server have a model {self.model!r}?",
        }
        name = type(error).__name__
        if redirect := _redirect(error):
            return f"{hide_secrets(self.url)}: {redirect}"
        return f"{hide_secrets(self.url)}: {_with_its_cause(error)}; {ways_out.get(name, 'check the server log')}"


def failing(why: str) -> Callable[..., list[Reply]]:
    """In place of `complete` or `continue_prompts`: whatever is asked has failed, and this is why."""
    return lambda prompts, *args, **options: [Reply(failure=why) for _ in prompts]


def lasting(ask: Callable[..., list[Reply]], met: bool = False) -> Callable[..., list[Reply]]:
    """`ask` (`complete`, `continue_prompts`) of a server that was `met`, or has to answer once.

    Where it goes away after that, what it is asked has failed, and nothing is lost that was answered before.
    """

    def asked(prompts: Sequence[Any], *args: Any, **options: Any) -> list[Reply]:
        nonlocal met
        try:
            replies = ask(prompts, *args, **options)
        except EndpointError as error:
            if not met:
                raise
            return failing(str(error))(prompts)
        met = True
        return replies

    return asked


def _in_threads(function: Callable[[P], T], items: Sequence[P], threads: int) -> list[T]:
    """What the function gives for each item, in their order.

    Python waits for the threads of a ThreadPoolExecutor, even to exit: Ctrl-C would wait for a server that hangs. These
    are left to themselves.
    """
    futures: list[Future[T]] = [Future() for _ in items]
    waiting = deque(zip(futures, items))

    def work() -> None:
        while True:
            try:
                future, item = waiting.popleft()
            except IndexError:  # no more
                return
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)

    try:
        for _ in range(min(threads, len(items))):
            threading.Thread(target=work, daemon=True).start()
        return [future.result() for future in futures]
    finally:
        waiting.clear()  # after Ctrl-C nothing more begins


class _Pace:
    """Lets callers through at most so many times a minute, from any thread."""

    def __init__(self, per_minute: float) -> None:
        self.seconds, self.next, self.lock = (60 / per_minute if per_minute else 0.0), 0.0, threading.Lock()

    def __call__(self) -> None:
        with self.lock:
            now = time.monotonic()
            turn = max(self.next, now)
            self.next = turn + self.seconds
        time.sleep(turn - now)


def _words_of(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can spell and no file can hold: one would lose all answers."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _count(value: Any) -> int | None:
    """Tokens as a server counts them; None for what is no number of tokens."""
    return value if type(value) is int and 0 <= value < 2**53 else None


def _no_reply(error: Exception) -> str:
    return f"not a reply of an OpenAI-compatible server ({_with_its_cause(error)})"


def _redirect(error: Exception) -> str | None:
    """In words, if the server names another address in place of an answer; nothing is shown of that one's query."""
    response = getattr(error, "response", None)
    if response is None or not response.has_redirect_location:
        return None
    target = urlsplit(urljoin(str(response.url), response.headers["location"]))
    address = _shown(target._replace(query="", fragment="").geturl(), at_most=200)
    return (
        f"the server redirects ({response.status_code}) to {address}, and nothing was sent there; if you trust that "
        "address, use it instead"
    )


def _with_its_cause(error: Exception) -> str:
    """The error's words and those of its cause, for "Connection error." alone says nothing; never the key."""
    cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
    return _shown(f"{error}{cause}", at_most=300)


def _shown(text: str, at_most: int) -> str:
    text = one_line(text)
    for key in filter(None, map(os.environ.get, KEYS)):
        text = text.replace(key, "***")
    return one_line(hide_secrets(text), at_most)
