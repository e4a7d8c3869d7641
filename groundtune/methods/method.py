"""The definition of a training method: its texts for people, and the functions that recipes call, in this order.

Nothing here imports torch: functions that need it are named as "module:function" and imported at their first call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from random import Random
from typing import TYPE_CHECKING, Any

from groundtune.aliases import Batch, Model
from groundtune.arguments import PassageArguments
from groundtune.prompts.mixing import Mixing
from groundtune.prompts.policies import Draws, Passages, Policy
from groundtune.schema import Document, Example, Hit

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
    the frozen retriever's hits, else none. `defaults` are the method's own defaults of flags. `load` returns the model
    (`model.loading.load_model`), `encode` the rows (`prompts.rows.encode_rows`), `collate` a batch of rows
    (`training.batching.collate`), `loss` the loss of a batch (`training.loss.answer_loss`), `evaluator` the end-to-end
    evaluation (`evaluation.evaluator.EndToEndEvaluator`).
    """

    name: str  # the command
    title: str  # name for people, such as "SwR"
    help: str  # the command's line in `groundtune -h`
    reads: str  # the passages in a row, such as "gold and retrieved passages"
    retrieves: bool
    policy: Policy
    defaults: Mapping[str, Any] = field(default_factory=dict)
    load: Callable[..., Model] = Lazily("groundtune.model.loading:load_model")
    encode: Callable[..., list[Row]] = Lazily("groundtune.prompts.rows:encode_rows")
    collate: Callable[..., Batch] = Lazily("groundtune.training.batching:collate")
    loss: Callable[..., torch.Tensor] = Lazily("groundtune.training.loss:answer_loss")
    evaluator: Callable[..., Any] = Lazily("groundtune.evaluation.evaluator:EndToEndEvaluator")

    def searches(self, flags: PassageArguments) -> bool:
        """Whether training rows need the hits of a search."""
        return self.retrieves or bool(flags.num_distractors or flags.gold_dropout)

    def draws(self, flags: PassageArguments, k: int, documents: Sequence[Document], keep_gold: bool = False) -> Draws:
        """What draws a row: the policy or, if any of its flags is given, what they say; `k` hits are usually read.

        `keep_gold`: no row loses its gold, as in rows that only measure the loss.
        """
        if not flags.given:
            return lambda example, hits, rng: (example, self.policy(example, hits, rng))

        number = flags.num_distractors if self.retrieves else flags.num_distractors or 0
        dropout = 0.0 if keep_gold else flags.gold_dropout
        mixing = Mixing(k, documents, flags.passage_order, number, flags.distractors, dropout, flags.abstention)

        def drawn(example: Example, hits: Sequence[Hit], rng: Random) -> tuple[Example, Passages]:
            if number == 0 and not example.gold_documents:  # without distractors, it would read nothing
                return example, self.policy(example, hits[:k], rng)
            return mixing(example, hits, rng)

        return drawn
