"""Passages + prompt -> token ids with the answer's span, within the length budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from groundtune.files import DataError
from groundtune.passages import Passages
from groundtune.prompt import Prompt
from groundtune.schema import Document, Example


@dataclass(frozen=True)
class Row:
    """One training row: the model reads `prompt_ids + answer_ids` and learns the answer's, end of turn included."""

    prompt_ids: list[int]
    answer_ids: list[int]
    passages_dropped: int
    source: str

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Question:
    """One question ready to be answered: the prompt's ids, and how many passages fitted into it."""

    prompt_ids: list[int]
    passages_read: int


def encode_rows(
    examples: Sequence[Example], passages: Sequence[Passages], prompt: Prompt, max_length: int
) -> list[Row]:
    """Training rows of at most `max_length` tokens, in the order of the examples.

    Raises `DataError` that names every example which does not fit even without retrieved passages.
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


def encode_questions(
    examples: Sequence[Example], passages: Sequence[Passages], prompt: Prompt, max_length: int
) -> list[Question]:
    """Prompts of at most `max_length` tokens without an answer, in the order of the examples.

    Raises `DataError` that names every example whose chat history and question alone are longer than that.
    """
    questions, problems = [], []
    for example, these in zip(examples, passages, strict=True):
        prompt_ids, dropped = _fit(prompt, example, these, max_length)
        if prompt_ids is None:
            problems.append(_too_long(prompt, example, these, 0, max_length))
        else:
            questions.append(Question(prompt_ids, len(these.required) + len(these.optional) - dropped))
    if problems:
        raise DataError(problems)
    return questions


def _fit(prompt: Prompt, example: Example, passages: Passages, room: int) -> tuple[list[int] | None, int]:
    """The longest prompt within `room` tokens, and how many optional passages it had to drop from the tail."""
    for dropped in range(len(passages.optional) + 1):
        kept = passages.optional[: len(passages.optional) - dropped]
        ids = prompt.prompt_ids([*passages.required, *kept], example.chat_history, example.question)
        if len(ids) <= room:
            return ids, dropped
    return None, len(passages.optional)


def _too_long(prompt: Prompt, example: Example, passages: Passages, answer: int, max_length: int) -> str:
    def length(documents: Sequence[Document], history: Sequence) -> int:
        return len(prompt.prompt_ids(documents, history, example.question))

    question = length([], [])
    history = length([], example.chat_history) - question
    gold = length(passages.required, []) - question
    return (
        f"{example.source}: too long: instruction and question {question}, chat history {history}, "
        f"gold passages {gold}, answer {answer} tokens, together more than {max_length}; "
        "raise --max_seq_length or shorten the example"
    )
