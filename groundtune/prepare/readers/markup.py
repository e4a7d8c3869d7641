"""A tree of HTML elements -> Markdown, in one pass without recursion, so that the time grows with the length only.

Superscripts, subscripts, merged cells and code keep their meaning; tables that only arrange a page do not become
tables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lxml import etree

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "li", "main", "nav",
    "ol", "p", "pre", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul", *_HEADINGS,
))  # fmt: skip
_MARKS = {
    "b": "**", "strong": "**", "i": "*", "em": "*", "code": "`", "kbd": "`", "samp": "`", "tt": "`",
    "sup": "^", "sub": "_",
}  # fmt: skip
_DEEPEST = 20  # lists, quotes and cells within each other; what is deeper is not indented further
_ORDINALS = {"st", "nd", "rd", "th", "er", "ère", "ème", "tm", "sm", "®", "™"}
_SIMPLE = re.compile(r"[-+−–]?[\w.,]+|\W")  # an exponent that needs no parentheses
_SPACES = re.compile(r"[ \t\r\n\f\v\u00a0]+")  # a no-break space is layout; a search would miss the words beside it
_LOOKS_LIKE_MARKUP = re.compile(r"#{1,6}(?: |$)|```|~~~")
_ITEM = re.compile(r"- |\d+\. ")
_REPEATED = 200  # characters of a merged cell up to which its text is repeated
_LONG_CELL = 1000  # characters; a table without a header that has longer ones arranges a page


@dataclass
class _Cell:
    blocks: list[str]
    header: bool
    columns: int
    rows: int

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.blocks).split()).replace("|", r"\|")


@dataclass
class _Table:
    rows: list[list[_Cell]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    arranges: bool = False  # a page, and holds no data


@dataclass
class _Writer:
    """Collects text until a block ends, and blocks until the list, cell or quote around them ends."""

    frames: list[list[str]] = field(default_factory=lambda: [[]])  # the blocks of each open element
    line: list[str] = field(default_factory=list)
    marks: list[tuple[str, int]] = field(default_factory=list)  # open ones, and where in `line`; -1 if it says nothing
    marked: Counter[str] = field(default_factory=Counter)  # how many open ones say something
    numbers: list[int] = field(default_factory=list)  # the next number of each open list; 0: bullets
    tables: list[_Table] = field(default_factory=list)
    verbatim: int = 0  # open <pre>
    heading: int = 0
    too_deep: int = 0

    def text(self, text: str | None) -> None:
        if text:
            self.line.append(text if self.verbatim else _SPACES.sub(" ", text))

    def end_block(self) -> None:
        """What was collected becomes a block."""
        text = "".join(self.line)
        self.line.clear()
        self.marks = [(tag, min(start, 0)) for tag, start in self.marks]
        if not text.strip():
            return
        if self.verbatim:
            text = _fenced(text)
        elif self.heading:
            text = f"{'#' * self.heading} {' '.join(text.split())}"
        else:
            text = re.sub(" ?\n ?", "\n", re.sub(" +", " ", text)).strip()
            text = f"\\{text}" if _LOOKS_LIKE_MARKUP.match(text) else text
        self.frames[-1].append(text)

    def open_frame(self) -> None:
        if len(self.frames) > _DEEPEST:
            self.too_deep += 1
        else:
            self.frames.append([])

    def close_frame(self) -> list[str]:
        """The blocks of the element that ends; none if it was too deep for blocks of its own."""
        if self.too_deep:
            self.too_deep -= 1
            return []
        return self.frames.pop()


def as_markdown(root: etree._Element) -> str:
    """The Markdown of an element and everything in it."""
    writer = _Writer()
    for event, element in etree.iterwalk(root, events=("start", "end")):
        tag = element.tag
        if tag in _BLOCKS:
            _at_a_boundary(writer, tag)
        if event == "start":
            _OPENED.get(tag, _nothing)(writer, element)
            writer.text(element.text)
        else:
            _CLOSED.get(tag, _nothing)(writer, element)
            if element is not root:
                writer.text(element.tail)
    writer.end_block()
    return "\n\n".join(writer.frames[0])


def _nothing(writer: _Writer, element: etree._Element) -> None:
    pass


def _at_a_boundary(writer: _Writer, tag: str) -> None:
    if not writer.verbatim or tag == "pre":
        writer.end_block()
    elif writer.line and not writer.line[-1].endswith("\n"):
        writer.line.append("\n")


# Within a line


def _open_mark(writer: _Writer, element: etree._Element) -> None:
    mark = _MARKS[element.tag]
    emphasis = mark in ("**", "*", "`")
    silent = writer.marked[mark] or (emphasis and (writer.verbatim or writer.heading or writer.marked["`"]))
    writer.marks.append((element.tag, -1 if silent else len(writer.line)))
    writer.marked[mark] += not silent


def _close_mark(writer: _Writer, element: etree._Element) -> None:
    if not writer.marks or writer.marks[-1][0] != element.tag:
        return
    _, start = writer.marks.pop()
    if start < 0:
        return
    mark = _MARKS[element.tag]
    writer.marked[mark] -= 1
    inside = "".join(writer.line[start:])
    del writer.line[start:]
    if words := inside.strip():
        before, _, after = inside.partition(words)
        shifted = _shifted(words, mark, element, writer) if mark in ("^", "_") else f"{mark}{words}{mark}"
        inside = f"{before}{words if mark == '`' and '`' in words else shifted}{after}"
    writer.line.append(inside)


def _shifted(words: str, mark: str, element: etree._Element, writer: _Writer) -> str:
    if element.getparent().tag == "a" or any(child.tag == "a" for child in element):  # the number of a footnote
        return words if words[0] in "[(" else f"[{words}]"
    if words.lower() in _ORDINALS or not "".join(writer.line[-1:]).strip():
        return words
    return shifted(words, mark)


def shifted(words: str, mark: str) -> str:
    """A superscript or subscript: `^6`, `_2`, `^(n+1)`."""
    return f"{mark}{words}" if _SIMPLE.fullmatch(words) else f"{mark}({words})"


def _break_line(writer: _Writer, element: etree._Element) -> None:
    writer.line.append("\n")


def _show_image(writer: _Writer, element: etree._Element) -> None:
    writer.text(element.get("alt"))


def _open_heading(writer: _Writer, element: etree._Element) -> None:
    writer.heading = _HEADINGS[element.tag]
    if writer.tables:
        writer.tables[-1].arranges = True


def _close_heading(writer: _Writer, element: etree._Element) -> None:
    writer.heading = 0


# Code, lists, quotes


def _fenced(text: str) -> str:
    text = text.strip("\n")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
    return f"{fence}\n{text}\n{fence}"


def _open_code(writer: _Writer, element: etree._Element) -> None:
    writer.verbatim += 1
    if writer.tables:
        writer.tables[-1].arranges = True


def _close_code(writer: _Writer, element: etree._Element) -> None:
    writer.verbatim -= 1


def _open_list(writer: _Writer, element: etree._Element) -> None:
    start = element.get("start") or "1"
    writer.numbers.append((int(start[:9]) if start.isdecimal() else 1) if element.tag == "ol" else 0)
    writer.open_frame()


def _close_list(writer: _Writer, element: etree._Element) -> None:
    writer.numbers.pop()
    if items := writer.close_frame():
        writer.frames[-1].append("\n".join(items))


def _open_part(writer: _Writer, element: etree._Element) -> None:
    writer.open_frame()


def _close_item(writer: _Writer, element: etree._Element) -> None:
    blocks = writer.close_frame()
    number = writer.numbers[-1] if writer.numbers else 0
    if writer.numbers:
        writer.numbers[-1] += bool(number)
    if blocks:
        sign = f"{number}. " if number else "- "
        text = "".join(f"\n{block}" if _ITEM.match(block) else f"\n\n{block}" for block in blocks).strip("\n")
        writer.frames[-1].append(sign + re.sub("\n(?!\n)", f"\n{' ' * len(sign)}", text))


def _close_quote(writer: _Writer, element: etree._Element) -> None:
    if blocks := writer.close_frame():
        writer.frames[-1].append("> " + "\n\n".join(blocks).replace("\n", "\n> "))


def _close_definition(writer: _Writer, element: etree._Element) -> None:
    """The first block of a definition stays with its term."""
    blocks, around, previous = writer.close_frame(), writer.frames[-1], element.getprevious()
    if blocks and around and previous is not None and previous.tag == "dt" and not blocks[0].startswith("`"):
        around[-1] += f"\n: {blocks.pop(0)}"
    around.extend(blocks)


# Tables


def _open_table(writer: _Writer, element: etree._Element) -> None:
    if writer.tables:
        writer.tables[-1].arranges = True  # a table around a table
    writer.tables.append(_Table(arranges=element.get("role") in ("presentation", "none")))
    writer.open_frame()


def _open_row(writer: _Writer, element: etree._Element) -> None:
    if writer.tables:
        writer.tables[-1].rows.append([])


def _close_cell(writer: _Writer, element: etree._Element) -> None:
    blocks = writer.close_frame()
    if not writer.tables:
        writer.frames[-1].extend(blocks)
        return
    rows = writer.tables[-1].rows or [[]]
    writer.tables[-1].rows = rows
    header = element.tag == "th" or element.getparent().getparent().tag == "thead"
    rows[-1].append(_Cell(blocks, header, _span(element, "colspan"), _span(element, "rowspan")))


def _span(element: etree._Element, name: str) -> int:
    value = (element.get(name) or "1").strip()
    return max(1, int(value[:4])) if value.isdecimal() else 1


def _close_caption(writer: _Writer, element: etree._Element) -> None:
    (writer.tables[-1].captions if writer.tables else writer.frames[-1]).extend(writer.close_frame())


def _close_table(writer: _Writer, element: etree._Element) -> None:
    table, beside = writer.tables.pop(), writer.close_frame()
    blocks = _arranged(table) if _arranges(table) else _tabulated(table)
    writer.frames[-1].extend([*beside, *table.captions, *blocks])


def _arranges(table: _Table) -> bool:
    """Whether a table only places the parts of a page: it has one column, or one row of which nothing is a header, or
    parts too long for cells."""
    cells = [cell for row in table.rows for cell in row]
    filled = max((sum(bool(cell.blocks) for cell in row) for row in table.rows), default=0)
    headed = any(cell.header for cell in cells)
    long = any(sum(map(len, cell.blocks)) > _LONG_CELL for cell in cells)
    return table.arranges or filled < 2 or (not headed and (long or sum(map(bool, table.rows)) < 2))


def _arranged(table: _Table) -> Iterator[str]:
    for row in table.rows:
        for cell in row:
            yield from cell.blocks


def _tabulated(table: _Table) -> Iterator[str]:
    """The table as Markdown. Rows above the header of one merged cell are captions; several header rows become one."""
    rows = [row for row in _grid(table.rows) if any(cell.text for cell in row)]
    while len(rows) > 1 and len({id(cell) for cell in rows[0] if cell.text}) == 1 and len(rows[0]) > 1:
        yield rows.pop(0)[0].text
    heads = next((i for i, row in enumerate(rows) if not all(cell.header for cell in row)), len(rows)) or 1
    width = max(map(len, rows))
    header = [_joined(column) for column in zip(*(_texts(row, width) for row in rows[:heads]))]
    yield table_text(header, (_texts(row, width) for row in rows[heads:]))


def table_text(header: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A Markdown table; the cells hold no line feeds and no bare `|`."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _grid(rows: Sequence[Sequence[_Cell]]) -> list[list[_Cell]]:
    """The rows with merged cells repeated in each place that they cover."""
    widest = max(map(len, rows), default=0)  # a larger span covers columns that do not exist
    below: dict[int, tuple[_Cell, int]] = {}  # column -> the cell from above, and how many rows it still covers
    made = []
    for row in rows:
        line: list[_Cell] = []
        cells = iter(row)
        while True:
            if len(line) in below:
                line.append(below[len(line)][0])
            elif (cell := next(cells, None)) is not None:
                for column in range(len(line), len(line) + min(cell.columns, widest)):
                    line.append(cell)
                    below[column] = (cell, cell.rows)
            elif any(column > len(line) for column in below):
                line.append(_Cell([], True, 1, 1))
            else:
                break
        below = {column: (cell, left - 1) for column, (cell, left) in below.items() if left > 1}
        made.append(line)
    return made


def _texts(row: Sequence[_Cell], width: int) -> list[str]:
    """The texts of a row; that of a long merged cell only once."""
    texts = [cell.text for cell in row]
    shown = [text if len(text) <= _REPEATED or row.index(row[i]) == i else "" for i, text in enumerate(texts)]
    return shown + [""] * (width - len(shown))


def _joined(texts: Sequence[str]) -> str:
    return " ".join(dict.fromkeys(filter(None, texts)))


_OPENED: dict[str, Callable[[_Writer, etree._Element], None]] = {
    **dict.fromkeys(_MARKS, _open_mark),
    **dict.fromkeys(_HEADINGS, _open_heading),
    **dict.fromkeys(("ul", "ol"), _open_list),
    **dict.fromkeys(("li", "blockquote", "dd", "td", "th", "caption"), _open_part),
    "br": _break_line,
    "img": _show_image,
    "pre": _open_code,
    "table": _open_table,
    "tr": _open_row,
}
_CLOSED: dict[str, Callable[[_Writer, etree._Element], None]] = {
    **dict.fromkeys(_MARKS, _close_mark),
    **dict.fromkeys(_HEADINGS, _close_heading),
    **dict.fromkeys(("ul", "ol"), _close_list),
    **dict.fromkeys(("td", "th"), _close_cell),
    "li": _close_item,
    "blockquote": _close_quote,
    "dd": _close_definition,
    "caption": _close_caption,
    "pre": _close_code,
    "table": _close_table,
}
