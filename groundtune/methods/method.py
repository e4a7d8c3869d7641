"""What a training method is: a few functions, called in this order by the recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from groundtune.batching import collate
from groundtune.evaluation import EndToEndEvaluator
from groundtune.examples import Row, encode_rows
from groundtune.loss import answer_loss
from groundtune.models import load_model
from groundtune.passages import Passages
from groundtune.schema import Example, Hit


@dataclass(frozen=True)
class Method:
    """A way to train; the defaults are those of a decoder that reads its passages in the prompt."""

    name: str
    description: str
    retrieves_for_training: bool
    passages: Callable[[Example, Sequence[Hit], int], Passages]
    load: Callable[..., Any] = load_model
    encode: Callable[..., list[Row]] = encode_rows
    collate: Callable[[Sequence[Row], int], dict[str, torch.Tensor]] = collate
    loss: Callable[..., torch.Tensor] = answer_loss
    evaluator: Callable[..., EndToEndEvaluator] = EndToEndEvaluator
