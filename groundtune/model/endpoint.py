"""Client of an OpenAI-compatible server: concurrent requests, each of which is answered or counted as failed.

The openai package makes the requests, retries them with exponential backoff, and honours a Retry-After of up to a
minute or two. The key is read from the environment when a request is made, and is never stored. Requests go only to the
address that the user named: redirects are not followed, and a server on this machine is reached without a proxy.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from ipaddress import ip_address
from itertools import chain
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from groundtune.errors import DataError
from groundtune.model.replies import Streamed, reply_of
from groundtune.prompts.thoughts import outside_thoughts
from groundtune.schema import Ended, Reply, Sampling, Words
from groundtune.system.packages import pip_install
from groundtune.system.servers import server_kind
from groundtune.system.text import hide_secrets, one_line

KEYS = ("GROUNDTUNE_API_KEY", "OPENAI_API_KEY")  # the first that is set is used; local servers usually need none
RERANKER_KEYS = ("GROUNDTUNE_RERANKER_KEY",)  # a server that is no writer is not told the writer's key
EMBEDDING_KEYS = ("GROUNDTUNE_EMBEDDING_KEY",)

Messages = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}, ...]

T = TypeVar("T")
P = TypeVar("P")

# What reading a reply raises if status 200 comes with an HTML page, say, or with a truncated JSON object.
_NO_REPLY = (AttributeError, LookupError, TypeError, ValueError, RecursionError)


MOST_BYTES = 64 * 2**20  # of one reply
SERVER = "openai:"  # prefix of a server's address in flags that also accept a model name


def is_server(name: str) -> bool:
    """Whether `name` is the address of a server that writes ("openai:http://localhost:8000/v1"), and no model name."""
    return server_kind(name) == "openai"


def endpoint_at(name: str, model: str, options: str = "", **limits: Any) -> Endpoint:
    """The endpoint for `name` ("openai:URL"); `options` is JSON, `limits` are further fields of `Endpoint`.

    Call `server_problems` first.
    """
    return Endpoint(name.removeprefix(SERVER), model, json.loads(options or "{}"), **limits)


def server_problems(flag: str, name: str, model: str, options: str = "") -> list[str]:
    """What is wrong with the server given by `--flag`, `--flag_model` and `--flag_options`; sends no request."""
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
    """The server cannot be used; the message says why and what to do."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


