"""Cross-entropy at answer positions; logits are computed only there."""

from __future__ import annotations

from typing import Any

import torch

from groundtune.aliases import Batch, Model
from groundtune.model.head import head_reads_only
from groundtune.training.batching import IGNORED


def answer_loss(
    model: Model, batch: Batch, answer_tokens: torch.Tensor | int | None = None, head: torch.nn.Module | None = None
) -> torch.Tensor:
    """Sum of the answer tokens' cross-entropy, divided by `answer_tokens`.

    `batch` holds the labels, [rows, length], and the arguments of the model. `answer_tokens` is the number of answer
    tokens in the whole optimizer step, so that accumulation and data parallelism do not change the gradient; default:
    those of this batch. `head` is the output embedding of the unwrapped model; default:
    `model.get_output_embeddings()`.
    """
    targets = batch["labels"][:, 1:]
    learnt = targets != IGNORED
    # The last position predicts nothing. A mask over [rows, length] picks hidden states [answer tokens, hidden].
    keep = torch.nn.functional.pad(learnt, (0, 1))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with head_reads_only(keep, head or model.get_output_embeddings()):
        logits = model(**inputs, use_cache=False).logits
    total = _SumOfCrossEntropy.apply(logits, targets[learnt].to(logits.device))
    return total / (learnt.sum() if answer_tokens is None else answer_tokens)


class _SumOfCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropy of logits [tokens, vocabulary] with targets [tokens], in float32, a few rows at a time.

    The gradient overwrites the logits, in their dtype: they are not needed any more, and with a large vocabulary
    float32 logits, softmax and gradient side by side would take several times the memory of the rest of a step. (If an
    earlier operation had saved the logits for its own gradient, autograd would raise.)
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # On a CPU, as many rows as fit into a core's cache: the passes below read and write them repeatedly.
        rows = max(1, (2**26 if logits.is_cuda else 2**20) // logits.shape[-1])
        total = logits.new_zeros((), dtype=torch.float32)
        scratch = torch.empty_like(logits[:rows], dtype=torch.float32)
        for i in range(0, len(logits), rows):
            part, target = logits[i : i + rows], targets[i : i + rows, None]
            values = scratch[: len(part)].copy_(part)
            of_target, largest = values.gather(1, target), values.amax(dim=-1, keepdim=True)
            exponentials = values.sub_(largest).exp_()
            normaliser = exponentials.sum(dim=-1, keepdim=True)
            total += (normaliser.log() + largest - of_target).sum()
            if ctx.needs_input_grad[0]:
                softmax = exponentials.div_(normaliser)
                part.copy_(softmax.scatter_add_(1, target, softmax.new_full(target.shape, -1.0)))
        ctx.gradient = logits if ctx.needs_input_grad[0] else None
        return total

    @staticmethod
    def backward(ctx: Any, of_total: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(of_total), None
