"""Markdown: its title and text, without comments and without images that are written into it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundtune.prepare.readers.page import Page, ReadOptions, clean, contents, decoded, told_title

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(\S.*)")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)\s*")
_TOML_TITLE = re.compile(r"""title\s{0,9}=\s{0,9}(?:"((?:[^"\\]|\\.)*)"|'([^']*)')\s*(?:#.*)?""")
_DATA_IMAGE = re.compile(r"!\[([^\]\[]{0,1000})\]\(\s{0,9}<?data:[^\s)>]*>?[^)\n]{0,200}\)")
_DATA_TAG = re.compile(r"""<img\b[^>]{0,1000}\bsrc\s{0,9}=\s{0,9}["']data:[^"'>]*["'][^>]{0,1000}>""", re.IGNORECASE)
_ALT = re.compile(r"""\balt\s{0,9}=\s{0,9}["']([^"'>]*)["']""", re.IGNORECASE)


def markdown_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    text, doubts = decoded(path, contents(path), options.encoding)
    text, title = _without_front_matter(text)
    text, left_out = cleaned(text)
    title = told_title(title) or first_heading(text) or path.stem
    yield Page(text, title, source, markdown=True, left_out=(*doubts, *left_out))


def cleaned(text: str) -> tuple[str, tuple[str, ...]]:
    """Markdown without comments, and with the description in the place of an image that is written into it."""
    text = _without_comments(text) if "<!--" in text else text
    shown = _DATA_IMAGE.sub(lambda found: found[1], text) if "data:" in text else text
    shown = _DATA_TAG.sub(lambda found: (_ALT.search(found[0]) or ("", ""))[1], shown) if "data:" in shown else shown
    return shown, ("images that are written into the text",) if shown != text else ()


def first_heading(text: str) -> str:
    """The text of the first heading of a Markdown text; lines of code blocks are none."""
    before = ""
    for line, is_code in _lines(text):
        if is_code:
            before = ""
            continue
        if found := _HEADING.match(line):
            title = found[1].rstrip()
            closed = title.rstrip("#")
            return closed.rstrip() if closed.endswith((" ", "\t")) or not closed else title
        if before.strip() and _UNDERLINE.fullmatch(line) and "-" not in line:
            return before.strip()
        before = line
    return ""


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it belongs to a fenced code block."""
    fence = ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if fence:
            yield line, True
            if found and found[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        else:
            fence = found[1] if found else ""
            yield line, bool(found)


def _without_comments(text: str) -> str:
    """Without `<!-- comments -->`, except in code."""
    begins, is_code = _code_lines(text)
    kept, at, start = [], 0, text.find("<!--")
    while start >= 0:
        if is_code[bisect_right(begins, start) - 1] or text[start - 1 : start] == "`":
            start = text.find("<!--", start + 4)
            continue
        if (end := text.find("-->", start)) < 0:
            break
        kept.append(text[at:start])
        at = end + 3
        start = text.find("<!--", at)
    return "".join([*kept, text[at:]])


def _code_lines(text: str) -> tuple[list[int], list[bool]]:
    """The offset of each line, and whether it is code."""
    begins, codes, at = [], [], 0
    for line, is_code in _lines(text):
        begins.append(at)
        codes.append(is_code)
        at += len(line) + 1
    return begins, codes


def _without_front_matter(text: str) -> tuple[str, str]:
    """The text without the block of YAML or TOML that site generators put at the top, and the title in that block."""
    if match := re.match(r"\+\+\+[ \t]*\n(.*?)\n\+\+\+[ \t]*(?:\n|$)", text, re.DOTALL):
        top = match[1].partition("\n[")[0].split("\n")
        found = next(filter(None, (_TOML_TITLE.fullmatch(line.strip()) for line in top)), None)
        return text[match.end() :], clean(found[1] or found[2] or "") if found else ""
    match = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", text, re.DOTALL)
    fields = _yaml(match[1]) if match else None
    if not match or not isinstance(fields, dict):  # a text between two rules
        return text, ""
    title = fields.get("title")
    return text[match.end() :], clean(title) if isinstance(title, str) and title not in ("~", "null") else ""


def _yaml(block: str) -> Any:
    import yaml

    try:
        # Makes only texts, lists and dictionaries, with values as written, such as 007 and impossible dates.
        return yaml.load(block, yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return None
