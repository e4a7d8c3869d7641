"""Formulas as one line of text: OMML, the markup of Word, and MathML, that of web pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lxml import etree

from groundtune.prepare.readers.markup import shifted

_ATOM = re.compile(r"[\w.,′∞]*|[√∑∏∫].*|\(.*\)")


def omml_as_text(element: etree._Element) -> str:
    """`m:oMath` -> "P=(Q·p)/η"."""
    return " ".join(_linear(element).split())


def mathml_as_text(element: etree._Element) -> str:
    """`math` -> its TeX source if it has it, or else "x^2/(2 a)"."""
    notes = [note.text for note in element.iter("annotation") if "tex" in (note.get("encoding") or "").lower()]
    return " ".join((element.get("alttext") or (notes[0] if notes else "") or _linear(element)).split())


def _name(element: etree._Element) -> str:
    return etree.QName(element).localname if isinstance(element.tag, str) else ""


def _linear(element: etree._Element) -> str:
    name = _name(element)
    if name in _FORMS:
        return _FORMS[name](element)
    if name in ("annotation", "annotation-xml", "rPr", "ctrlPr"):
        return ""
    inside = "".join(map(_linear, element))
    return inside if name != "t" and len(element) else (element.text or "") + inside


def _part(element: etree._Element, name: str) -> str:
    found = next((child for child in element if _name(child) == name), None)
    return _linear(found).strip() if found is not None else ""


def _parts(element: etree._Element) -> list[str]:
    parts = [_linear(child).strip() for child in element if _name(child)]
    return [*parts, "", "", ""]


def _property(element: etree._Element, name: str, otherwise: str) -> str:
    found = next((child for child in element.iter() if _name(child) == name), None)
    if found is None:
        return otherwise
    return next((value for key, value in found.items() if key.endswith("val")), otherwise)


def _grouped(text: str) -> str:
    return text if _ATOM.fullmatch(text) else f"({text})"


def _fraction(above: str, below: str) -> str:
    return f"{_grouped(above)}/{_grouped(below)}"


def _root(inside: str, degree: str = "") -> str:
    return f"{degree}√{_grouped(inside)}" if degree else f"√{_grouped(inside)}"


def _scripts(base: str, below: str, above: str) -> str:
    return _grouped(base) + (shifted(below, "_") if below else "") + (shifted(above, "^") if above else "")


def _delimited(element: etree._Element) -> str:
    inside = [_linear(child).strip() for child in element if _name(child) == "e"]
    begin, end = _property(element, "begChr", "("), _property(element, "endChr", ")")
    return f"{begin}{_property(element, 'sepChr', '|').join(inside)}{end}"


def _big_operator(element: etree._Element) -> str:
    sign = _property(element, "chr", "∫")
    return f"{_scripts(sign, _part(element, 'sub'), _part(element, 'sup'))} {_part(element, 'e')}"


def _rows(element: etree._Element) -> str:
    rows = (", ".join(filter(None, _parts(row))) for row in element if _name(row) in ("mr", "mtr"))
    return f"[{'; '.join(rows)}]"


def _of_omml(form: Callable[..., str], *names: str) -> Callable[[etree._Element], str]:
    return lambda element: form(*(_part(element, name) for name in names))


def _of_mathml(form: Callable[..., str], *places: int) -> Callable[[etree._Element], str]:
    def made(element: etree._Element) -> str:
        parts: Sequence[str] = _parts(element)
        return form(*(parts[place] if place >= 0 else "" for place in places))

    return made


_FORMS: dict[str, Callable[[etree._Element], str]] = {
    "f": _of_omml(_fraction, "num", "den"),
    "rad": _of_omml(_root, "e", "deg"),
    "sSup": _of_omml(lambda base, above: _scripts(base, "", above), "e", "sup"),
    "sSub": _of_omml(lambda base, below: _scripts(base, below, ""), "e", "sub"),
    "sSubSup": _of_omml(_scripts, "e", "sub", "sup"),
    "limLow": _of_omml(lambda base, below: _scripts(base, below, ""), "e", "lim"),
    "func": _of_omml(lambda name, inside: f"{name} {_grouped(inside)}", "fName", "e"),
    "d": _delimited,
    "nary": _big_operator,
    "m": _rows,
    "mfrac": _of_mathml(_fraction, 0, 1),
    "msup": _of_mathml(_scripts, 0, -1, 1),
    "msub": _of_mathml(_scripts, 0, 1, -1),
    "msubsup": _of_mathml(_scripts, 0, 1, 2),
    "munder": _of_mathml(_scripts, 0, 1, -1),
    "mover": _of_mathml(_scripts, 0, -1, 1),
    "munderover": _of_mathml(_scripts, 0, 1, 2),
    "mroot": _of_mathml(_root, 0, 1),
    "msqrt": lambda element: _root("".join(map(_linear, element)).strip()),
    "mtable": _rows,
}
