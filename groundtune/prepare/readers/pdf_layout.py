"""The text of a sheet of a PDF in reading order: columns one after the other, words joined across the ends of lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from groundtune.prepare.readers.pdf_forms import Typed
from groundtune.system.text import one_line

if TYPE_CHECKING:
    import pypdfium2

Box = tuple[float, float, float, float]  # left, bottom, right, top

_MOST_BOXES = 3000  # on a sheet whose columns are looked for; the text of each is looked up among all characters
_FEWEST_ROWS = 4  # of two columns
_WORDS_OF_PROSE = 3  # in a line, on average; the cells of a table have fewer
_CONTINUED = 0.2  # share of the lines of prose that begin with a small letter; those of a table rarely do
_HYPHEN = re.compile(r"\x02\n?|(?<=\w)-\n(?=\w)")  # PDFium writes U+0002 for a hyphen at the end of a line
_SHARING = frozenset(("und", "oder", "bzw", "sowie", "and", "or", "et", "ou"))  # "Öffnungs- und Schließzeiten"
_PREFIXES = frozenset(("self", "well", "non", "ex", "all", "half", "high", "low", "long", "short"))  # "self-contained"
_LEADERS = re.compile(r"\.(?: ?\.){4,}")


@dataclass
class _Row:
    """What stands on one line of a sheet, and what is typed there."""

    boxes: list[Box]
    typed: list[Typed] = field(default_factory=list)

    @property
    def box(self) -> Box:
        lefts, bottoms, rights, tops = zip(*self.boxes)
        return min(lefts), min(bottoms), max(rights), max(tops)

    def gaps(self) -> list[tuple[float, float]]:
        """The gaps between the boxes that are wider than letters are high."""
        between = zip(self.boxes, self.boxes[1:])
        return [(one[2], next_[0]) for one, next_ in between if next_[0] - one[2] > max(one[3] - one[1], 8)]


def page_text(page: pypdfium2.PdfPage, typed: Sequence[Typed]) -> str:
    """The text of a sheet, with what is typed where it stands, and columns one after the other."""
    text_page = page.get_textpage()
    boxes = [text_page.get_rect(number) for number in range(text_page.count_rects())]
    rows = _rows(boxes if len(boxes) <= _MOST_BOXES else [])
    _place(typed, rows)
    lines, reordered = _lines(text_page, rows)
    whole = typed or reordered
    return "\n".join(lines) if whole else text_page.get_text_bounded().replace("\r\n", "\n")


def _rows(boxes: Iterable[Box]) -> list[_Row]:
    rows: list[_Row] = []
    for box in boxes:
        before = rows[-1].boxes[-1] if rows else None
        if before and box[0] >= before[2] - 2 and _beside(before, box):
            rows[-1].boxes.append(box)
        else:
            rows.append(_Row([box]))
    return rows


def _beside(one: Box, other: Box) -> bool:
    """Whether two boxes are on one line: they share half of the lower one's height."""
    shared = min(one[3], other[3]) - max(one[1], other[1])
    return shared > 0.5 * min(one[3] - one[1], other[3] - other[1])


def _place(typed: Sequence[Typed], rows: list[_Row]) -> None:
    """Put each typed text into the row at its height, or into a row of its own."""
    for one in typed:
        middle = (one.box[1] + one.box[3]) / 2
        at_height = [row for row in rows if row.box[1] - 2 <= middle <= row.box[3] + 2]
        if at_height:
            min(at_height, key=lambda row: abs(row.box[0] - one.box[0])).typed.append(one)
        else:
            above = [number for number, row in enumerate(rows) if row.box[1] > middle]
            rows.insert(above[-1] + 1 if above else 0, _Row([one.box], [one]))


def _text(text_page: pypdfium2.PdfTextPage, row: _Row) -> str:
    if not row.typed:
        return one_line(text_page.get_text_bounded(*row.box))
    if row.boxes == [row.typed[0].box]:
        one = row.typed[0]
        return f"{one.name}: {one.text}" if len(one.name) > 2 else one.text
    parts = [(box[0], one_line(text_page.get_text_bounded(*box))) for box in row.boxes]
    return " ".join(text for _, text in sorted([*parts, *((one.box[0], one.text) for one in row.typed)]))


# Columns


def _lines(text_page: pypdfium2.PdfTextPage, rows: Sequence[_Row]) -> tuple[list[str], bool]:
    """The lines of the rows, and whether columns of prose were put one after the other."""
    lines: list[str] = []
    at, reordered = 0, False
    while at < len(rows):
        end, gutter = _run(rows, at)
        sides = _sides(rows[at:end], gutter)
        texts = [[_text(text_page, row) for row in side] for side in sides]
        if len(sides) == 2 and all(map(_is_prose, texts)):
            lines += texts[0] + _lines(text_page, sides[1])[0]
            reordered = True
        else:
            lines += [_text(text_page, row) for row in rows[at:end]]
        at = end
    return lines, reordered


