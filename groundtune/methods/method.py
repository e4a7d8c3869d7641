"""What a training method is: its words for people, and a few functions that recipes call in this order.

Nothing here imports torch: what needs it is named as "module:function" and imported at its first call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from groundtune.aliases import Batch, Model
from groundtune.prompts.policies import Policy

if TYPE_CHECKING:
    import torch

    from groundtune.prompts.rows import Row


@dataclass(frozen=True)
class Lazily:
    """The function or class that `reference` ("module:name") names, imported when it is called."""

    reference: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, name = self.reference.partition(":")
        return getattr(import_module(module), name)(*args, **kwargs)


@dataclass(frozen=True)
class Method:
    """A way to train. The functions default to those of a decoder that reads its passages in the prompt.

    `policy` says which passages a row reads (`prompts.policies`); `reads` says it in words. `retrieves`: the policy is
    given what the frozen retriever finds, else no hits. `load` gives the model (`model.loading.load_model`), `encode`
    the rows (`prompts.rows.encode_rows`), `collate` a batch of them (`training.batching.collate`), `loss` its loss
    (`training.loss.answer_loss`), `evaluator` the end-to-end evaluation (`evaluation.evaluator.EndToEndEvaluator`).
    """

    name: str  # the command
    title: str  # what people call it, as in "SwR"
    help: str  # the command's line in `groundtune -h`
    reads: str  # what a row reads, as in "gold and retrieved passages"
    retrieves: bool
    policy: Policy
    load: Callable[..., Model] = Lazily("groundtune.model.loading:load_model")
    encode: Callable[..., list[Row]] = Lazily("groundtune.prompts.rows:encode_rows")
    collate: Callable[..., Batch] = Lazily("groundtune.training.batching:collate")
    loss: Callable[..., torch.Tensor] = Lazily("groundtune.training.loss:answer_loss")
    evaluator: Callable[..., Any] = Lazily("groundtune.evaluation.evaluator:EndToEndEvaluator")
