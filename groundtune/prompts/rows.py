"""Passages and prompt -> rows of token ids, within the length limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

from groundtune.errors import DataError
from groundtune.prompts.citations import taught
from groundtune.prompts.policies import Draws, Passages, Policy, draw, kept
from groundtune.prompts.prompt import Prompt
from groundtune.schema import USER, Document, Example, Hit, Turn

_NAMED = 10  # examples that a note names


@dataclass(frozen=True)
class LeftOut:
    """What a prompt leaves out to fit: the earliest turns of the chat history, retrieved passages, gold passages."""

    turns: int = 0
    retrieved: int = 0
    gold: int = 0

    def __bool__(self) -> bool:
        return bool(self.turns or self.retrieved or self.gold)


@dataclass(frozen=True)
class Row:
    """One training row: the model reads `prompt_ids + answer_ids` and learns `answer_ids`, end of turn included.

    They are the ids of the text `answer`. `borders` is where each passage begins in the prompt, and where the last one
    ends, if passages do not read each other.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    source: str
    left_out: LeftOut = LeftOut()
    answer: str = ""
    borders: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Question:
    """One question ready to be answered: the prompt's ids, and the passages that fit into it; `borders` as of `Row`."""

    prompt_ids: list[int]
    read: tuple[Document, ...]
    source: str = ""
    left_out: LeftOut = LeftOut()
    borders: tuple[int, ...] = ()


def encode_rows(
    examples: Sequence[Example], passages: Sequence[Passages], prompt: Prompt, max_length: int, shorten: bool = False
) -> list[Row]:
    """Training rows of at most `max_length` tokens, in the order of the examples.

    Retrieved passages are dropped to fit. `shorten` first drops the earliest turns of the chat history, and at last
    gold passages after the first. Raises `DataError` that names every example that does not fit even then.
    """
    learns = partial(_learnt, prompt)
    fitted = _fitted(examples, passages, prompt, max_length, shorten, learns)
    return [Row(q.prompt_ids, ids, q.source, q.left_out, answer, q.borders) for q, (answer, ids) in fitted]


def encode_questions(
    examples: Sequence[Example], passages: Sequence[Passages], prompt: Prompt, max_length: int, shorten: bool = False
) -> list[Question]:
    """Prompts without an answer, of at most `max_length` tokens, in the order of the examples; see `encode_rows`."""
    return [question for question, _ in _fitted(examples, passages, prompt, max_length, shorten, _nothing)]


# What follows a prompt that shows these passages: a text and its ids.
Learnt = Callable[[Example, Sequence[Document]], tuple[str, list[int]]]


def _learnt(prompt: Prompt, example: Example, read: Sequence[Document]) -> tuple[str, list[int]]:
    """What a row teaches after these passages: with citations, it depends on their places."""
    answer = taught(example, read) if prompt.cites else example.answer
    return answer, prompt.answer_ids(answer)


def _nothing(example: Example, read: Sequence[Document]) -> tuple[str, list[int]]:
    return "", []


def _fitted(
    examples: Sequence[Example],
    passages: Sequence[Passages],
    prompt: Prompt,
    max_length: int,
    shorten: bool,
    learns: Learnt,
) -> list[tuple[Question, tuple[str, list[int]]]]:
    found, problems = [], []
    for example, these in zip(examples, passages, strict=True):
        if (fit := _fit(prompt, example, these, max_length, shorten, learns)) is not None:
            found.append(fit)
        else:
            _, ids = learns(example, kept(these))
            problems.append(_too_long(prompt, example, these, len(ids), max_length, shorten))
    if problems:
        raise DataError(problems)
    return found


