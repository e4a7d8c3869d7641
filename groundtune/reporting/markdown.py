"""Texts, lists and tables as Markdown, escaped so that they are shown literally."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence


def md(text: str) -> str:
    """`text` escaped for Markdown and for table cells, on one line."""

    def harmless(match: re.Match[str]) -> str:
        # Entities where renderers differ: some split tables at pipes before they read backslashes, some after.
        character = match.group()
        return f"&#{ord(character)};" if character in "&<>\\|`]" else f"\\{character}"

    text = re.sub(r"[&<>\\|`*_~#$]|\](?=[(\[:])", harmless, text.strip())  # "](" would make a link
    return re.sub(r"\s*[\r\n\v\f\x85\u2028\u2029]+\s*", "<br>", text)


def md_list(pairs: Mapping[str, str]) -> str:
    """A list with one item `name: value` per pair."""
    return "\n".join(f"- {md(name)}: {md(value)}" for name, value in pairs.items())


def md_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; every row has as many cells as the header."""
    lines = [map(md, header), ["---"] * len(header), *(map(md, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def md_fence(text: str, language: str = "") -> str:
    """A code block with a fence that `text` cannot close; empty for an empty text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}" if text else ""
