"""Web pages: their main part as Markdown."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from lxml import etree

from groundtune.errors import DataError
from groundtune.prepare.readers.formulas import mathml_as_text
from groundtune.prepare.readers.markdown import first_heading
from groundtune.prepare.readers.markup import as_markdown
from groundtune.prepare.readers.page import Page, ReadOptions, clean, contents, decoded, told_title, unreadable

_NO_TEXT = ("head", "script", "style", "noscript", "template", "svg", "iframe", "button", "input", "select", "textarea")
_NO_TEXT_CLASSES = frozenset(["headerlink", "anchor-link", "linenos", "katex-html", "MathJax_Preview"])
# What surrounds the text of a page and is no part of it.
_FURNITURE = ("nav", "footer")
_FURNITURE_CLASSES = frozenset(
    ["navheader", "navfooter", "sphinxsidebar", "toc", "table-of-contents", "breadcrumb", "breadcrumbs", "skip-link"]
)
_FURNITURE_ROLES = frozenset(("navigation", "search", "doc-toc"))
# Each with what ends it. Code and comments come with markup that is none, so one pass goes through all of them.
_STARTS = re.compile(r"(?P<comment><!--)|(?P<script><script\b)|(?P<cdata><!\[CDATA\[)|(?P<instruction><\?)", re.I)
_ENDS = {
    "comment": re.compile("-->"), "script": re.compile(r"</script\s*>", re.I),
    "cdata": re.compile(r"\]\]>"), "instruction": re.compile(">"),
}  # fmt: skip
_PAGE_ENDS = re.compile(r"</(?:body|html)\s{0,9}>", re.IGNORECASE)  # some pages continue after it, or have two
_HALF = re.compile(r"&#(?:x0*(d[89a-f][0-9a-f]{2})|0*(5[5-7][0-9]{3}));", re.IGNORECASE)  # "&#55357;", "&#xd83d;"
_DECLARED = re.compile(rb"""(?:charset|encoding)\s{0,9}=\s{0,9}["']?\s{0,9}([\w.:-]{2,40})""", re.IGNORECASE)
_NEARLY_NOTHING = 0.1  # of the text of a page: less than that is no main part


def html_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    html, left_out = _decoded(path, options.encoding)
    root = parsed(html, path)
    title = told_title("".join(next(iter(root.iter("title")), etree.Element("title")).itertext()))
    _hide(root, _holds_no_text)
    whole = _length(root)
    _hide(root, _is_furniture)
    if _length(root) < _NEARLY_NOTHING * whole:  # a page that is nothing but navigation has that as its text
        root = parsed(html, path)
        _hide(root, _holds_no_text)
    main, note = _main_part(root)
    text = _markdown_of(main, path)
    title = title or first_heading(text) or path.stem
    yield Page(text, title, source, markdown=True, left_out=(*left_out, *filter(None, [note])))


def _markdown_of(root: etree._Element, path: Path) -> str:
    try:
        for formula in list(root.iter("math")):
            text, formula_tail = mathml_as_text(formula), formula.tail
            formula.clear()
            formula.tag, formula.text, formula.tail = "span", text, formula_tail
    except RecursionError as error:
        raise _too_deep(path) from error
    return as_markdown(root)


def parsed(html: str, path: Path) -> etree._Element:
    """The page as a tree, by the parser of lxml, which knows which end tags HTML allows authors to omit.

    Raises:
        DataError: elements are nested so deeply that the parser would stop, and leave out the rest.
    """
    html = _PAGE_ENDS.sub("", _without_code(html))
    html = clean(_HALF.sub(lambda found: chr(int(found[1], 16) if found[1] else int(found[2])), html))
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    root = etree.fromstring(html.encode(), parser) if html else None
    if any("depth" in entry.message.lower() for entry in parser.error_log):
        raise _too_deep(path)
    return root if root is not None else etree.Element("html")


def _too_deep(path: Path) -> DataError:
    return unreadable(path, "is nested too deeply to be read", "save it again, or remove it")


def _without_code(html: str) -> str:
    """Without comments, scripts and instructions; what is marked as text of XHTML (CDATA) becomes text."""
    kept, at, endless = [], 0, set()
    for found in _STARTS.finditer(html):
        kind = found.lastgroup or ""
        if found.start() < at or kind in endless:
            continue
        if (end := _ENDS[kind].search(html, found.end())) is None:
            endless.add(kind)  # or each of a million would be looked for up to the end
            continue
        kept.append(html[at : found.start()])
        if kind == "cdata":
            kept.append(escape(html[found.end() : end.start()]))
        at = end.end()
    return "".join([*kept, html[at:]])


# The encoding


def _decoded(path: Path, encoding: str) -> tuple[str, tuple[str, ...]]:
    """The text of a page: UTF-8 if it is, or else in the encoding that it declares, or else in the given one."""
    data = contents(path)
    declared = _DECLARED.search(data[:4096])
    named = _known(declared[1].decode()) if declared else ""
    chosen = named or ("cp1252" if encoding == "utf-8" else encoding)
    try:
        return decoded(path, data.replace(b"\0", b"") if _is_single_bytes(data) else data, chosen)
    except DataError:
        return data.decode(chosen, "replace").replace("\0", ""), (f"doubtful text: some bytes are not {chosen}",)


def _is_single_bytes(data: bytes) -> bool:
    return not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and data.count(0) * 10 < len(data)


def _known(encoding: str) -> str:
    """The Python name of an encoding; Latin-1 means Windows-1252 in web pages. Empty if there is no such encoding."""
    try:
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        return ""
    return "cp1252" if name in ("iso8859-1", "ascii") else name


# The main part


def _hide(root: etree._Element, hidden: Callable[[etree._Element], bool]) -> None:
    """Empty the elements, leaving the text behind them; to remove each would join texts over and over."""
    for element in [one for one in root.iter() if hidden(one)]:
        element.clear(keep_tail=True)
        element.tag = "span"


def _holds_no_text(element: etree._Element) -> bool:
    classes = (element.get("class") or "").split()
    anchor = element.tag == "a" and "anchor" in classes
    return element.tag in _NO_TEXT or anchor or not _NO_TEXT_CLASSES.isdisjoint(classes)


def _is_furniture(element: etree._Element) -> bool:
    if element.tag in ("html", "body", "main", "article"):
        return False
    classes = (element.get("class") or "").split()
    named = element.get("role") in _FURNITURE_ROLES or not _FURNITURE_CLASSES.isdisjoint(classes)
    return named or element.tag in _FURNITURE


def _main_part(root: etree._Element) -> tuple[etree._Element, str]:
    """The part of a page that is marked as its main content, and a note if much lies outside; the whole page if the
    part holds nearly nothing, as where a script would fill it."""
    marked = [one for one in root.iter() if one.tag == "main" or one.get("role") == "main"]
    marked = marked or [one for one in root.iter("article")]
    inside, whole = sum(map(_length, marked[:1])), _length(root)
    if len(marked) != 1 or inside < _NEARLY_NOTHING * whole:
        return root, ""
    outside = round(100 * (whole - inside) / whole)
    return marked[0], f"the {outside} % of the page outside its main part" if outside > 50 else ""


def _length(element: etree._Element) -> int:
    return sum(len(word) for text in element.itertext() for word in text.split())
