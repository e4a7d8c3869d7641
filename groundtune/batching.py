"""Rows -> batches: which rows go together, and how they become tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from groundtune.examples import Row

IGNORED = -100  # the label of a position that is not learnt, as everywhere in transformers


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded tensors, all [rows, longest row]; labels are set from the answer's span and nothing else.

    Labels stand at their own position (the model's output one position earlier is what predicts them). Padding is
    masked by the row's length, never by comparing ids: a padding token may be the end token that must be learnt.
    """
    shape = (len(rows), max(len(row) for row in rows))
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row.prompt_ids + row.answer_ids)
        attention_mask[i, : len(row)] = 1
        labels[i, len(row.prompt_ids) : len(row)] = torch.tensor(row.answer_ids)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


class GroupedByLength(Sampler[int]):
    """Rows in an order in which neighbours have about the same length, so that a batch is hardly padded.

    Rows are shuffled, cut into windows of `window` batches, sorted within a window, and the batches shuffled again.
    The order is a function of (seed, epoch) and of nothing else.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, window: int = 16):
        self.lengths, self.batch_size, self.seed, self.window = list(lengths), batch_size, seed, window
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(order), self.batch_size * self.window):
            window = sorted(order[start : start + self.batch_size * self.window], key=self.lengths.__getitem__)
            batches += [window[i : i + self.batch_size] for i in range(0, len(window), self.batch_size)]
        # Only full batches may change places: a short one in the middle would shift the borders of all that follow.
        full = [batch for batch in batches if len(batch) == self.batch_size]
        short = [batch for batch in batches if len(batch) < self.batch_size]
        for i in torch.randperm(len(full), generator=generator).tolist():
            yield from full[i]
        for batch in short:
            yield from batch
