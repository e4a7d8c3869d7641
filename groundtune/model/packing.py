"""Sequences packed end to end: each token attends to its own sequence only, and a shared prefix is stored once.

Padding and repeated prefixes cost as much as any other token. Here the rows of a batch become a single row of segments,
in pre-order of the tree (trie) that their common prefixes form:

    header  passage A  question 1 answer 1  question 2 answer 2  passage B  question 3 answer 3

A token attends to the segments on its path from the root and to the earlier tokens of its own segment. That is exactly
what it would see in a row of its own, so outputs and gradients stay the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import one_hot, pad, scaled_dot_product_attention

from groundtune.aliases import Batch
from groundtune.model.kv_cache import Block, BlockKey, Decoding, KVCache, PassageCache
from groundtune.model.rotation import moved

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_LEAST_SHARED = 16  # tokens; a shorter common prefix costs more in small attention calls than it saves
_BLOCK = 128  # tokens per side of a FlexAttention block: its default


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) of a packed row; they continue the segments of `path` (segment numbers, root first).

    Keys and values go to `block`, if there is one; a segment without tokens of its own has its keys and values there.
    """

    start: int
    stop: int
    path: tuple[int, ...] = ()
    block: Block | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def length(self) -> int:
        """How many tokens those who continue it read."""
        return len(self) or (self.block.length if self.block else 0)


