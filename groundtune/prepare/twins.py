"""Passages that are part of another passage are removed from a document database: a search would find either.

Words are compared, so that spaces, punctuation and case do not matter, but the sign of a number does. The time grows
with the number of words, and only hashes are kept in memory.
"""

from __future__ import annotations

import hashlib
import secrets
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from groundtune.data.files import stream_documents, write_documents
from groundtune.data.words import spaced
from groundtune.schema import Document

_FIRST = 4  # words by which a passage is looked for in others; a shorter one is left alone
_PUNCTUATION = ".,;:!?…\"'’“”()[]{}*_`#>|"
_PRIME = 2**61 - 1
_BASE = 2**32 + secrets.randbelow(_PRIME - 2**32)  # so that nobody can write texts whose hashes agree


def merge_contained(path: Path) -> int:
    """Remove from a database each passage that is part of another one with its title; returns how many there were."""
    contained = _contained(path)
    if contained:
        write_documents(path, (one for number, one in enumerate(stream_documents(path)) if number not in contained))
    return len(contained)


def _contained(path: Path) -> set[int]:
    """The numbers of the passages whose words stand, in their order, in another passage with the same title."""
    known: dict[tuple[int, int], dict[int, dict[int, list[int]]]] = {}  # title, first words -> length -> all words
    for number, document in enumerate(stream_documents(path)):
        sums = _sums(document.page_content)
        if len(sums) > _FIRST:
            beginning = known.setdefault((_title(document), sums[_FIRST]), {})
            beginning.setdefault(len(sums) - 1, {}).setdefault(sums[-1], []).append(number)
    found: set[int] = set()
    powers = [1]
    for number, document in enumerate(stream_documents(path)):
        sums, title = _sums(document.page_content), _title(document)
        while len(powers) < len(sums):
            powers.append(powers[-1] * _BASE % _PRIME)
        for start in range(len(sums) - _FIRST):
            for length, same in known.get((title, _part(sums, powers, start, _FIRST)), {}).items():
                if start + length < len(sums) and (numbers := same.get(_part(sums, powers, start, length))):
                    whole = length == len(sums) - 1  # the first of those with the same words stays
                    found.update(numbers if not whole else [other for other in numbers if other > number])
    return found


def _sums(text: str) -> list[int]:
    """The hashes of the first 0, 1, 2 ... words, from which that of any row of words follows."""
    values = map(_value, _tokens(text))
    return list(accumulate(values, lambda total, value: (total * _BASE + value) % _PRIME, initial=0))


def _tokens(text: str) -> list[str]:
    return [token for word in spaced(text).lower().split() if any(map(str.isalnum, token := word.strip(_PUNCTUATION)))]


@lru_cache(100_000)
def _value(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=7).digest(), "big")


def _part(sums: list[int], powers: list[int], start: int, length: int) -> int:
    """The hash of `length` words from `start` on."""
    return (sums[start + length] - sums[start] * powers[length]) % _PRIME


def _title(document: Document) -> int:
    return hash(str(document.metadata.get("title", "")))
