"""Whatever stops a training, it resumes and ends with exactly the weights of an uninterrupted run."""

from __future__ import annotations

import functools
import json
import logging
import os
import pickle
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import INSTRUCTION, tiny_examples
from transformers import TrainerCallback

import groundtune.training.loss
from groundtune.arguments import ModelArguments, PromptArguments
from groundtune.methods import METHODS
from groundtune.model.loading import add_lora
from groundtune.prompts.policies import gold_passages
from groundtune.prompts.prompt import make_prompt
from groundtune.prompts.rows import encode_rows
from groundtune.runs.checkpoints import checkpoint_folders, newest_checkpoint, read_checkpoint
from groundtune.system.durable import Damaged
from groundtune.system.signals import Stopped, watched
from groundtune.training.arguments import QATrainingArguments, tracker_problems
from groundtune.training.safe_trainer import NonFiniteLoss
from groundtune.training.trainer import QATrainer

METRIC = "eval_loss_with_gold_passage"
KINDS = ("LoRA with dropout", "all weights with dropout")


class Killed(BaseException):
    """As kill -9, in so far as nothing is done about it."""


class At(TrainerCallback):
    """Does something once, at a given event of a given step."""

    def __init__(self, event: str, step: int, act):
        pending = [act]

        def hook(args, state, control, **kwargs):
            if state.global_step == step and pending:
                pending.pop()()

        setattr(self, event, hook)


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def make_in(families):
    """A trainer on six rows in micro-batches of one, accumulation 4: two steps per epoch, of four and two rows."""
    family = families["llama"]
    prompt = make_prompt(family.tokenizer, PromptArguments(instruction=INSTRUCTION))
    examples = tiny_examples()
    rows = encode_rows(examples, [gold_passages(e) for e in examples], prompt, 300)

    def make(folder: Path, kind: str = KINDS[0], *callbacks, trainer=QATrainer, run=None, **options: Any):
        torch.manual_seed(0)
        model = family.model()
        if kind == KINDS[0]:
            model = add_lora(model, ModelArguments(use_peft=True, lora_r=2, lora_dropout=0.3))
        else:
            model.config.attention_dropout = 0.3
            for layer in model.model.layers:
                layer.self_attn.attention_dropout = 0.3
        defaults = {
            "max_steps": 7, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "learning_rate": 1e-2,
            "eval_steps": 2, "save_steps": 2, "bf16": False, "disable_tqdm": True, "save_total_limit": None,
            "metric_for_best_model": METRIC, "eval_on_start": False, "logging_steps": 1,
        }  # fmt: skip
        return trainer(
            model=model,
            args=QATrainingArguments(output_dir=str(folder), **defaults | options),
            train_dataset=rows, eval_dataset=rows[:2], method=METHODS["sft"], evaluator=None, run=run,
            pad_id=family.tokenizer.pad_token_id, callbacks=list(callbacks),
        )  # fmt: skip

    return make


@pytest.fixture
def make(make_in, tmp_path):
    """The same, in a folder of the test."""
    return lambda folder="run", *given, **options: make_in(tmp_path / folder, *given, **options)


@dataclass(frozen=True)
class Whole:
    """The final state of an uninterrupted run."""

    weights: dict[str, torch.Tensor]
    evaluations: list[tuple[int, float]]
    best: str | None


@pytest.fixture(scope="module")
def whole(make_in, tmp_path_factory):
    """The end of a LoRA run with these options, trained once for all tests that compare with it."""

    @functools.cache
    def whole(**options: Any) -> Whole:
        trainer = make_in(tmp_path_factory.mktemp("whole") / "run", **options)
        trainer.train()
        best = trainer.state.best_model_checkpoint
        return Whole(weights(trainer), evaluations(trainer), best and Path(best).name)

    return whole


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(trainer) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}


