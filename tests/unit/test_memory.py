"""When memory runs out a step is made in more passes, to the weights that it would have had cut so by hand."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import test_safe_trainer
import torch
from test_evaluation import evaluator, without_times
from test_generation import answers, prompts_for
from test_safe_trainer import KINDS, METRIC, At, Killed, kill, same, weights
from transformers import TrainerCallback

from groundtune.cli import run_command
from groundtune.runs.checkpoints import newest_checkpoint, read_checkpoint
from groundtune.system.out_of_memory import MicroBatch, OutOfMemory, halve_on_oom, is_out_of_memory
from groundtune.training.arguments import QATrainingArguments
from groundtune.training.trainer import QATrainer

make, make_in = test_safe_trainer.make, test_safe_trainer.make_in  # the fixtures
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.2 GiB is free."
)


class Small(QATrainer):
    """On a machine that holds `most` rows from optimizer step `since` on; it fails late in the backward pass."""

    most, since = 1, 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.failures, self.computed, self.too_many = [], [], False
        trained = [p for p in self.model.parameters() if p.requires_grad]

        def fail(gradient):
            if self.too_many:
                assert any(p.grad is not None for p in trained)  # a part of the gradient already exists
                self.failures.append(self.state.global_step)
                raise torch.OutOfMemoryError(CUDA)

        trained[0].register_hook(fail)

    def compute_loss(self, model, inputs, *args, **kwargs):
        rows = len(inputs["layout"].segments) if "layout" in inputs else len(inputs["input_ids"])
        self.computed.append((self.state.global_step, rows))
        self.too_many = self.state.global_step >= self.since and rows > self.most
        return super().compute_loss(model, inputs, *args, **kwargs)


class SmallLater(Small):
    since = 2


def in_one_order(trainer):
    """An order of rows that does not depend on the micro-batch, which `by_length` does."""
    trainer._order = lambda rows, generator: torch.randperm(len(rows), generator=generator).tolist()
    return trainer


CUT_BY_HAND = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
PLAIN = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "max_steps": 4}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows, accumulation, failures", [(2, 2, [0]), (4, 1, [0, 0])])
def test_the_weights_are_bit_for_bit_those_of_the_same_accumulation_by_hand(make, kind, rows, accumulation, failures):
    """Dropout included: the draws of the step that failed are drawn again."""
    small = in_one_order(
        make(
            "small",
            kind,
            trainer=Small,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            **PLAIN,
        )
    )
    small.train()
    by_hand = in_one_order(make("by hand", kind, **CUT_BY_HAND, **PLAIN))
    by_hand.train()
    assert small.failures == failures
    assert small.state.global_step == by_hand.state.global_step == 4
    assert same(weights(small), weights(by_hand))
    # The last, partial window of an epoch too: six rows are a step of four and one of two.
    assert [n for step, n in small.computed if step > 0] == [1] * 8


class Halve(TrainerCallback):
    """Sets by hand what running out of memory would."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == SmallLater.since:
            self.trainer.micro_batch["train"].size = 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False])
def test_in_the_middle_of_a_run_the_step_begins_anew(make, kind, first):
    """Whether memory runs out in the first or in the second micro-batch of the step: no gradient is counted twice."""

    class Second(SmallLater):
        def training_step(self, *args, **kwargs):
            self.most = 1 if self._rows_of_step or self.failures else 9
            return super().training_step(*args, **kwargs)

    size = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2} | PLAIN
    small = in_one_order(make("small", kind, trainer=SmallLater if first else Second, **size))
    small.train()
    halve = Halve()
    by_hand = in_one_order(make("by hand", kind, halve, **size))
    halve.trainer = by_hand
    by_hand.train()
    assert small.failures == [2]
    assert same(weights(small), weights(by_hand))


