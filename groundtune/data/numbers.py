"""Numbers in a text by their value: 1,000 is 1000 and 3.50 is 3.5, but 3.5 is not 35."""

from __future__ import annotations

import re
from decimal import Decimal

from groundtune.data.languages import DECIMAL_COMMA, language_of
from groundtune.data.words import folded

_SPACE = "[ \u00a0\u202f\u2009]"
# Groups of three after a space or an apostrophe, or of two and three as in India; else digits with points and commas.
_NUMBER = re.compile(
    rf"(?<![\w.,])[-\u2212]?(?:[0-9]{{1,3}}(?:(?:{_SPACE}|['\u2019])[0-9]{{3}})+(?:[.,][0-9]+)?|[0-9]+(?:[.,][0-9]+)*)"
    r"(?![0-9])"
)
_ONE_MARK = re.compile(r"([0-9]+)([.,])([0-9]+)")
_GROUPED = {
    ",": re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]{1,2}(?:,[0-9]{2})*,[0-9]{3}(?:\.[0-9]+)?"),
    ".": re.compile(r"[0-9]{1,3}(?:\.[0-9]{3})+(?:,[0-9]+)?"),
}


def value_of(number: str, decimal_comma: bool = False) -> Decimal | None:
    """The value of a written number; None if it is none, such as a version or a date with points.

    Two marks decide themselves (1.000,50), and so does one mark that is not before three digits (3,5). Only "1.000"
    and "1,000" depend on the language: `decimal_comma`.
    """
    minus = number[:1] in ("-", "\u2212")
    digits = re.sub(rf"{_SPACE}|['\u2019]", "", number.lstrip("-\u2212"))
    thousands = "." if decimal_comma else ","
    if one := _ONE_MARK.fullmatch(digits):
        if one[2] == thousands and len(one[3]) == 3 and len(one[1]) <= 3 and one[1] != "0":
            digits = one[1] + one[3]
        else:
            digits = f"{one[1]}.{one[3]}"
    elif "." in digits or "," in digits:
        mark = next((mark for mark, grouped in _GROUPED.items() if grouped.fullmatch(digits)), "")
        if not mark:
            return None
        digits = digits.replace(mark, "").replace(",", ".")
    return Decimal(f"-{digits}" if minus else digits)  # without arithmetic, which would round to 28 digits


def has_decimal_comma(text: str, context: str = "") -> bool:
    """Whether numbers are written as in 3,5: by the language of the text, or of the context if the text has none."""
    return (language_of(text) or language_of(context)) in DECIMAL_COMMA


def with_values(text: str, decimal_comma: bool) -> list[tuple[str, Decimal | None]]:
    """The text in order: what is between numbers (None), and each number with its value."""
    text, pieces, end = folded(text), [], 0
    for found in _NUMBER.finditer(text):
        value = value_of(found[0], decimal_comma)
        if value is not None:
            pieces += [(text[end : found.start()], None), (found[0], value)]
            end = found.end()
    return [*pieces, (text[end:], None)]
