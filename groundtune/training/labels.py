"""What is taught: the answers of the rows, each with the token that ends it, and nothing else. Checked, not assumed.

A template, a tokenizer or a new method can get this wrong without a word, and the loss falls all the same.
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
    """The labels of a batch are not the answers of its rows: a fault of the method that made the batch."""


def check_labels(batch: dict[str, Any], rows: Sequence[Row]) -> None:
    """Raises `WrongLabels` unless the labels of `batch` are the answers of its rows, in whatever order they stand."""
    learnt = batch["labels"][batch["labels"] != IGNORED]
    answers = torch.tensor([id for row in rows for id in row.answer_ids], dtype=learnt.dtype)
    if len(learnt) != len(answers) or not torch.equal(learnt.sort().values, answers.sort().values):
        raise WrongLabels(
            f"the labels are not exactly the answer tokens ({len(answers)} answer tokens, {len(learnt)} of them "
            f"labels): the rows are {', '.join(row.source for row in rows)}; correct the method's collate"
        )


def what_else_is_learnt(row: Row, answer: str, prompt: Prompt) -> str | None:
    """What the row would teach in place of `answer`; None if it teaches that.

    Compared without space, and as the tokenizer spells the answer alone: one may write letters in another form.
    """
    learnt, alone = prompt.answer_text(row.answer_ids), prompt.tokens.spelt(answer)
    return None if "".join(learnt.split()) == "".join(alone.split()) else learnt
