"""Rows -> batches: which rows go together, and how they become tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import Sampler

from groundtune.attention import Packed, Segment, model_inputs
from groundtune.examples import Row

IGNORED = -100  # the label of a position that is not learnt, as everywhere in transformers
_LEAST_SHARED = 16  # tokens; a shorter common prefix costs more in small attention calls than it saves
WORTH_GROUPING = 0.02  # share of all tokens saved below which questions on one passage need not share a batch


def collate(rows: Sequence[Row], pad_id: int, *, packed: bool = False, share_prefix: bool = False) -> dict[str, Any]:
    """The inputs of a model, and labels of the same shape that are set from the answers' spans and nothing else.

    Labels stand at their own position (the model's output one position earlier is what predicts them). `packed`: one
    row that holds all, as long as its tokens are many, for a model that attends by layout; `share_prefix`: what
    prompts have in common is there once. Else right-padded rows [rows, longest row].
    """
    return _pack_rows(rows, share_prefix) if packed else _pad_rows(rows, pad_id)


def _pad_rows(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    shape = (len(rows), max(len(row) for row in rows))
    input_ids = torch.full(shape, pad_id)
    # By the row's length, never by comparing ids: a padding token may be the end token that must be learnt.
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row.prompt_ids + row.answer_ids)
        attention_mask[i, : len(row)] = 1
        labels[i, len(row.prompt_ids) : len(row)] = torch.tensor(row.answer_ids)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def _pack_rows(rows: Sequence[Row], share_prefix: bool) -> dict[str, Any]:
    packing = pack(
        [row.prompt_ids + row.answer_ids for row in rows],
        # The prompt's last token predicts the answer's first: each row needs its own.
        shareable=[len(row.prompt_ids) - 1 if share_prefix else 0 for row in rows],
    )
    labels = torch.full((1, len(packing.ids)), IGNORED)
    for row, last in zip(rows, packing.last):
        labels[0, last + 1 - len(row.answer_ids) : last + 1] = torch.tensor(row.answer_ids)
    return {**packing.inputs(), "labels": labels}


@dataclass(frozen=True)
class Packing:
    """Sequences as one row: its token ids, its segments, and for each sequence its last token and its segment."""

    ids: list[int]
    segments: list[Segment]
    last: list[int]
    ends: list[int]

    def inputs(self, device: Any = None, **memory: Any) -> dict[str, Any]:
        """What a model that attends by layout is called with; `memory` as in `Packed`."""
        layout = Packed(self.segments, **memory)
        ids, positions = (torch.tensor([x], device=device) for x in (self.ids, layout.positions()))
        return model_inputs(ids, positions, layout)


def pack(sequences: Sequence[Sequence[int]], shareable: Sequence[int]) -> Packing:
    """One row in which a common prefix of several sequences is there once.

    `shareable[i]` is how many leading tokens of sequence i may be shared. The segments are the tree of the sequences,
    in pre-order; branches of fewer than 16 common tokens stay apart.
    """
    packing = Packing([], [], [0] * len(sequences), [0] * len(sequences))

    def place(members: list[int], depth: int, path: tuple[int, ...]) -> None:
        branches: dict[Any, list[int]] = {}
        for i in members:
            ahead = tuple(sequences[i][depth : min(depth + _LEAST_SHARED, shareable[i])])
            branches.setdefault(ahead if len(ahead) == _LEAST_SHARED else i, []).append(i)
        for branch in branches.values():
            i = branch[0]
            stop = len(sequences[i])
            if len(branch) > 1:
                stop = min(shareable[j] for j in branch)
                stop = min(common_prefix(sequences[i], sequences[j], stop) for j in branch[1:])
            begin = len(packing.ids)
            packing.ids.extend(sequences[i][depth:stop])
            packing.segments.append(Segment(begin, len(packing.ids), path))
            here = len(packing.segments) - 1
            if len(branch) > 1:
                place(branch, stop, (*path, here))
            else:
                packing.last[i], packing.ends[i] = len(packing.ids) - 1, here

    place(list(range(len(sequences))), 0, ())
    return packing


def common_prefix(a: Sequence[int], b: Sequence[int], at_most: int) -> int:
    """How many leading tokens two sequences share, by bisection: slices compare fast, single tokens do not."""
    low, high = 0, min(len(a), len(b), at_most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def prefix_groups(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompts (by number) that share more than all do, at least a tenth of the shorter one: those on one passage."""
    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    shortest = min(len(prompt) for prompt in prompts)
    header = common_prefix(prompts[order[0]], prompts[order[-1]], shortest)  # sorted, so all between share it too
    groups = [[order[0]]]
    for i, j in pairwise(order):
        shorter = min(len(prompts[i]), len(prompts[j]))
        shared = common_prefix(prompts[i], prompts[j], shorter) - header
        if shared >= max(_LEAST_SHARED, shorter // 10):
            groups[-1].append(j)
        else:
            groups.append([j])
    return groups


def share_saved(rows: Sequence[Row], groups: Sequence[Sequence[int]]) -> float:
    """The share of all tokens that need not be computed if every group is one batch."""
    packed = 0
    for group in groups:
        members = [rows[i] for i in group]
        sequences = [row.prompt_ids + row.answer_ids for row in members]
        packed += len(pack(sequences, [len(row.prompt_ids) - 1 for row in members]).ids)
    return 1 - packed / sum(len(row) for row in rows)


class EpochOrder(Sampler[int]):
    """Rows in the order that `order` makes of a random generator; a function of (seed, epoch) and of nothing else."""

    def __init__(self, rows: int, order: Callable[[torch.Generator], list[int]], seed: int):
        self.rows, self.order, self.seed, self.epoch = rows, order, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)))


def by_length(lengths: Sequence[int], batch_size: int, generator: torch.Generator, window: int = 16) -> list[int]:
    """An order in which neighbours have about the same length, so that a padded batch is hardly padded.

    Rows are shuffled, cut into windows of `window` batches, sorted within a window, and the batches shuffled again.
    """
    order = _shuffled(range(len(lengths)), generator)
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * window):
        part = sorted(order[start : start + batch_size * window], key=lengths.__getitem__)
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    # Only full batches may change places: a short one in the middle would shift the borders of all that follow.
    full = _shuffled([batch for batch in batches if len(batch) == batch_size], generator)
    return [i for batch in [*full, *(b for b in batches if len(b) < batch_size)] for i in batch]


def by_prefix(groups: Sequence[Sequence[int]], batch_size: int, generator: torch.Generator) -> list[int]:
    """An order in which the rows of a group fall into one batch, as far as they fit, and the groups are shuffled."""
    parts = []
    for group in groups:
        members = _shuffled(group, generator)
        parts += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    order: list[int] = []
    waiting: list[list[int]] = []  # batches with room
    for part in _shuffled(parts, generator):
        batch = next((b for b in waiting if len(b) + len(part) <= batch_size), None)
        if batch is None:
            waiting.append(batch := [])
        batch += part
        if len(batch) == batch_size:
            waiting.remove(batch)
            order += batch
        elif len(waiting) > 32:
            # No two fit into one: cut, or a long file of groups of five would never fill a batch of eight.
            rest = [i for b in waiting for i in b]
            full = len(rest) - len(rest) % batch_size
            order += rest[:full]
            waiting = [rest[full:]]
    return order + [i for batch in waiting for i in batch]


def _shuffled(items: Sequence[Any], generator: torch.Generator) -> list[Any]:
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