def evaluations(trainer) -> list[tuple[int, float]]:
    return [(row["step"], row[METRIC]) for row in trainer.state.log_history if METRIC in row]


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_to_the_same_weights_from_every_checkpoint(make, tmp_path, kind):
    """In the middle of an epoch (2 of 6 micro-batches are left), at its end, and at the end of the run."""
    whole = make("whole", kind, load_best_model_at_end=False, save_steps=1)
    whole.train()
    expected, curve = weights(whole), losses(whole)
    plain = make("other", kind, load_best_model_at_end=False, save_strategy="no", seed=1, data_seed=42)
    plain.train()
    assert not same(weights(plain), expected)  # dropout has an effect
    for step in (1, 2, 3, 4, 7):
        folder = tmp_path / f"from_{step}"
        shutil.copytree(tmp_path / "whole", folder)
        for path in checkpoint_folders(folder)[step:]:
            shutil.rmtree(path)
        resumed = make(folder.name, kind, load_best_model_at_end=False, save_steps=1)
        resumed.train(resume_from_checkpoint=newest_checkpoint(folder))
        assert resumed.state.global_step == 7
        assert same(weights(resumed), expected), step
        assert losses(resumed) == curve
        assert evaluations(resumed) == evaluations(whole)


@pytest.mark.parametrize(
    "event, step", [("on_step_begin", 3), ("on_substep_end", 5), ("on_evaluate", 4), ("on_save", 6), ("on_step_end", 7)]
)
def test_killed_anywhere_the_best_checkpoint_is_the_same(make, whole, event, step):
    with pytest.raises(Killed):
        make("run", KINDS[0], At(event, step, kill)).train()
    resumed = make("run")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), whole().weights)
    assert Path(resumed.state.best_model_checkpoint).name == whole().best
    assert evaluations(resumed) == whole().evaluations


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine", "reduce_lr_on_plateau", "inverse_sqrt"])
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_every_schedule_and_optimizer_goes_on(make, scheduler, optim):
    if (scheduler, optim) not in {("constant", "sgd"), ("linear", "sgd")} and optim == "sgd":
        pytest.skip("enough")
    options = {"lr_scheduler_type": scheduler, "optim": optim, "max_steps": 5, "warmup_steps": 2}
    whole = make("whole", **options)
    whole.train()
    with pytest.raises(Killed):
        make("run", KINDS[0], At("on_step_end", 3, kill), **options).train()
    resumed = make("run", **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
@pytest.mark.parametrize(
    "event, step", [("on_substep_end", 2), ("on_step_end", 3), ("on_step_end", 4), ("on_step_end", 7)]
)
def test_after_a_signal_the_step_is_finished_and_saved_and_the_run_goes_on(
    make, whole, tmp_path, strategy, event, step
):
    options = {"eval_strategy": strategy, "save_strategy": strategy}
    stopped = make("run", KINDS[0], At(event, step, terminate), **options)
    with (
        pytest.raises(Stopped, match=f"SIGTERM after step {step + (event == 'on_substep_end')}, which is saved in "),
        watched(),
    ):
        stopped.train()
    done = stopped.state.global_step
    assert done == step + (event == "on_substep_end")
    assert newest_checkpoint(tmp_path / "run").step == done
    resumed = make("run", **options)
    resumed.train(resume_from_checkpoint=True)
    undisturbed = whole(**options)
    assert same(weights(resumed), undisturbed.weights)
    assert evaluations(resumed) == undisturbed.evaluations
    assert Path(resumed.state.best_model_checkpoint).name == undisturbed.best


class StopsInEvaluation(QATrainer):
    def _gold_loss(self, dataloader):
        if self.state.global_step == 4:
            terminate()
        return super()._gold_loss(dataloader)


def test_a_signal_in_an_evaluation_stops_it_and_it_is_made_up_for(make, whole, tmp_path):
    stopped = make("run", trainer=StopsInEvaluation)
    with pytest.raises(Stopped), watched():
        stopped.train()
    assert [step for step, _ in evaluations(stopped)] == [2]
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint.step == 4 and checkpoint.about["unfinished"] == {"evaluate": True, "save": True}
    resumed = make("run")
    resumed.train(resume_from_checkpoint=True)
    assert evaluations(resumed) == whole().evaluations
    assert same(weights(resumed), whole().weights)
    assert read_checkpoint(tmp_path / "run/checkpoint-4").about["unfinished"] == {}


def test_a_checkpoint_that_only_a_signal_made_does_not_become_the_best(make, tmp_path):
    """The run saves only at steps 4 and 8; step 2, which is evaluated, would be the best."""

    class Planned(QATrainer):
        def evaluation_loop(self, *args, **kwargs):
            output = super().evaluation_loop(*args, **kwargs)
            output.metrics[METRIC] = {2: 0.1, 4: 0.3, 6: 0.2, 8: 0.4}[self.state.global_step]
            return output

    options = {"trainer": Planned, "max_steps": 8, "save_steps": 4, "load_best_model_at_end": True}
    whole = make("whole", **options)
    whole.train()
    assert not (tmp_path / "whole/checkpoint-2").exists()
    with pytest.raises(Stopped), watched():
        make("run", KINDS[0], At("on_evaluate", 2, terminate), **options).train()
    assert (tmp_path / "run/checkpoint-2").exists()
    resumed = make("run", **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(whole))


def test_adding_or_removing_evaluations_changes_no_weight(make):
    found = []
    for options in ({"eval_steps": 2}, {"eval_steps": 1, "eval_on_start": True}, {"eval_strategy": "no"}):
        trainer = make("run", load_best_model_at_end=False, save_strategy="no", **options)
        trainer.train()
        found.append(weights(trainer))
    assert same(found[0], found[1]) and same(found[0], found[2])


def test_resuming_unpickles_nothing_and_no_checkpoint_holds_a_pickle(make, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        make("run", KINDS[0], At("on_step_end", 3, kill)).train()
    names = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".pt", ".pth", ".bin", ".pkl"))]

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, refuse)
    make("run").train(resume_from_checkpoint=True)


