"""From rows to batches: which rows share a batch, and how they become tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import TypeVar

import torch
from torch.utils.data import Sampler

from groundtune.aliases import Batch
from groundtune.model.packing import pack, prefix_groups
from groundtune.prompts.rows import EpochRows, Row

T = TypeVar("T")

IGNORED = -100  # the label of a position that is not learnt, as everywhere in transformers
_LOOKED_AT = 512  # rows of one passage
_WINDOW = 16  # batches that are sorted by length together
WORTH_GROUPING = 0.02  # share of all tokens saved below which questions on one passage need not share a batch


def collate(rows: Sequence[Row], pad_id: int, *, packed: bool = False, share_prefix: bool = False) -> Batch:
    """Model inputs, and labels of the same shape that are set from the answers' spans only.

    Each label is at its token's own position (the output one position earlier predicts it). `packed`: a single row
    [1, tokens] for a model with packed attention; with `share_prefix`, common prefixes of prompts are stored once.
    Otherwise right-padded rows, [rows, longest row]; `ValueError` if their passages must not read each other. Without
    rows, two tokens from which nothing is learnt.
    """
    rows = rows or [Row([pad_id] * 2, [], "")]
    return _pack_rows(rows, share_prefix) if packed else _pad_rows(rows, pad_id)


def _pad_rows(rows: Sequence[Row], pad_id: int) -> Batch:
    if any(row.borders for row in rows):
        raise ValueError("block attention needs packed rows")
    shape = (len(rows), max(len(row) for row in rows))
    input_ids = torch.full(shape, pad_id)
    # By the row's length, never by comparing ids: the padding token may be the end token, which must be learnt.
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row.prompt_ids + row.answer_ids)
        attention_mask[i, : len(row)] = 1
        labels[i, len(row.prompt_ids) : len(row)] = torch.tensor(row.answer_ids, dtype=torch.long)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def _pack_rows(rows: Sequence[Row], share_prefix: bool) -> Batch:
    packing = pack(
        [row.prompt_ids + row.answer_ids for row in rows],
        # The prompt's last token predicts the answer's first: each row needs its own.
        shareable=[len(row.prompt_ids) - 1 if share_prefix else 0 for row in rows],
        borders=[row.borders for row in rows],
    )
    labels = torch.full((1, len(packing.ids)), IGNORED)
    for row, last in zip(rows, packing.last):
        labels[0, last + 1 - len(row.answer_ids) : last + 1] = torch.tensor(row.answer_ids, dtype=torch.long)
    return {**packing.inputs(), "labels": labels}


def share_saved(rows: Sequence[Row], groups: Sequence[Sequence[int]]) -> float:
    """The share of all tokens that need not be computed if every group forms one batch."""
    packed = 0
    for group in groups:
        members = [rows[i] for i in group]
        sequences = [row.prompt_ids + row.answer_ids for row in members]
        shareable, borders = [len(row.prompt_ids) - 1 for row in members], [row.borders for row in members]
        packed += len(pack(sequences, shareable, borders).ids)
    return 1 - packed / sum(len(row) for row in rows)


Order = Callable[[Sequence[Row], torch.Generator], list[int]]  # row numbers in training order


def rows_of_epoch(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows of the current epoch, if epochs have different rows; else all rows."""
    return rows.of_epoch if isinstance(rows, EpochRows) else rows


def length_order(batch_size: int) -> Order:
    """An order in which rows of similar length share a (padded) batch."""
    return lambda rows, generator: by_length([len(row) for row in rows], batch_size, generator)


def prefix_order(batch_size: int, apart: bool = False) -> Order:
    """An order in which rows that share tokens share a batch; with `apart`, rows are shuffled singly."""
    known: Sequence[Row] | None = None
    groups: list[list[int]] = []

    def order(rows: Sequence[Row], generator: torch.Generator) -> list[int]:
        nonlocal known, groups
        if known is not rows:
            known = rows
            groups = [[i] for i in range(len(rows))] if apart else sharing_groups(rows, batch_size)
        return by_prefix(groups, batch_size, generator)

    return order


