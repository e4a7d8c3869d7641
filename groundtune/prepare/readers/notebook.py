"""Jupyter notebooks: text, code, and what the code printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundtune.prepare.readers.markdown import cleaned, first_heading
from groundtune.prepare.readers.page import Page, ReadOptions, contents, decoded, unreadable

_LONGEST_OUTPUT = 2000  # characters of what one cell printed


def notebook_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    text, doubts = decoded(path, contents(path), options.encoding)
    left_out: set[str] = set()
    try:
        book = json.loads(text)
        language = str(book.get("metadata", {}).get("kernelspec", {}).get("language", ""))
        parts = [part for cell in book["cells"] for part in _cell(cell, language, left_out)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"is not a readable notebook ({type(error).__name__}: {error})"
        raise unreadable(path, reason, "save it again in the format of 2015 or later") from error
    text = "\n\n".join(parts)
    yield Page(text, first_heading(text) or path.stem, source, markdown=True, left_out=(*doubts, *sorted(left_out)))


def _cell(cell: dict[str, Any], language: str, left_out: set[str]) -> Iterator[str]:
    content = _joined(cell.get("source"))
    if not content.strip():
        return
    if cell["cell_type"] != "code":
        text, notes = cleaned(content)
        left_out.update(notes)
        yield text
        return
    yield f"```{language}\n{content}\n```"
    for output in cell.get("outputs", []):
        printed = _printed(output, left_out).strip("\n")
        if len(printed) > _LONGEST_OUTPUT:
            left_out.add("the ends of long outputs")
        if printed.strip():
            yield f"```\n{printed[:_LONGEST_OUTPUT]}\n```"


def _printed(output: dict[str, Any], left_out: set[str]) -> str:
    data = output.get("data", {})
    if any(kind.startswith("image/") for kind in data):
        left_out.add("images")
    return _joined(output.get("text") or data.get("text/plain")) if "image/png" not in data else ""


def _joined(lines: Any) -> str:
    return "".join(lines) if isinstance(lines, list) else str(lines or "")
