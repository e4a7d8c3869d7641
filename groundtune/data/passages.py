"""Splitting texts into passages, and making documents of them."""

from __future__ import annotations

import re

from groundtune.schema import Document

_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")


def split_into_passages(text: str, max_words: int) -> list[str]:
    """Cut a text at blank lines into passages of at most `max_words` words.

    A passage is filled with whole paragraphs while they fit; a paragraph longer than a passage is cut at sentence
    ends, and a sentence longer than a passage stays whole.
    """
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        pieces += [paragraph] if _words(paragraph) <= max_words else _split_paragraph(paragraph, max_words)
    return _join_while_they_fit(pieces, max_words, "\n\n")


def passage_document(text: str, title: str, source: str) -> Document:
    """A document whose `fmt_content` includes its title, so that retriever and model know the passage's context."""
    metadata = {"source": source, "title": title}
    return Document(page_content=text, fmt_content=f"Title: {title}\n{text}", metadata=metadata)


def format_passage(text: str, *, source: str = "", title: str = "", section: str = "", **metadata: object) -> Document:
    """A document whose `fmt_content` has a header in LocalRQA's format: `Source: ...`, `Title: ...`, `Content:`.

    Empty fields get no line; if all are empty, `fmt_content` stays empty and the plain text is read.
    """
    place = {"source": source, "title": title, "section": section}
    given = {name: value for name, value in place.items() if value}
    header = header_of(**given)
    return Document(text, f"{header}{text}" if header else "", {**given, **metadata})


def header_of(*, source: str = "", title: str = "", section: str = "") -> str:
    """The header lines of `fmt_content`, ending in `Content:`; empty if all fields are empty."""
    lines = (("Source", source), ("Title", title), ("Section", section))
    said = "".join(f"{name}: {value}\n" for name, value in lines if value)
    return f"{said}Content:\n" if said else ""


# Metadata that names the article of a passage; the first key that is there counts.
ARTICLE = ("source", "url", "title")


def article_of(document: Document) -> str:
    """The article that a passage is part of, from its metadata; empty if none is named."""
    return str(next(filter(None, map(document.metadata.get, ARTICLE)), ""))


def _words(text: str) -> int:
    return len(text.split())


def _split_paragraph(paragraph: str, max_words: int) -> list[str]:
    return _join_while_they_fit(_SENTENCE_END.split(paragraph), max_words, " ")


def _join_while_they_fit(pieces: list[str], max_words: int, separator: str) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and _words(joined[-1]) + _words(piece) <= max_words:
            joined[-1] += separator + piece
        else:
            joined.append(piece)
    return [piece for piece in joined if piece.strip()]