def test_a_parameter_that_was_not_loaded_is_an_error(make, monkeypatch):
    with pytest.raises(Killed):
        make("run", KINDS[0], At("on_step_end", 3, kill)).train()
    monkeypatch.setattr("transformers.Trainer._load_from_checkpoint", lambda *args, **kwargs: None)
    with pytest.raises(Damaged, match="parameters differ from what was saved, first base_model"):
        make("run").train(resume_from_checkpoint=True)


def test_a_damaged_best_checkpoint_is_replaced_by_the_next_best(make, tmp_path, caplog):
    class Planned(QATrainer):
        def evaluation_loop(self, *args, **kwargs):
            output = super().evaluation_loop(*args, **kwargs)
            output.metrics[METRIC] = {2: 0.1, 4: 0.3, 6: 0.2, 7: 0.4}[self.state.global_step]
            return output

    def damage():
        (tmp_path / "run/checkpoint-2/adapter_model.safetensors").write_bytes(b"")

    trainer = make("run", KINDS[0], At("on_step_end", 7, damage), trainer=Planned)
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-6"
    assert "checkpoint-2 would have been the best checkpoint, but adapter_model.safetensors has 0 bytes" in caplog.text
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "run/checkpoint-6/adapter_model.safetensors")
    now = {name.replace(".default", ""): p for name, p in trainer.model.named_parameters() if "lora" in name}
    assert all(torch.equal(now[name], saved[name]) for name in saved)


def test_a_run_folder_can_be_moved_while_it_waits(make, whole, tmp_path):
    with pytest.raises(Killed):
        make("run", KINDS[0], At("on_step_end", 5, kill), save_total_limit=1).train()
    (tmp_path / "run").rename(tmp_path / "moved")
    resumed = make("moved", save_total_limit=1)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), whole().weights)
    assert Path(resumed.state.best_model_checkpoint).parent == tmp_path / "moved"


def test_the_run_is_written_into_each_checkpoint(make, tmp_path):
    make("run", run={"--seed": 42}).train()
    assert read_checkpoint(tmp_path / "run/checkpoint-2").about["run"] == {"--seed": 42}


# NaN and infinity


def poison(event: str, value: float):
    """Set a gradient or weight of the model to `value` at an event of the third step."""

    class Poison(TrainerCallback):
        pass

    def hook(self, args, state, control, model, **kwargs):
        parameter = next(p for p in model.parameters() if p.requires_grad)
        with torch.no_grad():
            if state.global_step == 2 and event == "on_substep_end":
                parameter.grad.view(-1)[0] = value
            if state.global_step == 2 and event == "on_optimizer_step":
                parameter.view(-1)[0] = value

    setattr(Poison, event, hook)
    return Poison()


