"""How files are opened for reading: only what has an end. A pipe, a device or a socket would be read for ever."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


class NotAFile(OSError):
    """What was to be opened is a pipe, a device or a socket."""

    def __init__(self, kind: str, path: str | os.PathLike[str]) -> None:
        super().__init__(0, f"is {kind}, not a file", os.fspath(path))


def special(path: str | os.PathLike[str]) -> str:
    """What a path leads to if that is neither a file nor a folder ("a pipe"); empty otherwise, and if it is missing."""
    try:
        return _kind(os.stat(path))
    except (OSError, ValueError):  # ValueError: a null character in the name
        return ""


def open_file(path: str | os.PathLike[str], pipe: bool = False) -> BinaryIO:
    """Open a regular file for reading bytes; with `pipe`, also a pipe, such as `<(command)` on a command line.

    Raises:
        OSError, ValueError: as `open`; `NotAFile` for anything else, without waiting for it.
    """

    def opener(name: str, flags: int) -> int:
        if _kind(os.stat(name)) not in allowed:  # first, because opening a device may already do something
            raise NotAFile(_kind(os.stat(name)), path)
        opened = os.open(name, flags if pipe else flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait
        if (kind := _kind(os.fstat(opened))) not in allowed:  # replaced in between
            os.close(opened)
            raise NotAFile(kind, path)
        return opened

    allowed = ("", "a pipe") if pipe else ("",)
    return open(path, "rb", opener=opener)


def read_text(path: str | os.PathLike[str]) -> str:
    """A small text file in UTF-8 that was named on a command line, or a pipe. Raises OSError and ValueError."""
    with open_file(path, pipe=True) as file:
        return file.read().decode("utf-8")


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "")
