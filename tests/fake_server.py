"""Local servers: an OpenAI-compatible one that replies as a test tells it to, and others whose reply has no end."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Refusal:
    """An error status. By default it allows an immediate retry, if the status is one that is retried."""

    status: int
    text: str = "no"
    headers: dict[str, str] = field(default_factory=lambda: {"retry-after-ms": "1"})


@dataclass
class FakeServer:
    """A server whose `speak(body)` returns the reply text, a `Refusal`, or a raw body (bytes) of `content_type`."""

    speak: Callable[[dict], Any]
    finish_reason: str = "stop"
    content_type: str = "text/html"
    requests: list[dict] = field(default_factory=list)  # path, headers, body and time of each

    def __enter__(self) -> FakeServer:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()  # or stopping takes 0.5 s
        return self

    def __exit__(self, *error: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    @property
    def bodies(self) -> list[dict]:
        return [request["body"] for request in self.requests]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_GET(self) -> None:
                self._answer({})

            def _answer(self, body: dict) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = {"path": self.path, "headers": headers, "body": body, "time": time.monotonic()}
                fake.requests.append(seen)
                said = fake.speak(body)
                if isinstance(said, Refusal):
                    self._send(said.status, json.dumps({"error": {"message": said.text}}).encode(), said.headers)
                elif isinstance(said, bytes):
                    self._send(200, said, {"Content-Type": fake.content_type})
                elif body.get("stream"):
                    self._send(200, fake._stream(self.path, said), {"Content-Type": "text/event-stream"})
                else:
                    self._send(200, json.dumps(fake._completion(self.path, said)).encode())

            def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                """Print nothing to standard error."""

        return Handler

    def _completion(self, path: str, text: str) -> dict:
        chat = path.endswith("/chat/completions")
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": 7, "completion_tokens": len(text.split()), "total_tokens": 7 + len(text.split())}
        choice = {"index": 0, "finish_reason": self.finish_reason, **said}
        return {"id": "1", "object": "completion", "created": 0, "model": "fake", "choices": [choice], "usage": usage}

    def _stream(self, path: str, text: str) -> bytes:
        chat = path.endswith("/chat/completions")
        chunks = []
        for word in text.split(" "):
            said = {"delta": {"content": f"{word} "}} if chat else {"text": f"{word} "}
            chunks.append(
                {"id": "1", "object": "chunk", "created": 0, "model": "fake", "choices": [{"index": 0, **said}]}
            )
        return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


# Replies without an end


class Raw:
    """A server that sends what `talk` yields, whatever it is asked, until nobody listens any more."""

    def __init__(self, talk: Callable[[], Iterator[bytes]]):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.recv(2**16)
                with contextlib.suppress(OSError):
                    for piece in talk():
                        self.request.sendall(piece)

        self.server: Any = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.server_port = self.server.server_address[1]

    def __enter__(self) -> Raw:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"


_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def endless_body() -> Iterator[bytes]:
    yield _OK + b"\r\n" + b'{"choices": [{"message": {"content": "'
    while True:
        yield b"a" * 2**20


def endless_header() -> Iterator[bytes]:
    yield _OK
    while True:
        yield b"X-A: " + b"a" * 2**16 + b"\r\n"


def drop_by_drop() -> Iterator[bytes]:
    yield _OK + b"\r\n"
    while True:
        yield b" "
        time.sleep(0.3)


def endless_stream() -> Iterator[bytes]:
    yield _OK.replace(b"application/json", b"text/event-stream") + b"\r\n"
    while True:
        yield b"data: " + b"a" * 2**20


def packed_body() -> Iterator[bytes]:
    yield _OK + b"Content-Encoding: gzip\r\n\r\n"
    packer = zlib.compressobj(9, wbits=31)
    for _ in range(6000):
        yield packer.compress(bytes(2**20))
    yield packer.flush()
