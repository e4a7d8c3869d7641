"""Padding is never learnt, and the order of rows is random, repeatable and nearly without padding."""

from __future__ import annotations

import random

import pytest
import torch

from groundtune.batching import IGNORED, GroupedByLength, collate
from groundtune.examples import Row


def rows_of(*lengths: tuple[int, int], end: int = 2) -> list[Row]:
    """Rows of (prompt, answer) lengths; every answer ends in `end`, which also stands inside prompts."""
    rng = random.Random(0)
    return [
        Row([rng.randrange(10) for _ in range(p)], [*(rng.randrange(3, 10) for _ in range(a - 1)), end], 0, "")
        for p, a in lengths
    ]


@pytest.mark.parametrize("pad_id", [0, 2], ids=["own padding token", "padding is the end token"])
def test_each_row_is_its_ids_then_padding_that_is_neither_attended_to_nor_learnt(pad_id):
    rows = rows_of((5, 3), (2, 1), (9, 4), (1, 6))
    batch = collate(rows, pad_id)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(batch, (4, 13))
    for i, row in enumerate(rows):
        padding = 13 - len(row)
        assert batch["input_ids"][i].tolist() == [*row.prompt_ids, *row.answer_ids, *[pad_id] * padding]
        assert batch["attention_mask"][i].tolist() == [1] * len(row) + [0] * padding
        expected = [IGNORED] * len(row.prompt_ids) + row.answer_ids + [IGNORED] * padding
        assert batch["labels"][i].tolist() == expected
        assert expected.count(2) == 1  # the end token is learnt exactly once, whatever padding is


def lengths(n: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [int(rng.lognormvariate(5, 0.6)) + 1 for _ in range(n)]


def batches(order: list[int], size: int) -> list[list[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def padding(order: list[int], of: list[int], size: int) -> int:
    return sum(len(b) * max(of[i] for i in b) - sum(of[i] for i in b) for b in batches(order, size))


@pytest.mark.parametrize("n, batch_size", [(1, 4), (7, 8), (64, 8), (130, 4), (1001, 8), (50, 1)])
def test_every_row_comes_once_in_every_epoch(n, batch_size):
    sampler = GroupedByLength(lengths(n), batch_size, seed=1)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert len(sampler) == n and sorted(sampler) == list(range(n))


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = GroupedByLength(lengths(300), 8, seed)
        sampler.set_epoch(epoch)
        torch.manual_seed(random.randrange(1000))  # the state of the global generators has no effect
        first = list(sampler)
        assert list(sampler) == first
        return first

    seen = {(seed, epoch): order(seed, epoch) for seed in (0, 1, 42) for epoch in (0, 1, 2)}
    assert len(set(map(tuple, seen.values()))) == len(seen)
    assert all(order(*key) == value for key, value in seen.items())


def test_epochs_differ_in_what_is_batched_together_and_not_only_in_the_order_of_batches():
    sampler = GroupedByLength(lengths(400), 8, seed=0)
    first = {frozenset(b) for b in batches(list(sampler), 8)}
    sampler.set_epoch(1)
    assert len(first & {frozenset(b) for b in batches(list(sampler), 8)}) < 5


def test_rows_are_padded_far_less_than_in_random_order():
    of = lengths(1000)
    for epoch in range(3):
        sampler = GroupedByLength(of, 8, seed=0)
        sampler.set_epoch(epoch)
        random_order = random.Random(epoch).sample(range(1000), 1000)
        assert padding(list(sampler), of, 8) < 0.25 * padding(random_order, of, 8)


def test_long_and_short_batches_come_mixed():
    """Sorted windows must not become a curriculum."""
    of = lengths(1024)
    longest = [max(of[i] for i in b) for b in batches(list(GroupedByLength(of, 8, seed=0)), 8)]
    rises = sum(b > a for a, b in zip(longest, longest[1:]))
    assert 0.3 < rises / (len(longest) - 1) < 0.7
