"""What training has cost elsewhere: loss and answers of a model and its base model on text that a user names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from groundtune.aliases import Model, Tokenizer
from groundtune.data.files import json_rows
from groundtune.errors import DataError
from groundtune.evaluation.statistics import Interval, PairedDifference, mean_interval, paired_difference
from groundtune.prompts.prompt import request_ids, request_prompt
from groundtune.runs.known_answers import KnownAnswers, answer_all
from groundtune.schema import USER, Turn
from groundtune.system.inputs import read_text
from groundtune.system.text import HALF_A_CHARACTER, encodable

_WINDOW = 512  # tokens of one forward pass: with a vocabulary of 262,144 the logits of more take gigabytes
_CONTINUED = 8  # texts whose continuations are shown, spread over the file
_BEGINNING = 32  # tokens of a text that are continued
_NEW_TOKENS = 64


@dataclass(frozen=True)
class UnrelatedText:
    """A paragraph, or a prompt with or without an answer. The loss is that of `ids` from `learnt_from` on; the model
    continues `prompt_ids`, which are the text `prompt`; `expected` is what the file says instead."""

    source: str
    ids: list[int]
    learnt_from: int
    prompt: str = ""
    prompt_ids: tuple[int, ...] = ()
    expected: str = ""


@dataclass(frozen=True)
class Measured:
    """One model: the losses of the tokens of each text, in nats, and its continuations."""

    losses: list[list[float]]
    answers: list[str]


@dataclass(frozen=True)
class Forgetting:
    """Both models on the same texts; a mean is over tokens, and the unit of its interval is the text."""

    path: str
    texts: Sequence[UnrelatedText]
    by_system: Mapping[str, Measured]

    @property
    def clusters(self) -> list[int]:
        """The number of each token's text."""
        measured = next(iter(self.by_system.values()))
        return [number for number, losses in enumerate(measured.losses) for _ in losses]

    def loss(self, system: str) -> Interval | None:
        """Nats per token; None if no text has any to predict."""
        values = [loss for losses in self.by_system[system].losses for loss in losses]
        return mean_interval(values, self.clusters, shares=False) if values else None

    def perplexity(self, system: str) -> float | None:
        """e to the loss, bounded: a model that diverged may have thousands of nats."""
        return math.exp(min(loss.value, 700)) if (loss := self.loss(system)) else None

    def change(self) -> PairedDifference | None:
        """The loss of the second system - that of the first, token by token; None if only one was measured."""
        if len(self.by_system) != 2 or not self.clusters:
            return None
        before, after = ([x for losses in m.losses for x in losses] for m in self.by_system.values())
        return paired_difference(before, after, self.clusters, greater_is_better=False, shares=False)

    @property
    def continued(self) -> list[tuple[UnrelatedText, dict[str, str]]]:
        """The texts with a prompt, each with the answer of every system."""
        texts = [text for text in self.texts if text.prompt_ids]
        answers = zip(*(measured.answers for measured in self.by_system.values()))
        return [(text, dict(zip(self.by_system, said))) for text, said in zip(texts, answers, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        loss = {system: found for system in self.by_system if (found := self.loss(system))}
        change = self.change()
        return {
            "file": self.path,
            "texts": len(self.texts),
            "tokens": len(self.clusters),
            "loss": {system: found.to_dict() for system, found in loss.items()},
            "perplexity": {system: self.perplexity(system) for system in loss},
            **({"change": change.to_dict()} if change else {}),
            "continued": [
                {"source": text.source, "prompt": text.prompt, "expected": text.expected, "answers": answers}
                for text, answers in self.continued
            ],
        }


def read_texts(path: str, tokenizer: Tokenizer, at_most: int) -> list[UnrelatedText]:
    """The texts of a file: of JSONL, a row's "text", or its "prompt" and perhaps "answer"; else the paragraphs.

    Raises `DataError` with every problem of the file; a prompt may have `at_most` tokens with its answer.
    """
    rows, problems = (_jsonl if Path(path).suffix.lower() == ".jsonl" else _paragraphs)(path)
    if problems or not rows:
        raise DataError([f"--forgetting: {line}" for line in problems or [f"{path}: holds no text; write a paragraph"]])
    chosen = {i * len(rows) // _CONTINUED for i in range(_CONTINUED)} if len(rows) > _CONTINUED else {*range(len(rows))}
    texts = [_text(*row, tokenizer, number in chosen) for number, row in enumerate(rows)]
    long = [text.source for text in texts if text.learnt_from > 1 and len(text.ids) + _NEW_TOKENS > at_most]
    if long:
        problem = f"more than {at_most - _NEW_TOKENS} tokens; shorten the prompt, or raise --max_seq_length"
        raise DataError([f"--forgetting: {source}: {problem}" for source in long])
    return texts


def _paragraphs(path: str) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    try:
        text = read_text(path).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        return [], [f"{path}: cannot be read ({error}); name a text file in UTF-8, or JSONL"]
    blocks = (block.strip() for block in text.replace("\r\n", "\n").split("\n\n"))
    return [(f"{path}, paragraph {i}", block, "", "") for i, block in enumerate(filter(None, blocks), 1)], []


def _jsonl(path: str) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Source, text, prompt and answer of each row, and what is wrong."""
    problems: list[str] = []
    rows = []
    for number, row in json_rows(path, problems):
        text, prompt, answer = (row.get(name) or "" for name in ("text", "prompt", "answer"))
        wrong = not all(isinstance(value, str) for value in (text, prompt, answer)) or bool(text) == bool(prompt)
        if wrong or not (text or prompt).strip():
            problems.append(f'{path}:{number}: needs either "text", or "prompt" and perhaps "answer", as texts')
        elif not encodable([text, prompt, answer]):
            problems.append(f"{path}:{number}: {HALF_A_CHARACTER}")
        else:
            rows.append((f"{path}:{number}", text, prompt, answer))
    return rows, problems


def _text(source: str, text: str, prompt: str, answer: str, tokenizer: Tokenizer, continued: bool) -> UnrelatedText:
    style = request_prompt(tokenizer)
    if text:
        ids = style.tokens.encode_prompt(style.tokens.inert(text))
        begins = min(_BEGINNING, len(ids) // 2)
        if not continued or begins < 2:
            return UnrelatedText(source, ids, 1)
        shown, rest = (style.tokens.decode(part, ()) for part in (ids[:begins], ids[begins:]))
        return UnrelatedText(source, ids, 1, shown, tuple(ids[:begins]), rest[:500])
    asked = request_ids(style, [Turn(USER, prompt)])
    ids = asked + (style.answer_ids(answer) if answer else [])
    return UnrelatedText(source, ids, len(asked), prompt, tuple(asked) if continued else (), answer)


# What a model makes of them


def measure(
    model: Model,
    texts: Sequence[UnrelatedText],
    tokenizer: Tokenizer,
    batch_size: int,
    known: KnownAnswers | None = None,
    on_done: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Losses and continuations of a model, in the precision of the caller; it must be in evaluation mode."""
    losses = []
    for text in texts:
        losses.append(_losses(model, text))
        on_done(1)
    style = request_prompt(tokenizer)
    generated = answer_all(
        model, [list(text.prompt_ids) for text in texts if text.prompt_ids], known=known, batch_size=batch_size,
        stop_ids=style.stop_ids, pad_id=tokenizer.pad_token_id, max_new_tokens=_NEW_TOKENS,
    )  # fmt: skip
    return Measured(losses, [style.answer_text(answer.ids) for answer in generated])


@torch.no_grad()
def _losses(model: Model, text: UnrelatedText) -> list[float]:
    """The loss of each token from `learnt_from` on, window by window; the first token of a window is not predicted."""
    found: list[float] = []
    for start in range(0, len(text.ids), _WINDOW):
        ids = torch.tensor([text.ids[start : start + _WINDOW]], device=model.device)
        first = max(1, text.learnt_from - start)
        if ids.shape[1] <= first:
            continue
        logits = model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1].float()
        found += torch.nn.functional.cross_entropy(logits, ids[0, first:], reduction="none").tolist()
    return found
