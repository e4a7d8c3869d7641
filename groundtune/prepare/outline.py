"""Where a text may be cut, and what stands above each part of it: sections, and the column names of tables."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from groundtune.prepare.readers.page import Page
from groundtune.system.text import one_line

if TYPE_CHECKING:
    from markdown_it.token import Token

# Ranks of boundaries, the strongest first; headings have their level, 1 to 6.
BLOCK, PART, LINE, SENTENCE, WRAPPED = 7, 8, 9, 10, 11
_CONTINUED = 0.2  # share of the lines of a text that begin with a small letter, if lines end at the edge of a page
_CHARACTER = re.compile(r"\S")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE = re.compile("[.!?…][\"'”’»)\\]]*\\s+(?=[^\\Wa-zß-öø-ÿ_]|[\"'“‘«(\\[])|[。！？]")


@dataclass(frozen=True)
class Places:
    """Names, each valid from its offset to the next offset."""

    offsets: Sequence[int] = ()
    names: Sequence[str] = ()

    def at(self, offset: int) -> str:
        place = bisect_right(self.offsets, offset)
        return self.names[place - 1] if place else ""


@dataclass(frozen=True)
class Outline:
    """The boundaries of a text: `offsets`, ascending, and their `ranks`.

    `sections` are the headings above each part; `columns` the first lines of the table to which a row belongs.
    `headings` are spans of the text.
    """

    text: str
    offsets: Sequence[int]
    ranks: Sequence[int]
    sections: Places = Places()
    columns: Places = Places()
    headings: Sequence[tuple[int, int]] = ()

    def strongest(self, after: int, limit: int) -> tuple[int, int] | None:
        """The last of the strongest boundaries behind `after` and up to `limit`, with its rank."""
        first, last = bisect_right(self.offsets, after), bisect_right(self.offsets, limit)
        if first == last:
            return None
        rank = min(self.ranks[first:last])
        return next(self.offsets[at] for at in reversed(range(first, last)) if self.ranks[at] == rank), rank

    def first_sentence(self, start: int, end: int) -> int:
        """The first boundary from `start` on at which a sentence or more begins; `end` if there is none before it."""
        for at in range(bisect_left(self.offsets, start), len(self.offsets)):
            if self.offsets[at] >= end or self.ranks[at] <= SENTENCE:
                return min(self.offsets[at], end)
        return end

    def first_text(self, start: int, end: int) -> int:
        """Where the first text begins between two offsets that is no heading; `end` if there is none."""
        first = max(0, bisect_right(self.headings, (start, start)) - 1)
        for begin, stop in islice(self.headings, first, bisect_left(self.headings, (end, end))):
            if self.text[start:begin].strip():
                break
            start = max(start, stop)
        return min(next_character(self.text, start), end)


def next_character(text: str, offset: int) -> int:
    match = _CHARACTER.search(text, offset)
    return match.start() if match else len(text)


def outline_of(page: Page) -> Outline:
    return _markdown(page.text, page.title) if page.markdown else _plain(page.text)


def _made(
    text: str,
    ranks: dict[int, int],
    sections: Places = Places(),
    columns: Places = Places(),
    headings: Sequence[tuple[int, int]] = (),
) -> Outline:
    offsets = sorted(offset for offset in ranks if 0 < offset < len(text))
    return Outline(text, offsets, [ranks[offset] for offset in offsets], sections, columns, headings)


def _plain(text: str) -> Outline:
    paragraphs = {found.end(): BLOCK for found in _PARAGRAPH.finditer(text)}
    return _made(text, {**_sentences(text), **_lines(text), **paragraphs})


def _sentences(text: str) -> dict[int, int]:
    return {found.end(): SENTENCE for found in _SENTENCE.finditer(text)}


def _lines(text: str) -> dict[int, int]:
    """Where lines begin: stronger than sentences, unless lines only end at the edge of a page."""
    begins = [found.end() for found in re.finditer("\n", text)]
    continued = sum(text[begin : begin + 1].islower() for begin in begins)
    return dict.fromkeys(begins, WRAPPED if continued > _CONTINUED * len(begins) else LINE)


def _markdown(text: str, title: str) -> Outline:
    from markdown_it import MarkdownIt

    begins = [0, *(match.end() for match in re.finditer("\n", text))]
    begins += [len(text)] * 2  # a block may end behind the last line
    tokens = MarkdownIt("commonmark").enable("table").disable("inline").parse(text)
    ranks = _sentences(text)
    for token in tokens:
        for line, rank in _boundaries(token):
            ranks[begins[line]] = min(rank, ranks.get(begins[line], rank))
    spans = [_span(token, begins) for token in tokens if token.type == "heading_open"]
    together = [(begin, _next_line(text, end)) for begin, end in spans]  # a heading and the line below it
    parted = {offset: rank for offset, rank in ranks.items() if not _is_within(together, offset)}
    return _made(text, parted, _sections(tokens, begins, title), _columns(tokens, begins, text), spans)


def _span(token: Token, begins: Sequence[int]) -> tuple[int, int]:
    first, last = token.map or (0, 0)
    return begins[first], begins[last]


def _boundaries(token: Token) -> Iterator[tuple[int, int]]:
    """The lines of a block at which a text may be cut, with their ranks."""
    first, last = token.map or (0, 0)
    if token.type == "heading_open":
        yield first, int(token.tag[1:])
    elif token.type in ("table_open", "tr_open") or token.level:  # what stands above a table stays with its first rows
        yield first, PART
    elif token.map:
        yield first, BLOCK
    if token.type in ("fence", "code_block", "html_block"):
        yield from ((line, LINE) for line in range(first + 1, last))
    if token.type == "table_open":
        yield from ((line, WRAPPED) for line in range(first + 1, first + 3))  # its head and first row stay together


def _next_line(text: str, offset: int) -> int:
    """The beginning of the next line that is not blank."""
    at = next_character(text, offset)
    return text.rfind("\n", 0, at) + 1 if at < len(text) else at


def _is_within(spans: Sequence[tuple[int, int]], offset: int) -> bool:
    """Whether an offset lies behind the beginning of a span, and not behind its end."""
    place = bisect_left(spans, (offset, 0)) - 1
    return place >= 0 and offset <= spans[place][1]


def _sections(tokens: Sequence[Token], begins: Sequence[int], title: str) -> Places:
    """The headings above each part of a text, outermost first, without the title: `Install > On Windows`."""
    offsets: list[int] = []
    names: list[str] = []
    above: dict[int, str] = {}
    for opening, content in zip(tokens, tokens[1:]):
        if opening.type == "heading_open":
            level = int(opening.tag[1:])
            above = {upper: name for upper, name in above.items() if upper < level}
            above[level] = one_line(content.content)
            offsets.append(_span(opening, begins)[0])
            names.append(
                " > ".join(name for at, name in sorted(above.items()) if name and not _is_title(at, name, title))
            )
    return Places(offsets, names)


def _is_title(level: int, name: str, title: str) -> bool:
    return name == title or (level == 1 and title.startswith(name))  # of "Locks - The Manual"


def _columns(tokens: Sequence[Token], begins: Sequence[int], text: str) -> Places:
    """For each table the line with its column names and the one below, valid from its first row to its end."""
    offsets: list[int] = []
    names: list[str] = []
    for token in tokens:
        if token.type == "table_open" and token.map:
            begin, end = token.map
            offsets += [begins[begin + 2], begins[end]]
            names += [text[begins[begin] : begins[begin + 2]], ""]
    return Places(offsets, names)
