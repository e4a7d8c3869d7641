"""What every reader uses: a page of text, the options, the one-line errors, and text decoded by evidence."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from groundtune.errors import DataError
from groundtune.system.inputs import open_file
from groundtune.system.text import one_line

MB = 2**20
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
# Encodings whose bytes are all ASCII, so that they also decode as UTF-8, to something else.
_SEVEN_BITS = ("iso2022", "iso-2022", "utf7", "utf-7", "hz")
# UTF-8 that was once read as Windows-1252 and saved: "Ã¶" for "ö", "â€™" for an apostrophe.
_DOUBLY_ENCODED = re.compile("[ÃÂ][\u0080-\u00bf\u0152-\u0178\u2013-\u203a€™]|â€[\u0080-\u00bf\u0152-\u0178\u02dc™œž]")
_UNTITLED = re.compile(
    r"\W*(?:untitled|no title|title|new page|document|word document|powerpoint presentation|presentation|slide)"
    r"(?: ?-?(?:document|page|presentation))? ?\d*\W*|.*\.(?:docx?|pptx?|indd|dvi|tex|odt|rtf|qxd|fm)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Page:
    """One text with its origin: a file, or a row of a table. `markdown` says whether the text is Markdown.

    `sheets` are the offsets in `text` at which the pages of a PDF begin. `left_out` says what the file holds and the
    text does not, one phrase each.
    """

    text: str
    title: str
    source: str
    markdown: bool = False
    sheets: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadOptions:
    """The encoding of text files that are not UTF-8, and the fields of JSON or columns of tables; "" means the default
    names. `max_mb` limits the size of a file, and what an Office file unpacks to."""

    encoding: str = "utf-8"
    text_field: str = ""
    title_field: str = ""
    source_field: str = ""
    max_mb: int = 1000


def unreadable(path: Path, why: str, way_out: str) -> DataError:
    return DataError([f"{path}: {one_line(why)}; {way_out}"])


def too_large(path: Path, size: str) -> DataError:
    return unreadable(path, f"{size}, more than --max_file_mb", "raise it, or leave the file out")


def contents(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


def clean(text: str) -> str:
    """The text without null characters and unpaired surrogates, which broken fonts and programs produce."""
    return text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore").strip()


def told_title(title: str) -> str:
    """A title on one line; empty if it is what a program wrote because nobody gave one ("Untitled", "memo.doc")."""
    title = one_line(clean(title)).removeprefix("Microsoft Word - ").removeprefix("Microsoft PowerPoint - ")
    return "" if _UNTITLED.fullmatch(title) else title


def decoded(path: Path, data: bytes, encoding: str) -> tuple[str, tuple[str, ...]]:
    """The text of a file and what is doubtful about its encoding: UTF-8 if it is, `encoding` only where it is not."""
    marked = next((name for bom, name in _BOMS.items() if data.startswith(bom)), "")
    text = _utf8(data, encoding) if not marked else None
    used = marked or ("utf-8" if text is not None else encoding)
    if text is None:
        try:
            text = data.decode(used)
        except UnicodeDecodeError as error:
            seen = f"byte {error.start + 1} is {error.object[error.start]:#04x}"
            raise unreadable(path, f"is not {used} ({seen})", "save it as UTF-8, or give its --encoding") from error
    if "\0" in text:
        raise unreadable(path, "contains null characters, so it is not text", "remove it or convert it")
    return text.replace("\r\n", "\n").replace("\r", "\n"), tuple(_doubts(text, used))


def _utf8(data: bytes, encoding: str) -> str | None:
    """The text, if it is UTF-8; None if it is not, or if the encoding that was given is one that looks like it."""
    if encoding.lower().replace("_", "-").startswith(_SEVEN_BITS):
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text and encoding.lower().replace("_", "-") != "utf-8" else text


def _doubts(text: str, encoding: str) -> list[str]:
    """Signs that a text was decoded wrongly, now or before it was saved; no decoder reports these."""
    if text.isascii():
        return []
    others = [character for character in text if character > "\x7f"]
    if (pairs := len(_DOUBLY_ENCODED.findall(text))) > 1 and pairs * 4 >= len(others):
        return ["doubtful text: it has Ã¤ or the like for ä; some program took its UTF-8 for another encoding"]
    if any(character <= "\x9f" for character in others):
        return [f"doubtful text: it has control characters where cp1252 has letters, as if it were not {encoding}"]
    accented = sum(map(str.isalpha, others)) * 2 > sum(map(str.isalpha, text))
    if accented and not encoding.startswith("utf") and max(others) < "\u0180":
        return [f"doubtful text: over half of its letters have accents, as if it were not {encoding}"]
    return []