@pytest.mark.parametrize("clipping", [1.0, 0.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(make, tmp_path, value, clipping):
    """3e38 is finite, but its square is not: clipping would make the whole gradient 0."""
    trainer = make("run", KINDS[0], poison("on_substep_end", value), max_grad_norm=clipping, seed=3)
    with pytest.raises(NonFiniteLoss) as stopped:
        trainer.train()
    message = str(stopped.value)
    assert (
        message.startswith("step 3: the norm of the gradient is ") and "stopped before the weights changed" in message
    )
    order = list(trainer._get_train_sampler().__iter__())
    sampler = trainer._get_train_sampler()
    sampler.set_epoch(1)
    order = list(sampler)[:4]
    assert f"its rows are {', '.join(f'tiny.jsonl:{i + 1}' for i in order)}; " in message
    assert f"the last checkpoint is {tmp_path / 'run/checkpoint-2'}" in message
    assert same(weights(trainer), dict(restored(make, tmp_path / "run/checkpoint-2")))


def restored(make, folder: Path):
    """The weights of a checkpoint."""
    trainer = make("restored", max_steps=2, save_strategy="no", eval_strategy="no", load_best_model_at_end=False)
    trainer.train(resume_from_checkpoint=str(folder))
    return weights(trainer)


def test_a_loss_that_is_not_finite_names_its_rows(make):
    class Sick(QATrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * (float("nan") if self.state.global_step == 1 else 1)

    with pytest.raises(NonFiniteLoss, match=r"step 2: the loss is nan, .*; its rows are tiny.jsonl:\d; there is no "):
        make("run", trainer=Sick).train()


def test_weights_that_are_not_finite_are_not_saved_over_good_ones(make, tmp_path):
    trainer = make(
        "run", KINDS[0], poison("on_optimizer_step", float("inf")), save_total_limit=1, save_steps=1, eval_steps=1
    )
    with pytest.raises(NonFiniteLoss):
        trainer.train()
    assert [path.name for path in checkpoint_folders(tmp_path / "run")] == ["checkpoint-2"]


def test_an_evaluation_that_is_not_finite_is_never_the_best(make, caplog):
    class Planned(QATrainer):
        def evaluation_loop(self, *args, **kwargs):
            output = super().evaluation_loop(*args, **kwargs)
            output.metrics[METRIC] = {2: float("nan"), 4: 0.3, 6: float("-inf"), 7: 0.4}[self.state.global_step]
            return output

    trainer = make("run", trainer=Planned)
    trainer.train()
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (4, 0.3)
    said = [r.getMessage() for r in caplog.records if "cannot be the best checkpoint" in r.getMessage()]
    assert [line.split(",")[0] for line in said] == [f"step 2: {METRIC} is nan", f"step 6: {METRIC} is -inf"]


@pytest.mark.parametrize(
    ("losses", "best"),
    [((3.0, 1.0, 2.0, 0.5), 4), ((1.0, 3.0, 2.0, 0.5), 2), ((3.0, 2.0, 1.0, 0.5), 6), ((1.0, 1.0, 1.0, 0.5), 2)],
)
def test_of_equally_good_checkpoints_the_one_with_the_lowest_loss_with_gold_passage_is_the_best(make, losses, best):
    """Step 7 has the lowest loss, but a worse F1. The sums of F1 differ by rounding."""

    class Planned(QATrainer):
        def evaluation_loop(self, *args, **kwargs):
            output = super().evaluation_loop(*args, **kwargs)
            at = (2, 4, 6, 7).index(self.state.global_step)
            output.metrics.update({METRIC: losses[at], "eval_generation/f1": (0.3, 0.1 + 0.2, 0.3, 0.2)[at]})
            return output

    trainer = make("run", trainer=Planned, metric_for_best_model="generation/f1")
    trainer.train()
    assert trainer.state.best_global_step == best
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{best}"


def test_an_evaluation_without_the_metric_is_never_the_best(make, caplog):
    """Like the share of true quotations, if no answer quotes."""

    class Planned(QATrainer):
        def evaluation_loop(self, *args, **kwargs):
            output = super().evaluation_loop(*args, **kwargs)
            if self.state.global_step != 4:
                del output.metrics[METRIC]
            return output

    trainer = make("run", trainer=Planned)
    trainer.train()
    assert trainer.state.best_global_step == 4
    said = [r.getMessage() for r in caplog.records if "cannot be the best checkpoint" in r.getMessage()]
    assert [line.split(",")[0] for line in said] == [f"step {step}: {METRIC} is not measured" for step in (2, 6, 7)]


def test_evaluation_sees_each_row_however_training_batches_are_cut(make):
    whole = make("whole", eval_on_start=True, max_steps=1).evaluate()
    dropping = make("dropping", dataloader_drop_last=True, per_device_eval_batch_size=16)
    assert dropping.evaluate()[METRIC] == pytest.approx(whole[METRIC], rel=1e-6)
    assert dropping.args.dataloader_drop_last and dropping.accelerator.even_batches


def test_room_is_kept_for_what_is_saved(make):
    sizes = [make(f"{only}", save_only_model=only, max_steps=1) for only in (True, False)]
    for trainer in sizes:
        trainer.train()
    only_model, everything = (trainer._bytes_to_save() for trainer in sizes)
    assert everything > 2 * only_model > 0


# Trackers


class Broken(TrainerCallback):
    calls = 0

    def on_log(self, *args, **kwargs):
        Broken.calls += 1
        raise ConnectionError("no route\nto host")

    on_train_begin = on_train_end = on_log


def test_a_tracker_that_fails_is_reported_once_and_changes_nothing(make, whole, monkeypatch, caplog):
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "broken", Broken)
    with caplog.at_level(logging.WARNING, "groundtune"):
        tracked = make("run", report_to=["broken"])
        tracked.train()
    assert same(weights(tracked), whole().weights) and Broken.calls > 5
    (message,) = [record.getMessage() for record in caplog.records if "Broken" in record.getMessage()]
    assert message == "Broken failed (ConnectionError: no route to host); the run continues without it"


def test_a_tracker_that_cannot_be_used_is_a_problem_before_anything_begins(monkeypatch):
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    class Missing(TrainerCallback):
        def __init__(self):
            raise RuntimeError("requires missing: pip install missing")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "missing", Missing)
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "fine", TrainerCallback)
    unknown, missing = tracker_problems(["nonsense", "fine", "missing"])
    assert unknown.startswith("--report_to: no tracker is called nonsense; use one of ")
    assert missing == "--report_to: missing cannot be used: requires missing: pip install missing"


