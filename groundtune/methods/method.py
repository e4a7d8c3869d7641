"""The definition of a training method: its texts for people, and the functions that recipes call, in this order.

Nothing here imports torch: functions that need it are named as "module:function" and imported at their first call.
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
    """The function or class at `reference` ("module:name"), imported when it is called."""

    reference: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, name = self.reference.partition(":")
        return getattr(import_module(module), name)(*args, **kwargs)


@dataclass(frozen=True)
class Method:
    """A training method. The default functions are for a decoder that reads its passages in the prompt.

    `policy` chooses the passages of a row (`prompts.policies`); `reads` describes them. `retrieves`: the policy gets
    the frozen retriever's hits, else none. `load` returns the model (`model.loading.load_model`), `encode` the rows
    (`prompts.rows.encode_rows`), `collate` a batch of rows (`training.batching.collate`), `loss` the loss of a batch
    (`training.loss.answer_loss`), `evaluator` the end-to-end evaluation (`evaluation.evaluator.EndToEndEvaluator`).
    """

    name: str  # the command
    title: str  # name for people, such as "SwR"
    help: str  # the command's line in `groundtune -h`
    reads: str  # the passages in a row, such as "gold and retrieved passages"
    retrieves: bool
    policy: Policy
    load: Callable[..., Model] = Lazily("groundtune.model.loading:load_model")
    encode: Callable[..., list[Row]] = Lazily("groundtune.prompts.rows:encode_rows")
    collate: Callable[..., Batch] = Lazily("groundtune.training.batching:collate")
    loss: Callable[..., torch.Tensor] = Lazily("groundtune.training.loss:answer_loss")
    evaluator: Callable[..., Any] = Lazily("groundtune.evaluation.evaluator:EndToEndEvaluator")
