"""The arguments of a server, and their checks, before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from groundtune.arguments import argument, too_small
from groundtune.data.files import in_the_way
from groundtune.errors import DataError
from groundtune.system.outputs import links_at
from groundtune.system.packages import pip_install

KEY = "GROUNDTUNE_SERVE_KEY"  # the environment variable; others can see the words of a command line
_PACKAGES = ("fastapi", "uvicorn", "mcp")


@dataclass
class ServeArguments:
    """Where a server listens, and what it lets its clients do."""

    _argument_group_name = "server"

    host: str = argument(
        "127.0.0.1", "Address to listen on. Any but this machine's own needs --api_key: others can reach it."
    )
    port: int = argument(8080, "Port to listen on; 0: any free one.")
    api_key: str = argument(
        "",
        "Key that clients must send, as to any OpenAI-compatible server. It can also be given in the environment: "
        f"{KEY}. Default: none.",
    )
    allow_system_prompt: bool = argument(
        False,
        "Let a client's system message replace the instruction of the prompt; otherwise it is ignored, as the model "
        "was trained with its own.",
    )
    queue_size: int = argument(64, "Questions that may wait for a free slot; others are told to try again later.")
    feedback_file: str = argument(
        "", "File that votes are added to. Default: feedback.jsonl in MODEL's folder, else in the current one."
    )

    @property
    def key(self) -> str:
        return self.api_key or os.environ.get(KEY, "")

    def feedback_path(self, model: str) -> Path:
        """The file of the votes on `model`."""
        if self.feedback_file:
            return Path(self.feedback_file)
        return Path(model if model and os.path.isdir(model) else "", "feedback.jsonl")

    def check(self, model: str) -> list[str]:
        """Every problem that shows before a model is loaded."""
        problems = []
        if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
            problems.append(f"serve: needs the package {', '.join(missing)}: {pip_install('serve')}")
        if not is_own(self.host) and not self.key:
            problems.append(
                f"--host: {self.host} can be reached from other machines; name a key with --api_key or {KEY}, or "
                "listen on 127.0.0.1"
            )
        if self.key and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            problems.append("--api_key: has characters that no HTTP header can carry; use letters, digits and signs")
        if not 0 <= self.port < 2**16:
            problems.append(f"--port: {self.port} is no port; choose one from 1 to 65535, or 0 for any free one")
        path = self.feedback_path(model)
        problems += in_the_way("feedback_file", path) or links_at([path], "feedback_file")
        return problems + too_small([(self, "queue_size", 0)])

    def bound(self) -> socket.socket:
        """A socket at the address, before a model is loaded for nothing. Raises `DataError` if it is taken."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            made = socket.socket(family, kind, protocol)
        except OSError as error:
            raise DataError([f"--host: {self.host}: {error.strerror}; name an address of this machine"]) from error
        try:
            if os.name != "nt":  # there it would share a port that is in use
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError as error:
            made.close()
            where = f"{self.host}, port {self.port}"
            problem = f"--port: cannot listen on {where} ({error.strerror}); choose another with --port, 0 for any"
            raise DataError([problem]) from error
        return made


def is_own(host: str) -> bool:
    """Whether an address is one that only this machine can reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