@dataclass(frozen=True)
class Endpoint:
    """A model on an OpenAI-compatible server (vLLM, SGLang, llama.cpp, Ollama, OpenAI ...).

    `url` is the base of the API's paths and usually ends in `/v1`. `options` are added to every request and override
    our own fields; a value of None removes a field. A failed request is retried up to `retries` times if that may help
    (no connection, timeout, status 408, 409, 429 or 5xx).
    """

    url: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    retries: int = 5
    timeout: float = 120.0  # seconds for one request
    requests_per_minute: float = 0.0  # 0: no limit
    keys: tuple[str, ...] = KEYS  # environment variables; the first that is set has the key

    def check(self, flag: str) -> list[str]:
        """What is wrong with this endpoint as given by `flag` ("generator"); sends no request."""
        problems = []
        if not self.url.startswith(("http://", "https://")):
            problems.append(
                f"--{flag}: {self.url!r} is not an address; write one such as openai:http://localhost:8000/v1"
            )
        if not self.model:
            problems.append(f"--{flag}_model: missing; give the server's name for the model")
        if importlib.util.find_spec("openai") is None:
            problems.append(f"--{flag}: a server needs the package openai; {pip_install('endpoint')}")
        return problems

    def complete(
        self, messages_list: Sequence[Messages], max_tokens: int, *, on_done: Callable[[int], None] = lambda done: None
    ) -> list[Reply]:
        """The model's reply to each conversation, in order, by `/chat/completions`.

        The server builds the prompt from the messages with its model's chat template. Raises `EndpointError` if the
        first request shows that none can succeed: no server there, a wrong key, an unknown model. Any other failed
        request becomes a `Reply` with its `failure`.
        """
        body = self._body(max_tokens)
        create = self._client.chat.completions.create

        def ask(messages: Messages) -> Any:
            return create(model=self.model, messages=list(messages), extra_body=body)

        return self._replies(ask, messages_list, on_done)

    def continue_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        *,
        stop: Sequence[str] = (),
        opened: str = "",
        special_tokens: bool = False,
        on_done: Callable[[int], None] = lambda done: None,
    ) -> list[Reply]:
        """The model's completion of each prompt, in order, by `/completions`; raises as `complete` does.

        Prompts are token ids, not text: a server adds its own beginning-of-sequence token to a text that already has
        one, but leaves ids unchanged. `opened` is the beginning of the thought that the prompts end in, if any;
        `special_tokens`: the reply's text is to include them, because they mark its thoughts.
        """
        body = self._continuation(max_tokens, stop, special_tokens)
        create = self._client.completions.create

        def ask(ids: Sequence[int]) -> Any:
            return create(model=self.model, prompt=list(ids), extra_body=body)

        return self._replies(ask, prompts, on_done, opened)

    def ask(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
        """What the server says to each request to `path` below its address, in order: the JSON, as it comes.

        Raises `EndpointError` for the first request that fails.
        """
        from openai import OpenAIError

        def said(body: Mapping[str, Any]) -> Any:
            self._pace()
            try:
                return self._client.post(path, body={**body, **self.options}, cast_to=object)
            except OpenAIError as error:
                raise EndpointError(self._problem(error)) from error
            except _NO_REPLY as error:
                raise EndpointError(f"{hide_secrets(self.url)}: not JSON ({_with_its_cause(error)})") from error

        # The first goes alone, so that a wrong address or key is asked only once.
        return [said(body) for body in bodies[:1]] + _in_threads(said, bodies[1:], self.concurrency)

    def stream(self, messages: Messages, max_tokens: int, sampling: Sampling | None = None) -> Words:
        """Stream the reply to one conversation. Raises `EndpointError` if the request fails."""
        create = self._client.chat.completions.create
        body = self._body(max_tokens, asdict(sampling) if sampling else None)
        return self._words(lambda: create(model=self.model, messages=list(messages), stream=True, extra_body=body))

    def stream_prompt(
        self, ids: Sequence[int], max_tokens: int, *, stop: Sequence[str] = (), opened: str = "",
        special_tokens: bool = False, sampling: Sampling | None = None,
    ) -> Words:  # fmt: skip
        """Stream the completion of one prompt, as `continue_prompts`. Raises `EndpointError` if the request fails."""
        create = self._client.completions.create
        body = self._continuation(max_tokens, stop, special_tokens, sampling)
        return self._words(lambda: create(model=self.model, prompt=list(ids), stream=True, extra_body=body), opened)

    def _words(self, ask: Callable[[], Any], opened: str = "") -> Words:
        """What the streamed reply says outside its thoughts. Raises `EndpointError` if that is no answer."""
        streamed = Streamed()
        yield from outside_thoughts(chain([opened], self._pieces(ask, streamed)))
        reply = reply_of(streamed, opened=opened)
        if reply.failure:
            raise EndpointError(f"{hide_secrets(self.url)}: {_shown(_words_of(reply.failure), at_most=300)}")
        return Ended(reply.finished)

    def _pieces(self, ask: Callable[[], Any], streamed: Streamed) -> Iterator[str]:
        from openai import OpenAIError

        chunks = 0
        try:
            for chunk in ask():
                chunks += 1
                if chunk.choices:
                    yield _words_of(streamed.add(chunk.choices[0]))
        except OpenAIError as error:
            raise EndpointError(self._problem(error)) from error
        except _NO_REPLY as error:
            raise EndpointError(f"{hide_secrets(self.url)}: {_no_reply(error)}; check the server log") from error
        if not chunks:
            problem = 'answered without a stream; it must support "stream": true'
            raise EndpointError(f"{hide_secrets(self.url)}: {problem}")

    @cached_property
    def _client(self) -> Any:
        from openai import DefaultHttpxClient, OpenAI

        key = next((os.environ[name] for name in self.keys if os.environ.get(name)), "none")
        # Packed, 6 MB can be 6 GB; no reply is long enough to need it.
        plain = {"Accept-Encoding": "identity"}
        hooks: dict[str, Any] = {"response": [self._bound, _not_again_if_unpaid]}
        stays = DefaultHttpxClient(follow_redirects=False, mounts=_past_the_proxy(self.url), event_hooks=hooks)
        limits: dict[str, Any] = {"timeout": self.timeout, "max_retries": self.retries}
        client = OpenAI(base_url=self.url, api_key=key, http_client=stays, default_headers=plain, **limits)
        if not f".{urlsplit(self.url).hostname or ''}".endswith(".openai.com"):
            client.organization = client.project = None  # never send OPENAI_ORG_ID or OPENAI_PROJECT_ID elsewhere
        return client

    def _bound(self, response: Any) -> None:
        """Let the reply have no more time and bytes than it may: the client's own timeout begins again at each byte."""
        packing = response.headers.get("content-encoding", "identity")
        if packing != "identity":
            raise EndpointError(f"{hide_secrets(self.url)}: its reply is packed ({_shown(packing, 40)}), unasked")
        kind = type("Bounded", (_Bounded, *type(response.stream).__bases__), {})  # it must be a stream of the client
        response.stream = kind(response.stream, hide_secrets(self.url), self.timeout)

    @cached_property
    def _pace(self) -> _Pace:
        return _Pace(self.requests_per_minute)

    def _body(self, max_tokens: int, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        fields = {"max_tokens": max_tokens, "temperature": 0.0, **(more or {}), **self.options}
        return {name: value for name, value in fields.items() if value is not None}

    def _continuation(
        self, max_tokens: int, stop: Sequence[str], special_tokens: bool, sampling: Sampling | None = None
    ) -> dict[str, Any]:
        fields: dict[str, Any] = asdict(sampling) if sampling else {}
        fields |= {"stop": list(stop)[:4]} if stop else {}  # the API takes four at most
        # Understood by vLLM and SGLang, the servers that leave them out otherwise.
        fields |= {"skip_special_tokens": False} if special_tokens else {}
        return self._body(max_tokens, fields)

    def _replies(
        self, ask: Callable[[P], Any], prompts: Sequence[P], on_done: Callable[[int], None], opened: str = ""
    ) -> list[Reply]:
        def reply(prompt: P, first: bool = False) -> Reply:
            self._pace()
            answered = self._reply(ask, prompt, first, opened)
            on_done(1)
            return answered

        if not prompts:
            return []
        # The first goes alone, so that a wrong address or key is reported immediately and only once.
        return [reply(prompts[0], first=True), *_in_threads(reply, prompts[1:], self.concurrency)]

    def _reply(self, ask: Callable[[P], Any], prompt: P, first: bool, opened: str) -> Reply:
        from openai import APIConnectionError, AuthenticationError, NotFoundError, OpenAIError, PermissionDeniedError

        try:
            answered = ask(prompt)
            choice, usage = answered.choices[0], getattr(answered, "usage", None)
            read, written = (_count(getattr(usage, f"{name}_tokens", None)) for name in ("prompt", "completion"))
            reply = reply_of(choice, read, written, opened)
            return replace(reply, text=_words_of(reply.text), failure=_shown(_words_of(reply.failure), at_most=300))
        except EndpointError as error:  # the reply has no end
            if first:
                raise
            return Reply(failure=str(error))
        except OpenAIError as error:
            hopeless = (APIConnectionError, AuthenticationError, NotFoundError, PermissionDeniedError)
            for_all = isinstance(error, hopeless) or _redirect(error) is not None or _is_unpaid(error)
            if first and for_all:
                raise EndpointError(self._problem(error)) from error
            return Reply(failure=self._failure(error))
        except _NO_REPLY as error:
            return Reply(failure=_no_reply(error))

    def _failure(self, error: Exception) -> str:
        """Why a request failed, with the way out where that is known."""
        return self._problem(error) if _redirect(error) else "; ".join(filter(None, _explained(error)))

    def _problem(self, error: Exception) -> str:
        ways_out = {
            "APIConnectionError": f"is the server running, and is the address right?{_proxy_of(self.url)}",
            "APITimeoutError": f"no reply within {self.timeout:g} s; raise --endpoint_timeout",
            "AuthenticationError": f"set the environment variable {' or '.join(self.keys)} to its key",
            "PermissionDeniedError": f"is the key in {' or '.join(self.keys)} allowed to use this model?",
            "NotFoundError": f"does the address end in /v1, and does the server have a model {self.model!r}?"
            if self.model
            else "is the address right, and does the server do this?",
        }
        name = type(error).__name__
        if redirect := _redirect(error):
            return f"{hide_secrets(self.url)}: {redirect}"
        what, way_out = _explained(error)
        return f"{hide_secrets(self.url)}: {what}; {way_out or ways_out.get(name, 'check the server log')}"


def failing(why: str) -> Callable[..., list[Reply]]:
    """A stand-in for `complete` or `continue_prompts` whose every reply has failed, for the reason `why`."""
    return lambda prompts, *args, **options: [Reply(failure=why) for _ in prompts]


def lasting(ask: Callable[..., list[Reply]], met: bool = False) -> Callable[..., list[Reply]]:
    """`ask` (`complete` or `continue_prompts`) that survives the loss of a server which has answered before.

    `met`: it already has. If the server then goes away, later requests count as failed, and earlier replies are kept.
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
    """Call `function` on each item in `threads` daemon threads; the results are in the order of the items.

    Python waits for the threads of a ThreadPoolExecutor even at exit, so Ctrl-C would wait for a server that hangs.
    """
    futures: list[Future[T]] = [Future() for _ in items]
    waiting = deque(zip(futures, items))

    def work() -> None:
        while True:
            try:
                future, item = waiting.popleft()
            except IndexError:  # none left
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
        waiting.clear()  # after Ctrl-C, start nothing more


class _Bounded:
    """The bytes of a reply: an error if there are too many of them, or if no line of it ends in time."""

    def __init__(self, stream: Any, url: str, timeout: float) -> None:
        self.stream, self.url, self.timeout = stream, url, timeout

    def __iter__(self) -> Iterator[bytes]:
        left, until = MOST_BYTES, time.monotonic() + self.timeout
        for piece in self.stream:
            now, left = time.monotonic(), left - len(piece)
            if left < 0:
                raise EndpointError(f"{self.url}: its reply is longer than {MOST_BYTES // 2**20} MB")
            if now > until:
                raise EndpointError(f"{self.url}: no reply within {self.timeout:g} s; raise --endpoint_timeout")
            until = now + self.timeout if b"\n" in piece else until
            yield piece

    def close(self) -> None:
        self.stream.close()


class _Pace:
    """A rate limit in calls per minute, shared by all threads."""

    def __init__(self, per_minute: float) -> None:
        self.seconds, self.next, self.lock = (60 / per_minute if per_minute else 0.0), 0.0, threading.Lock()

    def __call__(self) -> None:
        with self.lock:
            now = time.monotonic()
            turn = max(self.next, now)
            self.next = turn + self.seconds
        time.sleep(turn - now)


def _words_of(text: str) -> str:
    """`text` without lone surrogates: JSON can contain them, but writing one to a file fails and loses all answers."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _count(value: Any) -> int | None:
    """A token count reported by a server; None if the value is not a valid count."""
    return value if type(value) is int and 0 <= value < 2**53 else None


def _no_reply(error: Exception) -> str:
    return f"not a reply of an OpenAI-compatible server ({_with_its_cause(error)})"


def _redirect(error: Exception) -> str | None:
    """A message if the server redirects to another address, shown without its query; else None."""
    response = getattr(error, "response", None)
    if response is None or not response.has_redirect_location:
        return None
    target = urlsplit(urljoin(str(response.url), response.headers["location"]))
    address = _shown(target._replace(query="", fragment="").geturl(), at_most=200)
    return (
        f"the server redirects ({response.status_code}) to {address}, and nothing was sent there; if you trust that "
        "address, use it instead"
    )


# What OpenAI, vLLM, SGLang, llama.cpp, Ollama, TGI and others say of a prompt that is longer than the model's context.
_TOO_LONG = re.compile(
    r"context[ _](?:length|size|window)|maximum model length|exceed_context|(?:prompt|input) is too long"
    r"|too many tokens|input token count|max_new_tokens.{0,5} must be <=|context the overflows",
    re.IGNORECASE,
)
_UNPAID = re.compile(
    r"insufficient_quota|billing_(?:hard_limit_reached|not_active)|insufficient (?:balance|credit|funds)"
    r"|credit balance",
    re.IGNORECASE,
)


def _explained(error: Exception) -> tuple[str, str]:
    """What failed, and the way out of the refusals that every kind of server gives; "" where there is none."""
    said, status = _with_its_cause(error), getattr(error, "status_code", None)
    if _is_unpaid(error):
        return f"the account's quota or credit is used up ({said})", "check its plan and billing"
    if status == 429:
        wait = _shown(error.response.headers.get("retry-after", ""), at_most=40)  # type: ignore[attr-defined]
        asked = f", and asks to wait {wait}{' s' if wait.isdigit() else ''}" if wait else ""
        return f"the server limits requests{asked} ({said})", "lower --concurrency, or set --requests_per_minute"
    if status is not None and _TOO_LONG.search(str(error)):
        what_to_do = "lower --eval_num_to_retrieve or --max_seq_length, or start the server with a longer context"
        return f"the prompt is longer than the server's context ({said})", what_to_do
    return said, ""


def _is_unpaid(error: Exception) -> bool:
    return _lacks_money(getattr(error, "status_code", None), str(error))


def _lacks_money(status: int | None, text: str) -> bool:
    """Whether a server refuses until somebody pays: no wait helps."""
    return status == 402 or (status in (400, 403, 429) and _UNPAID.search(text) is not None)


def _not_again_if_unpaid(response: Any) -> None:
    """Tell the openai package, which would take it for a rate limit, not to repeat a request without credit."""
    if response.status_code == 429:
        response.read()
        if _lacks_money(429, response.text):
            response.headers["x-should-retry"] = "false"


def _past_the_proxy(url: str) -> dict[str, None]:
    """httpx's `mounts` by which a server on this machine is reached directly: no proxy can reach that."""
    host = urlsplit(url).hostname or ""
    return {f"all://{f'[{host}]' if ':' in host else host}": None} if _is_here(host) else {}


def _is_here(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _proxy_of(url: str) -> str:
    """The proxy through which a server is asked, and the way around it; empty if there is none."""
    host, proxies = urlsplit(url).hostname or "", getproxies()
    proxy = proxies.get(urlsplit(url).scheme) or proxies.get("all")
    if not proxy or _is_here(host) or proxy_bypass(host):
        return ""
    return f" It is asked through the proxy {_shown(proxy, at_most=100)}; to ask it directly, add {host} to NO_PROXY"


def _with_its_cause(error: Exception) -> str:
    """The error's message and that of its cause ("Connection error." alone says nothing), without the key."""
    cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
    return _shown(f"{error}{cause}", at_most=300)


def _shown(text: str, at_most: int) -> str:
    text = one_line(text)
    for key in filter(None, map(os.environ.get, KEYS + RERANKER_KEYS + EMBEDDING_KEYS)):
        text = text.replace(key, "***")
    return one_line(hide_secrets(text), at_most)
