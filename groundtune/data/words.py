"""The words of a text in any script: one normaliser, and what metrics, search and gates cut a text into.

Some scripts put no spaces between words, and Korean joins particles to them: their words are single characters here,
each with its combining marks, and a search adds pairs of neighbours.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache
from itertools import chain
from typing import Any

import regex

from groundtune.schema import nfc

# Stop words: they appear in nearly every text and say nothing about its content.
FILLERS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by can do does for from has have how if in into is it its may no not of on or "
        "so such than that the their them then there these they this those to was were what when where which who why "
        "will with yes you your",
    )
)
_SCRIPTS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Yi}\u30fc"
_UNSPACED = rf"[[{_SCRIPTS}]&&\p{{L}}]\p{{M}}*"
_IN_WORD = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[[{_SCRIPTS}]&&\p{{L}}]]"
_UNIT = regex.compile(_UNSPACED, regex.V1)
_WORD = regex.compile(rf"{_UNSPACED}|{_IN_WORD}+", regex.V1)
_FOREIGN = regex.compile(r"[\p{L}--[\p{Latin}\p{Common}\p{Inherited}]]|[\p{Nd}--[0-9]]|[\u30fc\uff01-\uffee]", regex.V1)
# Latin text needs no folding: with `re` it is cut three times as fast.
_COMPLEX = re.compile("[\u00ad\u0300-\u200f\u2060\u2c00-\U0010ffff]")
_PLAIN_WORD = re.compile(r"[a-z0-9]+")
# Letters and digits of double or half width, vowel points of Arabic and Hebrew, and marks that nobody sees.
_WIDE = regex.compile(r"[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc]+")
_UNSEEN = regex.compile(r"[\u00ad\u200b-\u200f\u2060\ufeff\u0591-\u05bd\u05bf\u05c1-\u05c7\u064b-\u065f\u0670\u0640]")
_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)


def folded(text: str) -> str:
    """The text as it is compared: composed characters (NFC), ordinary width, ASCII digits, no vowel points."""
    if text.isascii():
        return text
    text = _WIDE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), nfc(text))
    # A digit of a later Unicode than Python's stays as it is.
    return _DIGIT.sub(lambda found: str(unicodedata.digit(found[0], found[0])), _UNSEEN.sub("", text))


def has_other_script(text: str) -> bool:
    """Whether a text has letters or digits of another script than Latin, or Latin ones of another width."""
    return not text.isascii() and _FOREIGN.search(text) is not None


def words(text: str) -> list[str]:
    """Words in lower case; single characters in scripts without spaces or with particles joined to words."""
    return _PLAIN_WORD.findall(text.lower()) if text.isascii() else _WORD.findall(folded(text).lower())


def telling_words(text: str) -> list[str]:
    """The words that are not stop words."""
    return [word for word in words(text) if word not in FILLERS]


def places_of(wanted: Collection[str], text: str) -> list[tuple[int, int]]:
    """Where the text has one of the words, or another form of it: begin and end of each, in order."""
    stems = set(map(stem, wanted))
    found = _PLAIN_WORD.finditer(text.lower()) if text.isascii() else _WORD.finditer(text)
    return [match.span() for match in found if stem(folded(match[0]).lower()) in stems]


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """The stem of a word by Porter (1980), made for English; most words of other languages stay unchanged."""
    return str(_stemmer().stem(word))


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer  # here, because it takes long to import

    return PorterStemmer()


def word_count(text: str) -> float:
    """The length of a text in words; two characters count as a word in scripts that `words` cuts into characters."""
    found = words(text)
    return len(found) - sum(bool(_UNIT.fullmatch(word)) for word in found if not word.isascii()) / 2


def other_words(token: str) -> list[str]:
    """A token of a metric made for English, cut where that metric has no rule: letters of other scripts.

    Without such letters it stays as it is.
    """
    return _WORD.findall(folded(token)) if has_other_script(token) else [token]


def in_segments(text: str) -> list[tuple[str, bool]]:
    """The text in order, as words of other scripts (True) and everything between them (False)."""
    segments, end = [], 0
    for found in _WORD.finditer(text):
        if has_other_script(found[0]):
            segments += [(text[end : found.start()], False), (found[0], True)]
            end = found.end()
    return [*segments, (text[end:], False)]


_OTHER_MARK = regex.compile(r"([\p{P}--[\x00-\x7f]])", regex.V1)


def spaced(text: str) -> str:
    """A text of another script with spaces around characters that are words, and around its punctuation."""
    if not has_other_script(text):
        return text
    return _UNIT.sub(r" \g<0> ", _OTHER_MARK.sub(r" \1 ", folded(text)))


# Search. Numbers are one word (3.5, 1,000), and so are names such as C++, C# and .NET.
_AFTER_WORD = r"(?:\+\+|#(?!\w)|(?:(?<=[0-9])[.,][0-9]+)+)?"
_PLAIN_TERM = re.compile(rf"\.?\w+{_AFTER_WORD}")
_TERM = regex.compile(rf"(?:{_UNSPACED})+|\.?(?:_|{_IN_WORD})+{_AFTER_WORD}", regex.V1)
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_PART = re.compile(r"[^\W_]{2,}")
_ACRONYM = 3  # up to this length, an acronym may look like an everyday word: IT, US, WHO


def search_words(text: str) -> list[str]:
    """The terms of a passage or a query for BM25, which finds a passage by the terms that both have.

    Stop words stay, as they improve recall. A short word in capitals is also a term of its own, so that "IT" is not
    "it". A run of characters without spaces gives its characters and their pairs.
    """
    if text.isupper() and text.count(" ") > 1:
        text = text.lower()  # where all is in capitals, they mean nothing
    found = _TERM.findall(folded(text)) if _COMPLEX.search(text) else _PLAIN_TERM.findall(text)
    return list(chain.from_iterable(map(_terms_of, found)))


@lru_cache(maxsize=2**17)
def _terms_of(word: str) -> tuple[str, ...]:
    if not word.isascii() and (units := _UNIT.findall(word)):
        return (*units, *(a + b for a, b in zip(units, units[1:])))
    term = word.lower() if word.isascii() else word.casefold()
    if len(term) == 1:
        return (term,) if term.isdigit() or (word.isupper() and word not in "AI") else ()
    if _THOUSANDS.fullmatch(term):
        return (term.replace(",", ""),)
    if term.isalnum():
        return (word, term) if len(word) <= _ACRONYM and word.isalpha() and word.isupper() else (term,)
    return (term, *_PART.findall(term))
