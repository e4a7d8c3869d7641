"""PDF: the text of each sheet, with what is typed into forms, by PDFium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from groundtune.prepare.readers.page import Page, ReadOptions, clean, contents, told_title, unreadable
from groundtune.prepare.readers.pdf_forms import typed_texts
from groundtune.prepare.readers.pdf_layout import Words, page_text, without_contents
from groundtune.prepare.readers.tidy import as_shown

if TYPE_CHECKING:
    import pypdfium2

_SHORT = 100  # characters beside an image that covers the sheet: a stamp on a scan


def pdf_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(contents(path)) as pdf:
            texts, scanned, left_out = _sheets(pdf)
            title = told_title(pdf.get_metadata_dict().get("Title") or "")
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise unreadable(path, "is protected by a password", "save it without a password") from error
        reason = f"is not a readable PDF ({type(error).__name__}: {error})"
        raise unreadable(path, reason, "print it to PDF again, or remove it") from error
    ocr = f"ocrmypdf --skip-text {path.name} with_text.pdf"
    if not any(texts):
        what = "contains no text, only images" if scanned else "contains no text"
        raise unreadable(path, what, f"add it with OCR: {ocr}" if scanned else "leave it out")
    if scanned:
        left_out.insert(0, f"{_numbers(scanned)} without text, only images; to read them: {ocr}")
    starts, length = [], 0
    for text in texts:
        length += 2 if text and length else 0  # sheets without text leave no blank lines behind
        starts.append(length)
        length += len(text)
    text = "\n\n".join(filter(None, texts))
    yield Page(text, title or path.stem, source, sheets=tuple(starts), left_out=tuple(left_out))


def _sheets(pdf: pypdfium2.PdfDocument) -> tuple[list[str], list[int], list[str]]:
    """The text of each sheet, the numbers of those that are images, and notes of what is not read."""
    import pypdfium2

    raw: list[str] = []
    scanned, broken, notes = [], [], []
    if pdf.get_formtype() != pypdfium2.raw.FORMTYPE_NONE:
        pdf.init_forms()
        if pdf.get_formtype() == pypdfium2.raw.FORMTYPE_XFA_FULL:
            notes.append("what is typed into its form (of the XFA kind)")
    for number in range(len(pdf)):
        try:
            page = pdf[number]
            typed, comments = typed_texts(page, pdf.formenv)
            text = page_text(page, typed)
            scanned += [number + 1] if _is_image(page, text) else []
            notes += ["comments"] if comments and "comments" not in notes else []
            page.close()
        except pypdfium2.PdfiumError:
            text = ""
            broken.append(number + 1)
        raw.append(as_shown(clean(text)))
    words = Words.of(raw)
    texts = [without_contents(words.joined(text), len(raw)) for text in raw]
    notes += [f"{_numbers(broken)}, which cannot be read"] if broken else []
    notes += (
        ["its table of contents"]
        if any(len(text) < len(words.joined(old)) // 2 for text, old in zip(texts, raw))
        else []
    )
    notes += ["attached files"] if pdf.count_attachments() else []
    return texts, scanned, notes


def _is_image(page: pypdfium2.PdfPage, text: str) -> bool:
    """Whether a sheet holds images and hardly any text; or drawings and none, as where letters were made shapes."""
    import pypdfium2.raw as c

    if len(text.strip()) > _SHORT:
        return False
    objects = list(page.get_objects(max_depth=3))
    if not text.strip():
        return bool(objects)
    width, height = page.get_size()
    images = [one.get_bounds() for one in objects if one.type == c.FPDF_PAGEOBJ_IMAGE]
    return any((right - left) * (top - bottom) > width * height / 2 for left, bottom, right, top in images)


def _numbers(sheets: list[int]) -> str:
    """ "sheet 4", "sheets 2-9, 12"."""
    runs: list[list[int]] = []
    for sheet in sheets:
        if runs and runs[-1][-1] == sheet - 1:
            runs[-1].append(sheet)
        else:
            runs.append([sheet])
    named = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"{'sheets' if len(sheets) > 1 else 'sheet'} {named}"
