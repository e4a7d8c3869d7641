"""Packed rows, with shared prefixes or not, give the same loss, gradient and answer as each row by itself."""

from __future__ import annotations

import random
import shutil
import types
from itertools import product

import pytest
import torch
import torch._dynamo.utils
from conftest import gradients, random_documents, random_history, random_text
from torch.nn.functional import cross_entropy

from groundtune.arguments import ModelArguments
from groundtune.model.attention import NAME, _kernel_problem, attends_by_layout, error_of_logits, use_packed_attention
from groundtune.model.kv_cache import KVCache
from groundtune.model.loading import add_lora
from groundtune.model.packing import Packed, Segment, pack
from groundtune.prompts.policies import required_first
from groundtune.prompts.rows import Row, encode_rows
from groundtune.schema import Example
from groundtune.training.batching import IGNORED, collate
from groundtune.training.loss import answer_loss
from groundtune.training.trainer import compile_layers

SLOW = pytest.mark.slow  # compiling takes half a minute
MODES = {"padded": {}, "packed": {"packed": True}, "shared": {"packed": True, "share_prefix": True}}


def rows_on_common_passages(family, n: int = 7, seed: int = 0) -> list[Row]:
    """Two to three questions per passage, two dialogues with a common history, one question asked twice."""
    rng = random.Random(seed)
    documents = [random_documents(rng, 3) or random_documents(rng, 3) for _ in range(1 + n // 3)]
    history = random_history(rng)
    examples = [
        Example(random_text(rng), random_text(rng, 5), (), history if i % 3 else random_history(rng)) for i in range(n)
    ]
    examples.append(Example(examples[0].question, random_text(rng, 5), (), examples[0].chat_history))
    passages = [required_first(documents[i // 3]) for i in range(n)] + [required_first(documents[0])]
    return encode_rows(examples, passages, family.prompt(), 10_000)


def packing_model(family):
    model = family.model()
    assert use_packed_attention(model) is None and attends_by_layout(model)
    return model


@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradient_are_those_of_one_example_at_a_time(family, mode):
    """Two families have sliding windows of 8 tokens, shorter than the shared prefixes."""
    model, pad = packing_model(family), family.tokenizer.pad_token_id
    for seed in range(3):
        rows = rows_on_common_passages(family, seed=seed)
        tokens = sum(len(row.answer_ids) for row in rows)
        alone = 0.0
        for row in rows:  # by transformers itself
            ids = torch.tensor([row.prompt_ids + row.answer_ids])
            logits = family_logits(model, ids)[0, len(row.prompt_ids) - 1 : -1]
            loss = cross_entropy(logits, torch.tensor(row.answer_ids), reduction="sum") / tokens
            loss.backward()
            alone += loss.item()
        expected = gradients(model)
        batch = collate(rows, pad_id=pad, **MODES[mode])
        loss = answer_loss(model, batch)
        loss.backward()
        found = gradients(model)
        assert loss.item() == pytest.approx(alone, rel=1e-6)
        assert torch.cosine_similarity(found, expected, dim=0) >= 0.99999
        torch.testing.assert_close(found.norm(), expected.norm(), rtol=1e-4, atol=0)
    if mode == "shared":
        assert batch["input_ids"].numel() < 0.8 * sum(len(row) for row in rows)  # else nothing was tried


def family_logits(model, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the model as transformers runs it."""
    model.set_attn_implementation("sdpa")
    logits = model(input_ids=ids, use_cache=False).logits
    model.set_attn_implementation(NAME)
    return logits


def row_losses(model, batch) -> list[float]:
    """The loss of each row: that of the batch with only that row's labels."""
    losses = []
    labels = batch["labels"]
    starts = [i for i in range(1, labels.shape[1]) if labels[0, i] != IGNORED and labels[0, i - 1] == IGNORED]
    for begin in starts:
        stop = next((i for i in range(begin, labels.shape[1]) if labels[0, i] == IGNORED), labels.shape[1])
        only = torch.full_like(labels, IGNORED)
        only[0, begin:stop] = labels[0, begin:stop]
        losses.append(answer_loss(model, {**batch, "labels": only}, answer_tokens=1).item())
    return losses


def rows_of_a_tree(family, rng: random.Random) -> list[Row]:
    """An instruction, two sets of passages below it, two orders of the rest below each, two questions below those."""
    words = range(3, len(family.tokenizer))

    def some(n: int) -> list[int]:
        return rng.choices(words, k=n)

    instruction = some(21)
    sets = [instruction + some(18) for _ in range(2)]
    prompts = [above + some(17) for above in sets for _ in range(2)]
    return [Row(above + some(rng.randrange(2, 9)), some(4), "") for above in prompts for _ in range(2)]


def test_a_tree_of_four_levels_gives_the_loss_and_gradient_of_one_row_at_a_time(family):
    model, pad = packing_model(family), family.tokenizer.pad_token_id
    rows = rows_of_a_tree(family, random.Random(1))
    packing = pack([row.prompt_ids + row.answer_ids for row in rows], [len(row.prompt_ids) - 1 for row in rows])
    assert max(len(segment.path) for segment in packing.segments) == 3
    assert len(packing.ids) == 21 + 2 * 18 + 4 * 17 + sum(len(row) - 56 for row in rows)
    tokens = sum(len(row.answer_ids) for row in rows)
    alone = sum(answer_loss(model, collate([row], pad), tokens) for row in rows)
    alone.backward()
    expected = gradients(model)
    together = answer_loss(model, collate(rows, pad, packed=True, share_prefix=True), tokens)
    together.backward()
    assert together.item() == pytest.approx(alone.item(), rel=1e-6)
    assert torch.cosine_similarity(gradients(model), expected, dim=0) >= 0.99999


@pytest.mark.parametrize("mode", ["packed", "shared"])
def test_changing_one_answer_changes_no_other_row_s_loss(family, mode):
    model, rows = packing_model(family), rows_on_common_passages(family)
    before = row_losses(model, collate(rows, pad_id=0, **MODES[mode]))
    assert len(before) == len(rows)
    for i, row in enumerate(rows):
        other = Row(row.prompt_ids, [(id + 7) % 200 + 10 for id in row.answer_ids], "")
        after = row_losses(model, collate([*rows[:i], other, *rows[i + 1 :]], pad_id=0, **MODES[mode]))
        changed = [j for j, (a, b) in enumerate(zip(before, after)) if abs(a - b) > 1e-4 * abs(a)]
        assert len(changed) == 1


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
def test_an_adapter_gets_the_same_gradient_from_shared_rows(family, checkpointing):
    torch.manual_seed(0)
    model = add_lora(family.model(), ModelArguments(use_peft=True, lora_r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert use_packed_attention(model) is None
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.train()
    rows, found = rows_on_common_passages(family), {}
    for mode in MODES:
        answer_loss(model, collate(rows, pad_id=0, **MODES[mode])).backward()
        found[mode] = gradients(model)
    for mode in ("packed", "shared"):
        assert torch.cosine_similarity(found[mode], found["padded"], dim=0) >= 0.99999
        torch.testing.assert_close(found[mode].norm(), found["padded"].norm(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "kind, lora, backend", [("llama", False, "eager"), pytest.param("gemma", True, "aot_eager", marks=SLOW)]
)
def test_compiled_layers_give_the_same_loss_and_gradient(families, kind, lora, backend):
    torch.manual_seed(0)
    model = families[kind].model()
    model = add_lora(model, ModelArguments(use_peft=True, lora_r=4)) if lora else model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert use_packed_attention(model) is None
    batches = [collate(rows_on_common_passages(families[kind], seed=s), 0, **MODES["shared"]) for s in range(2)]

    def results():
        losses = [answer_loss(model, batch) for batch in batches]
        sum(losses).backward()
        return [loss.item() for loss in losses], gradients(model)

    losses, expected = results()
    compile_layers(model, backend=backend)
    compiled_losses, found = results()
    assert compiled_losses == pytest.approx(losses, rel=1e-5)
    assert torch.cosine_similarity(found, expected, dim=0) >= 0.99999


def reads(sequences: list[list[int]]) -> tuple[Packed, torch.Tensor]:
    """A packing, and the mask [tokens, tokens] of who attends to whom, from the sequences' paths."""
    packing = pack(sequences, [len(s) - 1 for s in sequences])
    mask = torch.zeros(len(packing.ids), len(packing.ids), dtype=torch.bool)
    for segment in packing.segments:
        for i in range(segment.start, segment.stop):
            mask[i, segment.start : i + 1] = True
            for j in segment.path:
                mask[i, packing.segments[j].start : packing.segments[j].stop] = True
    return Packed(packing.segments), mask


def three_on_each_of_three(header: int, passage: int, own: int) -> list[list[int]]:
    """Sequences on three passages behind one header, with the given numbers of random ids in each part."""
    rng = random.Random(0)
    begin = [rng.randrange(50) for _ in range(header)]
    passages = [[rng.randrange(50) for _ in range(passage)] for _ in range(3)]
    return [begin + p + [rng.randrange(50) for _ in range(own)] for p, _ in product(passages, range(3))]


@pytest.mark.parametrize("window", [None, 5, 40])
def test_the_block_mask_for_cuda_says_the_same_as_the_segments(window):
    layout, mask = reads(three_on_each_of_three(header=20, passage=30, own=9))
    if window is not None:
        positions = torch.tensor(layout.positions())
        mask &= positions[:, None] - positions[None, :] < window
    from torch.nn.attention.flex_attention import create_mask

    block_mask = layout.block_mask(window, "cpu")
    n = len(mask)
    assert torch.equal(create_mask(block_mask.mask_mod, None, None, n, n, device="cpu")[0, 0], mask)
    for segment in layout.segments:  # and the masks of the loop over segments
        read = sum(len(layout.segments[j]) for j in segment.path) + len(segment)
        own = layout._mask(len(segment), read, window, "cpu")
        own = torch.ones(read, read, dtype=torch.bool).tril() if own is None else own
        columns = [i for j in segment.path for i in range(layout.segments[j].start, layout.segments[j].stop)]
        columns += range(segment.start, segment.stop)
        assert torch.equal(own, mask[segment.start : segment.stop][:, columns])


@pytest.mark.parametrize("window", [None, 50, 300])
def test_the_blocks_for_cuda_are_those_of_the_mask(window):
    """No needed block is skipped, no unneeded block is computed, and only full blocks go without a mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    layout, _ = reads(three_on_each_of_three(header=70, passage=400, own=90))
    made, n = layout.block_mask(window, "cpu"), layout.segments[-1].stop
    assert n % 128 and n > 1500
    right, blocks = create_block_mask(made.mask_mod, None, None, 4096, 4096, device="cpu"), -(-n // 128)
    assert made.shape == right.shape
    assert torch.equal(made.to_dense()[..., :blocks, :], right.to_dense()[..., :blocks, :])
    for a, b in ((made.full_kv_num_blocks, right.full_kv_num_blocks), (made.kv_num_blocks, right.kv_num_blocks)):
        assert torch.equal(a[..., :blocks], b[..., :blocks])
    # Each padding token attends to itself: kernels return NaN for a row that attends to nothing.
    assert (made.to_dense()[0, 0].diagonal() == 1).all() and made.mask_mod(0, 0, torch.tensor(n), torch.tensor(n))
    assert made.full_kv_num_blocks.sum() > 0 or window == 50


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU takes a compiler")
def test_the_kernel_for_cuda_gives_what_the_segments_give_and_one_does_for_rows_of_many_lengths():
    """Compiled for this CPU, where it has no gradient."""
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    check_blocks_against_segments()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


def test_the_blocks_for_cuda_give_what_the_segments_give(monkeypatch):
    """FlexAttention in PyTorch's uncompiled reference version."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
    monkeypatch.setattr("groundtune.model.packing._flex_attention", lambda: flex_attention.flex_attention)
    check_blocks_against_segments()


def check_blocks_against_segments() -> None:
    rng = random.Random(0)
    for length, window in product((40, 111, 300), (None, 64)):
        passages = [[rng.randrange(50) for _ in range(length)] for _ in range(2)]
        layout, _ = reads([p + [rng.randrange(50) for _ in range(40)] for p, _ in product(passages, range(2))])
        query, key, value = (torch.randn(1, heads, layout.segments[-1].stop, 32) for heads in (4, 2, 2))
        with torch.no_grad():
            blocks = layout._attend_in_blocks(query, key, value, None, window)
            assert torch.allclose(blocks, layout.attend(None, query, key, value, None, window), atol=1e-5)


def blocks_from(change):
    """Replace FlexAttention by one whose correct output goes through `change`."""
    return lambda layout, *inputs: change(layout._attend_by_segments(None, *inputs))


@pytest.mark.parametrize("change, found", [(lambda x: x, None), (lambda x: x * x.detach().abs(), "gradients")])
def test_a_kernel_with_other_gradients_is_not_used(family, monkeypatch, change, found):
    monkeypatch.setattr(Packed, "_attend_in_blocks", blocks_from(change))
    problem = _kernel_problem(family.model().config.get_text_config(), torch.float32, "cpu")
    assert problem is None if found is None else found in problem


def test_float32_queries_are_as_autocast_would_have_them(monkeypatch):
    """Norms of a float32 model return float32 queries and keys, while values are bfloat16."""
    seen = []
    monkeypatch.setattr(
        "groundtune.model.packing._flex_attention", lambda: lambda q, k, v, **_: seen.append((q, k, v)) or q
    )
    query, key, value = torch.randn(1, 4, 20, 8), torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Packed([Segment(0, 20)])._attend_in_blocks(query, key, value, None, None)
    assert [x.dtype for x in seen[0]] == [torch.bfloat16] * 3


def test_segments_cover_the_row_and_spell_every_sequence(family):
    rows = rows_on_common_passages(family, 12)
    sequences = [row.prompt_ids + row.answer_ids for row in rows]
    packing = pack(sequences, [len(row.prompt_ids) - 1 for row in rows])
    borders = [segment.start for segment in packing.segments] + [len(packing.ids)]
    assert borders == [0, *(segment.stop for segment in packing.segments)]
    for sequence, last, end in zip(sequences, packing.last, packing.ends):
        segments = [packing.segments[i] for i in (*packing.segments[end].path, end)]
        spelt = [id for s in segments for id in packing.ids[s.start : s.stop]]
        assert spelt == sequence and segments[-1].stop == last + 1
    assert len(set(packing.ends)) == len(rows)  # each row has its own token that predicts its answer


def test_without_sharing_every_row_is_one_segment(family):
    rows = rows_on_common_passages(family)
    packing = pack([row.prompt_ids for row in rows], [0] * len(rows))
    assert len(packing.segments) == len(rows) and not any(segment.path for segment in packing.segments)
    assert len(packing.ids) == sum(len(row.prompt_ids) for row in rows)


def test_a_model_whose_attention_needs_more_is_left_as_it_was(families):
    changed = families["llama"].model()
    changed.config.attention_dropout = 0.1
    assert "attention_dropout is 0.1" in use_packed_attention(changed)
    mixed = families["gemma"].model()
    mixed.config.layer_types = ["linear_attention", "full_attention"]
    assert "linear_attention" in use_packed_attention(mixed)
    older = families["llama"].model()
    older.config.attn_pdrop = 0.1  # what GPT-2 calls it
    assert use_packed_attention(older) == "the model's attn_pdrop is 0.1"
    for model in (changed, mixed, older):
        assert model.config._attn_implementation == "sdpa"
    assert use_packed_attention(older, to_train=False) is None  # what only answers drops nothing out
    eager = families["llama"].model()
    eager.set_attn_implementation("eager")
    assert "eager" in use_packed_attention(eager)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_only_an_error_that_lasts_keeps_a_model_from_packing(families, dtype):
    """Rounding is amplified in one row or another; a leak is in the same row of every draw."""
    model, exact = families["llama"].model().to(dtype), torch.randn(3, 50)
    rounding = error_of_logits(model, lambda draw: (exact + torch.eye(3)[draw, :, None] * torch.randn(3, 50), exact))
    assert (rounding is None) is (dtype == torch.bfloat16)
    assert error_of_logits(model, lambda _: (exact + torch.eye(3)[1, :, None] * torch.randn(3, 50), exact)) > 0.5
    assert error_of_logits(model, lambda _: (exact, exact)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_that_looks_at_its_neighbours_is_found_out(families, dtype):
    """Such as a state-space layer or a convolution, which the layout never reaches."""
    model = families["llama"].model().to(dtype)
    mlp = model.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) + x.roll(1, dims=1)
    assert "differ" in use_packed_attention(model) and not attends_by_layout(model)


def test_a_model_that_keeps_its_window_from_attention_is_found_out(families):
    """Such as Phi-3.5-MoE, whose window is only in its mask; no sequence of the trial is that long."""
    model = families["mistral"].model()
    model.config.sliding_window = 40
    for layer in model.model.layers:
        layer.self_attn.config.sliding_window = 40
    assert use_packed_attention(model) is None
    model = families["llama"].model()
    model.config.sliding_window = 40
    assert "window of 40" in use_packed_attention(model) and not attends_by_layout(model)


def test_a_model_that_drops_the_layout_is_found_out(families):
    model = families["llama"].model()
    forward = model.model.layers[1].self_attn.forward
    model.model.layers[1].self_attn.forward = lambda *args, layout=None, **kwargs: forward(*args, **kwargs)
    assert use_packed_attention(model) is not None and not attends_by_layout(model)


def test_trying_out_draws_no_random_numbers_and_keeps_the_mode(families):
    model = families["mistral"].model().train()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    use_packed_attention(model)
    assert torch.equal(torch.rand(3), expected) and model.training


def test_a_saved_model_names_an_attention_that_others_know(families, tmp_path):
    model = packing_model(families["llama"])
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    "name, more",
    [
        ("Afmoe", {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "num_dense_layers": 1,
                   "num_attention_heads": 4, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"],
                   "sliding_window": 8}),
        ("JetMoe", {"kv_channels": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
    ],
)  # fmt: skip
def test_a_model_that_expects_contiguous_outputs_of_its_attention_is_packed(name, more):
    import transformers

    shape = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2}
    config = getattr(transformers, f"{name}Config")(**shape, intermediate_size=48, **more)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    assert use_packed_attention(model) is None and attends_by_layout(model)


def test_positions_go_on_from_the_prefix():
    layout = Packed([Segment(0, 3), Segment(3, 5, (0,)), Segment(5, 6, (0, 1)), Segment(6, 8, (0,)), Segment(8, 9)])
    assert layout.positions() == [0, 1, 2, 3, 4, 5, 3, 4, 0]
    assert layout.subtree_ends() == [8, 8, 8, 6, 6, 6, 8, 8, 9]


def test_a_model_that_is_not_trained_waits_for_no_kernel_of_training(families, monkeypatch):
    """On CUDA the kernel takes a while to compile, which would delay an answer."""
    tried, attend = set(), Packed.attend

    def noted(self, *given):
        tried.add(self.cache is None)
        return attend(self, *given)

    monkeypatch.setattr(Packed, "attend", noted)
    assert use_packed_attention(families["gemma"].model()) is None and tried == {True, False}
    tried.clear()
    assert use_packed_attention(families["gemma"].model(), to_train=False) is None and tried == {False}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_a_cpu_shares_keys_between_heads_under_a_mask(monkeypatch, device):
    """Elsewhere PyTorch only has the kernel that writes all scores to memory."""
    calls = []

    def sdpa(query, key, value, mask, is_causal, scale, enable_gqa):
        calls.append((mask is not None, enable_gqa))
        assert enable_gqa == (key.shape[1] < query.shape[1])
        return query

    monkeypatch.setattr("groundtune.model.packing.scaled_dot_product_attention", sdpa)
    packed = Packed([Segment(0, 8), Segment(8, 13, (0,)), Segment(13, 20)], KVCache(2, 20), (None, 0, 1))
    inputs = (torch.randn(1, heads, 20, 16, device=device) for heads in (6, 2, 2))
    packed.attend(types.SimpleNamespace(layer_idx=0), *inputs, None, None)
    assert calls == [(False, True), (True, device == "cpu"), (False, True)]


def test_a_compiled_function_is_compiled_where_attention_calls_it():
    """Compiled layers exclude attention, but its own kernel must still be compiled."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    kernel = torch.compile(lambda x: x.sin() + 1, backend=backend)
    attend = torch.compiler.disable(lambda x: kernel(x))
    torch.compile(lambda x: attend(x * 2) * 3, backend="eager")(torch.ones(4))
    assert len(compiled) == 1
