"""Attention over sequences laid end to end: each token reads its own sequence, and a shared prefix is there once.

Padding and repeated prefixes cost as much as any token. Here rows of one batch form a single row of segments, in
pre-order of the tree that their common prefixes span:

    header  passage A  question 1 answer 1  question 2 answer 2  passage B  question 3 answer 3

A token reads the segments on its path from the root and, in its own, what comes before it. That is exactly what it
would read in a row of its own, so no output and no gradient changes. `transformers` hands what a model is called with
on to its attention function: that is how `layout` (a `Packed` or a `Decoding`) gets there, without a mask of
tokens x tokens ever being built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch.nn.functional import one_hot, pad, scaled_dot_product_attention

NAME = "groundtune"  # of this attention among those of transformers
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")  # what configurations call it
_BLOCK = 128  # tokens of each side of a block of FlexAttention: its default


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) of a packed row, which follow those of `path` (numbers of segments, root first)."""

    start: int
    stop: int
    path: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass
class Packed:
    """The layout of one packed row: segments in pre-order that cover it without a gap.

    `memory`, if given, receives keys and values of every sequence, so that `Decoding` can go on from them; `slots[i]`
    is the slot of segment i, None where it is not the end of a sequence.
    """

    segments: Sequence[Segment]
    memory: Memory | None = None
    slots: Sequence[int | None] = ()
    windows: set[int | None] = field(default_factory=set, repr=False)  # those of the layers that attended so far
    _masks: dict[Any, Any] = field(default_factory=dict, repr=False)

    @torch.compiler.disable  # its shapes are new with every batch
    def attend(self, layer: Any, query: Any, key: Any, value: Any, scaling: float | None, window: int | None) -> Any:
        """Output [1, tokens, heads, size] for query [1, heads, tokens, size], key and value [1, kv heads, ...]."""
        self.windows.add(window)
        if query.is_cuda and self.memory is None:
            return self._attend_in_blocks(query, key, value, scaling, window)
        return self._attend_by_segments(layer, query, key, value, scaling, window)

    def _attend_by_segments(
        self, layer: Any, query: Any, key: Any, value: Any, scaling: float | None, window: int | None
    ) -> Any:
        lengths = [len(segment) for segment in self.segments]
        heads_of_a_key = query.shape[1] // key.shape[1]
        queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
        outputs = []
        for i, segment in enumerate(self.segments):
            path = [*segment.path, i]
            k, v = (
                torch.cat([parts[j] for j in path], dim=2) if segment.path else parts[i] for parts in (keys, values)
            )
            mask = self._mask(len(segment), k.shape[2], window, query.device)
            if self.memory is not None and self.slots[i] is not None:
                self.memory.write(layer.layer_idx, self.slots[i], k, v)
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

    def _mask(self, tokens: int, read: int, window: int | None, device: Any) -> torch.Tensor | None:
        """[tokens, read], true where the last `tokens` of `read` positions may look; None where plain causal does."""
        reaches = window is None or window >= read
        if tokens == read and reaches:
            return None
        which = (tokens, read, None if reaches else window)
        if which not in self._masks:
            mask = torch.ones(tokens, read, dtype=torch.bool, device=device).tril(read - tokens)
            self._masks[which] = mask if reaches else mask.triu(read - tokens - window + 1)
        return self._masks[which]

    def _attend_in_blocks(self, query: Any, key: Any, value: Any, scaling: float | None, window: int | None) -> Any:
        """All segments in one FlexAttention kernel, which skips the blocks that nothing reads."""
        if torch.is_autocast_enabled(query.device.type):
            # Autocast does not know this kernel, and the norm of a float32 model makes float32 of queries and keys.
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = (x.to(dtype) for x in (query, key, value))
        if window not in self._masks:
            self._masks[window] = self.block_mask(window, query.device)
        mask, tokens, shared = self._masks[window], query.shape[2], query.shape[1] != key.shape[1]
        query, key, value = (pad(x, (0, 0, 0, mask.seq_lengths[0] - tokens)) for x in (query, key, value))
        output = _flex_attention()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=shared)
        return output[:, :, :tokens].transpose(1, 2)

    def block_mask(self, window: int | None, device: Any) -> Any:
        """FlexAttention's mask, made from blocks: one of tokens x tokens is never there.

        In pre-order, a segment is read by what follows it up to the end of its subtree. The mask is for as many tokens
        as the next power of two, for the kernel is compiled anew for each length. Padding reads itself, within a block.
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

        def reads(batch: Any, head: Any, q: Any, k: Any) -> Any:
            return (k <= q) & (q < ends[k]) & (positions[k] >= oldest[q])

        return BlockMask.from_kv_blocks(
            *_numbers_first(some & ~whole), *_numbers_first(whole), BLOCK_SIZE=_BLOCK, mask_mod=reads,
            seq_lengths=(room, room),
        )  # fmt: skip

    def _blocks(
        self, ends: torch.Tensor, positions: torch.Tensor, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of which blocks of keys each block of queries reads anything, and of which all; both [blocks, blocks].

        `ends` and `positions` are `subtree_ends` and `positions`, [tokens].
        """
        borders = sorted({*range(0, len(ends), _BLOCK), *(segment.start for segment in self.segments), len(ends)})
        first, last = torch.tensor(borders[:-1]), torch.tensor(borders[1:]) - 1
        # Pieces, each in one block and one segment: all its tokens are read up to the same end.
        end, position = ends[first], positions[first]
        some = (first <= last[:, None]) & (end > first[:, None])
        whole = (last <= first[:, None]) & (end > last[:, None])
        if window is not None:
            apart = position[:, None] - position  # of the first tokens of two pieces
            length = last - first
            some &= (apart - length < window) | torch.eye(len(first), dtype=torch.bool)
            whole &= apart + length[:, None] < window
        in_block = one_hot(first // _BLOCK).float()
        some, whole = in_block.T @ some.float() @ in_block > 0, in_block.T @ (~whole).float() @ in_block == 0
        whole[len(ends) // _BLOCK :] = False  # what the last block is short of is masked
        return some, whole

    def subtree_ends(self) -> list[int]:
        """For each token the end of the last segment that continues its segment."""
        ends = [segment.stop for segment in self.segments]
        for segment in self.segments:
            for ancestor in segment.path:
                ends[ancestor] = max(ends[ancestor], segment.stop)
        return [end for segment, end in zip(self.segments, ends) for _ in range(len(segment))]

    def positions(self) -> list[int]:
        """For each token its position in its own sequence."""
        return [
            position
            for segment in self.segments
            for begin in [sum(len(self.segments[i]) for i in segment.path)]
            for position in range(begin, begin + len(segment))
        ]


@cache
def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # A kernel for each power of two, with and without a gradient. What is beyond the limit, 8 by default, would run
    # without a kernel, and nobody would know.
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False)


def _numbers_first(these: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many are true in a row, [1, 1, rows], and the numbers of its columns, those first, [1, 1, rows, columns]."""
    these = these.to(torch.int32)
    counts, numbers = these.sum(dim=-1), these.argsort(dim=-1, descending=True, stable=True)
    return counts[None, None].to(torch.int32), numbers[None, None].to(torch.int32)


class Memory:
    """Keys and values of up to `slots` sequences of up to `capacity` tokens, one pair of tensors a layer."""

    def __init__(self, slots: int, capacity: int):
        self.shape = (slots, capacity)
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(self, layer: int, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """A whole sequence; `key` and `value` are [1, kv heads, length, size]."""
        for stored, new in zip(self._of(layer, key, value), (key, value)):
            stored[slot, :, : new.shape[2]] = new[0]

    def move(self, source: int, target: int) -> None:
        """The sequence in slot `source` to slot `target`, in place of what is there."""
        for stored in (tensor for pair in self.layers.values() for tensor in pair):
            stored[target] = stored[source]

    def append(
        self, layer: int, slots: torch.Tensor, positions: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts the i-th of [1, kv heads, tokens, size] at `positions[i]` of slot `slots[i]`; returns all slots."""
        stored = self._of(layer, key, value)
        for memory, new in zip(stored, (key, value)):
            memory[slots, :, positions] = new[0].transpose(0, 1)
        return stored

    def _of(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self.layers:
            slots, capacity = self.shape
            # Zeros: what is masked still enters a product, and what memory held before may be NaN.
            self.layers[layer] = tuple(x.new_zeros(slots, x.shape[1], capacity, x.shape[3]) for x in (key, value))
        return self.layers[layer]


class Decoding:
    """The layout of the next tokens of the sequences in slots 0 to n - 1 of `memory`, side by side in one row.

    `lengths[i]` is how many tokens sequence i has so far, `counts[i]` how many come now: one at least.
    """

    def __init__(self, memory: Memory, lengths: Sequence[int], counts: Sequence[int], device: Any):
        self.memory, self.lengths, self.counts, self.device = memory, lengths, counts, device
        # Of each new token: its slot, and how many of the new ones come before it there.
        slots = [slot for slot, count in enumerate(counts) for _ in range(count)]
        self.slots = torch.tensor(slots, device=device)
        self.offsets = torch.tensor([offset for count in counts for offset in range(count)], device=device)
        self.positions = torch.tensor([lengths[slot] for slot in slots], device=device) + self.offsets
        self._masks: dict[Any, tuple[int, torch.Tensor]] = {}

    def attend(self, layer: Any, query: Any, key: Any, value: Any, scaling: float | None, window: int | None) -> Any:
        """Output [1, tokens, heads, size] for query [1, heads, tokens, size], key and value [1, kv heads, ...]."""
        keys, values = self.memory.append(layer.layer_idx, self.slots, self.positions, key, value)
        heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[3]
        first, mask = self._mask(window, heads // kv_heads)
        n, most, read = len(self.counts), max(self.counts), slice(first, first + mask.shape[-1])
        # As many rows for each sequence as the one with the most new tokens has. The heads of a group read the same
        # keys: as rows of one small product they read them once.
        rows = query.new_zeros(n, most, heads, size)
        rows[self.slots, self.offsets] = query[0].transpose(0, 1)
        rows = rows.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        output = scaled_dot_product_attention(rows, keys[:n, :, read], values[:n, :, read], mask, scale=scaling)
        output = output.unflatten(2, (-1, most)).permute(0, 3, 1, 2, 4).flatten(2, 3)
        return output[self.slots, self.offsets][None]

    def _mask(self, window: int | None, group: int) -> tuple[int, torch.Tensor]:
        """First position that any token reads, and [n, 1, group * most, positions from there], true where it is read.

        `group` heads read the same keys.
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


def attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, layout: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Attention for transformers' interface: by `layout` where the model was called with one, else PyTorch's own.

    Raises `NotImplementedError` for attention that needs more than queries, keys, values and a window.
    """
    if layout is None:
        from transformers import AttentionInterface

        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)
    extras = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    extras += ["dropout"] if kwargs.get("dropout") else []
    if extras:
        raise NotImplementedError(f"its attention needs {', '.join(extras)}")
    return layout.attend(module, query, key, value, kwargs.get("scaling"), kwargs.get("sliding_window")), None


def model_inputs(input_ids: torch.Tensor, position_ids: torch.Tensor, layout: Packed | Decoding) -> dict[str, Any]:
    """What a model is called with: ids and positions [1, tokens] and their layout."""
    # A mask that is 4-D already is passed on as it is, whatever it says; without one, transformers would look for
    # jumps in the positions and build a mask that cuts every sequence off from its prefix.
    as_it_is = torch.zeros(1, 1, 1, 1, device=input_ids.device)
    return {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": as_it_is, "layout": layout}


def use_packed_attention(model: Any, to_train: bool = True) -> str | None:
    """Let `model` attend by layouts if its outputs are those of separate rows then; else it stays as it is: why.

    Call it on the device that the model is going to run on, under the autocast that it will compute in. A model that is
    only to answer, and not `to_train`, needs no kernel that has a gradient.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside an adapter
    before = base.config._attn_implementation
    if before != "sdpa":
        return f"attention is {before}"
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    was_training = base.training
    base.eval()
    try:
        base.set_attn_implementation(NAME)
        problem = _static_problem(base.config.get_text_config(), to_train) or _difference(base, to_train)
        if not problem and to_train and base.device.type == "cuda":
            problem = _kernel_problem(base.config.get_text_config(), base.dtype, base.device)
    except Exception as error:  # whatever a model does with a layout that it does not know
        problem = f"{type(error).__name__}: {error}"
    finally:
        base.train(was_training)
    if problem:
        base.set_attn_implementation(before)
    return problem


def attends_by_layout(model: Any) -> bool:
    """Whether `model` (or the model inside an adapter) may be called with a layout."""
    return model.config._attn_implementation == NAME


def _static_problem(config: Any, to_train: bool) -> str | None:
    """What the trial below cannot see: a few tokens are in one chunk of attention, and it does not drop out."""
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        return f"the model has layers of type {', '.join(sorted(unknown))}"
    dropout = [f"{name} is {rate}" for name in _DROPOUTS if to_train and (rate := getattr(config, name, 0))]
    return f"the model's {' and '.join(dropout)}" if dropout else None


def _window(config: Any) -> int | None:
    """The sliding window of any layer, which sequences as short as those of the trial do not show."""
    types = getattr(config, "layer_types", None)
    slides = "sliding_attention" in types if types else getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if slides else None


@torch.no_grad()
def _difference(model: Any, to_train: bool) -> str | None:
    """Why a packed row would not be what its sequences are alone, found by trying; None if it is.

    State-space layers, or a model that drops what it is called with, show here.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (26,), generator=generator).to(model.device)
    # Two sequences behind one prefix of 8 tokens, and a third by itself; then one more token for the first two.
    segments = [Segment(0, 8), Segment(8, 13, (0,)), Segment(13, 18, (0,)), Segment(18, 24)]
    memory = Memory(2, 14)
    together = []
    layouts = [*([Packed(segments)] if to_train else []), Packed(segments, memory, (None, 0, 1, None))]
    for packed in layouts:
        positions = torch.tensor([packed.positions()], device=model.device)
        logits = model(**model_inputs(ids[None, :24], positions, packed), use_cache=False).logits
        together += logits[0, [12, 17, 23]]
        if (window := _window(model.config.get_text_config())) and packed.windows == {None}:
            return f"its attention is not told of its window of {window} tokens"
    decoding = Decoding(memory, (13, 13), (1, 1), model.device)
    decoding = model_inputs(ids[None, 24:], decoding.positions[None], decoding)
    together += model(**decoding, use_cache=False).logits[0]
    rows = [ids[[*range(13), 24]], ids[[*range(8), *range(13, 18), 25]], ids[18:24]]
    first, second, third = (model(input_ids=row[None], use_cache=False).logits[0] for row in rows)
    apart = torch.stack([*[first[12], second[12], third[5]] * len(layouts), first[13], second[13]])
    error = error_of_logits(model, torch.stack(together), apart)
    return f"packed and separate rows differ by {error:.2g} of the logits" if error else None


def error_of_logits(model: Any, found: torch.Tensor, expected: torch.Tensor) -> float | None:
    """By how much of their variation logits [rows, vocabulary] are wrong at worst; None where rounding explains it."""
    found, expected = found.float(), expected.float()
    # A leak moves logits by as much as they vary; rounding in bfloat16 by a few hundredths of that.
    exact = model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    tolerance = 1e-3 if exact else 0.1
    variation = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    error = ((found - expected).norm(dim=-1) / variation).max().item()
    return None if error < tolerance else error


@torch.enable_grad()
def _kernel_problem(config: Any, dtype: torch.dtype, device: Any) -> str | None:
    """Why FlexAttention's gradients would not be those of the loop over segments; None if they are.

    Its kernels are compiled for the heads of the model and for the GPU, and some need more than a GPU has.
    """
    layout = Packed([Segment(0, 200), Segment(200, 330, (0,)), Segment(330, 450, (0,)), Segment(450, 500)])
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, n, 500, size, generator=generator).to(device, dtype).requires_grad_() for n in heads]
    for window in {None, getattr(config, "sliding_window", None)}:
        ways = layout._attend_in_blocks, partial(layout._attend_by_segments, None)
        outputs = [attend(*inputs, None, window) for attend in ways]
        blocks, segments = (torch.autograd.grad(output.float().square().sum(), inputs) for output in outputs)
        error = max(((a - b).float().norm() / b.float().norm()).item() for a, b in zip(blocks, segments))
        if not error < 0.05:
            return f"gradients of FlexAttention and of separate segments differ by {error:.2g} of the gradient"
    return None
