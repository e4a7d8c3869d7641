"""PowerPoint files: each slide as a section, with its tables and notes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from groundtune.prepare.readers.formulas import omml_as_text
from groundtune.prepare.readers.markdown import first_heading
from groundtune.prepare.readers.markup import as_markdown
from groundtune.prepare.readers.office import append, broken, element, not_read, opened, related, title_of, tree
from groundtune.prepare.readers.page import Page, ReadOptions

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}oMath"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_NO_CONTENT = ("sldNum", "dt", "ftr", "hdr", "sldImg")


def pptx_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    archive = opened(path, "PowerPoint", ".pptx", options.max_mb)
    try:
        root = etree.Element("body")
        for name in _slides(archive):
            append(root, list(_slide(archive, name)))
        title, left_out = title_of(archive), not_read(archive)
    except MemoryError:  # a limit of this process, and nothing about the file
        raise
    except Exception as error:  # a broken archive or XML, in which anything may be missing
        raise broken(path, "PowerPoint", ".pptx", error) from error
    text = as_markdown(root)
    yield Page(text, title or first_heading(text) or path.stem, source, markdown=True, left_out=tuple(left_out))


def _slides(archive: zipfile.ZipFile) -> list[str]:
    """The names of the slides in the order in which they are shown."""
    main = next(name for kind, name in related(archive, "").values() if kind == "officeDocument")
    parts = related(archive, main)
    listed = tree(archive, main).iter(f"{_P}sldId")
    return [parts[slide.get(f"{_R}id")][1] for slide in listed]


def _slide(archive: zipfile.ZipFile, name: str) -> Iterator[etree._Element]:
    yield from _shapes(tree(archive, name))
    for kind, notes in related(archive, name).values():
        if kind == "notesSlide":
            said = [part for part in _shapes(tree(archive, notes)) if part.tag != "h2"]
            if said:
                yield element("p", "Notes:")
                yield from said


def _shapes(root: etree._Element) -> Iterator[etree._Element]:
    """The texts and tables of a slide; its title comes first."""
    shapes = [shape for shape in root.iter(f"{_P}sp", f"{_A}tbl") if not _is_fallback(shape)]
    for shape in sorted(shapes, key=lambda one: "itle" not in _placeholder(one)):
        if shape.tag == f"{_A}tbl":
            yield _table(shape)
        elif _placeholder(shape) not in _NO_CONTENT:
            yield from _paragraphs(shape, _placeholder(shape))


def _is_fallback(shape: etree._Element) -> bool:
    return any(True for _ in shape.iterancestors(_FALLBACK))


def _placeholder(shape: etree._Element) -> str:
    """ "title", "ctrTitle", "body" ...; "" for a text box."""
    found = next(shape.iter(f"{_P}ph"), None) if shape.tag == f"{_P}sp" else None
    return "" if found is None else found.get("type", "body")


def _paragraphs(shape: etree._Element, kind: str) -> Iterator[etree._Element]:
    parts = [(_level(paragraph), list(_runs(paragraph))) for paragraph in shape.iter(f"{_A}p")]
    parts = [
        (level, runs)
        for level, runs in parts
        if "".join(r if isinstance(r, str) else "".join(r.itertext()) for r in runs).strip()
    ]
    if kind in ("title", "ctrTitle"):
        if parts:
            yield element("h2", *(run for _, runs in parts for run in (*runs, " ")))
    elif kind in ("body", "obj") and len(parts) > 1:
        yield _list(parts)
    else:
        for _, runs in parts:
            yield element("p", *runs)


def _level(paragraph: etree._Element) -> int:
    properties = paragraph.find(f"{_A}pPr")
    return int(properties.get("lvl", "0")) if properties is not None else 0


def _list(parts: list[tuple[int, list[str | etree._Element]]]) -> etree._Element:
    open_lists = [element("ul")]
    for level, runs in parts:
        del open_lists[level + 1 :]
        while len(open_lists) <= level:
            deeper = element("ul")
            (open_lists[-1][-1] if len(open_lists[-1]) else open_lists[-1]).append(deeper)
            open_lists.append(deeper)
        open_lists[-1].append(element("li", *runs))
    return open_lists[0]


def _runs(paragraph: etree._Element) -> Iterator[str | etree._Element]:
    for part in paragraph.iter(f"{_A}r", f"{_A}br", f"{_A}fld", _MATH):
        if _is_fallback(part) or any(True for _ in part.iterancestors(_MATH)):
            continue
        if part.tag == _MATH:
            yield omml_as_text(part)
        elif part.tag == f"{_A}br":
            yield " "
        else:
            properties = part.find(f"{_A}rPr")
            shift = int((properties.get("baseline") if properties is not None else None) or "0")
            text = part.findtext(f"{_A}t") or ""
            yield text if not shift else element("sup" if shift > 0 else "sub", text)


def _table(shape: etree._Element) -> etree._Element:
    table = element("table")
    for row in shape.iter(f"{_A}tr"):
        cells = [cell for cell in row.iter(f"{_A}tc") if not {"hMerge", "vMerge"} & set(cell.keys())]
        table.append(element("tr", *map(_cell, cells)))
    return table


def _cell(cell: etree._Element) -> etree._Element:
    paragraphs = (element("p", *_runs(paragraph)) for paragraph in cell.iter(f"{_A}p"))
    return element("td", *paragraphs, colspan=cell.get("gridSpan", "1"), rowspan=cell.get("rowSpan", "1"))
