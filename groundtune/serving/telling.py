"""What people are told of an answer: that there is none if it is unlikely, and its text without marks of passages."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from groundtune.arguments import OFF, TAUGHT
from groundtune.evaluation.citations import Marked, marked
from groundtune.evaluation.confidence import Thresholds, best_score
from groundtune.prompts.citations import settled
from groundtune.schema import UNANSWERABLE, Document, Ended, Hit, Words


@dataclass(frozen=True)
class Manner:
    """How answers are told: whether they cite (`citations`), and below which thresholds they are withheld."""

    citations: str = OFF
    least: Thresholds = Thresholds()


@dataclass(frozen=True)
class Told:
    """An answer as it was told; `said.marked` is empty if answers do not cite. `withheld`: no passage answers."""

    said: Marked
    finished: bool = True
    withheld: bool = False


def withholding(words: Words, hits: Sequence[Hit], least: Thresholds) -> Words:
    """The words of an answer or, if it is below a threshold, that the passages do not answer the question.

    The score is known before the first word, and the log-probability only after the last, so words wait for it.
    """
    score = best_score(hits)
    if least.withhold(None, score):
        words.close()  # before anything is written
        yield UNANSWERABLE
        return Ended(True, withheld=True)
    if least.logprob is None:
        return (yield from words)
    said: list[str] = []
    whole = noted(words, said)
    try:
        while True:
            next(whole)
    except StopIteration as end:
        ended: Ended = end.value
    if least.withhold(ended.logprob, score):
        yield UNANSWERABLE
        return Ended(True, ended.logprob, withheld=True)
    yield from said
    return ended


def noted(words: Words, said: list[str]) -> Words:
    """`words`, each of which is added to `said` as well."""
    while True:
        try:
            word = next(words)
        except StopIteration as end:
            ended: Ended = end.value
            return ended
        said.append(word)
        yield word


def told_of(text: str, ended: Ended, read: Sequence[Document], citations: str) -> Told:
    """What is told of the text of a whole answer; of one that is withheld, no passage is cited."""
    cites = citations != OFF and not ended.withheld
    return Told(marked(text, read, citations) if cites else Marked(text), ended.finished, ended.withheld)


def telling(words: Words, read: Sequence[Document], citations: str) -> Generator[str, None, Told]:
    """The words without marks: joined, they are `said.answer` of what this returns.

    A mark may arrive in pieces, so what may be the beginning of one waits for its end.
    """
    text, shown = "", 0
    while True:
        try:
            text += next(words)
        except StopIteration as end:
            told = told_of(text, end.value, read, citations)
            yield told.said.answer[shown:]
            return told
        sure = settled(text) if citations == TAUGHT else text
        yield sure[shown:]
        shown = len(sure)
