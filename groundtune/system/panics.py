"""Panics: failures inside libraries written in Rust (tokenizers). They are no `Exception`, and print a report."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO

from groundtune.system.text import one_line

# What a tokenizer is tried on: several scripts, an emoji, a character that no vocabulary has, spaces and repetition.
TRIAL = "The naïve Bücherei öffnet um 9:00 Uhr.\n\n日本語 العربية 😀 \ufffd\u0378  aaaa\tend "


def is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"  # each library has a class of its own


def panic_line(error: BaseException) -> str:
    """The problem in words."""
    return f"its tokenizer.json makes the library fail ({one_line(error, 100)}); download the model again"


@contextmanager
def panics_raised() -> Iterator[None]:
    """Raise `ValueError` in place of a panic. What a library prints is shown afterwards, unless it fails: then the
    error says it all."""
    with _held_back() as said:
        try:
            yield
        except BaseException as error:
            sys.stderr.flush()
            said.truncate(0)
            if not is_panic(error):
                raise
            raise ValueError(panic_line(error)) from error


@contextmanager
def _held_back() -> Iterator[IO[bytes]]:
    """Keep what is written to standard error, by any language, in a file, and write it out at the end."""
    try:
        said, shown = tempfile.TemporaryFile(), os.dup(2)  # noqa: SIM115  closed below
    except OSError:  # a full disk, or no standard error: then everything is shown at once
        yield BytesIO()
        return
    sys.stderr.flush()
    os.dup2(said.fileno(), 2)
    try:
        yield said
    finally:
        sys.stderr.flush()
        os.dup2(shown, 2)
        os.close(shown)
        with said:
            said.seek(0)
            if text := said.read():
                os.write(2, text)
