"""Excel files: each sheet as Markdown tables, with values as they are shown."""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.prepare.readers.markup import table_text
from groundtune.prepare.readers.office import broken, not_read, opened, title_of
from groundtune.prepare.readers.page import Page, ReadOptions, contents

if TYPE_CHECKING:
    from openpyxl.cell.cell import Cell
    from openpyxl.worksheet.worksheet import Worksheet

# A cell with a formula whose value no program has computed and stored.
_NO_VALUE = re.compile(rb"(?:</f>|<f\b[^>]*/>)\s*(?:<v\s*/>|<v></v>)?\s*</c>")
_DECIMALS = re.compile(r"0\.(0+)")
_CURRENCY = re.compile(r'\[\$([^\]-]+)|"([^"]*)"|([€$£¥])')


def xlsx_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    import openpyxl

    archive = opened(path, "Excel", ".xlsx", options.max_mb)
    try:
        book = openpyxl.load_workbook(io.BytesIO(contents(path)), data_only=True)
        left_out = [*not_read(archive), *_without_values(archive)]
        title = title_of(archive) or path.stem
        sheets = [(sheet.title, _rows(sheet)) for sheet in book.worksheets if sheet.sheet_state == "visible"]
        hidden = [sheet.title for sheet in book.worksheets if sheet.sheet_state != "visible"]
    except MemoryError:  # a limit of this process, and nothing about the file
        raise
    except Exception as error:  # a broken archive or XML: the parser raises exceptions of any type
        raise broken(path, "Excel", ".xlsx", error) from error
    left_out += [f"the hidden sheet {name}" for name in hidden]
    parts = [f"## {name}\n\n{body}" if len(sheets) > 1 else body for name, rows in sheets if (body := _blocks(rows))]
    yield Page("\n\n".join(parts), title, source, markdown=True, left_out=tuple(left_out))


def _without_values(archive: zipfile.ZipFile) -> list[str]:
    names = [name for name in archive.namelist() if name.startswith("xl/worksheets/sheet")]
    count = sum(len(_NO_VALUE.findall(archive.read(name))) for name in names)
    return [f"{count} formulas without a stored value (open and save it in Excel or LibreOffice)"] if count else []


def _rows(sheet: Worksheet) -> list[list[str]]:
    """The texts of all cells; that of a merged cell in each place that it covers."""
    rows = [[_shown(cell) for cell in row] for row in sheet.iter_rows()]
    for merged in sheet.merged_cells.ranges:
        left, top, right, bottom = (bound - 1 for bound in merged.bounds)
        for row in rows[top : bottom + 1]:
            row[left : right + 1] = [rows[top][left]] * len(row[left : right + 1])
    return rows


def _shown(cell: Cell) -> str:
    value: Any = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, (int, float)):
        return _number(value, cell.number_format or "")
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return " ".join(str(value).split()).replace("|", r"\|")


def _number(value: float, pattern: str) -> str:
    """A number with its decimals, its currency and its sign of percent."""
    pattern = pattern.partition(";")[0]
    decimals = _DECIMALS.search(pattern)
    scaled = value * 100 if "%" in pattern else value
    text = f"{scaled:.{len(decimals[1])}f}" if decimals else f"{scaled:.15g}"
    unit = _CURRENCY.search(pattern)
    return text + ("%" if "%" in pattern else f" {unit[1] or unit[2] or unit[3]}".rstrip() if unit else "")


def _blocks(rows: Sequence[Sequence[str]]) -> str:
    """The parts of a sheet between blank rows: tables, each with its first full row as the header, and lines."""
    blocks: list[list[Sequence[str]]] = [[]]
    for row in rows:
        if any(row):
            blocks[-1].append(row)
        elif blocks[-1]:
            blocks.append([])
    return "\n\n".join(text for block in blocks if block for text in _block(block))


def _block(rows: list[Sequence[str]]) -> Iterator[str]:
    while rows and len(set(filter(None, rows[0]))) == 1:  # a heading above the table, perhaps over merged cells
        yield next(filter(None, rows.pop(0)))
    columns = [column for column in zip(*rows) if any(column)]
    if rows:
        header, *below = zip(*columns)
        yield table_text(header, iter(below))
