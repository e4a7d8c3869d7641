"""Files -> pages of text: which reader reads which kind of file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from groundtune.prepare.readers.page import MB, Page, ReadOptions, too_large, unreadable
from groundtune.prepare.readers.tidy import tidy
from groundtune.system.inputs import open_file
from groundtune.system.packages import pip_install


@dataclass(frozen=True)
class Reader:
    """A function in prepare/readers, which is imported when the first file is read, and the packages it needs."""

    module: str
    function: str
    needs: tuple[str, ...] = ()

    def __call__(self, path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
        module = import_module(f"groundtune.prepare.readers.{self.module}")
        return getattr(module, self.function)(path, source, options)


READERS: dict[str, Reader] = {
    **dict.fromkeys((".txt", ".text", ".rst"), Reader("plain", "text_pages")),
    **dict.fromkeys((".md", ".markdown"), Reader("markdown", "markdown_pages")),
    **dict.fromkeys((".html", ".htm", ".xhtml"), Reader("web", "html_pages", ("lxml",))),
    ".pdf": Reader("pdf", "pdf_pages", ("pypdfium2",)),
    ".docx": Reader("word", "docx_pages", ("mammoth", "lxml")),
    ".pptx": Reader("slides", "pptx_pages", ("lxml",)),
    ".xlsx": Reader("sheets", "xlsx_pages", ("openpyxl", "lxml")),
    **dict.fromkeys((".csv", ".tsv"), Reader("tables", "csv_pages")),
    ".jsonl": Reader("rows", "jsonl_pages"),
    ".json": Reader("rows", "json_pages"),
    ".ipynb": Reader("notebook", "notebook_pages"),
}
# How files begin that have no suffix.
_BEGINNINGS = {b"%PDF-": ".pdf", b"<!DOCTYPE HTML": ".html", b"<HTML": ".html", b"<?XML": ".html"}


def kind_of(path: Path) -> str:
    """The suffix by which a file is read; a file without one by how it begins, "" if it is not text."""
    if suffix := path.suffix.lower():
        return suffix if suffix in READERS else ""
    if path.is_symlink() or not path.is_file():  # neither waits for a pipe nor looks where a link leads
        return ""
    try:
        with open_file(path) as file:
            data = file.read(4096)
    except OSError:
        return ""
    for begins, kind in _BEGINNINGS.items():
        if data[:20].lstrip().upper().startswith(begins):
            return kind
    return "" if b"\0" in data else ".txt"


def read_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    """The pages of one file; `source` is its name in the passages.

    Raises:
        DataError: the file, or the next row of it, cannot be read.
    """
    try:
        if (size := path.stat().st_size) > options.max_mb * MB:
            raise too_large(path, f"has {size / MB:,.0f} MB")
        yield from map(tidy, READERS[kind_of(path)](path, source, options))
    except OSError as error:
        raise unreadable(path, f"cannot be opened ({error.strerror or error})", "check its permissions") from error


def missing_libraries(suffixes: Iterable[str]) -> list[str]:
    """One line with the packages to install for these types of files; empty if nothing is missing."""
    needed = {name for suffix in suffixes if suffix in READERS for name in READERS[suffix].needs}
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    return [f"{', '.join(missing)}: not installed; {pip_install('documents')}"] if missing else []