def _run(rows: Sequence[_Row], at: int) -> tuple[int, float]:
    """The end of the rows from `at` that have a gap at the same place, and that place; one row if there are too few."""
    for left, right in rows[at].gaps():
        end, both = at + 1, 1
        while end < len(rows):
            row = rows[end]
            gaps = [gap for gap in row.gaps() if min(right, gap[1]) - max(left, gap[0]) > 5]
            if gaps:
                left, right, both = max(left, gaps[0][0]), min(right, gaps[0][1]), both + 1
            elif (row.box[0] < right - 1 and row.box[2] > left + 1) or _is_apart(rows[end - 1], row):
                break  # it goes across, or is not part of the columns
            end += 1
        if both >= _FEWEST_ROWS:
            return end, (left + right) / 2
    return at + 1, 0


def _is_apart(above: _Row, row: _Row) -> bool:
    """Whether there is room for two lines between two rows."""
    return above.box[1] - row.box[3] > 2 * (row.box[3] - row.box[1])


def _sides(rows: Sequence[_Row], gutter: float) -> list[list[_Row]]:
    """The rows to the left of the gutter and those to its right; nothing if there is none."""
    if not gutter or any(row.typed for row in rows):
        return []
    left = [[box for box in row.boxes if box[0] < gutter] for row in rows]
    right = [[box for box in row.boxes if box[0] >= gutter] for row in rows]
    return [[_Row(boxes) for boxes in side if boxes] for side in (left, right)]


def _is_prose(lines: Sequence[str]) -> bool:
    """Whether lines continue each other, as in a column of text, and are not the cells of a table."""
    words = sum(len(line.split()) for line in lines)
    unspaced = (
        sum(len(line) for line in lines) / max(words, 1) > 12
    )  # a script without spaces, and without small letters
    continued = sum(line[:1].islower() for line in lines)
    cased = any(character.islower() for line in lines for character in line)
    return unspaced or words >= _WORDS_OF_PROSE * len(lines) and (continued >= _CONTINUED * len(lines) or not cased)


# Words and lines


@dataclass(frozen=True)
class Words:
    """The words of a document: they tell which hyphens at the ends of lines belong to a word."""

    known: frozenset[str]

    @staticmethod
    def of(texts: Iterable[str]) -> Words:
        return Words(frozenset(word.lower() for text in texts for word in re.findall(r"[\w-]+", text)))

    def joined(self, text: str) -> str:
        """The text with words joined that are cut at the ends of lines."""
        first, *others = _HYPHEN.split(text)
        parts = [first]
        for other in others:
            parts += [self._between(parts[-1][-80:], other[:80]), other]
        return "".join(parts)

    def _between(self, before: str, after: str) -> str:
        """What stands between two halves: nothing, or a hyphen that belongs to the word."""
        left, word = re.split(r"\s", before)[-1], re.split(r"[^\w-]", before)[-1]
        right = re.split(r"\W", after)[0]
        if right in _SHARING:
            return "- "
        if f"{word}-{right}".lower() in self.known or not right:
            return "-"
        if f"{word}{right}".lower() in self.known:
            return ""
        name = right[0].isupper() or not right[0].isalpha() or not left.strip("(\"'„“‚‘»«").isalpha()
        return "-" if name or word.lower() in _PREFIXES else ""


def without_contents(text: str, sheets: int) -> str:
    """The text without the lines of a table of contents, and with short rows of dots elsewhere.

    They are three or more lines that end in dots and the number of a sheet, in rising order, as prices are not.
    """
    lines: list[str | None] = list(text.split("\n"))
    if text.count("..") + text.count(". .") >= 3:
        numbers = [_number_after_dots(line or "", sheets) for line in lines]
        for start, end in _rising(numbers):
            lines[start:end] = [None] * (end - start)
    kept = "\n".join(line for line in lines if line is not None)
    return _LEADERS.sub("...", kept)


def _number_after_dots(line: str, sheets: int) -> int | None:
    """The number of a sheet at the end of a line of contents; 0 if it is Roman; None if the line is none."""
    head, _, number = line.rstrip().replace(". ", ".").rpartition(".")
    if not head.endswith("...") or len(number) > 6:
        return None
    number = number.strip()
    if number.isdecimal():
        return int(number) if int(number) <= sheets + 50 else None
    return 0 if number and not number.strip("ivxlcIVXLC") else None


def _rising(numbers: Sequence[int | None]) -> list[tuple[int, int]]:
    """Where three or more numbers follow each other that do not fall; up to two lines between them are titles."""
    runs: list[tuple[int, int]] = []
    places = [place for place, number in enumerate(numbers) if number is not None]
    run: list[int] = []
    for place in [*places, len(numbers) + 9]:
        goes_on = run and place - run[-1] <= 3 and (numbers[place] or 0) >= (numbers[run[-1]] or 0)
        if not goes_on:
            runs += [(run[0], run[-1] + 1)] if len(run) >= 3 else []
            run = []
        run.append(place)
    return runs
