"""Standard output and standard error that end a command as a shell expects.

A reader that closes the pipe, such as `head`, ends the command quietly; output to a full disk is an error on one line.
Without this, Python reports both again at exit, with a traceback and another status.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from groundtune.system.durable import DiskError


class ReaderGone(BaseException):
    """The reader of standard output has closed it. Not an `Exception`, so that no library takes it for its own."""


class _Output(io.FileIO):
    """Standard output. After the first error everything is discarded, so that the exit brings no second one."""

    broken = False

    def write(self, data):  # type: ignore[no-untyped-def]  # as in `io`, whose types differ between Python versions
        if self.broken:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.broken = True
            self.failed(error)
            return len(data)

    def failed(self, error: OSError) -> None:
        # Windows has no signal for a closed pipe and calls it an invalid argument.
        if error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL):
            raise ReaderGone from error
        raise DiskError(f"standard output: {error.strerror}; free some space, or write to another file") from error


class _Messages(_Output):
    """Standard error: if nobody can read the messages, the work still goes on."""

    def failed(self, error: OSError) -> None:
        pass


@contextmanager
def standard_streams() -> Iterator[None]:
    """Replace `sys.stdout` and `sys.stderr` inside, if they are those of the process; a closed one discards all."""
    before = sys.stdout, sys.stderr
    _occupy_closed()
    sys.stdout = _replaced(sys.stdout, sys.__stdout__, _Output)
    sys.stderr = _replaced(sys.stderr, sys.__stderr__, _Messages)
    try:
        yield
    finally:
        with suppress(ReaderGone, DiskError):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _occupy_closed() -> None:
    """Open closed standard streams: otherwise the next file has their number, and messages are written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _replaced(stream: TextIO | None, original: TextIO | None, kind: type[_Output]) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream  # a test's, or a notebook's
    if os.name == "nt" and stream.isatty():
        return stream  # a console, to which Python writes characters, not bytes
    stream.flush()
    raw = kind(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
