"""The KV cache of the sequences being generated, and how new tokens attend to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention

MB = 2**20  # bytes
BlockKey: TypeAlias = "tuple[tuple[int, ...], tuple[int, ...]]"  # ids of what stands before a block, and its own


class KVCache:
    """Keys and values of up to `slots` sequences of up to `capacity` tokens: one pair of tensors per layer."""

    def __init__(self, slots: int, capacity: int):
        self.shape = (slots, capacity)
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(self, layer: int, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write a whole sequence into a slot; `key` and `value` are [1, kv heads, length, size]."""
        for stored, new in zip(self._of(layer, key, value), (key, value)):
            stored[slot, :, : new.shape[2]] = new[0]

    def move(self, source: int, target: int) -> None:
        """Move the sequence in slot `source` to slot `target`, overwriting it."""
        for stored in (tensor for pair in self.layers.values() for tensor in pair):
            stored[target] = stored[source]

    def append(
        self, layer: int, slots: torch.Tensor, positions: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write token i of [1, kv heads, tokens, size] to position `positions[i]` of slot `slots[i]`; all slots."""
        stored = self._of(layer, key, value)
        for of_layer, new in zip(stored, (key, value)):
            of_layer[slots, :, positions] = new[0].transpose(0, 1)
        return stored

    def _of(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self.layers:
            slots, capacity = self.shape
            # Zeros: what is masked still enters a product, and what the memory held before may be NaN.
            keys, values = (x.new_zeros(slots, x.shape[1], capacity, x.shape[3]) for x in (key, value))
            self.layers[layer] = keys, values
        return self.layers[layer]


@dataclass(eq=False)
class Block:
    """The keys and values of a header or passage, [1, kv heads, length, size] by layer, as it was read once."""

    length: int  # tokens
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)


class PassageCache:
    """Blocks of at most `limit` bytes in all, the least recently used out, by what stands before them and their ids.

    They belong to the weights that computed them.
    """

    def __init__(self, limit: int = 0):
        self.limit, self.size = limit, 0
        self.blocks: OrderedDict[BlockKey, Block] = OrderedDict()

    def get(self, key: BlockKey) -> Block | None:
        """The block, which counts as used now; None if it is not here."""
        if key in self.blocks:
            self.blocks.move_to_end(key)
        return self.blocks.get(key)

    def close(self) -> None:
        """Keep nothing from now on: the memory is needed."""
        self.limit = self.size = 0
        self.blocks.clear()

    def add_all(self, blocks: Mapping[BlockKey, Block]) -> None:
        """Keep these blocks; the least recently used ones make room for them."""
        for key, block in blocks.items():
            self.blocks[key] = block
            self.size += block.size
        while self.size > self.limit:
            self.size -= self.blocks.popitem(last=False)[1].size


class Decoding:
    """The layout of new tokens for the sequences in slots 0 to n - 1 of `cache`, side by side in one row.

    `lengths[i]` is the number of tokens that sequence i has so far, `counts[i]` (at least 1) the number of new ones.
    """

    def __init__(self, cache: KVCache, lengths: Sequence[int], counts: Sequence[int], device: torch.device):
        self.cache, self.lengths, self.counts, self.device = cache, lengths, counts, device
        # For each new token: its slot, and how many new tokens precede it there.
        slots = [slot for slot, count in enumerate(counts) for _ in range(count)]
        self.slots = torch.tensor(slots, device=device)
        self.offsets = torch.tensor([offset for count in counts for offset in range(count)], device=device)
        self.positions = torch.tensor([lengths[slot] for slot in slots], device=device) + self.offsets
        self._masks: dict[tuple[int | None, int], tuple[int, torch.Tensor]] = {}

    def attend(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        """Output [1, tokens, heads, size] for query [1, heads, tokens, size], key and value [1, kv heads, ...]."""
        keys, values = self.cache.append(layer.layer_idx, self.slots, self.positions, key, value)
        heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[3]
        first, mask = self._mask(window, heads // kv_heads)
        n, most, read = len(self.counts), max(self.counts), slice(first, first + mask.shape[-1])
        # Every sequence is padded to the largest number of new tokens. The heads of a group share their keys: as rows
        # of one product they read them only once.
        rows = query.new_zeros(n, most, heads, size)
        rows[self.slots, self.offsets] = query[0].transpose(0, 1)
        rows = rows.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        output = scaled_dot_product_attention(rows, keys[:n, :, read], values[:n, :, read], mask, scale=scaling)
        output = output.unflatten(2, (-1, most)).permute(0, 3, 1, 2, 4).flatten(2, 3)
        return output[self.slots, self.offsets][None]

    def _mask(self, window: int | None, group: int) -> tuple[int, torch.Tensor]:
        """First position that any token attends to, and the mask [n, 1, group * most, positions from there].

        The mask is true where a token attends; `group` heads share their keys.
        """
        if (window, group) not in self._masks:
            first = 0 if window is None else max(0, min(self.lengths) - window + 1)
            end = max(length + count for length, count in zip(self.lengths, self.counts))
            read = torch.arange(first, end, device=self.device)
            offsets = torch.arange(max(self.counts), device=self.device)
            own = (torch.tensor(self.lengths, device=self.device)[:, None] + offsets)[..., None]
            mask = read <= own
            if window is not None:
                mask &= read > own - window
            self._masks[window, group] = first, mask.repeat(1, group, 1)[:, None]
        return self._masks[window, group]
