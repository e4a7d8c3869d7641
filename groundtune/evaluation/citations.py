"""Whether sentences cite the passages that they are taken from, against blind citations and those found afterwards.

Measured where gold, or a passage that holds its text, was read: elsewhere no citation could be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from groundtune.arguments import TAUGHT
from groundtune.data.evidence import support
from groundtune.data.overlap import HOLDS, share_held
from groundtune.prompts.citations import found_afterwards, inert, read_marks, with_marks, without_marks
from groundtune.schema import Document, Example

Cited = Sequence[tuple[str, Sequence[int]]]


@dataclass(frozen=True)
class Marked:
    """An answer without marks, with them, and the passages that each of its sentences cites."""

    answer: str
    marked: str = ""
    cited: Cited = ()

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """The begin and end of each sentence in the answer, in characters, and the number of a passage that it cites;
        once for each passage."""
        text, end, found = inert(self.answer), 0, []
        for sentence, numbers in self.cited:
            begin = text.index(sentence.strip(), end)
            end = begin + len(sentence.strip())
            found += [(begin, end, number) for number in numbers]
        return found


def marked(text: str, read: Sequence[Document], citations: str) -> Marked:
    """What a model wrote, with its own marks if it was taught them, else with those that are found afterwards."""
    if citations == TAUGHT:
        return Marked(without_marks(text).strip(), text, read_marks(text))
    cited = found_afterwards(text, read)
    return Marked(text, with_marks(cited), cited)


def citation_scores(found: Marked, example: Example, read: Sequence[Document]) -> dict[str, float]:
    """Precision and recall of citations, and of what needs no training, named as in `METRICS`.

    Precision: of the passages cited, sentence by sentence, the share that are gold or hold its text. Recall: the share
    of sentences that cite such a passage.
    """
    right = {number for number, passage in enumerate(read, 1) if _right(passage, example.gold_documents)}
    if not right or not found.cited or not example.answerable:
        return {}
    afterwards = found_afterwards(found.answer, read)
    return {
        **_scores("citations/", found.cited, right),
        **_scores("citations/afterwards_", afterwards, right),
        "citations/always_first": float(1 in right),
        "citations/at_random": len(right) / len(read),
        "citations/most_similar": float(_most_similar(found.answer, read) in right),
    }


def _scores(name: str, cited: Cited, right: set[int]) -> dict[str, float]:
    numbers = [number for _, of_sentence in cited for number in of_sentence]
    precision = {f"{name}precision": sum(number in right for number in numbers) / len(numbers)} if numbers else {}
    recalled = sum(any(number in right for number in of_sentence) for _, of_sentence in cited)
    return {**precision, f"{name}recall": recalled / len(cited) if cited else 0.0}


def _right(passage: Document, gold: Sequence[Document]) -> bool:
    return any(passage.id == one.id or share_held(one.body, passage.body) >= HOLDS for one in gold)


def _most_similar(answer: str, read: Sequence[Document]) -> int:
    """The number of the passage that has most of the answer's words; the first of equals."""
    return max(range(1, len(read) + 1), key=lambda number: support(inert(answer), "", read[number - 1].text))
