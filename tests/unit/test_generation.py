"""Batched greedy answers equal those of each prompt alone, and those of transformers' own `generate`."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import Family, loaded

from groundtune.errors import ModelError
from groundtune.model import generation
from groundtune.model.attention import use_packed_attention
from groundtune.model.generation import generate_greedy, stream_greedy
from groundtune.model.lookup import Lookup

NEW = 24


@pytest.fixture(autouse=True, params=["packed", "padded"])
def way(request, monkeypatch):
    """Both ways to generate: for models with packed attention, and for all others."""
    plain = Family.model

    def packing(family):
        model = plain(family)
        assert use_packed_attention(model) is None
        return model

    if request.param == "packed":
        monkeypatch.setattr(Family, "model", packing)
    return request.param


def prompts_for(family, n: int = 12, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to 40 random ids: shorter and longer than the sliding windows of 8, not sorted by length."""
    rng = random.Random(seed)
    ids = [id for id in range(len(family.tokenizer)) if id not in family.tokenizer.all_special_ids]
    return [[rng.choice(ids) for _ in range(rng.choice([1, 3, 7, 8, 9, 15, 16, 17, 40]))] for _ in range(n)]


def answers(family, model, prompts, batch_size: int, stop_ids, new: int = NEW, **options):
    return generate_greedy(
        model, prompts, stop_ids=stop_ids, pad_id=family.tokenizer.pad_token_id, max_new_tokens=new,
        batch_size=batch_size, **options,
    )  # fmt: skip


def generate_of_transformers(model, prompt: list[int], stop_ids, new: int = NEW) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=0,
        eos_token_id=list(stop_ids),
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def alone(family, prompts, stop_ids) -> list[list[int]]:
    """The answers of transformers' `generate` to each prompt, computed once for both ways."""
    return [_alone(family.folder, tuple(prompt), tuple(stop_ids)) for prompt in prompts]


@cache
def _alone(folder: Path, prompt: tuple[int, ...], stop_ids: tuple[int, ...]) -> list[int]:
    return generate_of_transformers(loaded(folder), list(prompt), stop_ids)


def frequent_stops(family, model, prompts) -> list[int]:
    """Two ids that end some of these answers early and others not at all; a random model never ends by itself."""
    free = [g.ids for g in answers(family, model, prompts, 100, [-1])]
    late = sorted(
        {id for ids in free for id in ids}, key=lambda id: abs(sum(id in ids for ids in free) - len(free) / 3)
    )
    return late[:2]


def test_batches_of_any_size_equal_generate_row_by_row(family):
    model, prompts = family.model(), prompts_for(family)
    stop_ids = frequent_stops(family, model, prompts)
    expected = alone(family, prompts, stop_ids)
    assert {len(ids) < NEW for ids in expected} == {True, False}  # some stop early, others never
    for batch_size in (1, 3, 8, 100):
        assert [g.ids for g in answers(family, model, prompts, batch_size, stop_ids)] == expected


def test_a_batch_equals_generating_alone_in_every_family_over_many_seeds(family):
    """In a single draw, close scores could hide a leak from a neighbour or its padding."""
    model = family.model()
    for seed in range(1, 4):
        prompts = prompts_for(family, 8, seed)
        together = answers(family, model, prompts, 8, [0], new=12)
        assert together == [answers(family, model, [prompt], 1, [0], new=12)[0] for prompt in prompts]


def test_rows_stop_at_any_stop_id_and_the_others_go_on(family):
    model, prompts = family.model(), prompts_for(family)
    stop_ids = frequent_stops(family, model, prompts)
    generated = answers(family, model, prompts, 4, stop_ids)
    for g in generated:
        assert not set(g.ids[:-1]) & set(stop_ids)  # nothing after the first stop
        assert g.finished == (g.ids[-1] in stop_ids)
        assert g.finished or len(g.ids) == NEW
    assert {g.finished for g in generated} == {True, False}


def test_an_answer_that_ends_with_its_first_or_its_last_allowed_token_is_finished(families):
    family = families["llama"]
    model, (prompt, *_) = family.model(), prompts_for(family)
    free = answers(family, model, [prompt], 1, [-1])[0].ids
    (first,) = answers(family, model, [prompt], 1, [free[0]])
    assert first.ids == free[:1] and first.finished
    length = next(n for n in range(2, NEW) if free[n - 1] not in free[: n - 1])
    (last,) = answers(family, model, [prompt], 1, [free[length - 1]], new=length)
    assert last.ids == free[:length] and last.finished
    (cut,) = answers(family, model, [prompt], 1, [free[length - 1]], new=length - 1)
    assert cut.ids == free[: length - 1] and not cut.finished


def test_answers_come_in_the_order_of_the_prompts(family):
    model, prompts = family.model(), prompts_for(family)
    expected = answers(family, model, prompts, 4, [0])
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    assert answers(family, model, [prompts[i] for i in order], 4, [0]) == [expected[i] for i in order]
    assert answers(family, model, [], 4, [0]) == []


def test_the_model_s_own_generation_settings_have_no_effect(family):
    model, prompts = family.model(), prompts_for(family, 6)
    expected = answers(family, model, prompts, 4, [0])
    for name, value in {
        "do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0, "max_new_tokens": 2,
        "eos_token_id": expected[0].ids[1], "no_repeat_ngram_size": 1, "min_new_tokens": 30, "num_beams": 4,
    }.items():  # fmt: skip
        setattr(model.generation_config, name, value)
    torch.manual_seed(1)
    assert answers(family, model, prompts, 4, [0]) == expected


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_generating_and_the_mode_is_restored(families, training):
    family = families["llama"]
    model, prompts = family.model(), prompts_for(family, 4)
    expected = answers(family, model, prompts, 4, [0])
    model.model.layers[0].mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.9))
    model.train(training)
    assert answers(family, model, prompts, 4, [0]) == expected
    assert model.training == training and not any(p.grad is not None for p in model.parameters())


