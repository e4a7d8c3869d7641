"""Word files: converted by mammoth, with formulas as text and with what stands in headers and footers."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from groundtune.prepare.readers.formulas import omml_as_text
from groundtune.prepare.readers.markdown import first_heading
from groundtune.prepare.readers.markup import as_markdown
from groundtune.prepare.readers.office import broken, not_read, opened, title_of, tree
from groundtune.prepare.readers.page import Page, ReadOptions
from groundtune.prepare.readers.web import parsed

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_STYLES = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => p:fresh"
_EDGE = re.compile(r"word/(header|footer)\d*\.xml")
_ONLY_A_NUMBER = re.compile(r"\W*(?:(?:page|seite|p\.|s\.)\W*)?\d*\W*(?:(?:of|von)\W*\d*)?\W*", re.IGNORECASE)
_IGNORED = re.compile(r"An unrecognised element was ignored: (?:.*[}:])?(\w+)")


def docx_pages(path: Path, source: str, options: ReadOptions) -> Iterator[Page]:
    import mammoth

    archive = opened(path, "Word", ".docx", options.max_mb)
    try:
        edges = _edges(archive)
        html = mammoth.convert_to_html(
            _with_linear_formulas(archive),
            convert_image=mammoth.images.img_element(lambda image: {}),
            style_map=_STYLES,
        )
        named, left_out = title_of(archive), not_read(archive)
    except MemoryError:  # a limit of this process, and nothing about the file
        raise
    except Exception as error:  # a broken archive or XML: the parsers raise exceptions of any type
        raise broken(path, "Word", ".docx", error) from error
    ignored = {found[1] for message in getattr(html, "messages", []) if (found := _IGNORED.match(message.message))}
    left_out += [f"elements of the type {name}" for name in sorted(ignored)]
    body = as_markdown(parsed(html.value, path))
    text = "\n\n".join(filter(None, [*edges["header"], body, *edges["footer"]]))
    title = first_heading(body) or named or path.stem
    yield Page(text, title, source, markdown=True, left_out=tuple(left_out))


def _edges(archive: zipfile.ZipFile) -> dict[str, list[str]]:
    """The paragraphs of headers and footers, each once, without numbers of pages."""
    edges: dict[str, list[str]] = {"header": [], "footer": []}
    for name in sorted(archive.namelist()):
        if found := _EDGE.fullmatch(name):
            for paragraph in tree(archive, name).iter(f"{_W}p"):
                words = "".join(text.text or "" for text in paragraph.iter(f"{_W}t", f"{_M}t")).split()
                text = " ".join(words)
                if not _ONLY_A_NUMBER.fullmatch(text) and text not in edges[found[1]]:
                    edges[found[1]].append(text)
    return edges


def _with_linear_formulas(archive: zipfile.ZipFile) -> io.BytesIO:
    """The document with a run of text in the place of each formula; mammoth leaves formulas out."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith(".xml") and b"oMath" in data:
                root = tree(archive, name)
                for formula in list(root.iter(f"{_M}oMath")):
                    _replace(formula)
                data = etree.tostring(root, encoding="utf-8", xml_declaration=True)
            copy.writestr(name, data)
    made.seek(0)
    return made


def _replace(formula: etree._Element) -> None:
    text, tail = omml_as_text(formula), formula.tail
    formula.clear()
    formula.tag, formula.tail = f"{_W}r", tail
    etree.SubElement(formula, f"{_W}t").text = text
    around = formula.getparent()
    if around is not None and around.tag == f"{_M}oMathPara":  # mammoth reads paragraphs and runs, and nothing else
        inside = around.getparent() is not None and around.getparent().tag == f"{_W}p"
        around.tag = f"{_W}smartTag" if inside else f"{_W}p"
