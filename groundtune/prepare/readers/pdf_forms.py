"""What is typed onto the sheets of a PDF: the values of form fields and free text, each with its place."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pypdfium2


@dataclass(frozen=True)
class Typed:
    """A text, the name of its field, and the rectangle that it fills: left, bottom, right, top."""

    text: str
    name: str
    box: tuple[float, float, float, float]


def typed_texts(page: pypdfium2.PdfPage, form: Any) -> tuple[list[Typed], bool]:
    """What is typed onto a sheet, and whether there are comments on it, which are not read."""
    import pypdfium2.raw as c

    found: list[Typed] = []
    comments = False
    for number in range(c.FPDFPage_GetAnnotCount(page)):
        annotation = c.FPDFPage_GetAnnot(page, number)
        if not annotation:
            continue
        kind = c.FPDFAnnot_GetSubtype(annotation)
        if kind == c.FPDF_ANNOT_WIDGET and form:
            found += _field(annotation, form)
        elif text := _string(c.FPDFAnnot_GetStringValue, annotation, b"Contents"):
            comments |= kind == c.FPDF_ANNOT_TEXT
            found += [Typed(text, "", _box(annotation))] if kind == c.FPDF_ANNOT_FREETEXT else []
        c.FPDFPage_CloseAnnot(annotation)
    return found, comments


def _field(annotation: Any, form: Any) -> list[Typed]:
    import pypdfium2.raw as c

    kind = c.FPDFAnnot_GetFormFieldType(form, annotation)
    name = _string(c.FPDFAnnot_GetFormFieldAlternateName, form, annotation)
    name = name or _string(c.FPDFAnnot_GetFormFieldName, form, annotation)
    if kind in (c.FPDF_FORMFIELD_CHECKBOX, c.FPDF_FORMFIELD_RADIOBUTTON):
        text = "[x]" if c.FPDFAnnot_IsChecked(form, annotation) else "[ ]"
    elif kind in (c.FPDF_FORMFIELD_TEXTFIELD, c.FPDF_FORMFIELD_COMBOBOX, c.FPDF_FORMFIELD_LISTBOX):
        text = _string(c.FPDFAnnot_GetFormFieldValue, form, annotation)
    else:
        return []
    return [Typed(text, name, _box(annotation))] if text else []


def _string(function: Callable[..., int], *arguments: Any) -> str:
    """A text from a function that fills a buffer of UTF-16."""
    size = function(*arguments, None, 0)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    function(*arguments, ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort)), size)
    return " ".join(buffer.raw.decode("utf-16-le", "ignore").rstrip("\0").split())


def _box(annotation: Any) -> tuple[float, float, float, float]:
    import pypdfium2.raw as c

    rectangle = c.FS_RECTF()
    c.FPDFAnnot_GetRect(annotation, rectangle)
    return rectangle.left, rectangle.bottom, rectangle.right, rectangle.top
