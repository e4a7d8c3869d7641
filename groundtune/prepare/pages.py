"""Files -> pages of text: from plain text, Markdown, HTML, PDF, Word, CSV and JSONL.

HTML and Word are converted to Markdown, so that cutting into passages can use their headings and lists.
"""

from __future__ import annotations

import codecs
import csv
import importlib.util
import io
import logging
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from groundtune.data.entries import shown
from groundtune.data.files import json_rows
from groundtune.errors import DataError
from groundtune.schema import nfc
from groundtune.system.inputs import open_file
from groundtune.system.text import one_line, readable

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

# What surrounds the text of a web page and is no part of it.
_FURNITURE = ("script", "style", "noscript", "template", "nav", "footer", "svg", "iframe",
              "button", "input", "select", "textarea")  # fmt: skip
# markdownify would join their text with the text around them. Some pages consist of a single form.
_BLOCKS = ("address", "aside", "details", "fieldset", "figure", "form", "header", "legend", "summary")
_PERMALINKS = "a.headerlink, a.anchor, a.anchor-link"
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
# Markup without text, and markup that makes a parser stop early; comments and scripts first, as they may contain both.
_NO_TEXT = re.compile(r"<!--.*?-->|<script\b.*?</script\s*>|</(?:body|html)\s*>|<\?[^>]*>", re.IGNORECASE | re.DOTALL)
_HALF = re.compile(r"&#(?:x0*(d[89a-f][0-9a-f]{2})|0*(5[5-7][0-9]{3}));", re.IGNORECASE)  # "&#55357;", "&#xd83d;"
_MB = 2**20
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class Page:
    """One text with its origin: a file, or a row of a table. `markdown` says whether the text is Markdown.

    `sheets` are the offsets in `text` at which the pages of a PDF begin.
    """

    text: str
    title: str
    source: str
    markdown: bool = False
    sheets: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReadOptions:
    """The encoding of text files, and the fields of JSONL or columns of CSV; "" means the default names.

    `max_mb` limits the size of a file, and what a Word file unpacks to.
    """

    encoding: str = "utf-8"
    text_field: str = ""
    title_field: str = ""
    source_field: str = ""
    max_mb: int = 1000


def read_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    """The pages of one file; `source` is its name in the passages.

    Raises:
        DataError: the file, or the next row of it, cannot be read.
    """
    reader = READERS[path.suffix.lower()]
    try:
        if (size := path.stat().st_size) > options.max_mb * _MB:
            raise _too_large(path, f"has {size / _MB:,.0f} MB")
        yield from reader(path, source, options)
    except OSError as error:
        raise _unreadable(path, f"cannot be opened ({error.strerror or error})", "check its permissions") from error


def missing_libraries(suffixes: Iterable[str]) -> list[str]:
    """One line with the packages to install for these types of files; empty if nothing is missing."""
    needed = {name for suffix in suffixes for name in _LIBRARIES.get(suffix, ())}
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    return [f'{", ".join(missing)}: not installed; pip install "groundtune[documents]"'] if missing else []


def _unreadable(path: Path, why: str, way_out: str) -> DataError:
    return DataError([f"{path}: {' '.join(why.split())}; {way_out}"])


def _too_large(path: Path, size: str) -> DataError:
    return _unreadable(path, f"{size}, more than --max_file_mb", "raise it, or leave the file out")


