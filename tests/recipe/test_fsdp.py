"""FSDP2 in two processes on gloo: it trains, evaluates, saves and resumes as one process does."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_processes import ROOT, TORCHRUN
from test_recipes import flags

from groundtune.cli import train_command
from groundtune.training.arguments import QATrainingArguments, sharding_problems

STEPS = 5
FSDP = {"fsdp": "true"}
ON_CPU = (str(ROOT / "tests/fsdp_on_cpu.py"),)


@pytest.fixture(scope="module")
def words(families, static_embedding_folder, data_folder):
    """Five steps of AdamW on five rows at a time, of which one process has three and the other two."""

    def words(processes: int, output: Path, how: dict[str, Any] = FSDP, **changes: Any) -> list[str]:
        values = {
            "num_train_epochs": STEPS, "max_train_samples": 5, "per_device_train_batch_size": 6 // processes,
            "per_device_eval_batch_size": 3, "learning_rate": 0.01, "logging_steps": 1, "eval_steps": 1,
            "save_total_limit": 9, "use_cpu": "true", "quiet": "true",
            "eval_num_to_retrieve": 1,  # the second passages of a question tie up to rounding
        }  # fmt: skip
        split = {**how, "ddp_backend": "gloo"} if processes > 1 else {}
        folders = families["llama"], static_embedding_folder, data_folder, output
        return flags(*folders, **{**values, **split, **changes})

    return words


def start(words: list[str], program: tuple[str, ...] = ON_CPU, **options: Any) -> subprocess.Popen:
    command = [sys.executable, *TORCHRUN, *program, "sft", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes, **options)


def finished(words: list[str], program: tuple[str, ...] = ON_CPU) -> str:
    process = start(words, program)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-4000:]
    return said


@pytest.fixture(scope="module", params=["all weights", pytest.param("LoRA", marks=pytest.mark.slow)])
def runs(request, words, tmp_path_factory):
    """The folders of the same run in one process and, split, in two. With LoRA, the second process never has a row."""
    changes = {"use_peft": "true", "max_train_samples": 1} if request.param == "LoRA" else {}
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    assert train_command("sft", words(1, one, **changes)) == 0
    finished(words(2, two, **changes))
    return one, two


def logged(folder: Path, name: str) -> list[float]:
    rows = json.loads((folder / "trainer_state.json").read_text("utf-8"))["log_history"]
    return [row[name] for row in rows if name in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def predictions(folder: Path) -> dict[str, list[tuple[str, str]]]:
    def read(path: Path) -> list[tuple[str, str]]:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [(row["question"], row["answer"]) for row in rows]

    return {path.name: read(path) for path in sorted((folder / "predictions").iterdir())}


def check_same(one: Path, two: Path) -> None:
    assert len(logged(one, "loss")) == STEPS
    assert logged(two, "loss") == pytest.approx(logged(one, "loss"), abs=1e-4)
    assert logged(two, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=1e-3)
    for name in ("eval_loss_with_gold_passage", "eval_generation/f1", "eval_generation/new_tokens"):
        assert logged(two, name) == pytest.approx(logged(one, name), abs=1e-4) and len(logged(one, name)) == STEPS + 1
    assert predictions(two) == predictions(one)
    for folder in ("", f"checkpoint-{STEPS}"):
        expected, found = weights(one / folder), weights(two / folder)
        assert expected.keys() == found.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_losses_metrics_answers_and_weights_are_those_of_one_process(runs):
    check_same(*runs)


def test_a_checkpoint_holds_no_pickle_and_the_files_of_one_process(runs):
    one, two = runs
    names = [{path.name for path in (run / "checkpoint-2").iterdir()} for run in (one, two)]
    assert names[1] - names[0] == {"randomness_1.json", "randomness_1.safetensors"} and names[0] <= names[1]
    assert not [path for path in two.rglob("*") if path.suffix in (".bin", ".pt", ".distcp")]
    configs = [json.loads(path.read_text("utf-8")) for run in runs for path in run.glob("config.json")]
    assert not configs or configs[0]["architectures"] == configs[1]["architectures"]


@pytest.mark.slow
@pytest.mark.parametrize("use_peft", ["false", "true"])
def test_a_run_that_goes_on_in_the_middle_of_an_epoch_ends_as_one_that_was_not_interrupted(words, tmp_path, use_peft):
    """Of the three steps of an epoch, the last has one row for both processes."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    changes = {"num_train_epochs": 2, "per_device_train_batch_size": 1, "use_peft": use_peft}
    finished(words(2, whole, **changes))
    finished(words(2, resumed, **changes, resume_from_checkpoint=whole / "checkpoint-2"))
    assert json.loads((resumed / "run.json").read_text("utf-8"))["resumed_from_step"] == 2
    assert logged(resumed, "loss") == logged(whole, "loss") and len(logged(whole, "loss")) == 6
    for name, weight in weights(whole / "checkpoint-6").items():
        assert torch.equal(weights(resumed / "checkpoint-6")[name], weight), name


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
def test_deepspeed_with_the_configuration_that_is_shipped_trains_as_one_process_does(words, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_command("sft", words(1, one)) == 0
    how = {"deepspeed": ROOT / "scripts/train/ds_config.json"}
    said = finished(words(2, two, how), program=("-m", "groundtune.cli"))
    assert "cannot be resumed" in said and not [path for path in two.rglob("*") if path.suffix == ".pt"]
    check_same(one, two)


@pytest.mark.slow
def test_a_signal_stops_all_processes_after_the_same_step_and_the_run_goes_on(words, tmp_path):
    more = {"num_train_epochs": 200, "eval_steps": 1000, "eval_on_start": "false", "quiet": "false"}
    process = start(words(2, tmp_path, **more), start_new_session=True)
    for line in process.stdout:
        if "'loss'" in line:
            os.killpg(process.pid, signal.SIGTERM)
            break
    said, _ = process.communicate(timeout=300)
    (stopped,) = tmp_path.glob("checkpoint-*")
    assert 0 < int(stopped.name[11:]) < 200, said[-3000:]
    finished(words(2, tmp_path, **more))
    assert json.loads((tmp_path / "run.json").read_text("utf-8"))["resumed_from_step"] == int(stopped.name[11:])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "splits a model over several processes, and this is one"),
        ({"fsdp_config": {"version": 1}}, "version 1 is not supported"),
        ({"save_only_model": True}, "with --fsdp add --load_best_model_at_end false"),
    ],
)
def test_what_cannot_be_split_is_one_line_before_training(tmp_path, monkeypatch, values, said):
    from groundtune.arguments import ModelArguments

    training = QATrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert sharding_problems(training, ModelArguments()) == []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in values.items():
        setattr(training, name, value)
    assert any(said in problem for problem in sharding_problems(training, ModelArguments()))
