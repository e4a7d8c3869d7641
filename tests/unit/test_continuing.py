"""Answers are exact whatever a model caches, and whatever the argument for its cache is called."""

from __future__ import annotations

import inspect
import logging
import random
import warnings

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.utils.logging import warning_once

from groundtune.model.continuing import way_of
from groundtune.model.generation import generate_greedy, stream_greedy

STOP_IDS = list(range(7, 40, 3))
NEW = 8
STATES = {
    "Mamba": {"state_size": 4},
    "FalconMamba": {"state_size": 4},
    "Mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "Rwkv": {"attention_hidden_size": 32, "intermediate_size": 48},
}
_ATTENTION = {
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 512,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_chunk_size": 8}
_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
_LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 1, "n_group": 2, "topk_group": 1,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "index_topk": 6, "index_n_heads": 2, "index_head_dim": 16,
}  # fmt: skip
_ZAMBA = {
    "layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3], "num_mem_blocks": 1, "chunk_size": 8,
    "mamba_d_state": 4, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "attention_head_dim": 16,
    "attention_hidden_size": 64, "adapter_rank": 4,
}  # fmt: skip
OTHERS = {  # layers of several kinds, or attention that is not to all earlier tokens
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1,
              "mamba_d_state": 4, "mamba_d_conv": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "Bamba": {"attn_layer_indices": [1], **_MAMBA},
    "FalconH1": {"mamba_d_ssm": 64, **_MAMBA},
    "GraniteMoeHybrid": {"layer_types": ["mamba", "attention"], "layers_block_type": ["mamba", "attention"],
                         "shared_intermediate_size": 48, **_MAMBA, **_EXPERTS},
    "Zamba2": _ZAMBA | {"num_hidden_layers": 4, "use_mamba_kernels": False},
    "RecurrentGemma": {"lru_width": 32, "attention_window_size": 64, "block_types": ["recurrent", "attention"]},
    "MiniMax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 8, **_EXPERTS},
    "DeepseekV32": _LATENT,
    "Llama4": {"intermediate_size_mlp": 48, "num_hidden_layers": 4, "attention_chunk_size": 8, **_EXPERTS},
}  # fmt: skip
PROMPTS = [[random.Random(n).randrange(3, 100) for _ in range(n)] for n in (5, 17, 9, 26, 2)]


def state_space(name: str):
    import transformers

    torch.manual_seed(0)
    shape = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    kind = getattr(transformers, f"{name}{'Text' * (name == 'Llama4')}Config", None)
    if kind is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    config = kind(**shape | (STATES[name] if name in STATES else _ATTENTION | OTHERS[name]))
    return wide(getattr(transformers, f"{name}ForCausalLM")(config))


class DropsItsCache(LlamaForCausalLM):
    """A model that gets its cache under an unknown name, and ignores unknown arguments."""

    def forward(self, *args, cache=None, past_key_values=None, **kwargs):
        return super().forward(*args, **kwargs)


class DropsItsMask(LlamaForCausalLM):
    """A model that attends to padding as to any token."""

    def forward(self, *args, cache=None, past_key_values=None, attention_mask=None, **kwargs):
        name = next(name for name in ("cache", "past_key_values") if name in LLAMA)
        return super().forward(*args, **{**kwargs, name: past_key_values if cache is None else cache})


LLAMA = inspect.signature(LlamaForCausalLM.forward).parameters


def llama(kind=LlamaForCausalLM):
    from transformers import LlamaConfig

    torch.manual_seed(0)
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    return wide(kind(LlamaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, pad_token_id=0, **shape)))


def wide(model):
    """The model with large weights: otherwise a random model repeats one token forever."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)
    return model.eval()


def answers(model) -> list[list[int]]:
    generated = generate_greedy(model, PROMPTS, stop_ids=STOP_IDS, pad_id=0, max_new_tokens=NEW, batch_size=4)
    return [answer.ids for answer in generated]


@torch.no_grad()
def exact(model, prompt: list[int]) -> list[int]:
    """The answer to one prompt, rereading the whole text for each token."""
    new: list[int] = []
    while len(new) < NEW and not set(new) & set(STOP_IDS):
        new.append(int(model(input_ids=torch.tensor([prompt + new]), use_cache=False).logits[0, -1].argmax()))
    return new


@pytest.mark.parametrize("name", [*STATES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_model_of_states_answers_as_if_it_read_all_again_for_each_token(name):
    model = state_space(name)
    expected = [exact(model, prompt) for prompt in PROMPTS]
    assert name in OTHERS or len({*map(len, expected)}) > 1  # rows stop one by one
    assert answers(model) == expected
    assert [list(stream_greedy(model, p, stop_ids=STOP_IDS, max_new_tokens=NEW)) for p in PROMPTS] == expected


def test_a_state_space_model_of_today_s_transformers_is_answered_from_its_cache():
    model = state_space("Mamba")
    if "cache" not in inspect.signature(type(model).forward).parameters:
        assert way_of(model) is None  # earlier, it had to be told positions of a kind of its own
    else:
        assert way_of(model).name == "cache" and not way_of(model).masked and way_of(model).padded


def test_a_cache_that_is_dropped_is_noticed_and_said_once(caplog):
    model = llama(DropsItsCache)
    expected = [exact(model, prompt) for prompt in PROMPTS]
    with caplog.at_level(logging.WARNING):
        assert answers(model) == answers(model) == expected
    (record,) = [r for r in caplog.records if r.name == "groundtune.model.continuing"]
    assert "is computed from the start of the prompt, which is slow" in record.message


def test_a_model_that_reads_padding_is_read_row_by_row():
    model = llama(DropsItsMask)
    assert answers(model) == [exact(model, prompt) for prompt in PROMPTS]
    assert way_of(model) is not None and not way_of(model).padded


def test_a_plain_model_reads_a_token_a_step_and_nothing_deprecated_is_used(caplog):
    model = llama()
    expected = [exact(model, prompt) for prompt in PROMPTS]
    assert way_of(model).masked and way_of(model).padded  # the trial is over
    read = []
    model.register_forward_pre_hook(lambda _, __, inputs: read.append(inputs["input_ids"].shape[1]), with_kwargs=True)
    warning_once.cache_clear()
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert answers(model) == expected
    finally:
        library.removeHandler(caplog.handler)
    assert "deprecated" not in caplog.text
    assert set(read) == {1, 26, 2}  # two batches of prompts, then single tokens