def _clean(text: str) -> str:
    """The text in NFC, without null characters and unpaired surrogates, which broken fonts and programs produce."""
    return nfc(text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore").strip())


# Text and Markdown


def _text_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    yield Page(_decoded(path, options.encoding), readable(path.stem), source)


def _markdown_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    text, title = _without_front_matter(_decoded(path, options.encoding))
    yield Page(text, title or _first_heading(text) or readable(path.stem), source, markdown=True)


def _decoded(path: Path, encoding: str) -> str:
    with open_file(path) as file:
        data = file.read()
    encoding = next((name for bom, name in _BOMS.items() if data.startswith(bom)), encoding)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _not_in(path, encoding, error) from error
    if "\0" in text:
        raise _unreadable(path, "contains null characters, so it is not text", "remove it or convert it")
    return nfc(text.replace("\r\n", "\n").replace("\r", "\n"))


def _not_in(path: Path, encoding: str, error: UnicodeDecodeError) -> DataError:
    seen = f"byte {error.start + 1} is {error.object[error.start]:#04x}"
    return _unreadable(path, f"is not {encoding} ({seen})", "save it as UTF-8, or give its --encoding")


def _without_front_matter(text: str) -> tuple[str, str]:
    """The text without the YAML block that site generators put at the top, and the title in that block."""
    match = re.match(r"---\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    if not match:
        return text, ""
    import yaml

    try:
        # Makes only texts, lists and dictionaries, with values as written, such as 007 and impossible dates.
        fields = yaml.load(match[1], yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return text, ""
    if not isinstance(fields, dict):  # a text between two rules
        return text, ""
    title = fields.get("title")
    return text[match.end() :], _clean(title) if isinstance(title, str) and title not in ("~", "null") else ""


def _first_heading(text: str) -> str:
    match = re.search(r"^#{1,6} +(.+?)[ #]*$", text, re.MULTILINE)
    return match[1] if match else ""


# Web pages and Word


def _html_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    from bs4 import UnicodeDammit

    # From bytes, because a page declares its own encoding.
    with open_file(path) as file:
        soup = _parsed(UnicodeDammit(file.read(), is_html=True).unicode_markup or "")
    title = one_line(soup.title.get_text()) if soup.title else ""
    text = _markdown_of(_main_part(soup), path)
    yield Page(text, title or _first_heading(text) or readable(path.stem), source, markdown=True)


def _docx_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    import mammoth

    try:
        with open_file(path) as file:
            _check_unpacked(path, file, options)
            html = mammoth.convert_to_html(file, convert_image=mammoth.images.img_element(lambda image: {})).value
    except (OSError, DataError, MemoryError):
        raise
    except Exception as error:  # a broken archive or XML: the parsers raise exceptions of any type
        reason = f"is not a readable Word file ({type(error).__name__}: {error})"
        raise _unreadable(path, reason, "save it again as .docx") from error
    text = _markdown_of(_parsed(html), path)
    yield Page(text, _first_heading(text) or readable(path.stem), source, markdown=True)


def _check_unpacked(path: Path, file: BinaryIO, options: ReadOptions) -> None:
    with zipfile.ZipFile(file) as archive:  # which gives no more of an entry than the size that it states
        size = sum(entry.file_size for entry in archive.infolist())
    if size > options.max_mb * _MB:
        raise _too_large(path, f"unpacks to {size / _MB:,.0f} MB")


def _parsed(html: str) -> BeautifulSoup:
    """The page as a tree; lxml, because it knows which end tags HTML allows authors to omit."""
    from bs4 import BeautifulSoup

    html = _CDATA.sub(lambda found: escape(found[1]), html)  # text in XHTML, which an HTML parser treats as a comment
    html = _NO_TEXT.sub("", html)  # some pages continue after </body>, or have two; also XML and PHP instructions
    html = _HALF.sub(lambda found: chr(int(found[1], 16) if found[1] else int(found[2])), html)
    return BeautifulSoup(_clean(html), "lxml")


def _main_part(soup: BeautifulSoup) -> Tag:
    """The part of a web page that is marked as its main content, without navigation and scripts."""
    articles = soup.find_all("article")
    main = soup.find("main") or soup.find(role="main") or (articles[0] if len(articles) == 1 else None)
    main = main or soup.body or soup
    for tag in [*main.find_all(_FURNITURE), *main.select(_PERMALINKS)]:
        tag.decompose()
    for tag in main.find_all(_BLOCKS):
        tag.name = "div"
    return main


def _markdown_of(soup: Tag, path: Path) -> str:
    from markdownify import MarkdownConverter

    converter = MarkdownConverter(
        heading_style="ATX", bullets="-", strip=["a", "img"], escape_asterisks=False, escape_underscores=False
    )
    try:
        text = converter.convert_soup(soup)
    except RecursionError as error:
        raise _unreadable(path, "is nested too deeply to be read", "save it again, or remove it") from error
    text = text.replace("\N{NO-BREAK SPACE}", " ")  # layout only; a search would miss words next to it
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


# PDF


def _pdf_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it reports every irregularity that it can handle
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise _unreadable(path, "is protected by a password", "save it without a password")
        texts = [_clean(page.extract_text()) for page in reader.pages]
        title = _clean(str((reader.metadata and reader.metadata.get("/Title")) or ""))
    except (OSError, DataError, MemoryError):
        raise
    except Exception as error:  # a broken file: the parser raises exceptions of any type
        reason = f"is not a readable PDF ({type(error).__name__}: {error})"
        raise _unreadable(path, reason, "print it to PDF again, or remove it") from error
    if not any(texts):
        raise _unreadable(path, "contains no text, only images", "run OCR such as ocrmypdf on it first")
    starts = [0]
    for text in texts[:-1]:
        starts.append(starts[-1] + len(text) + 2)
    yield Page("\n\n".join(texts), title or readable(path.stem), source, sheets=tuple(starts))


# Rows


def _json_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    problems: list[str] = []
    for number, row in json_rows(path, problems):
        if problems:
            break
        where = f"{path}:{number}"
        text = _field(row, options.text_field or "text", where, required=True)
        title = _field(row, options.title_field or "title", where, required=bool(options.title_field))
        place = _field(row, options.source_field or "source", where, required=bool(options.source_field))
        yield Page(text, title.strip(), place.strip() or f"{source}#{number}")
    if problems:
        raise DataError(problems)


def _csv_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    """One page per row: its text column or, if there is none, all of its columns as `name: value` lines."""
    csv.field_size_limit(2**31 - 1)  # the default refuses a cell of more than 131,072 characters
    file = io.StringIO(_decoded(path, options.encoding), newline="")
    header = file.readline()
    file.seek(0)
    rows = csv.DictReader(file, delimiter=max(",;\t", key=header.count), restval="", strict=True)
    try:
        rows.fieldnames = _told_apart(rows.fieldnames or [])
        columns = [name for name in rows.fieldnames if name]
        text_column = options.text_field or ("text" if "text" in columns else "")
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if None in row:
                raise DataError([f"{where}: has more cells than the first line names; quote cells that hold a comma"])
            lines = "\n".join(f"{name}: {row[name]}" for name in columns if row[name].strip())
            text = _field(row, text_column, where, required=True) if text_column else lines
            title = _field(row, options.title_field or "title", where, required=bool(options.title_field))
            place = _field(row, options.source_field or "source", where, required=bool(options.source_field))
            yield Page(text, title.strip(), place.strip() or f"{source}#{rows.line_num}")
    except csv.Error as error:
        raise _unreadable(path, f"line {rows.line_num}: is not valid CSV ({error})", "write it again") from error


def _told_apart(columns: Iterable[str]) -> list[str]:
    """Column names with duplicates renamed to `name (2)`; otherwise a row would contain only the last of them."""
    names: list[str] = []
    for column in columns:
        name, number = column, 2
        while name and name in names:
            name, number = f"{column} ({number})", number + 1
        names.append(name)
    return names


def _field(row: dict[str, Any], name: str, where: str, required: bool) -> str:
    value = row.get(name)
    if value is None and required:
        flag = "" if name != "text" else " with --text_field"
        raise DataError([f"{where}: {name}: missing; it has {', '.join(map(str, row)) or 'nothing'}: name one{flag}"])
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError([f"{where}: {name}: contains half of a surrogate pair; write the complete character"])
    if value is not None and not isinstance(value, str):
        raise DataError([f"{where}: {name}: is {shown(value)}, not text; name a field that holds text"])
    return nfc(value or "")


READERS: dict[str, Callable[[Path, str, ReadOptions], Iterator[Page]]] = {
    **dict.fromkeys((".txt", ".text", ".rst"), _text_pages),
    **dict.fromkeys((".md", ".markdown"), _markdown_pages),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _html_pages),
    ".pdf": _pdf_pages,
    ".docx": _docx_pages,
    ".csv": _csv_pages,
    ".jsonl": _json_pages,
}
_LIBRARIES = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), ("bs4", "lxml", "markdownify")),
    ".docx": ("mammoth", "bs4", "lxml", "markdownify"),
    ".pdf": ("pypdf",),
}
