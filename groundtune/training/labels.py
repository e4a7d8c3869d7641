"""Checks that labels are exactly the answers of the rows, each with its end token.

A chat template, a tokenizer or a new method can silently get this wrong, and the loss falls all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from groundtune.prompts.prompt import Prompt
from groundtune.prompts.rows import Row
from groundtune.training.batching import IGNORED

logger = logging.getLogger(__name__)


class WrongLabels(Exception):
    """The labels of a batch are not the answers of its rows: a bug in the method that made the batch."""


def check_labels(batch: dict[str, Any], rows: Sequence[Row]) -> None:
    """Raise `WrongLabels` unless the labels of `batch` are the answers of its rows, in any order."""
    learnt = batch["labels"][batch["labels"] != IGNORED]
    answers = torch.tensor([id for row in rows for id in row.answer_ids], dtype=learnt.dtype)
    if len(learnt) != len(answers) or not torch.equal(learnt.sort().values, answers.sort().values):
        raise WrongLabels(
            f"the labels are not exactly the answer tokens ({len(answers)} answer tokens, {len(learnt)} of them "
            f"labels): the rows are {', '.join(row.source for row in rows)}; correct the method's collate"
        )


def what_else_is_learnt(row: Row, answer: str, prompt: Prompt) -> str | None:
    """The text that the row would teach instead of `answer`; None if it teaches `answer`.

    The comparison ignores whitespace and uses `answer` as encoded and decoded by itself, because a tokenizer may
    normalise characters. What the chat template itself writes around an answer is learnt with it.
    """
    learnt, before, after = prompt.answer_text(row.answer_ids), *prompt.learnt_around
    bare = "".join(learnt.split()).removeprefix("".join(before.split())).removesuffix("".join(after.split()))
    return None if bare == "".join(prompt.tokens.spelt(answer).split()) else learnt
