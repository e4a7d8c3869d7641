"""Passages and prompt -> rows of token ids, within the length limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from groundtune.errors import DataError
from groundtune.prompts.policies import Passages, Policy, draw, kept
from groundtune.prompts.prompt import Prompt
from groundtune.schema import Document, Example, Hit


@dataclass(frozen=True)
class Row:
    """One training row: the model reads `prompt_ids + answer_ids` and learns `answer_ids`, end of turn included."""

    prompt_ids: list[int]
    answer_ids: list[int]
    passages_dropped: int
    source: str

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Question:
    """One question ready to be answered: the prompt's ids, and the passages that fit into it."""

    prompt_ids: list[int]
    read: tuple[Document, ...]


def encode_rows(
    examples: Sequence[Example], passages: Sequence[Passages], prompt: Prompt, max_length: int
) -> list[Row]:
    """Training rows of at most `max_length` tokens, in the order of the examples.

    Raises `DataError` that names every example that does not fit even without droppable passages.
    """
    rows, problems = [], []
    for example, these in zip(examples, passages, strict=True):
        answer_ids = prompt.answer_ids(example.answer)
        prompt_ids, dropped = _fit(prompt, example, these, max_length - len(answer_ids))
        if prompt_ids is None:
            problems.append(_too_long(prompt, example, these, len(answer_ids), max_length))
        else:
            rows.append(Row(prompt_ids, answer_ids, dropped, example.source))
    if problems:
        raise DataError(problems)
    return rows


class EpochRows(Sequence[Row]):
    """The training rows of one epoch at a time, for a policy that may choose different passages in each epoch.

    A row is a function of (seed, epoch, example), so a resumed run reads the same rows as an uninterrupted one. Rows
    are encoded again only if their passages change. `encode` (such as `encode_rows`) and `policy` are the method's.
    The constructor and `set_epoch` raise `DataError` if required passages do not fit.
    """

    def __init__(
        self,
        encode: Callable[..., list[Row]],
        policy: Policy,
        examples: Sequence[Example],
        hits: Sequence[Sequence[Hit]],
        prompt: Prompt,
        max_length: int,
        seed: int,
    ):
        self._encode, self._prompt, self._max_length = encode, prompt, max_length
        self.policy, self.examples, self.hits, self.seed = policy, examples, hits, seed
        self._passages = self._drawn(0)
        self.of_epoch = encode(examples, self._passages, prompt, max_length)

    def set_epoch(self, epoch: int) -> None:
        """Set `of_epoch`, the list behind this sequence, to the rows of `epoch`; unchanged if no passages change."""
        passages = self._drawn(epoch)
        changed = [i for i, (old, new) in enumerate(zip(self._passages, passages)) if old != new]
        if changed:
            examples, of_these = [self.examples[i] for i in changed], [passages[i] for i in changed]
            rows = dict(zip(changed, self._encode(examples, of_these, self._prompt, self._max_length)))
            self.of_epoch = [rows.get(i, row) for i, row in enumerate(self.of_epoch)]
        self._passages = passages

    def _drawn(self, epoch: int) -> list[Passages]:
        return [
            self.policy(example, found, draw(self.seed, epoch, i))
            for i, (example, found) in enumerate(zip(self.examples, self.hits, strict=True))
        ]

    def __len__(self) -> int:
        return len(self.of_epoch)

    @overload
    def __getitem__(self, i: int) -> Row: ...

    @overload
    def __getitem__(self, i: slice) -> list[Row]: ...

    def __getitem__(self, i: int | slice) -> Row | list[Row]:
        return self.of_epoch[i]


def encode_questions(
    examples: Sequence[Example], passages: Sequence[Passages], prompt: Prompt, max_length: int
) -> list[Question]:
    """Prompts without an answer, of at most `max_length` tokens, in the order of the examples.

    Raises `DataError` that names every example that does not fit even without droppable passages.
    """
    questions, problems = [], []
    for example, these in zip(examples, passages, strict=True):
        prompt_ids, dropped = _fit(prompt, example, these, max_length)
        if prompt_ids is None:
            problems.append(_too_long(prompt, example, these, 0, max_length))
        else:
            questions.append(Question(prompt_ids, kept(these, dropped)))
    if problems:
        raise DataError(problems)
    return questions


def _fit(prompt: Prompt, example: Example, passages: Passages, room: int) -> tuple[list[int] | None, int]:
    """The longest prompt within `room` tokens, and the number of droppable passages left out; None if none fits."""
    droppable = sum(passage.droppable for passage in passages)
    for dropped in range(droppable + 1):
        ids = prompt.prompt_ids(kept(passages, dropped), example.chat_history, example.question)
        if len(ids) <= room:
            return ids, dropped
    return None, droppable


def _too_long(prompt: Prompt, example: Example, passages: Passages, answer: int, max_length: int) -> str:
    def length(documents: Sequence[Document], history: Sequence) -> int:
        return len(prompt.prompt_ids(documents, history, example.question))

    question = length([], [])
    history = length([], example.chat_history) - question
    gold = length([p.document for p in passages if not p.droppable], []) - question
    return (
        f"{example.source}: too long: instruction and question {question}, chat history {history}, "
        f"gold passages {gold}, answer {answer} tokens, together more than {max_length}; "
        "raise --max_seq_length or shorten the example"
    )
