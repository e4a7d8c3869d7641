"""Texts -> passages."""

from __future__ import annotations

import re

from groundtune.schema import Document

_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")


def split_into_passages(text: str, max_words: int) -> list[str]:
    """Cut a text at blank lines into passages of at most `max_words` words.

    Paragraphs stay whole and follow each other in one passage while they fit; a paragraph that is longer than a whole
    passage is cut at the ends of its sentences, and a sentence longer than that stays as it is.
    """
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        pieces += [paragraph] if _words(paragraph) <= max_words else _split_paragraph(paragraph, max_words)
    return _join_while_they_fit(pieces, max_words, "\n\n")


def passage_document(text: str, title: str, source: str) -> Document:
    """A document whose `fmt_content` carries its title, so that retriever and model know where the passage stands."""
    metadata = {"source": source, "title": title}
    return Document(page_content=text, fmt_content=f"Title: {title}\n{text}", metadata=metadata)


def format_passage(text: str, *, source: str = "", title: str = "", section: str = "", **metadata: object) -> Document:
    """A document whose `fmt_content` says where it stands, the historical way: `Source: ...`, `Title: ...`, `Content:`.

    What is empty has no line; with nothing to say, `fmt_content` stays empty and the text is read as it is.
    """
    place = {"source": source, "title": title, "section": section}
    given = {name: value for name, value in place.items() if value}
    header = header_of(**given)
    return Document(text, f"{header}{text}" if header else "", {**given, **metadata})


def header_of(*, source: str = "", title: str = "", section: str = "") -> str:
    """The lines before the text in `fmt_content`, the last of them `Content:`; empty if there is nothing to say."""
    lines = (("Source", source), ("Title", title), ("Section", section))
    said = "".join(f"{name}: {value}\n" for name, value in lines if value)
    return f"{said}Content:\n" if said else ""


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
