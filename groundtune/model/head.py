"""The output layer, computed only where it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def head_reads_only(keep: torch.Tensor, head: torch.nn.Module) -> Iterator[None]:
    """Let the head of any causal model see the hidden states at `keep` ([rows, length], bool) only.

    At 10 % answer tokens and a vocabulary of 262,144 the head is most of the work. `logits_to_keep` takes a mask in
    recent versions of transformers only; a hook works in all, and keeps whatever the model does to its logits.
    """
    handle = head.register_forward_pre_hook(lambda module, inputs: (inputs[0][keep.to(inputs[0].device)],))
    try:
        yield
    finally:
        handle.remove()
