"""Fused LoRA layers equal PEFT's: the same outputs, gradients, switches and files."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear

from groundtune.arguments import ModelArguments
from groundtune.model import lora
from groundtune.model.loading import add_lora
from groundtune.model.lora import FusedLinear, fuse


def layers(model) -> list:
    return [module for module in model.modules() if isinstance(module, Linear)]


def adapted(family, **options):
    """A model with an adapter that has an effect: B is not zero."""
    model = add_lora(family.model(), ModelArguments(use_peft=True, lora_r=4, **options)).train()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def as_peft_has_them(model):
    for module in layers(model):
        module.__class__ = Linear
    return model


def outputs_and_gradients(model):
    ids = torch.randint(3, 200, (2, 30), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=ids).logits
    (logits.log_softmax(-1)[..., 5].sum() / 60).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return logits.detach(), found


def test_outputs_and_gradients_are_those_of_peft(family):
    model = adapted(family)
    assert all(type(module) is FusedLinear and module._is_plain(torch.zeros(1)) for module in layers(model))
    logits, gradients = outputs_and_gradients(model)
    expected_logits, expected = outputs_and_gradients(as_peft_has_them(model))
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected.keys() and all("lora_" in name for name in gradients)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_in_bfloat16_a_layer_is_no_further_from_float32_than_peft_s(families):
    layer = layers(adapted(families["llama"]))[3]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, layer.in_features, generator=generator).bfloat16()
    towards = torch.randn(64, layer.out_features, generator=generator).bfloat16()

    def results(kind, dtype):
        layer.__class__ = kind
        layer.base_layer.to(dtype)
        inputs = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = layer(inputs)
        output.backward(towards.to(dtype))
        found = [output.detach(), inputs.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]
        layer.zero_grad()
        assert all(p.dtype == torch.float32 for p in found[2:])
        return [tensor.float() for tensor in found]

    layer.base_layer.weight.data = layer.base_layer.weight.bfloat16().float()  # the same weights in both types
    exact = results(Linear, torch.float32)
    ours, peft = results(FusedLinear, torch.bfloat16), results(Linear, torch.bfloat16)
    for a, b, truth in zip(ours, peft, exact):
        assert (a - truth).norm() <= 1.1 * (b - truth).norm() and (a - truth).norm() < 0.02 * truth.norm()


@pytest.mark.parametrize("case", ["dropout", "disabled", "merged", "DoRA"])
def test_what_is_not_plain_lora_is_left_to_peft(families, case):
    """With dropout the same draws; otherwise the same logits."""
    model = adapted(families["llama"], lora_dropout=0.5 if case == "dropout" else 0.0)
    if case == "DoRA":
        model = get_peft_model(families["llama"].model(), LoraConfig(target_modules=["q_proj"], use_dora=True))
        for module in layers(model):
            module.__class__ = FusedLinear
    if case == "merged":
        model.merge_adapter()
    if case == "disabled":
        model.base_model.disable_adapter_layers()
    assert not any(module._is_plain(torch.zeros(1)) for module in layers(model))
    ids = torch.arange(5, 25)[None]
    torch.manual_seed(3)
    logits = model(input_ids=ids).logits
    torch.manual_seed(3)
    torch.testing.assert_close(as_peft_has_them(model)(input_ids=ids).logits, logits)


def test_weights_that_deepspeed_has_split_are_left_to_peft(families):
    """ZeRO-3 gathers a weight when the layer that owns it is called, and nowhere else."""
    layer = layers(adapted(families["llama"]))[0]
    layer.base_layer.weight.ds_id = 0
    assert not layer._is_plain(torch.zeros(1))


def test_a_saved_adapter_is_one_that_plain_peft_loads(families, tmp_path):
    family = families["llama"]
    model = adapted(family).eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(5, 25)[None]
    loaded = PeftModel.from_pretrained(family.model(), tmp_path).eval()
    assert not any(isinstance(module, FusedLinear) for module in loaded.modules())
    expected = loaded(input_ids=ids).logits
    torch.testing.assert_close(expected, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert fuse(loaded) is None and all(type(module) is FusedLinear for module in layers(loaded))  # opened to answer
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, loaded(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


# The trial before it is used


def without_scaling(product):
    def forward(ctx, x, weight, bias, a, b, scaling):
        return product(ctx, x, weight, bias, a, b, 1.0)

    return forward


def half_a_gradient(product):
    def backward(ctx, gradient):
        to_x, *nothing, to_a, to_b, last = product(ctx, gradient)
        return to_x, *nothing, to_a / 2, to_b, last

    return backward


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name, broken, said", [("forward", without_scaling, "output by 0"), ("backward", half_a_gradient, "dA by 0.5")]
)
def test_a_fused_product_that_is_wrong_is_left_to_peft_with_a_line(
    families, monkeypatch, caplog, name, broken, said, dtype
):
    product = getattr(lora._LoraProduct, name)
    monkeypatch.setattr(lora._LoraProduct, name, staticmethod(broken(product)))
    base = families["llama"].model().to(getattr(torch, dtype))
    with caplog.at_level(logging.WARNING, "groundtune"):
        model = add_lora(base, ModelArguments(use_peft=True, lora_r=4))
    assert all(type(module) is Linear for module in layers(model))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("LoRA layers are computed by PEFT, which is slower: the fused product differs")
    assert said in message
    assert model(input_ids=torch.arange(5, 25)[None]).logits.requires_grad


def test_a_peft_whose_layers_are_made_of_something_else_computes_them_itself(families, monkeypatch, caplog):
    def gone(layer, x):
        raise AttributeError("'Linear' object has no attribute 'lora_variant'")

    monkeypatch.setattr(FusedLinear, "_is_plain", gone)
    model = add_lora(families["llama"].model(), ModelArguments(use_peft=True, lora_r=4))
    assert all(type(module) is Linear for module in layers(model))
    assert "slower: AttributeError: 'Linear' object has no attribute 'lora_variant'" in caplog.text


def test_the_trial_draws_nothing_and_changes_nothing(families):
    model = add_lora(families["llama"].model(), ModelArguments(use_peft=True, lora_r=4))
    before, state = {name: p.clone() for name, p in model.named_parameters()}, torch.get_rng_state()
    assert fuse(as_peft_has_them(model)) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


# What all-linear does not reach


def with_experts() -> torch.nn.Module:
    from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

    torch.manual_seed(0)
    return GraniteMoeForCausalLM(
        GraniteMoeConfig(
            vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        )
    )  # fmt: skip


def test_the_share_of_a_model_with_experts_that_is_adapted_is_said_in_one_line(caplog):
    model = with_experts()
    every = {n: p.numel() for n, p in model.get_decoder().layers.named_parameters() if p.ndim > 1}
    add_lora(model, ModelArguments(use_peft=True))
    (line,) = [r.getMessage() for r in caplog.records if "all-linear" in r.getMessage()]
    adapted = sum(n for name, n in every.items() if "block_sparse_moe" not in name)
    share = round(100 * adapted / sum(every.values()))
    assert f"adapts {share} % of the weights of the layers" in line and share < 30
    assert "not trained: block_sparse_moe." in line


def test_no_line_where_all_layers_are_linear_or_the_layers_are_named(family, caplog):
    add_lora(family.model(), ModelArguments(use_peft=True))
    named = ModelArguments(use_peft=True, lora_target_modules=["q_proj"])
    add_lora(with_experts(), named)
    assert "all-linear" not in caplog.text
