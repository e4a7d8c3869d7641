"""Reports what a process does that no input may make it do. The standard library alone: it runs in every process.

`begin` sets an audit hook, which cannot be removed again. A line `kind: what` is added to the report for each program
that is started, each piece of code that comes from the folder of the attack, each connection to another machine (which
is refused), each use of the secret file, and each file that is opened for writing where nothing may be written.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

REPORT = "WATCHED"  # the environment variable that holds the settings, for processes that the command starts
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn")
_NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_HERE = ("127.0.0.1", "localhost", "::1", b"127.0.0.1", b"localhost")
# For processes that are started: Python imports this module from a folder on PYTHONPATH.
SITE = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import watching
watching.begin()
del sys.path[0]
"""


def begin() -> None:
    """Watch this process as the environment says."""
    told = json.loads(os.environ[REPORT])
    report = os.open(told["report"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if found := _found(event, arguments, told):
            os.write(report, ascii(found).encode() + b"\n")
            if found.startswith("sent"):
                raise OSError("nothing may be sent")

    sys.addaudithook(hook)


def _found(event: str, arguments: tuple[Any, ...], told: dict[str, Any]) -> str:
    if event in _STARTS:
        return "" if _is_own(arguments) else f"executed: {event} {arguments[:2]}"
    if event == "exec":
        name = str(getattr(arguments[0], "co_filename", ""))
        return f"executed: {name}" if name.startswith(told["folder"]) else ""
    if event in _NAMES:
        return "" if not arguments[0] or arguments[0] in _HERE else f"sent: {event} {arguments[0]}"
    if event in _SENDS:
        return _sent(event, arguments[1], told["ports"])
    return _opened(arguments, told) if event == "open" else ""


def _is_own(arguments: tuple[Any, ...]) -> bool:
    """Python itself, as the command starts it for files and patterns, and what `platform` asks the system."""
    return str(arguments[0]) == sys.executable or arguments[1] == ["uname", "-p"]


def _sent(event: str, address: Any, ports: list[int]) -> str:
    inside = not isinstance(address, tuple) or (address[0] in _HERE and address[1] in ports)
    return "" if inside else f"sent: {event} {address[:2]}"


def _opened(arguments: tuple[Any, ...], told: dict[str, Any]) -> str:
    name, _, flags = arguments
    if not isinstance(name, str | bytes | os.PathLike):
        return ""
    path = os.path.abspath(os.fsdecode(name))
    if os.path.realpath(path) == told["secret"]:
        return f"read: {path}"
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
    return f"overwritten: {path}" if writes and not path.startswith(tuple(told["writable"])) else ""
