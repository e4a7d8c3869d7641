"""Cross-entropy at answer positions; logits are computed there and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from groundtune.batching import IGNORED


class NonFiniteLoss(ArithmeticError):
    """A training loss that is NaN or infinite: going on would train nothing and say nothing."""


def answer_loss(
    model: Any,
    batch: dict[str, torch.Tensor],
    answer_tokens: torch.Tensor | int | None = None,
    head: torch.nn.Module | None = None,
) -> torch.Tensor:
    """Sum of the answer tokens' cross-entropy over `answer_tokens`.

    `batch` holds input_ids, attention_mask and labels, all [rows, length]. `answer_tokens` is the number of answer
    tokens of the whole optimizer step, so that accumulation and data parallelism change no gradient; default: those of
    this batch. `head` is the output embedding of the unwrapped model; default: `model.get_output_embeddings()`.
    """
    targets = batch["labels"][:, 1:]
    learnt = targets != IGNORED
    # The last position predicts nothing. A mask over [rows, length] picks hidden states [answer tokens, hidden].
    keep = torch.nn.functional.pad(learnt, (0, 1))
    with _head_reads_only(keep, head or model.get_output_embeddings()):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    total = cross_entropy(logits.float(), targets[learnt], reduction="sum")
    return total / (learnt.sum() if answer_tokens is None else answer_tokens)


@contextmanager
def _head_reads_only(keep: torch.Tensor, head: torch.nn.Module) -> Iterator[None]:
    """Let the head of any causal model see the hidden states at `keep` ([rows, length], bool) only.

    At 10 % answer tokens and a vocabulary of 262,144 the head is most of the work. `logits_to_keep` takes a mask in
    recent versions of transformers only; a hook works in all, and keeps whatever the model does to its logits.
    """
    handle = head.register_forward_pre_hook(lambda module, inputs: (inputs[0][keep.to(inputs[0].device)],))
    try:
        yield
    finally:
        handle.remove()
