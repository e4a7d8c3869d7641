"""A run in two processes (`torchrun`) equals a run in one: same step, same answers, written once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_examples
from safetensors.torch import load_file
from test_recipes import SCRIPTS, flags

from groundtune.cli import train_command

ROOT = Path(__file__).parents[2]
ROWS = len(tiny_examples())  # room for as many in one optimizer step
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]


@pytest.fixture(scope="module")
def arguments(families, static_embedding_folder, data_folder):
    """Two steps of plain gradient descent on five rows; neither they nor the eval rows fill both processes' batches."""

    def arguments(processes: int, output: Path) -> list[str]:
        return flags(
            families["llama"], static_embedding_folder, data_folder, output, num_train_epochs=2, max_train_samples=5,
            per_device_train_batch_size=ROWS // processes, optim="sgd", learning_rate=0.5,
            lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=0, eval_steps=1, use_cpu="true",
            per_device_eval_batch_size=3, **({"ddp_backend": "gloo"} if processes > 1 else {}),
        )  # fmt: skip

    return arguments


@pytest.fixture(scope="module")
def by_two(arguments, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder of a run in two processes, and their output."""
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [sys.executable, *TORCHRUN, SCRIPTS["swr"], *arguments(2, folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done


@pytest.fixture(scope="module")
def runs(arguments, by_two, tmp_path_factory) -> dict[int, Path]:
    """The folders of the same run in one process (this one) and in two."""
    folder = tmp_path_factory.mktemp("one")
    assert train_command("swr", arguments(1, folder)) == 0
    return {1: folder, 2: by_two[0]}


def test_two_processes_take_the_steps_of_one(runs):
    one, two = (load_file(runs[n] / "checkpoint-2" / "model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6), name


def test_processes_that_answer_a_share_each_have_the_answers_of_one(runs):
    paths = sorted((runs[1] / "predictions").iterdir())
    assert [path.name for path in paths] == sorted(path.name for path in (runs[2] / "predictions").iterdir())
    for path in paths:
        one, two = (
            [json.loads(line) for line in (runs[n] / "predictions" / path.name).read_text("utf-8").splitlines()]
            for n in (1, 2)
        )
        assert [(row["question"], row["answer"]) for row in one] == [(row["question"], row["answer"]) for row in two]


def test_losses_with_gold_are_those_of_one_process(runs):
    def losses(folder: Path) -> list[float]:
        history = json.loads((folder / "trainer_state.json").read_text("utf-8"))["log_history"]
        return [row["eval_loss_with_gold_passage"] for row in history if "eval_loss_with_gold_passage" in row]

    assert losses(runs[2]) == pytest.approx(losses(runs[1]), rel=1e-4) and len(losses(runs[2])) == 3


def test_results_are_told_and_written_once(by_two):
    folder, done = by_two
    assert done.stdout.count("report.html") == 1 and done.stderr.count("checked:") == 1
    assert (folder / "report.html").exists() and json.loads((folder / "run.json").read_text("utf-8"))