def test_the_state_of_a_checkpoint_is_plain_json(make, tmp_path):
    make("run", max_steps=2).train()
    for name in ("optimizer", "scheduler", "randomness_0", "trainer_state"):
        json.loads((tmp_path / f"run/checkpoint-2/{name}.json").read_text())


def test_a_data_seed_of_0_is_a_seed_of_its_own(make):
    assert make(seed=3, data_seed=0)._get_train_sampler().seed == 0
    assert make(seed=3)._get_train_sampler().seed == 3


def test_of_several_gpus_one_is_used_and_the_way_to_all_is_said(monkeypatch, caplog):
    """`DataParallel` would give each GPU a part of the batch, but the loss's hook the whole."""
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", 4)
    arguments = QATrainingArguments(output_dir="x", per_device_train_batch_size=3)
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 3
    assert "torchrun --nproc_per_node 4" in caplog.text


def test_a_process_more_than_a_checkpoint_had_begins_its_draws_anew(make, caplog):
    """`--resume_anyway` lets a run resume with another number of processes."""
    trainer = make(max_steps=2)
    trainer.train()
    folder = newest_checkpoint(Path(trainer.args.output_dir)).folder
    (folder / "randomness_0.json").rename(folder / "randomness_1.json")
    trainer._load_rng_state(str(folder))
    assert "was saved by fewer processes" in caplog.text


def test_in_bfloat16_the_loss_reads_the_logits_as_the_model_wrote_them(make, monkeypatch):
    """With a large vocabulary, a float32 copy of the logits would take the most memory of all."""
    seen, forward = [], groundtune.training.loss._SumOfCrossEntropy.forward

    def noted(ctx, logits, targets):
        seen.append(logits.dtype)
        return forward(ctx, logits, targets)

    monkeypatch.setattr(groundtune.training.loss._SumOfCrossEntropy, "forward", staticmethod(noted))
    make(bf16=True, max_steps=2, eval_steps=1, save_strategy="no", load_best_model_at_end=False).train()
    assert len(seen) > 6 and set(seen) == {torch.bfloat16}