class EpochRows(Sequence[Row]):
    """The training rows of one epoch at a time, for a policy that may choose different passages in each epoch.

    A row is a function of (seed, epoch, example), so a resumed run reads the same rows as an uninterrupted one. Rows
    are encoded again only if they change. `encode` (such as `encode_rows`) and `policy` are the method's; `draws`
    takes the policy's place. The constructor and `set_epoch` raise `DataError` if required passages do not fit.
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
        draws: Draws | None = None,
    ):
        self._encode, self._prompt, self._max_length = encode, prompt, max_length
        self.policy, self.examples, self.hits, self.seed = policy, examples, hits, seed
        self._draws = draws or (lambda example, hits, rng: (example, policy(example, hits, rng)))
        self.drawn = self._drawn(0)
        self.of_epoch = self._encoded(self.drawn)

    def set_epoch(self, epoch: int) -> None:
        """Set `of_epoch`, the list behind this sequence, to the rows of `epoch`; unchanged if no passages change."""
        drawn = self._drawn(epoch)
        changed = [i for i, (old, new) in enumerate(zip(self.drawn, drawn)) if old != new]
        if changed:
            rows = dict(zip(changed, self._encoded([drawn[i] for i in changed])))
            self.of_epoch = [rows.get(i, row) for i, row in enumerate(self.of_epoch)]
        self.drawn = drawn

    def _drawn(self, epoch: int) -> list[tuple[Example, Passages]]:
        return [
            self._draws(example, found, draw(self.seed, epoch, i))
            for i, (example, found) in enumerate(zip(self.examples, self.hits, strict=True))
        ]

    def _encoded(self, drawn: Sequence[tuple[Example, Passages]]) -> list[Row]:
        examples, passages = [example for example, _ in drawn], [these for _, these in drawn]
        return self._encode(examples, passages, self._prompt, self._max_length)

    def __getstate__(self) -> dict[str, Any]:
        """What a process that loads data needs, where that is a new one: the rows, and nothing to draw others with."""
        return {"of_epoch": self.of_epoch}

    def __len__(self) -> int:
        return len(self.of_epoch)

    @overload
    def __getitem__(self, i: int) -> Row: ...

    @overload
    def __getitem__(self, i: slice) -> list[Row]: ...

    def __getitem__(self, i: int | slice) -> Row | list[Row]:
        return self.of_epoch[i]


def fits(example: Example, passages: Passages, prompt: Prompt, max_length: int, shorten: bool = False) -> bool:
    """Whether `encode_questions` finds a prompt of at most `max_length` tokens for the example."""
    return _fit(prompt, example, passages, max_length, shorten) is not None


def _fit(
    prompt: Prompt, example: Example, passages: Passages, max_length: int, shorten: bool, learns: Learnt = _nothing
) -> tuple[Question, tuple[str, list[int]]] | None:
    """The prompt that leaves out least, and what follows it, of at most `max_length` tokens; None if none fits."""
    for left_out in _cuts(example.chat_history, passages, shorten):
        read = kept(passages, left_out.retrieved, left_out.gold)
        asked = (read, example.chat_history[left_out.turns :], example.question)
        ids, learnt = prompt.prompt_ids(*asked), learns(example, read)
        if len(ids) + len(learnt[1]) <= max_length:
            return Question(ids, read, example.source, left_out, prompt.borders(ids, *asked)), learnt
    return None


def _cuts(history: Sequence[Turn], passages: Passages, shorten: bool) -> Iterator[LeftOut]:
    """What may be left out, least first."""
    yield LeftOut()
    turns, droppable = 0, sum(passage.droppable for passage in passages)
    if shorten and history:
        # A history that began with an answer would be one that no template was made for.
        starts = [i for i, turn in enumerate(history) if i and turn.speaker == USER]
        for turns in [*starts, len(history)]:
            yield LeftOut(turns)
    for retrieved in range(1, droppable + 1):
        yield LeftOut(turns, retrieved)
    if shorten:
        for gold in range(1, len(passages) - droppable):
            yield LeftOut(turns, droppable, gold)


def _too_long(
    prompt: Prompt, example: Example, passages: Passages, answer: int, max_length: int, shortened: bool
) -> str:
    def length(documents: Sequence[Document], history: Sequence[Turn]) -> int:
        return len(prompt.prompt_ids(documents, history, example.question))

    question = length([], [])
    history = length([], example.chat_history) - question
    gold = length([p.document for p in passages if not p.droppable], []) - question
    return (
        f"{example.source}: too long: instruction and question {question}, chat history {history}, "
        f"gold passages {gold}, answer {answer} tokens, together more than {max_length}; "
        "raise --max_seq_length" + ("" if shortened else ", shorten the example, or give --too_long shorten or drop")
    )


def shortening_note(name: str, rows: Sequence[Row] | Sequence[Question]) -> str:
    """A line that counts what the rows of a split left out and names the first ones; empty if nothing was."""
    short = [row for row in rows if row.left_out]
    if not short:
        return ""
    turns, retrieved, gold = (
        sum(getattr(row.left_out, part) for row in short) for part in ("turns", "retrieved", "gold")
    )
    counted = {"chat turn": turns, "retrieved passage": retrieved, "gold passage": gold}
    lost = " and ".join(f"{n} {part}{'' if n == 1 else 's'}" for part, n in counted.items() if n)
    named = _some([row.source for row in short])
    return f"{name}: {len(short)} of {len(rows)} prompts left out {lost} to fit --max_seq_length: {named}"


def left_out_note(sources: Sequence[str], examples: int) -> str:
    """A line that counts the examples that are too long for the run and names the first; empty if there are none."""
    if not sources:
        return ""
    return f"{len(sources)} of {examples} examples do not fit into --max_seq_length and are left out: {_some(sources)}"


def _some(sources: Sequence[str]) -> str:
    return ", ".join(sources[:_NAMED]) + (", ..." if len(sources) > _NAMED else "")
