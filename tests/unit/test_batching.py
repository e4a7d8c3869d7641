"""Padding is never learnt, and the order of rows is random, repeatable and needs little padding."""

from __future__ import annotations

import random

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import SequentialSampler

from groundtune.model.attention import use_packed_attention
from groundtune.model.packing import prefix_groups
from groundtune.prompts.rows import Row
from groundtune.training.batching import (
    IGNORED,
    EpochOrder,
    EvenBatches,
    by_prefix,
    collate,
    length_order,
    passage_groups,
    prefix_order,
    share_saved,
)
from groundtune.training.loss import answer_loss


def rows_of(*lengths: tuple[int, int], end: int = 2) -> list[Row]:
    """Rows of (prompt, answer) lengths; every answer ends in `end`, which also occurs inside prompts."""
    rng = random.Random(0)
    return [
        Row([rng.randrange(10) for _ in range(p)], [*(rng.randrange(3, 10) for _ in range(a - 1)), end], "")
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


def grouped_by_length(of: list[int], batch_size: int, seed: int) -> EpochOrder:
    rows = [Row([1] * (length - 1), [2], "") for length in of]
    return EpochOrder(rows, length_order(batch_size), seed)


def batches(order: list[int], size: int) -> list[list[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def padding(order: list[int], of: list[int], size: int) -> int:
    return sum(len(b) * max(of[i] for i in b) - sum(of[i] for i in b) for b in batches(order, size))


@pytest.mark.parametrize("n, batch_size", [(1, 4), (7, 8), (64, 8), (130, 4), (1001, 8), (50, 1)])
def test_every_row_comes_once_in_every_epoch(n, batch_size):
    sampler = grouped_by_length(lengths(n), batch_size, seed=1)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert len(sampler) == n and sorted(sampler) == list(range(n))


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = grouped_by_length(lengths(300), 8, seed)
        sampler.set_epoch(epoch)
        torch.manual_seed(random.randrange(1000))  # the state of the global generators has no effect
        first = list(sampler)
        assert list(sampler) == first
        return first

    seen = {(seed, epoch): order(seed, epoch) for seed in (0, 1, 42) for epoch in (0, 1, 2)}
    assert len(set(map(tuple, seen.values()))) == len(seen)
    assert all(order(*key) == value for key, value in seen.items())


def test_epochs_differ_in_what_is_batched_together_and_not_only_in_the_order_of_batches():
    sampler = grouped_by_length(lengths(400), 8, seed=0)
    first = {frozenset(b) for b in batches(list(sampler), 8)}
    sampler.set_epoch(1)
    assert len(first & {frozenset(b) for b in batches(list(sampler), 8)}) < 5


def test_rows_are_padded_far_less_than_in_random_order():
    of = lengths(1000)
    for epoch in range(3):
        sampler = grouped_by_length(of, 8, seed=0)
        sampler.set_epoch(epoch)
        random_order = random.Random(epoch).sample(range(1000), 1000)
        assert padding(list(sampler), of, 8) < 0.25 * padding(random_order, of, 8)


def test_long_and_short_batches_come_mixed():
    """Sorted windows must not become a curriculum."""
    of = lengths(1024)
    longest = [max(of[i] for i in b) for b in batches(list(grouped_by_length(of, 8, seed=0)), 8)]
    rises = sum(b > a for a, b in zip(longest, longest[1:]))
    assert 0.3 < rises / (len(longest) - 1) < 0.7


def groups_of(sizes: list[int]) -> list[list[int]]:
    numbers = iter(range(sum(sizes)))
    return [[next(numbers) for _ in range(size)] for size in sizes]


@pytest.mark.parametrize("batch_size", [1, 4, 8])
@pytest.mark.parametrize("sizes", [[1] * 30, [2] * 50, [5] * 200, [3, 1, 40, 2, 2, 7], [8] * 10, [1]], ids=str)
def test_every_row_comes_once_when_groups_are_kept_together(sizes, batch_size):
    groups = groups_of(sizes)
    orders = [by_prefix(groups, batch_size, torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert all(sorted(order) == list(range(sum(sizes))) for order in orders)
    if sum(sizes) > batch_size:
        assert orders[0] != orders[1]


def test_nearly_every_group_falls_into_one_batch():
    rng = random.Random(0)
    groups = groups_of([rng.choice([1, 1, 2, 2, 3, 4, 6]) for _ in range(400)])
    order = by_prefix(groups, 8, torch.Generator().manual_seed(0))
    batch_of = {row: i // 8 for i, row in enumerate(order)}
    torn = sum(len({batch_of[row] for row in group}) > 1 for group in groups)
    assert torn <= 0.01 * len(groups)
    assert order != sorted(order)


def test_groups_are_the_questions_on_one_passage_and_not_what_all_have_in_common():
    rng = random.Random(0)
    header = [rng.randrange(1000) for _ in range(30)]
    passages = [[rng.randrange(1000) for _ in range(100)] for _ in range(5)]
    prompts, on = [], []
    for i in [0, 1, 0, 2, 3, 3, 0, 4]:
        prompts.append(header + passages[i] + [rng.randrange(1000) for _ in range(rng.randint(5, 20))])
        on.append(i)
    groups = {frozenset(group) for group in prefix_groups(prompts)}
    assert groups == {frozenset(j for j, p in enumerate(on) if p == i) for i in range(5)}
    assert prefix_groups([]) == [] and prefix_groups([header]) == [[0]]
    assert len(prefix_groups([header + [i] for i in range(5)])) == 5  # a header only


def test_what_is_saved_is_counted_in_tokens():
    prompt, answer = list(range(90)), [1] * 10
    rows = [Row([*prompt, 7, i], answer, "") for i in range(100, 104)]
    # 91 tokens shared once, and for each row its last prompt token and its answer.
    assert share_saved(rows, [[0, 1, 2, 3]]) == pytest.approx(1 - (91 + 4 * 11) / (4 * 102))
    assert share_saved(rows, [[0], [1], [2], [3]]) == 0


def rows_on_passages(read: list[list[int]], length: int = 40) -> list[Row]:
    """Rows that read the numbered passages in that order, behind a header of 20 tokens."""
    rows = []
    for i, numbers in enumerate(read):
        borders = [20 + length * n for n in range(len(numbers) + 1)]
        prompt = [1] * 20 + [1000 + n * length + j for n in numbers for j in range(length)] + [5, i]
        rows.append(Row(prompt, [6, 2], "", borders=tuple(borders) if numbers else ()))
    return rows


def test_rows_with_common_passages_form_a_group_wherever_the_passages_stand():
    rows = rows_on_passages([[0, 1], [2, 3], [1, 4], [3, 2], [4, 0], []])
    groups = passage_groups(rows, 3)
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert {frozenset(group) for group in groups} == {frozenset({0, 2, 4}), frozenset({1, 3}), frozenset({5})}
    # header, five passages of 40 tokens and what is each row's own, against all rows in full
    assert share_saved(rows[:5], [[0, 1, 2, 3, 4]]) == pytest.approx(1 - (20 + 5 * 40 + 5 * 4) / (5 * 104))


@pytest.mark.parametrize("size", [1, 4, 8])
def test_every_row_comes_once_when_passages_are_kept_together(size):
    rng = random.Random(0)
    rows = rows_on_passages([rng.sample(range(30), rng.randint(0, 4)) for _ in range(101)])
    order = prefix_order(size)(rows, torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(101))
    if size > 1:
        apart = prefix_order(size, apart=True)(rows, torch.Generator().manual_seed(0))
        assert share_saved(rows, batches(order, size)) > 1.3 * share_saved(rows, batches(apart, size))


def batches_of(process: int, n: int, size: int, processes: int, **how) -> list[list[int]]:
    """The batches of one process, by accelerate."""
    made = EvenBatches(SequentialSampler(range(n)), n, size, processes, **how)
    shard = BatchSamplerShard(made, processes, process, even_batches=False)
    found = list(shard)
    assert len(shard) == len(found)
    return found


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 11, 12])
def test_processes_have_as_many_batches_and_each_row_is_in_one_of_them(n, size, processes):
    found = [batches_of(process, n, size, processes) for process in range(processes)]
    assert len({len(batches) for batches in found}) == 1
    assert sorted(row for batches in found for batch in batches for row in batch) == list(range(n))
    for step, together in enumerate(zip(*found)):
        start = step * size * processes  # the rows of a step are those of one process with as large a batch
        assert sorted(row for batch in together for row in batch) == list(range(n))[start : start + size * processes]
        lengths = [len(batch) for batch in together]
        assert max(lengths) <= size and max(lengths) - min(lengths) <= 1


def test_a_last_step_that_is_not_full_can_be_left_out():
    assert [batches_of(process, 11, 2, 2, drop_last=True) for process in (0, 1)] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_without_rows_has_no_loss_and_a_gradient_of_zero(families, packed):
    model = families["llama"].model().train()
    if packed:
        assert use_packed_attention(model) is None
    batch = collate([], 0, packed=packed, share_prefix=packed)
    loss = answer_loss(model, batch, answer_tokens=7)
    loss.backward()
    assert loss.item() == 0
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