def test_without_dropout_the_weights_are_those_of_a_run_with_enough_memory(make):
    """To the rounding of a sum in another order."""

    def run(trainer, name):
        made = make(
            name, KINDS[0], trainer=trainer, per_device_train_batch_size=4, gradient_accumulation_steps=1, **PLAIN
        )
        for module in made.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        made.train()
        return weights(made)

    small, enough = run(Small, "small"), run(QATrainer, "enough")
    for name, weight in enough.items():
        torch.testing.assert_close(small[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_it_is_said_once_remembered_and_a_resumed_run_has_the_same_weights(make, tmp_path, caplog):
    size = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    with caplog.at_level(logging.WARNING, "groundtune"):
        whole = make("whole", KINDS[0], trainer=SmallLater, **size)
        whole.train()
    assert whole.failures == [2]
    (message,) = [r.getMessage() for r in caplog.records if "memory" in r.getMessage()]
    assert message == (
        "out of memory with 2 rows per pass (CUDA out of memory. Tried to allocate 2.00 GiB): from here on 1 per pass, "
        "in more passes; a step's batch and gradient stay the same"
    )
    assert whole.micro_batch["train"].notes == [
        "memory ran out with --per_device_train_batch_size 2: computed with 1 row per pass; "
        "a step's batch and gradient stay the same"
    ]
    assert [read_checkpoint(tmp_path / f"whole/checkpoint-{n}").about["rows at once"]["train"] for n in (2, 4)] == [
        2,
        1,
    ]
    with pytest.raises(Killed):
        make("run", KINDS[0], At("on_step_end", 5, kill), trainer=SmallLater, **size).train()
    assert newest_checkpoint(tmp_path / "run").step == 4
    resumed = make("run", KINDS[0], trainer=SmallLater, **size)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.failures == []
    assert same(weights(resumed), weights(whole))
    assert [(row["step"], row[METRIC]) for row in resumed.state.log_history if METRIC in row] == [
        (row["step"], row[METRIC]) for row in whole.state.log_history if METRIC in row
    ]


class None_(Small):
    most = 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_does_not_fit_by_itself_is_named_with_the_ways_out(make, tmp_path, kind):
    trainer = make("run", kind, trainer=None_, per_device_train_batch_size=2, **PLAIN)
    before = weights(trainer)
    with pytest.raises(OutOfMemory) as stopped:
        trainer.train()
    message, row = str(stopped.value), trainer.micro_batch["train"].now[0]
    assert message.startswith(
        f"{row.source}: a row of {len(row)} tokens does not fit into memory by itself; step 1 was"
    )
    # earlier releases of transformers know only the second name
    checkpointing = next(a for a in ("activation_checkpointing", "gradient_checkpointing") if hasattr(trainer.args, a))
    assert f"there is no checkpoint yet. Lower --max_seq_length, or give --{checkpointing} true, " in message
    assert ("--use_peft true (LoRA)" in message) == (kind == KINDS[1]) and "--load_in_4bit true (QLoRA)" in message
    assert "\n" not in message and "Tried to allocate" in message
    assert same(weights(trainer), before)


def test_what_is_no_lack_of_memory_is_not_tried_again(make):
    class Broken(QATrainer):
        def compute_loss(self, *args, **kwargs):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        make("run", trainer=Broken, **PLAIN).train()


def test_the_loss_of_an_evaluation_is_computed_with_fewer_rows_to_the_same_value(make, monkeypatch, caplog):
    trainer = make("run", per_device_eval_batch_size=2)
    expected = trainer.evaluate()[METRIC]
    loss, seen = trainer.method.loss, []

    def limited(model, batch, **options):
        rows = len(batch["layout"].segments)
        seen.append(rows)
        if rows > 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried")
        return loss(model, batch, **options)

    trainer.method = replace(trainer.method, loss=limited)
    assert trainer.evaluate()[METRIC] == pytest.approx(expected, rel=1e-6)
    assert trainer.evaluate()[METRIC] == pytest.approx(expected, rel=1e-6)
    assert seen == [2, 1, 1, 1, 1] and caplog.text.count("out of memory") == 1


def test_auto_find_batch_size_does_not_change_the_batch_of_a_step(make, caplog):
    with caplog.at_level(logging.INFO, "groundtune"):
        size = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "auto_find_batch_size": True}
        trainer = make("run", trainer=Small, **size, **PLAIN)
        trainer.train()
    assert "--auto_find_batch_size has no effect" in caplog.text
    assert not QATrainingArguments(output_dir="x", auto_find_batch_size=True).auto_find_batch_size
    assert trainer.args.train_batch_size == 2 and trainer.state.global_step == 4
    assert [sum(n for s, n in trainer.computed if s == step) for step in (1, 2, 3)] == [2, 4, 2]


# Generation


def limit(monkeypatch, most: int) -> list[int]:
    """Let decoding fail with more than `most` sequences at once; returns the numbers that were tried."""
    from groundtune.model import generation

    original, seen = generation._generate_batch, []

    def limited(model, prompts, *args):
        seen.append(len(prompts))
        if len(prompts) > most:
            raise torch.OutOfMemoryError(CUDA)
        return original(model, prompts, *args)

    monkeypatch.setattr(generation, "_generate_batch", limited)
    return seen


def test_answers_are_the_same_with_fewer_at_once_and_none_is_given_twice(family, monkeypatch):
    model, prompts, done, fewer = family.model(), prompts_for(family, 7), [], []
    expected = answers(family, model, prompts, 4, [0])
    seen = limit(monkeypatch, 2)
    found = answers(family, model, prompts, 4, [0], on_answer=done.append, on_fewer=fewer.append)
    assert found == expected and sum(done) == 7 and fewer == [2]
    assert seen == [4, 2, 2, 2, 1]


def test_what_was_answered_before_memory_ran_out_is_kept(families, monkeypatch):
    """Packed, where prompts get their answers one by one."""
    from groundtune.model import generation
    from groundtune.model.attention import use_packed_attention

    family = families["llama"]
    model, prompts, done = family.model(), prompts_for(family, 9), []
    assert use_packed_attention(model) is None
    expected = answers(family, model, prompts, 4, [expected_stop(family, model, prompts)])
    original, calls = generation._read, []

    def limited(model, prompts, *args):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise MemoryError
        return original(model, prompts, *args)

    monkeypatch.setattr(generation, "_read", limited)
    stop = [expected_stop(family, model, prompts)]
    calls.clear()
    found = answers(family, model, prompts, 4, stop, on_answer=done.append)
    assert found == expected and sum(done) == 9 and len(calls) > 3


def expected_stop(family, model, prompts) -> int:
    """An id that ends some answers early."""
    free = [g.ids for g in answers(family, model, prompts, 100, [-1], new=8)]
    return free[0][2]


def test_an_evaluation_remembers_how_many_fit_and_its_predictions_stay(families, monkeypatch):
    family = families["gemma"]
    model, made = family.model(), evaluator(family)
    expected = without_times(made(model))
    seen = limit(monkeypatch, 1)
    assert without_times(made(model)) == expected and seen[:3] == [4, 2, 1]
    seen.clear()
    assert without_times(made(model)) == expected and set(seen) == {1}


def test_a_prompt_that_does_not_fit_by_itself_is_named(families, monkeypatch):
    made = evaluator(families["gemma"])
    limit(monkeypatch, 0)
    with pytest.raises(OutOfMemory) as stopped:
        made(families["gemma"].model())
    longest = max(range(6), key=lambda i: len(made.questions[i].prompt_ids))
    tokens = len(made.questions[longest].prompt_ids)
    assert str(stopped.value).startswith(f"{made.examples[longest].source}: a prompt of {tokens} tokens, the longest")
    assert "Lower --max_seq_length, --eval_num_to_retrieve or --max_new_tokens" in str(stopped.value)


# What runs out, and what is said


def test_lack_of_memory_is_recognised_as_it_really_comes():
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**50)
    said = ("MPS backend out of memory (MPS allocated", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasC")
    for error in (cpu.value, torch.OutOfMemoryError(CUDA), MemoryError(), *map(RuntimeError, said)):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shape '[2]' is invalid"), ValueError("out of memory"), OSError("No space left")):
        assert not is_out_of_memory(error)


def test_a_failure_while_beginning_anew_halves_once_more():
    micro_batch, undone = MicroBatch("--rows", 8, "all stays"), []

    def compute():
        if micro_batch.size > 4:
            raise MemoryError
        return "done"

    def undo():
        undone.append(micro_batch.size)
        if micro_batch.size > 3:
            raise MemoryError

    assert halve_on_oom(micro_batch, compute, str, undo) == "done" and undone == [4, 2] and micro_batch.size == 2
    assert [list(part) for part in micro_batch.parts(range(5))] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    "error, line",
    [
        (OutOfMemory("train.jsonl:3: too much"), "train.jsonl:3: too much"),
        (torch.OutOfMemoryError(CUDA), "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB; use a smaller"),
        (MemoryError(), "out of memory: MemoryError; use a smaller model"),
    ],
)
def test_a_command_ends_with_one_line_and_status_1(monkeypatch, capsys, error, line):
    from groundtune.commands import train

    def fail(argv):
        raise error

    monkeypatch.setattr(train, "train_by", fail)
    assert run_command("sft", []) == 1
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


def test_what_a_checkpoint_says_of_it_is_json(make, tmp_path):
    make("run", max_steps=2).train()
    about = json.loads((tmp_path / "run/checkpoint-2/manifest.json").read_text())
    assert about["rows at once"] == {"train": 1, "eval": 16}
