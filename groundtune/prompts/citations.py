"""Marks of the passages that a sentence is taken from: how passages are numbered, and what a marked answer says.

A mark is `⟦1⟧`. Its brackets appear nowhere else, because passages, turns and answers that have them get ordinary
ones: "[1]" is common in texts, such as lists of references or lists of Python.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import regex

from groundtune.data.evidence import SUPPORTED, support
from groundtune.data.words import word_count
from groundtune.schema import Document, Example

CITE = "After each sentence, write the number of the passage that it is taken from, such as ⟦1⟧."
_PLAIN = str.maketrans("⟦⟧", "[]")
_NUMBER = re.compile(r"\d{1,4}")
_MARK = re.compile(r"⟦\s*\d{1,4}(?:\s*[,;–-]\s*\d{1,4})*\s*⟧")  # also ⟦1, 2⟧, as other models write it
_MARKS = re.compile(r"(?:[^\S\n]?⟦[^⟦⟧\n]{0,40}⟧)+|[^\S\n]?⟦[\d ,;–-]{0,40}$")  # also one that was cut
# What a full stop follows inside a sentence: initials, abbreviations, and the number of a list's item.
_ABBREVIATIONS = (
    r"\b\p{Lu}|\b(?:Dr|Mr|Mrs|Ms|Prof|St|Nr|Abs|Art|vs|approx|incl|inkl|bzw|ca|[ap]\.m|e\.g|i\.e|z\.\s?B|d\.\s?h)"
)
_ITEM = r"(?:^|\n)\s*\d{1,3}"
# A sentence ends at a full stop before a new one, at one of scripts without spaces, or at the end of a line.
_ENDS = regex.compile(
    rf"(?:(?<=[.!?…؟۔।॥።])|(?<=[.!?…؟۔।॥።][\"')\]”»]))(?<!(?:{_ABBREVIATIONS}|{_ITEM})\.)(?=\s+[^\s\p{{Ll}}])"
    r"|(?<=[。！？])(?=.)|(?=\n)",
    regex.DOTALL | regex.V1,
)
_NUMBERING = re.compile(r"\A\s*\d{1,3}[.)]\s")  # of an item in a list; the passage may have none
_PUNCTUATION = re.compile(r"[^\w\s]+(?=\s|\Z)")
_OPEN = re.compile(r"\s*(?:⟦[^⟦⟧\n]{0,40})?\Z")  # the beginning of a mark, and the white space before it
_LEAST_WORDS = 3  # a shorter sentence belongs to the one before, such as "No."


def mark(number: int) -> str:
    return f"⟦{number}⟧"


def inert(text: str) -> str:
    """A text that has no mark."""
    return text.translate(_PLAIN)


def numbered(passages: Sequence[Document]) -> list[str]:
    """The texts of passages, each behind its mark."""
    return [f"{mark(i)} {inert(passage.text)}" for i, passage in enumerate(passages, 1)]


def sentences(text: str) -> list[str]:
    """The sentences of a text; joined, they are the text. Very short ones belong to the one before."""
    pieces = [piece for piece in _ENDS.split(text) if piece]
    joined: list[str] = []
    for piece in pieces:
        if joined and (word_count(piece) < _LEAST_WORDS or word_count(joined[-1]) < _LEAST_WORDS):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def with_marks(said: Sequence[tuple[str, Sequence[int]]]) -> str:
    """The sentences, each with the marks of its passages behind it, before white space."""
    parts = []
    for sentence, numbers in said:
        body = sentence.rstrip()
        marks = "".join(map(mark, numbers))
        parts.append(f"{body} {marks}{sentence[len(body) :]}" if marks and body else sentence)
    return "".join(parts)


def without_marks(text: str) -> str:
    return _MARKS.sub("", text).translate(_PLAIN)


def settled(text: str) -> str:
    """What a text that is still being written certainly says without marks, and without white space around it."""
    open_mark = _OPEN.search(text)
    return without_marks(text[: open_mark.start()] if open_mark else text).strip()


def read_marks(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The sentences of a marked answer without their marks, and the numbers of the passages of each.

    A mark belongs to the sentence before it, the first one also to the sentence after it if none is before. What has no
    words, such as the full stop after a mark, is no sentence of its own.
    """
    said: list[tuple[str, tuple[int, ...]]] = []
    begin, leading = 0, list[int]()
    for found in _MARKS.finditer(text):
        _say(said, text[begin : found.start()])
        numbers = [int(number) for one in _MARK.findall(found[0]) for number in _NUMBER.findall(one)]
        if said:
            said[-1] = (said[-1][0], tuple(dict.fromkeys([*said[-1][1], *numbers])))
        else:
            leading += numbers
        begin = found.end()
    _say(said, text[begin:])
    if said and leading:
        said[0] = (said[0][0], tuple(dict.fromkeys([*leading, *said[0][1]])))
    return said


def _say(said: list[tuple[str, tuple[int, ...]]], text: str) -> None:
    """Add the sentences of a text without marks; what has no words goes to the sentence before."""
    text = inert(text)
    if said and (rest := _PUNCTUATION.match(text)):
        said[-1] = (said[-1][0] + rest[0], said[-1][1])
        text = text[rest.end() :]
    for sentence in sentences(text):
        if said and not word_count(sentence):
            said[-1] = (said[-1][0] + sentence, said[-1][1])
        elif sentence.strip():
            said.append((sentence, ()))


def sources_of(sentence: str, passages: Sequence[Document], among: Sequence[int]) -> tuple[int, ...]:
    """The number of the passage that supports a sentence best by its words, if one supports it; the first of equals."""
    claim = _NUMBERING.sub("", sentence)
    shares = {number: support(claim, "", passages[number - 1].text) for number in among}
    best = max(shares, key=lambda number: shares[number], default=0)
    return (best,) if best and shares[best] >= SUPPORTED else ()


def found_afterwards(answer: str, passages: Sequence[Document]) -> list[tuple[str, tuple[int, ...]]]:
    """The sentences of any model's answer, and the passages that support them by their words."""
    everyone = range(1, len(passages) + 1)
    return [(sentence, sources_of(sentence, passages, everyone)) for sentence in sentences(inert(answer))]


def taught(example: Example, passages: Sequence[Document]) -> str:
    """The example's answer with the marks to learn: the place of the gold passage behind each sentence.

    Of several gold passages, a sentence gets the one that supports it by its words, and none if none does.
    """
    ids = {document.id for document in example.gold_documents}
    gold = [number for number, passage in enumerate(passages, 1) if passage.id in ids]
    answer = inert(example.answer.strip())
    if not example.answerable or not gold:
        return answer
    one = (gold[0],) if len(ids) == 1 else None  # not of several, of which one was left out
    return with_marks([(sentence, one or sources_of(sentence, passages, gold)) for sentence in sentences(answer)])
