"""What every request passes before it is read: a browser on another site, a stranger, or a body without an end.

A page of any site can make the browser send requests to this machine. It cannot read the answers, unless its name is
made to lead here (DNS rebinding): then the request names that site as its host.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundtune.serving.arguments import is_own
from groundtune.serving.chat import Refused
from groundtune.system.text import to_json

MOST_BYTES = 2**20  # of a request
_SECONDS = 30  # for all of its body
# Without a key: they show nothing of documents or answers.
OPEN = ("/", "/chat.js", "/chat.css", "/favicon.ico", "/health")
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware: refuses what must not be answered, and adds the headers that keep a page to this host."""

    def __init__(self, app: ASGIApp, api_key: str = "") -> None:
        self.app, self.key = app, _digest(api_key) if api_key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            self._check(scope["path"], scope["method"], Headers(scope=scope))
            body = await asyncio.wait_for(_body(Headers(scope=scope), receive), _SECONDS)
        except Refused as refused:
            await _refuse(refused, send_with_headers)
        except asyncio.TimeoutError:
            await _refuse(Refused(408, f"the request was not complete within {_SECONDS} seconds"), send_with_headers)
        else:
            if body is not None:
                await self.app(scope, _first(body, receive), send_with_headers)

    def _check(self, path: str, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self.key and not is_own(_name_of(host)):
            raise Refused(
                421, "this server answers to localhost only; with --api_key it answers to other names as well"
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "a page of another site must not use this server")
        if path not in OPEN and self.key and not hmac.compare_digest(self.key, _digest(_bearer(headers))):
            raise Refused(401, "the API key is missing or wrong", "invalid_api_key", {"www-authenticate": "Bearer"})
        if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the content-type must be application/json")


def _name_of(host: str) -> str:
    """The host without its port, brackets or case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _bearer(headers: Headers) -> str:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    """Of equal length for all keys, so that a comparison in constant time tells nothing of the length."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


async def _body(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body, or None if the client is gone; raises `Refused` if it is too large."""
    too_large = Refused(413, f"the request has more than {MOST_BYTES:,} bytes")
    stated = headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated[:12]) > MOST_BYTES:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            raise too_large
        if not message.get("more_body"):
            return bytes(body)


def _first(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body has been read."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(refused: Refused, send: Any) -> None:
    body = to_json(refused.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
