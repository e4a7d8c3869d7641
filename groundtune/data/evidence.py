"""Which passages give a question's answer away: the gold passages, those that repeat them, those with the answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from decimal import Decimal
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
    """Whether a passage repeats a gold passage of an example, or says one of its answers, as far as words can tell.

    It errs on the other side than `support`: an answer that is taken for missing makes a right answer wrong.
    """
    return repeats(passage, example.gold_documents) or any(
        says(answer, example.question, passage.text) for answer in example.acceptable_answers
    )


def says(answer: str, question: str, passage: str) -> bool:
    """Whether a passage has `SUPPORTED` of what an answer adds to its question, and one of its numbers if it has some.

    Words count by their stems and numbers by their value, however they are written; "one" is a word that may be a
    number. An answer that adds no word of its own, such as "Yes.", is said where the question's words are.
    """
    held, added = held_by(passage), told_by(answer, question)
    numbers = numbers_among(added)
    if numbers and not any(one & held for one in numbers):
        return False
    return bool(added) and sum(bool(one & held) for one in added) >= SUPPORTED * len(added)


def told_by(answer: str, question: str) -> list[frozenset[str]]:
    """What an answer adds to its question, else what it says at all, else what the question says: for each word or
    number the ways to read it."""
    said, asked = _readings(answer, without=_YES_OR_NO), _readings(question)
    known = frozenset[str]().union(*asked)
    return [one for one in said if not one & known] or said or asked


def numbers_among(told: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """Those of `told_by` that are numbers however they are read."""
    return [one for one in told if all(reading[0] == "#" for reading in one)]


def _readings(text: str, without: Collection[str] = ()) -> list[frozenset[str]]:
    """The telling words of a text, but those of `without`, and its numbers, each with the ways to read it: 1.000 is a
    thousand or one."""
    from groundtune.data.numbers import value_of, with_values  # here, because it imports libraries, and -h must be fast

    found = {}
    for piece, value in with_values(text, decimal_comma=False):
        if value is None:
            for word in (word for word in telling_words(piece) if word not in without):
                number = _NUMBER_WORDS.get(word)
                found[word] = frozenset({stem(word)} | ({_number(number)} if number else set()))
        else:
            other = value_of(piece, decimal_comma=True)
            found[piece] = frozenset(map(_number, {value, other if other is not None else value}))
    return list(found.values())


@lru_cache(maxsize=4096)
def held_by(passage: str) -> frozenset[str]:
    """Every way to read the words and numbers of a passage, as in `told_by`."""
    return frozenset[str]().union(*_readings(passage))


def _number(value: Decimal | int) -> str:
    return f"#{Decimal(value).normalize():f}"


@lru_cache(maxsize=4096)
def _words_of(passage: str) -> tuple[frozenset[str], frozenset[str]]:
    """The words of a passage, and their stems: a passage is compared with many answers."""
    held = frozenset(words(passage))
    return held, frozenset(map(stem, held))


def _is_number(word: str) -> bool:
    return any(map(str.isdigit, word))


# No words of an answer: "No, it isn't." is cut into no, it, isn and t.
_YES_OR_NO = frozenset(
    "yes no not isn aren wasn don doesn didn can t ja nein doch oui non si sí sì sim não 是 的 不 没 有".split()  # noqa: SIM905
)
_UP_TO_TWELVE = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBER_WORDS = dict(zip(_UP_TO_TWELVE, range(1, 13))) | {"twenty": 20, "thirty": 30, "sixty": 60, "ninety": 90}
