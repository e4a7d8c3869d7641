"""The road of packed rows on CUDA, as far as a CPU can go it: blocks, shapes, types and what the kernel is given."""

from __future__ import annotations

import random
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask
from transformers import AttentionInterface

import groundtune.attention
from groundtune.attention import Memory, Packed, Segment, _gradient_problem, use_packed_attention
from groundtune.batching import pack
from groundtune.flex import BLOCK, attend_in_blocks, mask_of_blocks

LAYER = SimpleNamespace(training=False, layer_idx=0)


def layout(seed: int, header: int, passage: int, own: int) -> Packed:
    """Nine sequences on three passages behind one header, of about so many tokens each."""
    rng = random.Random(seed)

    def tokens(about: int) -> list[int]:
        return [rng.randrange(1000) for _ in range(rng.randint(about, 2 * about))]

    start, passages = tokens(header), [tokens(passage) for _ in range(3)]
    sequences = [start + passages[i] + tokens(own) for i, _ in product(range(3), range(3))]
    return Packed(pack(sequences, [len(s) - 1 for s in sequences]).segments)


def dense(counts: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[rows, columns] of booleans from how many are true in a row, and their columns first."""
    blocks = torch.zeros(columns.shape[-2:], dtype=torch.bool)
    for row, (count, listed) in enumerate(zip(counts[0, 0], columns[0, 0])):
        blocks[row, listed[:count].long()] = True
    return blocks


@pytest.mark.parametrize("window", [None, 5, 200, 700])
@pytest.mark.parametrize("sizes", [(20, 30, 9), (150, 260, 40), (130, 300, 300), (1, 1, 1)])
def test_blocks_hold_all_that_is_read_and_full_ones_nothing_else(sizes, window):
    packed = layout(0, *sizes)
    ends, positions = packed.subtree_ends(), packed.positions()
    mask = mask_of_blocks(ends, positions, window, "cpu")
    whole = mask.shape[-1]
    assert whole % BLOCK == 0 and 0 <= whole - len(ends) < BLOCK
    reads = create_mask(mask.mask_mod, None, None, whole, whole, device="cpu")[0, 0]
    in_blocks = reads.view(whole // BLOCK, BLOCK, -1, BLOCK)
    some, every = in_blocks.any(dim=3).any(dim=1), in_blocks.all(dim=3).all(dim=1)
    partly = dense(mask.kv_num_blocks, mask.kv_indices)
    wholly = dense(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (partly & wholly).any() and not (wholly & ~every).any() and not (some & ~(partly | wholly)).any()
    if window is None:
        assert torch.equal(partly | wholly, some) and torch.equal(wholly, every)
    assert reads.any(dim=1).all()  # a row of the softmax that reads nothing would be NaN
    assert not reads[: len(ends), len(ends) :].any()


def tensors(tokens: int, heads: int = 6) -> list[torch.Tensor]:
    """Query, key and value; two heads of keys."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, tokens, 16, generator=generator) for n in (heads, 2, 2)]


@pytest.mark.parametrize("heads", [6, 8])
@pytest.mark.parametrize("window", [None, 25])
def test_the_kernel_s_reference_gives_what_the_loop_over_segments_gives(window, heads):
    packed = layout(1, 20, 60, 30)
    query, key, value = tensors(len(packed.positions()), heads)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = packed.attend(LAYER, query, key, value, 0.3, window)
        found = attend_in_blocks(LAYER, query, key, value, packed.block_mask(window, "cpu"), 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def given(monkeypatch):
    """What the kernel is given, call by call, in place of the kernel."""
    calls = []

    def kernel(layer, query, key, value, mask, scaling):
        limit = torch._dynamo.config.recompile_limit
        calls.append(SimpleNamespace(query=query, key=key, value=value, scaling=scaling, recompile_limit=limit))
        return query.transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "flex_attention", kernel)
    return calls


def test_the_kernel_gets_whole_blocks_in_one_type_and_its_output_is_cut(given):
    query, key, value = tensors(200)
    mask = mask_of_blocks([200] * 200, list(range(200)), None, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # queries and keys were rotated in float32
        output = attend_in_blocks(LAYER, query, key, value.bfloat16(), mask, 0.5)
    (call,) = given
    assert {x.dtype for x in (call.query, call.key, call.value)} == {torch.bfloat16}
    assert {x.shape[2] for x in (call.query, call.key, call.value)} == {256} and call.scaling == 0.5
    assert torch.equal(output, query.bfloat16().transpose(1, 2))
    attend_in_blocks(LAYER, query, key, value, mask, None)
    assert {x.dtype for x in (given[1].query, given[1].key, given[1].value)} == {torch.float32}


def test_more_kernels_than_pytorch_allows_are_compiled_and_not_replaced(given):
    before = torch._dynamo.config.recompile_limit
    attend_in_blocks(LAYER, *tensors(BLOCK), mask_of_blocks([BLOCK] * BLOCK, list(range(BLOCK)), None, "cpu"), None)
    assert given[0].recompile_limit >= 64 and torch._dynamo.config.recompile_limit == before


def test_a_compiled_function_is_compiled_where_attention_calls_it():
    """Layers may be compiled, and attention stays out of that; its own kernel must not."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    kernel = torch.compile(lambda x: x.sin() + 1, backend=backend)
    attend = torch.compiler.disable(lambda x: kernel(x))
    torch.compile(lambda x: attend(x * 2) * 3, backend="eager")(torch.ones(4))
    assert len(compiled) == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_a_cpu_shares_keys_between_heads_under_a_mask(monkeypatch, device):
    """Elsewhere PyTorch has no kernel for that but the one that writes all scores to memory."""
    calls = []

    def attention(query, key, value, mask, is_causal, scale, enable_gqa):
        calls.append((mask is not None, key.shape[1] < query.shape[1]))
        assert enable_gqa == (key.shape[1] < query.shape[1])
        return query

    monkeypatch.setattr(groundtune.attention, "scaled_dot_product_attention", attention)
    segments = [Segment(0, 8), Segment(8, 13, (0,)), Segment(13, 20)]
    packed = Packed(segments, Memory(2, 20), (None, 0, 1))
    packed.attend(LAYER, *(x.to(device) for x in tensors(20)), None, None)
    assert calls == [(False, True), (True, device == "cpu"), (False, True)]


def test_trying_out_a_gradient_leaves_nothing_behind(family):
    model = family.model().train()
    assert use_packed_attention(model) is None
    assert _gradient_problem(model, torch.bfloat16) is None and _gradient_problem(model, None) is None
    assert all(parameter.grad is None for parameter in model.parameters()) and model.training
    next(model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    assert "not finite" in _gradient_problem(model, None)
    assert _gradient_problem(model.requires_grad_(False), None) is None
