"""A run in two processes (`torchrun`) is the run of one: the same step, the same answers, and written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_examples
from safetensors.torch import load_file
from test_recipes import SCRIPTS, flags

ROOT = Path(__file__).parents[2]
ROWS = len(tiny_examples())  # of one optimizer step
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]


def run(processes: int, family, embedding: Path, data: Path, output: Path, **changes) -> subprocess.CompletedProcess:
    """Two steps of plain gradient descent, on all rows each; the four eval rows are no whole batches of both."""
    arguments = flags(
        family, embedding, data, output, num_train_epochs=2, per_device_train_batch_size=ROWS // processes,
        optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=0, eval_steps=1,
        use_cpu="true", per_device_eval_batch_size=3, **({"ddp_backend": "gloo"} if processes > 1 else {}), **changes,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, *(TORCHRUN if processes > 1 else []), SCRIPTS["swr"], *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def runs(families, static_embedding_folder, data_folder, tmp_path_factory):
    """Folder and output of the same run by one process, and by two."""
    made = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes_{processes}")
        made[processes] = folder, run(processes, families["llama"], static_embedding_folder, data_folder, folder)
    return made


def test_two_processes_take_the_steps_of_one(runs):
    one, two = (load_file(runs[n][0] / "checkpoint-2" / "model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6), name


def test_processes_that_answer_a_share_each_have_the_answers_of_one(runs):
    paths = sorted((runs[1][0] / "predictions").iterdir())
    assert [path.name for path in paths] == sorted(path.name for path in (runs[2][0] / "predictions").iterdir())
    for path in paths:
        one, two = (
            [json.loads(line) for line in (runs[n][0] / "predictions" / path.name).read_text("utf-8").splitlines()]
            for n in (1, 2)
        )
        assert [(row["question"], row["answer"]) for row in one] == [(row["question"], row["answer"]) for row in two]


def test_losses_with_gold_are_those_of_one_process(runs):
    def losses(folder: Path) -> list[float]:
        history = json.loads((folder / "trainer_state.json").read_text("utf-8"))["log_history"]
        return [row["eval_loss_with_gold_passage"] for row in history if "eval_loss_with_gold_passage" in row]

    assert losses(runs[2][0]) == pytest.approx(losses(runs[1][0]), rel=1e-4) and len(losses(runs[2][0])) == 3


def test_results_are_told_and_written_once(runs):
    folder, done = runs[2]
    assert done.stdout.count("report.html") == 1 and done.stderr.count("checked:") == 1
    assert (folder / "report.html").exists() and json.loads((folder / "run.json").read_text("utf-8"))
