"""Pages -> passages of limited size, cut at headings, paragraphs and sentences (semantic-text-splitter)."""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from groundtune.data.passages import format_passage, header_of
from groundtune.errors import DataError
from groundtune.prepare.readers.page import Page
from groundtune.schema import Document
from groundtune.system.model_folders import model_problems
from groundtune.system.text import one_line

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter
    from tokenizers import Tokenizer

_HEADINGS = re.compile(r"^#{1,6} .*$", re.MULTILINE)
_LOOK_BACK = 20_000  # characters; the splitter asks about texts near its previous one


def load_counter(name: str) -> Tokenizer:
    """The fast tokenizer (`tokenizers.Tokenizer`) of a model: a local folder, or a name on the hub.

    Raises:
        DataError: there is no such model, or it has no fast tokenizer.
    """
    from tokenizers import Tokenizer

    if problems := model_problems(name, weights=False):
        raise DataError([f"--tokenizer: {problems[0]}"])
    path = Path(name) / "tokenizer.json"
    if not os.path.isdir(name):
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(name, "tokenizer.json"))
        except Exception as error:  # the hub's client has a dozen kinds, and a bad name raises another one
            problem = f"--tokenizer: cannot load {name}: {str(error).strip().splitlines()[0]}"
            raise DataError([f"{problem}; name a local folder or a model of the hub"]) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError([f"--tokenizer: {path}: {error}; name a folder that holds a tokenizer.json"]) from error
    tokenizer.no_truncation()  # otherwise no count would exceed the model's limit
    tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True)
class Chunker:
    """Cuts pages into passages of at most `size` tokens of `tokenizer`, including the lines with source and title.

    Adjacent passages share up to `overlap` tokens, in whole sentences if possible. A header longer than half of `size`
    may make a passage longer than `size`.
    """

    tokenizer: Tokenizer
    size: int
    overlap: int

    def passages(self, page: Page) -> Iterator[Document]:
        """The page's passages in order; none if it is blank. The same page gives the same passages on every run."""
        sections = _sections(page.text, page.title) if page.markdown else _Places([], [])
        capacity = self.size - max(self._header(page, section) for section in {"", *sections.names})
        capacity = max(capacity, self.size // 2)
        count = _SpanCounter(self.tokenizer, page.text)
        end, number = 0, 0
        for start, text in self._splitter(page.markdown, count, capacity).chunk_indices(page.text):
            if not _HEADINGS.sub("", text).strip() if page.markdown else not text.strip():
                continue  # only headings; the passages below include them in their section
            # Start of its own text: text shared with the previous passage may belong to the previous section.
            own = _next_character(page.text, max(start, end))
            end, number = start + len(text), number + 1
            place = {"sheet": bisect_right(page.sheets, own)} if page.sheets else {}
            yield format_passage(
                text, source=page.source, title=page.title, section=sections.at(own), number=number, **place
            )

    def tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _header(self, page: Page, section: str) -> int:
        return self.tokens(header_of(source=page.source, title=page.title, section=section))

    def _splitter(self, markdown: bool, count: _SpanCounter, capacity: int) -> MarkdownSplitter | TextSplitter:
        from semantic_text_splitter import MarkdownSplitter, TextSplitter

        splitter = MarkdownSplitter if markdown else TextSplitter
        return splitter.from_callback(count, capacity, min(self.overlap, capacity - 1))


@dataclass
class _SpanCounter:
    """Counts the tokens in parts of a text, which is tokenised only once.

    The splitter asks for the length of about ten overlapping parts per cut; tokenising each of them would take nearly
    all of its time.
    """

    tokenizer: Tokenizer
    text: str
    _last: int = 0

    @cached_property
    def _starts(self) -> list[int]:
        """The offset of each token, in characters."""
        return [start for start, _ in self.tokenizer.encode(self.text, add_special_tokens=False).offsets]

    def __call__(self, part: str) -> int:
        at = self.text.find(part, max(0, self._last - _LOOK_BACK))
        if at < 0:
            at = self.text.find(part)
        self._last = at
        return bisect_left(self._starts, at + len(part)) - bisect_left(self._starts, at)


@dataclass(frozen=True)
class _Places:
    """Names, each valid from its offset to the next offset."""

    offsets: Sequence[int]
    names: Sequence[str]

    def at(self, offset: int) -> str:
        place = bisect_right(self.offsets, offset)
        return self.names[place - 1] if place else ""


def _sections(text: str, title: str) -> _Places:
    """The headings above each part of a Markdown text, outermost first, without the title: `Install > On Windows`."""
    from markdown_it import MarkdownIt

    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    offsets: list[int] = []
    names: list[str] = []
    above: dict[int, str] = {}
    tokens = MarkdownIt("commonmark").disable("inline").parse(text)
    for opening, content in zip(tokens, tokens[1:]):
        if opening.type == "heading_open" and opening.map:
            level = int(opening.tag[1:])
            above = {upper: name for upper, name in above.items() if upper < level}
            above[level] = one_line(content.content)
            offsets.append(lines[opening.map[0]])
            names.append(" > ".join(name for _, name in sorted(above.items()) if name and name != title))
    return _Places(offsets, names)


def _next_character(text: str, offset: int) -> int:
    match = re.compile(r"\S").search(text, offset)
    return match.start() if match else offset
