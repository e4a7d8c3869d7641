"""Pages -> passages of limited size, cut at the strongest boundary that fits: heading, block, line, sentence, word.

The time grows with the length of a text only, whatever it holds.
"""

from __future__ import annotations

import os
import re
import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from groundtune.data.passages import format_passage, header_of
from groundtune.errors import DataError
from groundtune.prepare.outline import BLOCK, WRAPPED, Outline, next_character, outline_of
from groundtune.prepare.readers.page import Page
from groundtune.schema import Document
from groundtune.system.hub_access import HubError, from_hub
from groundtune.system.inputs import special
from groundtune.system.model_folders import tokenizer_problems

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PIECE = 100_000  # characters that are tokenised at once; a tokenizer needs 150 times that in bytes
_SEAM = re.compile(r"(?<=\w)(?=\s\w)|\n(?=\S)")  # where no tokenizer has a token across: between words or lines
_LONG_TOKEN = 64  # characters; some tokenizers have one token for any unknown word


def counter_file(name: str) -> Path:
    """The file of a model's fast tokenizer: in a local folder, or downloaded from the hub.

    Raises:
        DataError: there is no such model.
    """
    if problems := tokenizer_problems(name):
        raise DataError([f"--tokenizer: {problems[0]}"])
    path = Path(name) / "tokenizer.json"
    if not os.path.isdir(name):
        from huggingface_hub import hf_hub_download

        try:
            with from_hub(name):
                path = Path(hf_hub_download(name, "tokenizer.json"))
        except HubError as error:
            raise DataError([f"--tokenizer: {error}"]) from error
        except Exception as error:  # the hub's client has a dozen kinds, and a bad name raises another one
            problem = f"--tokenizer: cannot load {name}: {str(error).strip().splitlines()[0]}"
            raise DataError([f"{problem}; name a local folder or a model of the hub"]) from error
    if kind := special(path):
        raise DataError([f"--tokenizer: {path} is {kind}, not a file; name a folder that holds a tokenizer.json"])
    return path


def load_counter(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json` (`tokenizers.Tokenizer`). Raises `DataError` if there is none."""
    from tokenizers import Tokenizer

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

    Adjacent passages of a section share up to `overlap` tokens, in whole sentences. A passage that begins within a
    table has its column names. A header longer than half of `size` may make a passage longer than `size`.
    """

    tokenizer: Tokenizer
    size: int
    overlap: int

    def passages(self, page: Page) -> Iterator[Document]:
        """The page's passages in order; none if it is blank. The same page gives the same passages on every run."""
        outline = outline_of(page)
        capacity = self.size - max(self._header(page, section) for section in {"", *outline.sections.names})
        capacity = max(capacity, self.size // 2)
        cutter = _Cutter(outline, self._starts(page.text), capacity, min(self.overlap, capacity - 1), self.tokens)
        end = 0
        for number, chunk in enumerate(cutter.chunks(), 1):
            # Start of its own text: text shared with the previous passage may be on the previous sheet.
            own = outline.first_text(max(chunk.start, end), chunk.end)
            end = chunk.end
            place = {"sheet": bisect_right(page.sheets, own)} if page.sheets else {}
            text, section = chunk.columns + page.text[chunk.start : end].rstrip(), outline.sections.at(own)
            yield format_passage(text, source=page.source, title=page.title, section=section, number=number, **place)

    def tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _starts(self, text: str) -> Sequence[int]:
        """The offset of each token, in characters; a long token counts as several."""
        starts = array("L")
        for begin, piece in _pieces(text):
            for start, end in self.tokenizer.encode(piece, add_special_tokens=False).offsets:
                step = _LONG_TOKEN // 8 if end - start > _LONG_TOKEN else max(1, end - start)
                starts.extend(range(begin + start, begin + max(end, start + 1), step))
        return starts

    def _header(self, page: Page, section: str) -> int:
        return self.tokens(header_of(source=page.source, title=page.title, section=section))


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """The text in pieces, each with its offset."""
    begin = 0
    while begin < len(text):
        found = _SEAM.search(text, begin + _PIECE)
        end = found.end() if found else len(text)
        yield begin, text[begin:end]
        begin = end


@dataclass(frozen=True)
class _Chunk:
    """A part of a text, and the column names of the table in which it begins."""

    start: int
    end: int
    columns: str


@dataclass(frozen=True)
class _Cutter:
    """Cuts one text into chunks of `room` tokens. `starts` are the offsets of its tokens."""

    outline: Outline
    starts: Sequence[int]
    room: int
    overlap: int
    tokens: Callable[[str], int]

    def chunks(self) -> Iterator[_Chunk]:
        """All chunks that hold more than headings; those are in the sections of the passages below them."""
        text = self.outline.text
        start, end = _next_line(text, 0), 0
        while start < len(text):
            columns = self._columns(start)
            end, rank = self._end(start, end, columns)
            if self.outline.first_text(start, end) < end:
                yield _Chunk(start, end, columns)
            start = _next_line(text, self._shared(start, end) if rank >= BLOCK else end)

    def _end(self, start: int, after: int, columns: str) -> tuple[int, int]:
        """Where the chunk from `start` ends, behind `after`, and the rank of that boundary; 0 for that of the text."""
        after = max(start, after)
        token = bisect_left(self.starts, start) + self.room - (self.tokens(columns) if columns else 0)
        token = max(token, bisect_right(self.starts, after))
        if token >= len(self.starts):
            return len(self.outline.text), 0
        limit = self.starts[token]
        return self.outline.strongest(after, limit) or (_end_of_word(self.outline.text, after, limit), WRAPPED)

    def _shared(self, start: int, end: int) -> int:
        """Where the next chunk begins: with the first sentence among the last tokens of this one; not in a table."""
        token = max(0, bisect_left(self.starts, end) - self.overlap)
        if not self.overlap or token >= len(self.starts) or self.outline.columns.at(end):
            return end
        return self.outline.first_sentence(max(self.starts[token], start + 1), end)

    def _columns(self, start: int) -> str:
        columns = self.outline.columns.at(start)
        return columns if columns and self.tokens(columns) * 2 <= self.room else ""


def _end_of_word(text: str, after: int, limit: int) -> int:
    """The last end of a word up to `limit`; `limit` in a long word, or in a script without spaces."""
    end = max(text.rfind(space, after + 1, limit) for space in (" ", "\n", "\t"))
    if end > after:
        return end + 1
    while limit > after + 1 and unicodedata.combining(text[limit]):
        limit -= 1
    return limit


def _next_line(text: str, offset: int) -> int:
    """The next text from `offset` on, with what indents its line."""
    at = next_character(text, offset)
    return max(offset, text.rfind("\n", offset, at) + 1) if "\n" in text[offset:at] or offset == 0 else at
