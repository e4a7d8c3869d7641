"""What is removed from the text of every format, because no reader sees it and no search finds the words around it."""

from __future__ import annotations

import re
from dataclasses import replace

from groundtune.prepare.readers.page import Page
from groundtune.schema import nfc
from groundtune.system.text import readable

_LIGATURES = {"\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl", "\ufb05": "st",
              "\ufb06": "st"}  # fmt: skip
_INVISIBLE = "\u00ad\u200b\u2060\ufeff"  # where a word may be cut, or must not be; not the joiners of emoji and Persian
_SHOWN = str.maketrans({**_LIGATURES, **dict.fromkeys(_INVISIBLE, "")})
_NOT_SHOWN = re.compile(f"[{_INVISIBLE}{''.join(_LIGATURES)}]")
_DATA = re.compile(r"data:[\w.+-]{1,50}/[\w.+-]{1,50};[\w=;-]{0,50}base64,[\w+/=%-]*", re.ASCII)
_ENCODED = re.compile(r"(?<![\w+/=-])[\w+/=-]{200,}", re.ASCII)
_ENCODED_LINES = re.compile(r"^(?:[A-Za-z0-9+/]{60,80}\n){3,}(?:[A-Za-z0-9+/=]{1,80}$)?", re.MULTILINE)


def tidy(page: Page) -> Page:
    """The page without encoded data and invisible characters, and with ligatures as letters."""
    text = as_shown(page.text)
    kept = text if page.sheets else _without_encoded_data(text)  # the offsets of sheets would be wrong
    notes = ("data that is encoded as text (base64 or the like)",) if kept != text else ()
    return replace(page, text=kept, title=readable(as_shown(page.title)), left_out=(*page.left_out, *notes))


def as_shown(text: str) -> str:
    """The text in NFC, without invisible characters, and with ligatures as letters."""
    return nfc(text.translate(_SHOWN) if _NOT_SHOWN.search(text) else text)


def _without_encoded_data(text: str) -> str:
    text = _DATA.sub("", text) if "base64," in text else text
    text = _ENCODED.sub(lambda found: "" if _is_encoded(found[0]) else found[0], text)
    return _ENCODED_LINES.sub(lambda found: "" if _is_encoded(found[0]) else found[0], text)


def _is_encoded(run: str) -> bool:
    """Whether letters of both cases and digits are mixed as in base64, or only hexadecimal digits are there."""
    digits, upper = sum(map(str.isdigit, run)), sum(map(str.isupper, run))
    lower = sum(map(str.islower, run))
    mixed = min(digits, upper, lower) * 40 > len(run)
    return mixed or re.fullmatch(r"(?:[0-9a-f\n]+|[0-9A-F\n]+)", run) is not None and 0 < digits < len(run)
