"""Estimates of time and memory before a run: counted without weights, equal to what steps really compute and keep."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_family, write_data
from peft.tuners.lora.layer import Linear
from torch.utils.flop_counter import FlopCounterMode

from groundtune.arguments import ModelArguments
from groundtune.cli import main
from groundtune.model.loading import load_model
from groundtune.model.lora import FusedLinear
from groundtune.training.cost import step_cost
from groundtune.training.loss import answer_loss

TOKENS, ANSWER = 48, 12


@pytest.fixture(params=["llama", "gemma"])
def folder(request, tmp_path):
    make_family(request.param, tmp_path)
    return str(tmp_path)


def a_step(arguments: ModelArguments) -> tuple[int, int]:
    """Operations of the linear layers of a real step in float32, and bytes that it keeps for the gradient."""
    model = load_model(arguments, bf16=False, stop_ids=(1,), pad_id=0)
    for module in model.modules():
        if isinstance(module, FusedLinear):
            module.__class__ = Linear  # the counter does not know additions in place
    labels = torch.full((1, TOKENS), -100)
    labels[0, -ANSWER:] = 5
    kept = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    batch = {"input_ids": torch.full((1, TOKENS), 5), "labels": labels}
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        answer_loss(model, batch).backward()
    counts = counter.get_flop_counts()["Global"]
    linear = sum(n for operation, n in counts.items() if "attention" not in str(operation))
    return linear, sum(size for size, _ in kept.values())


@pytest.mark.parametrize("lora", [True, False])
def test_operations_and_memory_equal_those_of_a_real_step(folder, lora):
    arguments = ModelArguments(model_name_or_path=folder, use_peft=lora, lora_r=4)
    cost = step_cost(arguments, bf16=False)
    operations, kept = a_step(arguments)
    linear = cost.training(TOKENS, ANSWER) - 3.5 * cost.per_pair * TOKENS**2 / 2
    assert linear == pytest.approx(operations, rel=0.02)
    estimated = TOKENS * cost.per_token.kept + ANSWER * cost.per_answer.kept
    assert estimated == pytest.approx(kept, rel=0.25)
    assert estimated < cost.memory(TOKENS, ANSWER) - cost.memory(0, 0) < 1.5 * estimated


def test_weights_count_once_in_their_dtype_and_trained_ones_with_their_optimizer(folder):
    everything = step_cost(ModelArguments(model_name_or_path=folder), bf16=False)
    adapter = step_cost(ModelArguments(model_name_or_path=folder, use_peft=True, lora_r=4), bf16=True)
    assert everything.trained == everything.parameters
    assert everything.memory(0, 0) == 16 * everything.parameters
    assert adapter.weights == 2 * adapter.parameters and 0 < adapter.trained < everything.trained


def test_checkpointing_keeps_less_and_computes_the_forward_pass_again(folder):
    arguments = ModelArguments(model_name_or_path=folder)
    plain, checkpointed = (step_cost(arguments, bf16=False, checkpointing=on) for on in (False, True))
    assert checkpointed.per_token.kept < plain.per_token.kept
    assert checkpointed.per_token.step == plain.per_token.step + plain.per_token.forward


def test_the_doctor_tells_time_and_memory_of_a_run(tmp_path, capsys):
    write_data(tmp_path)
    make_family("llama", tmp_path / "model")
    flags = f"--model_name_or_path {tmp_path}/model --train_file {tmp_path}/train.jsonl --bf16 false"
    assert main(f"doctor sft {flags}".split()) == 0
    told = capsys.readouterr().out
    assert "cost of training (estimated" in told and "GFLOP/s" in told and "gradients and optimizer" in told
    assert main(f"doctor sft {flags} --num_train_epochs 3 --json".split()) == 0
    once, thrice = told, json.loads(capsys.readouterr().out)["cost"]
    assert f"{thrice['tokens'] // 3:,} tokens" in once
    assert main(f"doctor sft {flags} --max_train_samples 1 --num_train_epochs 3 --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["tokens"] < thrice["tokens"]


def test_a_model_that_cannot_run_without_data_has_no_estimate_and_no_error(tmp_path, capsys, monkeypatch):
    write_data(tmp_path)
    make_family("llama", tmp_path / "model")

    def fails(*_, **__):
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr("groundtune.training.cost.step_cost", fails)
    flags = f"--model_name_or_path {tmp_path}/model --train_file {tmp_path}/train.jsonl"
    assert main(f"doctor sft {flags}".split()) == 0
    assert "cost of training" not in capsys.readouterr().out
