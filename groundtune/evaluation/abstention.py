"""Unanswerable questions: does the model abstain when it should, and only then?

Scored as in SQuAD 2.0 (Rajpurkar et al. 2018, "Know What You Don't Know"): an answer to an unanswerable question is
right if it says that there is no answer, and wrong otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from groundtune.data.words import has_other_script, words
from groundtune.errors import DataError
from groundtune.evaluation.metrics import generation_scores, normalised
from groundtune.schema import Example

ANSWERED, REFUSED = "errors/unanswerable_answered", "errors/answerable_refused"
AGREEMENT = tuple(f"generation/{name}" for name in ("exact_match", "numeric_match", "f1", "precision", "recall"))

SHIPPED = Path(__file__).parent / "abstentions.txt"  # explains how a wording is written
_SENTENCE = re.compile(r"[^.!?\n\u3002\uff01\uff1f\uff0e\u2026]+")
_PIECE = re.compile(r"\{([^{}]*)\}|([(|)*])|([^{}(|)*\s]+)|([{}])")
_LONGEST = 300  # characters of a sentence that is compared
_LEADS = 4  # in one sentence; without a bound, leads that can be read in two ways take exponential time
_MANY = 4  # words with which only an abstention begins


@dataclass(frozen=True)
class Wordings:
    """Regular expressions for sentences that abstain: with every word followed by a space, and without any spaces."""

    spaced: re.Pattern[str]
    unspaced: re.Pattern[str]
    lead: re.Pattern[str]  # words that may come first, as a sentence of their own
    answers: re.Pattern[str]  # how a clause begins with which an answer follows
    adds: re.Pattern[str]  # such a clause that is no answer

    def match(self, answer: str) -> bool:
        """Whether the first sentence, or the whole answer, is one of the wordings, and no answer follows it."""
        sentences = [one for one in _SENTENCE.findall(answer) if _spaced(one)]
        while len(sentences) > 1 and self._leads(sentences[0]):
            del sentences[0]
        if not sentences or any(map(self._is_answer, sentences[1:2])):
            return False
        first, rest = self._parted(sentences[0])
        if rest and self._is_answer(rest):
            return False
        without_spaces = has_other_script(answer)
        return any(
            self.spaced.fullmatch(said) or (without_spaces and self.unspaced.fullmatch(said.replace(" ", "")))
            for said in (_spaced(first), *([] if rest else [_spaced(answer)]))
            if len(said) <= _LONGEST
        )

    def _parted(self, sentence: str) -> tuple[str, str]:
        """A sentence up to the clause with which an answer may follow, and the rest; "I'm sorry, but ..." is whole."""
        for border in _CLAUSE.finditer(sentence):
            first, rest = sentence[: border.start()], sentence[border.end() :]
            if self.answers.match(_spaced(rest)) and not self._leads(first):
                return first, rest
        return sentence, ""

    def _leads(self, clause: str) -> bool:
        said = _spaced(clause)
        return len(said) <= _LONGEST and bool(self.lead.fullmatch(said))

    def _is_answer(self, clause: str) -> bool:
        said = _spaced(clause)
        return bool(self.answers.match(said)) and not self.adds.fullmatch(said)


def _spaced(text: str) -> str:
    """The words in lower case, each followed by a space; "isn't" is "isnt", and "it's" is "it is"."""
    return "".join(f"{word} " for word in words(_plain(text)))


def _plain(text: str) -> str:
    return _APOSTROPHE.sub("", _IS.sub(r"\1 is", _AM.sub("I am", text)))


_AM, _IS = re.compile(r"(?i)\bi['\u2019]m\b"), re.compile(r"(?i)\b(it|that|there|what|here)['\u2019]s\b")
# After a comma or the like, or before "but it": "no product but the lamp" is one clause.
_CLAUSE = re.compile(
    r"[,;:\u2013\u2014\uff0c\uff1b\u3001]\s*|\s+(?=but\s(?:it|he|she|they|there|this|that|i|we|you)\b)", re.IGNORECASE
)
_APOSTROPHE = re.compile(r"(?<=\w)['\u2019\u02bc`](?=\w)")


@lru_cache(maxsize=8)
def read_wordings(path: str = "") -> Wordings:
    """The wordings that come with Groundtune and, if a path is given, those of that file.

    Raises:
        DataError: the file cannot be read, or lists every line that is no wording.
    """
    lines = _lines(SHIPPED) + (_lines(Path(path)) if path else [])
    names: dict[str, str] = {}
    kinds: dict[str, list[str]] = {"": [], "+": [], "!": [], "&": []}
    problems: list[str] = []
    for where, line in lines:
        name, equals, value = line.partition("=")
        try:
            if equals:
                names[name.strip()] = _pattern(value, names)
            else:
                kind = line[0] if line.startswith(("+", "! ", "& ")) else ""
                kinds[kind].append(_line_of(line.removeprefix(kind), names))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise DataError(problems)
    one_of = {kind: f"(?:{'|'.join(patterns)})" for kind, patterns in kinds.items()}
    spaced = f"{one_of['+']}{{0,2}}{one_of['']}"
    unspaced = spaced.replace(_ANY, ".{0,60}?").replace(" ", "")
    return Wordings(*map(re.compile, (spaced, unspaced, f"{one_of['+']}{{1,{_LEADS}}}", one_of["!"], one_of["&"])))


def _line_of(line: str, names: Mapping[str, str]) -> str:
    """The regular expression of a line, which must have words."""
    pattern = _pattern(line, names)
    if re.fullmatch(pattern, ""):
        raise ValueError(f"{line.strip()!r} has no word that must be there; write one, or remove the line")
    return pattern


_ANY = r"(?:\S+ ){0,40}?"


def _pattern(line: str, names: Mapping[str, str]) -> str:
    """The regular expression of a wording, in which every word is followed by a space."""
    parts = []
    for name, mark, text, brace in _PIECE.findall(line):
        if brace or (name and name not in names):
            raise ValueError(f"{{{name}}} is not defined above; known: {', '.join(names) or 'none'}")
        said = "".join(re.escape(word) + " " for word in words(_plain(text)))
        parts.append(f"(?:{names[name]})" if name else {"(": "(?:", "*": _ANY}.get(mark, mark) or said)
    pattern = "".join(parts)
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{line.strip()!r}: a bracket is missing; close every ( with a )") from error
    return f"(?:{pattern})" if "|" in line and "(" not in line else pattern


def _lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a file that are neither blank nor comments, each with its place."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null character in the name
        raise DataError([f"{path}: cannot be read ({error}); name a text file in UTF-8"]) from error
    lines = ((f"{path}:{number}", line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(where, line) for where, line in lines if line and not line.startswith("#")]


def abstains(answer: str, unknown: Collection[str], wordings: str = "") -> bool:
    """Whether an answer abstains: it begins with one of the texts `unknown`, normalised as in SQuAD, or its first
    sentence is one of the wordings (`read_wordings`).

    A text of fewer than four words, such as "None", must be the whole first sentence: answers begin with it, too.
    """
    said, first = normalised(answer), normalised(next(iter(_SENTENCE.findall(answer)), ""))
    for text in filter(None, map(normalised, unknown)):
        if text in (said, first) or (len(text) >= _MANY and said[: len(text)] == text):
            return True
    return read_wordings(wordings).match(answer)


def unknown_texts(examples: Sequence[Example]) -> frozenset[str]:
    """The gold texts of the unanswerable examples; empty if all examples have an answer."""
    return frozenset(text for e in examples if not e.answerable for text in e.acceptable_answers)


def answer_scores(answer: str, example: Example, unknown: Collection[str], wordings: str = "") -> dict[str, float]:
    """`metrics.generation_scores`, and whether it is an error to abstain or not to, named as in `METRICS`.

    For an unanswerable question, exact match, F1, precision and recall are 1 if the answer abstains, else 0; ROUGE and
    BLEU compare its words with the gold answer. `unknown` holds the `unknown_texts` of all examples. `wordings` names a
    file with more of them, for `read_wordings`.
    """
    scores = generation_scores(answer, example.acceptable_answers)
    abstained = float(abstains(answer, unknown, wordings))
    if example.answerable:
        return {**scores, REFUSED: 0.0 if scores[AGREEMENT[0]] == 1 else abstained}  # its gold answer is no refusal
    return {**scores, **dict.fromkeys(AGREEMENT, abstained), ANSWERED: 1 - abstained}


def note(examples: Sequence[Example]) -> str:
    """A note for readers of the means; empty if every question has an answer."""
    without = sum(not example.answerable for example in examples)
    if not without:
        return ""
    return (
        f"{without} of {len(examples)} questions are unanswerable: they are excluded from the retrieval means, and "
        "their exact match, F1, precision and recall are 1 if the model abstained, else 0, as in SQuAD 2.0"
    )