@dataclass
class Packed:
    """The layout of one packed row: segments in pre-order that cover it without a gap.

    `cache`, if given, receives the keys and values of every sequence, which `Decoding` then continues; `slots[i]` is
    the slot of segment i, or None if no sequence ends there.
    """

    segments: Sequence[Segment]
    cache: KVCache | None = None
    slots: Sequence[int | None] = ()
    windows: set[int | None] = field(default_factory=set, repr=False)  # of the layers that have attended so far
    _masks: dict[Any, Any] = field(default_factory=dict, repr=False)

    @torch.compiler.disable  # its shapes are new with every batch
    def attend(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        """Output [1, tokens, heads, size] for query [1, heads, tokens, size], key and value [1, kv heads, ...]."""
        self.windows.add(window)
        if query.is_cuda and self.cache is None and self.is_tree:
            return self._attend_in_blocks(query, key, value, scaling, window)
        return self._attend_by_segments(layer, query, key, value, scaling, window)

    def _attend_by_segments(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        lengths = [len(segment) for segment in self.segments]
        heads_of_a_key = query.shape[1] // key.shape[1]
        queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
        read = [self._read(layer, *parts) for parts in zip(self.segments, keys, values)]
        at_place: dict[tuple[int, int], torch.Tensor] = {}  # keys by segment and distance moved
        outputs = []
        for i, segment in enumerate(self.segments):
            if not len(segment):
                continue
            path = [*self.places[i], (i, 0)]
            for j, by in path:
                if (j, by) not in at_place:
                    at_place[j, by] = moved(layer, read[j][0], by)
            k = torch.cat([at_place[one] for one in path], dim=2) if segment.path else keys[i]
            v = torch.cat([read[j][1] for j, _ in path], dim=2) if segment.path else values[i]
            mask = self._mask(len(segment), k.shape[2], window, query.device)
            if self.cache is not None and (slot := self.slots[i]) is not None:
                self.cache.write(layer.layer_idx, slot, k, v)
            # Each head gets a copy where sharing keys is slow: PyTorch's backward on a CPU is a fifth slower then, and
            # with a mask other devices have no kernel for it but the one that writes all scores to memory.
            if query.requires_grad or (mask is not None and query.device.type != "cpu"):
                k, v = (x.repeat_interleave(heads_of_a_key, dim=1) for x in (k, v))
            shared = k.shape[1] < query.shape[1]
            outputs.append(
                scaled_dot_product_attention(
                    queries[i], k, v, mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
                )
            )
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _read(
        self, layer: Any, segment: Segment, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of a segment, from its block if they are known."""
        if segment.block is None:
            return key, value
        if len(segment):
            segment.block.layers[layer.layer_idx] = key.clone(), value.clone()  # without the row around them
        return segment.block.layers[layer.layer_idx]

    @cached_property
    def is_tree(self) -> bool:
        """Whether the segments are a tree in pre-order; with block attention, several passages are read together."""
        ahead = ((*segment.path, i) for i, segment in enumerate(self.segments))
        return all(path[: len(after.path)] == after.path for path, after in zip(ahead, self.segments[1:]))

    @cached_property
    def places(self) -> list[list[tuple[int, int]]]:
        """For each segment: those before it, and how much later each stands there than where it was read."""

        def of(path: Sequence[int]) -> list[tuple[int, int]]:
            starts = accumulate((self.segments[j].length for j in path), initial=0)
            return [(j, start - self.begins[j]) for j, start in zip(path, starts)]

        return [of(segment.path) for segment in self.segments]

    @cached_property
    def begins(self) -> list[int]:
        """The position at which each segment is read: behind those of its path."""
        return [sum(self.segments[j].length for j in segment.path) for segment in self.segments]

    def _mask(self, tokens: int, read: int, window: int | None, device: torch.device) -> torch.Tensor | None:
        """[tokens, read], true where the last `tokens` of `read` positions attend; None if a causal mask suffices."""
        reaches = window is None or window >= read
        if tokens == read and reaches:
            return None
        which = (tokens, read, None if reaches else window)
        if which not in self._masks:
            mask = torch.ones(tokens, read, dtype=torch.bool, device=device).tril(read - tokens)
            self._masks[which] = mask if window is None or reaches else mask.triu(read - tokens - window + 1)
        return self._masks[which]

    def _attend_in_blocks(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        """Attend with one FlexAttention kernel for all segments; it skips empty blocks."""
        if torch.is_autocast_enabled(query.device.type):
            # Autocast does not cover this kernel, and norms in a float32 model return float32 queries and keys.
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = (x.to(dtype) for x in (query, key, value))
        if window not in self._masks:
            self._masks[window] = self.block_mask(window, query.device)
        mask, tokens, shared = self._masks[window], query.shape[2], query.shape[1] != key.shape[1]
        query, key, value = (pad(x, (0, 0, 0, mask.seq_lengths[0] - tokens)) for x in (query, key, value))
        output = _flex_attention()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=shared)
        return output[:, :, :tokens].transpose(1, 2)

    def block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        """FlexAttention's mask, built from blocks: a mask of tokens x tokens never exists.

        In pre-order, a segment is read by everything after it up to the end of its subtree. The length is rounded up to
        a power of two, because the kernel is recompiled for each length. Padding attends to itself, within a block.
        """
        from torch.nn.attention.flex_attention import BlockMask

        length = self.segments[-1].stop
        room = max(1024, 1 << (length - 1).bit_length())
        ends, positions = torch.tensor(self.subtree_ends()), torch.tensor(self.positions())
        missing = room // _BLOCK - -(-length // _BLOCK)
        some, whole = (pad(x, (0, missing, 0, missing)).to(device) for x in self._blocks(ends, positions, window))
        some |= torch.eye(len(some), dtype=torch.bool, device=device)
        ends = pad(ends, (0, room - length), value=room).to(device)
        positions = pad(positions, (0, room - length)).to(device)
        oldest = positions - (room if window is None else window) + 1

        def reads(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return (k <= q) & (q < ends[k]) & (positions[k] >= oldest[q])

        return BlockMask.from_kv_blocks(
            *_numbers_first(some & ~whole), *_numbers_first(whole), BLOCK_SIZE=_BLOCK, mask_mod=reads,
            seq_lengths=(room, room),
        )  # fmt: skip

    def _blocks(
        self, ends: torch.Tensor, positions: torch.Tensor, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which key blocks each query block attends to in part or whole, and which in whole; both [blocks, blocks].

        `ends` and `positions` are `subtree_ends` and `positions`, [tokens].
        """
        borders = sorted({*range(0, len(ends), _BLOCK), *(segment.start for segment in self.segments), len(ends)})
        first, last = torch.tensor(borders[:-1]), torch.tensor(borders[1:]) - 1
        # Pieces that lie in one block and one segment: all tokens of a piece are read up to the same end.
        end, position = ends[first], positions[first]
        some = (first <= last[:, None]) & (end > first[:, None])
        whole = (last <= first[:, None]) & (end > last[:, None])
        if window is not None:
            apart = position[:, None] - position  # distance between the first tokens of two pieces
            length = last - first
            some &= (apart - length < window) | torch.eye(len(first), dtype=torch.bool)
            whole &= apart + length[:, None] < window
        in_block = one_hot(first // _BLOCK).float()
        some, whole = in_block.T @ some.float() @ in_block > 0, in_block.T @ (~whole).float() @ in_block == 0
        whole[len(ends) // _BLOCK :] = False  # the missing part of the last block is masked
        return some, whole

    def subtree_ends(self) -> list[int]:
        """For each token, the end of the last segment that continues its own."""
        ends = [segment.stop for segment in self.segments]
        for segment in self.segments:
            for ancestor in segment.path:
                ends[ancestor] = max(ends[ancestor], segment.stop)
        return [end for segment, end in zip(self.segments, ends) for _ in range(len(segment))]

    def positions(self) -> list[int]:
        """For each token, its position in its own sequence."""
        return [
            position
            for segment, begin in zip(self.segments, self.begins)
            for position in range(begin, begin + len(segment))
        ]


@cache
def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # One kernel per power of two, with and without a gradient. Beyond the limit (8 by default) PyTorch would silently
    # run uncompiled.
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False)


def _numbers_first(these: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of true values per row, [1, 1, rows], and column numbers, true ones first, [1, 1, rows, columns]."""
    these = these.to(torch.int32)
    counts, numbers = these.sum(dim=-1), these.argsort(dim=-1, descending=True, stable=True)
    return counts[None, None].to(torch.int32), numbers[None, None].to(torch.int32)


def model_inputs(input_ids: torch.Tensor, position_ids: torch.Tensor, layout: Packed | Decoding) -> Batch:
    """Keyword arguments for a model call: ids and positions, [1, tokens], and their layout."""
    # A mask that is 4-D already is passed on as it is, whatever it says; without one, transformers would look for
    # jumps in the positions and build a mask that cuts every sequence off from its prefix.
    as_it_is = torch.zeros(1, 1, 1, 1, device=input_ids.device)
    return {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": as_it_is, "layout": layout}


@dataclass(frozen=True)
class Packing:
    """Sequences as one row: token ids, segments, and for each sequence its last token and its last segment.

    `blocks` are those that the row computes for a cache.
    """

    ids: list[int]
    segments: list[Segment]
    last: list[int]
    ends: list[int]
    blocks: dict[BlockKey, Block] = field(default_factory=dict)

    def inputs(self, device: torch.device | None = None, **written: Any) -> Batch:
        """Keyword arguments for a model with packed attention; `cache` and `slots` as in `Packed`."""
        layout = Packed(self.segments, **written)
        ids, positions = (torch.tensor([x], device=device) for x in (self.ids, layout.positions()))
        return model_inputs(ids, positions, layout)


def pack(
    sequences: Sequence[Sequence[int]],
    shareable: Sequence[int],
    borders: Sequence[Sequence[int]] = (),
    kept: PassageCache | None = None,
) -> Packing:
    """Pack sequences into one row that stores each common prefix once.

    `shareable[i]` is the number of leading tokens of sequence i that may be shared. The segments are the prefix tree of
    the sequences in pre-order; prefixes of fewer than 16 tokens are not shared. `borders[i]`, for block attention, is
    where each passage of sequence i begins, and where the last one ends; sequences then share a passage wherever it
    stands, and what is `kept` is not read again.
    """
    packing = Packing([], [], [0] * len(sequences), [0] * len(sequences))

    def add(ids: Sequence[int], path: tuple[int, ...], block: Block | None = None) -> int:
        packing.segments.append(Segment(len(packing.ids), len(packing.ids) + len(ids), path, block))
        packing.ids.extend(ids)
        return len(packing.segments) - 1

    def place(members: list[int], depth: int, path: tuple[int, ...]) -> None:
        branches: dict[tuple[int, ...] | int, list[int]] = {}
        for i in members:
            ahead = tuple(sequences[i][depth : min(depth + _LEAST_SHARED, shareable[i])])
            branches.setdefault(ahead if len(ahead) == _LEAST_SHARED else i, []).append(i)
        for branch in branches.values():
            i = branch[0]
            stop = len(sequences[i])
            if len(branch) > 1:
                stop = min(shareable[j] for j in branch)
                stop = min(common_prefix(sequences[i], sequences[j], stop) for j in branch[1:])
            here = add(sequences[i][depth:stop], path)
            if len(branch) > 1:
                place(branch, stop, (*path, here))
            else:
                packing.last[i], packing.ends[i] = len(packing.ids) - 1, here

    placed: dict[tuple[BlockKey, int | None], int] = {}  # segment of a header or passage; of one row, if not shared

    def block(i: int, ids: Sequence[int], header: Sequence[int], path: tuple[int, ...]) -> tuple[int, ...]:
        """The path of a header or passage of sequence i: one segment, or none without ids."""
        key = (tuple(header), tuple(ids))
        which = (key, None if shareable[i] else i)
        if ids and which not in placed:
            known = kept.get(key) if kept else None
            if kept is not None and known is None:
                packing.blocks[key] = Block(len(ids))
            placed[which] = add([] if known else ids, path, known or packing.blocks.get(key))
        return (placed[which],) if ids else ()

    alike: dict[tuple[int, ...], list[int]] = {}  # sequences by the header and passages that they begin with
    for i, sequence in enumerate(sequences):
        cuts = borders[i] if borders else ()
        header = sequence[: cuts[0]] if cuts else []
        path = before = block(i, header, (), ())
        for begin, end in pairwise(cuts):
            path += block(i, sequence[begin:end], header, before)
        alike.setdefault(path, []).append(i)
    for path, members in alike.items():
        place(members, sum(packing.segments[j].length for j in path), path)
    return packing


def may_read(borders: Sequence[int], reader: int, read: int) -> bool:
    """Whether the token at `reader` attends to the one at `read` of its sequence: the definition of block attention.

    `borders` as of `pack`. Passages read what stands before them all, because models need a first token to put surplus
    attention on, and themselves, but no other passage; they read both as if they stood first. Question and answer read
    everything, at its place in the sequence. Without borders, this is full attention.
    """
    of_reader, of_read = (bisect_right(borders, place) for place in (reader, read))
    return read <= reader and (of_reader == len(borders) or of_read in (0, of_reader))


def common_prefix(a: Sequence[int], b: Sequence[int], at_most: int) -> int:
    """Length of the common prefix of two sequences, by bisection: comparing slices is fast, single tokens is not."""
    low, high = 0, min(len(a), len(b), at_most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def prefix_groups(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Groups of prompt numbers that share more than the common header, at least a tenth of the shorter prompt.

    In practice, these are the questions on one passage.
    """
    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    shortest = min(len(prompt) for prompt in prompts)
    header = common_prefix(prompts[order[0]], prompts[order[-1]], shortest)  # sorted, so all in between share it too
    groups = [[order[0]]]
    for i, j in pairwise(order):
        shorter = min(len(prompts[i]), len(prompts[j]))
        shared = common_prefix(prompts[i], prompts[j], shorter) - header
        if shared >= max(_LEAST_SHARED, shorter // 10):
            groups[-1].append(j)
        else:
            groups.append([j])
    return groups
