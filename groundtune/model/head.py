"""The output layer, computed only at the positions that are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def head_reads_only(keep: torch.Tensor, head: torch.nn.Module) -> Iterator[None]:
    """Restrict the head of any causal model to the hidden states at `keep`, [rows, length], bool.

    With 10 % answer tokens and a vocabulary of 262,144 the full head is most of the work. `logits_to_keep` accepts a
    mask only in recent versions of transformers; a hook works in all, and keeps what the model does to its logits.
    """
    handle = head.register_forward_pre_hook(lambda module, inputs: (inputs[0][keep.to(inputs[0].device)],))
    try:
        yield
    finally:
        handle.remove()
