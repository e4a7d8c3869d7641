"""Packed rows on CUDA: one FlexAttention kernel that skips the blocks of tokens that nothing reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad

BLOCK = 128  # tokens; FlexAttention's own size
# Kernels that may be compiled in one process. A model with two windows needs a few for each of trying out, training
# and evaluating; at PyTorch's limit of 8 the next would silently be one that writes all scores to memory.
_KERNELS = 64


def mask_of_blocks(ends: Sequence[int], positions: Sequence[int], window: int | None, device: Any) -> Any:
    """FlexAttention's mask of a row of which token q reads token k if k <= q < `ends[k]`.

    With a `window` also only if its position is less than that many after k's. The mask is of whole blocks: what fills
    up the last one reads itself. Blocks are judged by the extremes of their tokens, and never token by token: a mask
    of 64,000 x 64,000 tokens would be 4 GB.
    """
    from torch.nn.attention.flex_attention import BlockMask

    filling = -len(ends) % BLOCK
    whole = len(ends) + filling
    ends = torch.tensor([*ends, *[whole] * filling], dtype=torch.int32, device=device)
    positions = torch.tensor([*positions, *range(filling)], dtype=torch.int32, device=device)

    def reads(batch: Any, head: Any, q: Any, k: Any) -> Any:
        own = (k <= q) & (q < ends[k])
        return own if window is None else own & (positions[q] - positions[k] < window)

    keys = torch.arange(0, whole, BLOCK, device=device)  # the first token of each block
    queries = keys[:, None]
    first_end, last_end = ends.view(-1, BLOCK).aminmax(dim=1)
    some = (keys <= queries) & (queries < last_end)
    all_of_it = (keys < queries) & (queries + BLOCK <= first_end)
    if window is not None:
        first, last = positions.view(-1, BLOCK).aminmax(dim=1)
        some &= first[:, None] - last < window
        all_of_it &= last[:, None] - first < window
    partly, wholly = _listed(some & ~all_of_it), _listed(all_of_it)
    return BlockMask.from_kv_blocks(*partly, *wholly, BLOCK_SIZE=BLOCK, mask_mod=reads, seq_lengths=(whole, whole))


def attend_in_blocks(layer: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None) -> torch.Tensor:
    """Output [1, tokens, heads, size] for query [1, heads, tokens, size], key and value [1, kv heads, tokens, size]."""
    import torch._dynamo
    from transformers import AttentionInterface

    if torch.is_autocast_enabled(query.device.type):
        # Where weights are float32, queries and keys are rotated in that and values are not. Autocast casts what SDPA
        # gets; what FlexAttention gets it casts in recent releases of PyTorch only.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) for x in (query, key, value))
    tokens = query.shape[2]
    # Whole blocks: for others the kernel of the gradient has given NaN, and each length would be compiled anew.
    query, key, value = (pad(x, (0, 0, 0, mask.shape[-1] - tokens)) for x in (query, key, value))
    with torch._dynamo.config.patch(recompile_limit=_KERNELS):
        output, _ = AttentionInterface()["flex_attention"](layer, query, key, value, mask, scaling=scaling)
    return output[:, :tokens]


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, columns] of booleans as FlexAttention has them: how many are true in a row, and their columns first."""
    columns = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32)[None, None], columns.int()[None, None].contiguous()
