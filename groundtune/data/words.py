"""The words of a text, for comparing texts by content."""

from __future__ import annotations

import re

# Stop words: they appear in nearly every text and say nothing about its content.
FILLERS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by can do does for from has have how if in into is it its may no not of on or "
        "so such than that the their them then there these they this those to was were what when where which who why "
        "will with yes you your",
    )
)
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Words in lower case; single characters in scripts without spaces or with particles joined to words."""
    return _WORD.findall(text.lower())


def telling_words(text: str) -> list[str]:
    """The words that are not stop words."""
    return [word for word in words(text) if word not in FILLERS]
