"""Plain text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from groundtune.prepare.readers.page import Page, ReadOptions, contents, decoded


def text_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    text, doubts = decoded(path, contents(path), options.encoding)
    yield Page(text, path.stem, source, left_out=doubts)