def sharing_groups(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Groups of row numbers that share tokens: a prefix, or with block attention passages, which may stand anywhere."""
    if any(row.borders for row in rows):
        return passage_groups(rows, batch_size)
    return prefix_groups([row.prompt_ids for row in rows])


def passage_groups(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Groups of at most `batch_size` rows, each begun by the first row left and joined by the one with which it shares
    most tokens of passages, until none shares any."""
    passages = [{tuple(row.prompt_ids[begin:end]): end - begin for begin, end in pairwise(row.borders)} for row in rows]
    left = dict.fromkeys(range(len(rows)))
    readers: dict[tuple[int, ...], dict[int, None]] = {}  # those left of each passage
    for i in left:
        for passage in passages[i]:
            readers.setdefault(passage, {})[i] = None
    groups = []
    while left:
        i = next(iter(left))
        group: list[int] = []
        known: set[tuple[int, ...]] = set()
        shared = Counter[int]()  # tokens, by row
        while True:
            group.append(i)
            del left[i]
            del shared[i]
            for passage, tokens in passages[i].items():
                del readers[passage][i]
                if passage not in known:  # of thousands of rows with one passage, only the first are looked at
                    shared.update(dict.fromkeys(islice(readers[passage], _LOOKED_AT), tokens))
            known |= passages[i].keys()
            if len(group) == batch_size or not shared:
                break
            i = max(shared, key=lambda row: (shared[row], -row))
        groups.append(group)
    return groups


class EpochOrder(Sampler[int]):
    """Row numbers in the order given by `order` and a random generator: a function of (seed, epoch) alone.

    `rows` are the same in all epochs, or an `EpochRows`, whose epoch is set here.
    """

    def __init__(self, rows: Sequence[Row], order: Order, seed: int):
        self.rows, self.order, self.seed, self.epoch = rows, order, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if isinstance(self.rows, EpochRows):
            self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(self.order(rows_of_epoch(self.rows), generator))


class EvenBatches(Sampler[list[int]]):
    """The batches of every process, in turn, as many for each, and each row in one of them.

    A step takes `batch_size` rows for each of `processes`, and the last step of an epoch what is left, spread evenly. A
    process for which no row is left gets an empty batch, because all must compute every step. (accelerate would repeat
    rows of the beginning, which then count twice.)
    """

    def __init__(self, order: Sampler[int], n: int, batch_size: int, processes: int, drop_last: bool = False):
        self.order, self.batch_size_of_process, self.processes = order, batch_size, processes
        in_step = batch_size * processes
        self.steps = n // in_step if drop_last else -(-n // in_step)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return self.steps * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        order = iter(self.order)
        for _ in range(self.steps):
            rows = list(islice(order, self.batch_size_of_process * self.processes))
            quotient, rest = divmod(len(rows), self.processes)
            start = 0
            for process in range(self.processes):
                stop = start + quotient + (process < rest)
                yield rows[start:stop]
                start = stop


def by_length(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[int]:
    """An order in which neighbours have similar lengths, so that batches need little padding.

    Rows are shuffled, cut into windows of `_WINDOW` batches and sorted within each window; then batches are shuffled.
    """
    order = _shuffled(range(len(lengths)), generator)
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * _WINDOW):
        part = sorted(order[start : start + batch_size * _WINDOW], key=lengths.__getitem__)
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    # Only full batches are shuffled: a short one in the middle would shift the boundaries of all that follow.
    full = _shuffled([batch for batch in batches if len(batch) == batch_size], generator)
    return [i for batch in [*full, *(b for b in batches if len(b) < batch_size)] for i in batch]


def by_prefix(groups: Sequence[Sequence[int]], batch_size: int, generator: torch.Generator) -> list[int]:
    """An order in which the rows of a group share a batch, as far as they fit, and the groups are shuffled."""
    parts = []
    for group in groups:
        members = _shuffled(group, generator)
        parts += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    order: list[int] = []
    waiting: list[list[int]] = []  # batches with free places
    for part in _shuffled(parts, generator):
        batch = next((b for b in waiting if len(b) + len(part) <= batch_size), None)
        if batch is None:
            waiting.append(batch := [])
        batch += part
        if len(batch) == batch_size:
            waiting.remove(batch)
            order += batch
        elif len(waiting) > 32:
            # No two of them fit together: split them, or groups of five would never fill a batch of eight.
            rest = [i for b in waiting for i in b]
            full = len(rest) - len(rest) % batch_size
            order += rest[:full]
            waiting = [rest[full:]]
    return order + [i for batch in waiting for i in batch]


def _shuffled(items: Sequence[T], generator: torch.Generator) -> list[T]:
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