def test_the_mode_is_restored_also_when_the_model_fails(families):
    family = families["llama"]
    model = family.model().train()
    model.get_decoder().layers[0].mlp.act_fn = None
    with pytest.raises(TypeError):
        answers(family, model, [[1]], 4, [0])
    assert model.training


def test_an_id_without_an_embedding_is_refused_before_the_model_reads_it(families):
    family = families["llama"]
    with pytest.raises(ModelError, match="produces ids up to 1,000,000, but the model has only"):
        answers(family, family.model(), [[10**6]], 4, [0])


def answers_and_passes(family, model, *arguments):
    """The answers, and the number of forward passes."""
    passes = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    generated = answers(family, model, *arguments)
    hook.remove()
    return generated, len(passes)


@pytest.mark.parametrize("way", ["packed"], indirect=True)
def test_guesses_spare_passes_where_they_are_right_and_change_no_answer(family, way, monkeypatch):
    model, prompts = family.model(), prompts_for(family, 6)
    stop_ids = frequent_stops(family, model, prompts)
    expected = alone(family, prompts, stop_ids)

    def right(lookup, at_most):
        (rest,) = (
            (prompt + answer)[len(lookup.ids) :]
            for prompt, answer in zip(prompts, expected)
            if (prompt + answer)[: len(lookup.ids)] == lookup.ids
        )
        return rest[:at_most]

    rng = random.Random(0)
    guesses = {
        "right": right,
        "wrong": lambda lookup, at_most: [rng.choice(lookup.ids) for _ in range(at_most)],
        "right at first": lambda lookup, at_most: [*right(lookup, at_most)[:2], *lookup.ids[-3:]][:at_most],
        "as it is": Lookup.guess,
    }
    for name, guess in guesses.items():
        monkeypatch.setattr(Lookup, "guess", guess)
        generated, passes = answers_and_passes(family, model, prompts, 100, stop_ids)
        assert [g.ids for g in generated] == expected, name
        if name == "right":  # a token, and five guessed ones, with every pass after the prompts were read
            assert passes == 1 + -(-(max(map(len, expected)) - 1) // 6)


def test_a_stream_is_the_answer_that_the_prompt_gets_in_a_batch(family):
    model, prompts = family.model().eval(), prompts_for(family, 6)
    stop_ids = frequent_stops(family, model, prompts)
    expected = [g.ids for g in answers(family, model, prompts, 6, stop_ids)]
    streams = [list(stream_greedy(model, p, stop_ids=stop_ids, max_new_tokens=NEW)) for p in prompts]
    assert streams == expected


def test_every_answer_is_reported(families):
    family = families["llama"]
    done = []
    answers(family, family.model(), prompts_for(family, 7), 3, [0], new=1, on_answer=done.append)
    assert sum(done) == 7


def test_prompts_that_begin_alike_get_the_answers_that_each_gets_alone(family):
    rng, model = random.Random(0), family.model()
    ids = [id for id in range(len(family.tokenizer)) if id not in family.tokenizer.all_special_ids]
    header, *passages = ([rng.choice(ids) for _ in range(20)] for _ in range(4))
    prompts = [header + passages[i % 3] + [rng.choice(ids) for _ in range(1 + i % 5)] for i in range(11)]
    prompts += [prompts[0], header + passages[0]]  # one twice, one that is the beginning of others
    stop_ids = frequent_stops(family, model, prompts)
    expected = alone(family, prompts, stop_ids)
    assert [g.ids for g in answers(family, model, prompts, 5, stop_ids)] == expected


def test_a_slot_goes_to_the_next_prompt_as_soon_as_a_quarter_is_free(families, way, monkeypatch):
    """The number of forward passes shows it: slots that wait for the slowest row would need more."""
    monkeypatch.setattr(generation, "_GUESSED", 0)
    family = families["llama"]
    model, prompts = family.model(), prompts_for(family, 16)
    stop_ids = frequent_stops(family, model, prompts)
    lengths = [len(g.ids) for g in answers(family, model, prompts, 4, stop_ids)]
    _, passes = answers_and_passes(family, model, prompts, 4, stop_ids)
    order = sorted(range(16), key=lambda i: -len(prompts[i]))
    without_refill = sum(max(lengths[i] for i in order[start : start + 4]) for start in range(0, 16, 4))
    if way == "padded":
        assert passes == without_refill
    else:
        assert passes < without_refill


def test_rows_of_a_model_with_linear_attention_stop_one_by_one():
    """Their cache holds states as well as keys and values; finished rows are removed from all of it."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )  # fmt: skip
    model = Qwen3NextForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)
    assert "linear_attention" in use_packed_attention(model)
    generator = random.Random(1)
    prompts = [[generator.randrange(3, 100) for _ in range(n)] for n in (5, 23, 9, 14, 40, 3)]
    options = {"stop_ids": range(7, 40, 3), "pad_id": 0, "max_new_tokens": 12}
    together = [answer.ids for answer in generate_greedy(model, prompts, batch_size=6, **options)]
    assert len({*map(len, together)}) > 1
    for prompt, ids in zip(prompts, together):
        assert generate_greedy(model, [prompt], batch_size=1, **options)[0].ids == ids
        read = [*prompt]
        with torch.no_grad():
            for id in ids:
                assert int(model(input_ids=torch.tensor([read]), use_cache=False).logits[0, -1].argmax()) == id
                read.append(id)
