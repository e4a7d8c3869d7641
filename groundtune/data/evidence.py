"""Which passages give a question's answer away: the gold passages, those that repeat them, those with the answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from groundtune.data.words import stem, telling_words, words
from groundtune.schema import Document, Example

REPEATS = 0.3  # share of 5-grams: passages that have this much of each other were cut from the same text
SUPPORTED = 0.6  # share of an answer's words: as for the questions that an LLM writes


def support(answer: str, question: str, passage: str) -> float:
    """Of the words in the answer that are not in the question, the share that the passage contains, compared by stems.

    Stop words do not count. 0 if the answer has a number that is in neither of the two: a wrong figure makes any
    sentence wrong.
    """
    asked, (held, held_stems) = set(words(question)), _words_of(passage)
    if any(_is_number(word) and word not in held and word not in asked for word in telling_words(answer)):
        return 0.0
    added = stems_added(answer, question)
    return sum(one in held_stems for one in added) / len(added) if added else 0.0


def stems_added(answer: str, question: str) -> list[str]:
    """The stems of an answer's words that are not in the question; all of them if there are no others."""
    asked = set(map(stem, words(question)))
    stems = list(map(stem, telling_words(answer)))
    return [one for one in stems if one not in asked] or stems


def likeness(passage: Document, others: Sequence[Document]) -> float:
    """The largest share of 5-grams that a passage has of one of the others, or one of them of the passage; 1 if it is
    one of them, 0 if there are none."""
    from groundtune.data.overlap import grams_of, share_of  # here, because it imports numpy, and -h must be fast

    if any(other.id == passage.id for other in others):
        return 1.0
    here = grams_of(passage.body)
    pairs = [(here, grams_of(other.body)) for other in others]
    return max((max(share_of(a, b), share_of(b, a)) for a, b in pairs), default=0.0)


def repeats(passage: Document, others: Sequence[Document]) -> bool:
    """Whether a passage is one of the others, or one of the two has `REPEATS` of the other's 5-grams."""
    return likeness(passage, others) >= REPEATS


def gives_away(passage: Document, example: Example) -> bool:
    """Whether a passage repeats a gold passage of an example, or supports one of its answers by its words."""
    return repeats(passage, example.gold_documents) or any(
        support(answer, example.question, passage.text) >= SUPPORTED for answer in example.acceptable_answers
    )


@lru_cache(maxsize=4096)
def _words_of(passage: str) -> tuple[frozenset[str], frozenset[str]]:
    """The words of a passage, and their stems: a passage is compared with many answers."""
    held = frozenset(words(passage))
    return held, frozenset(map(stem, held))


def _is_number(word: str) -> bool:
    return any(map(str.isdigit, word))
