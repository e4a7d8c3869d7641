"""Whole runs that are interrupted: the same command finishes them, and reports what it does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from test_recipes import Run, flags

from groundtune.cli import train_command
from groundtune.prompts.prompt import ChatPrompt
from groundtune.runs.resume import locked
from groundtune.training.trainer import QATrainer

pytestmark = pytest.mark.usefixtures("no_drawing")

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """As kill -9, in so far as nothing is done about it."""


@pytest.fixture(scope="module")
def command_in(families, static_embedding_folder, data_folder, tmp_path_factory):
    """The command of a short run into a folder; all share one index."""
    index = tmp_path_factory.mktemp("index")

    def command(folder: Path, **changes) -> list[str]:
        options = {
            "max_steps": 4, "eval_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1,
            "use_peft": "true", "lora_dropout": 0.2, "lora_r": 2, "max_new_tokens": 3, "learning_rate": 1e-2,
            "full_dataset_index_path": index,
        }  # fmt: skip
        return flags(families["gemma"], static_embedding_folder, data_folder, folder, **options | changes)

    return command


@pytest.fixture
def command(command_in, tmp_path):
    return lambda name="run", **changes: command_in(tmp_path / name, **changes)


@pytest.fixture(scope="module")
def whole(command_in, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run, to be read or copied."""
    folder = tmp_path_factory.mktemp("whole")
    assert train_command("swr", command_in(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def killed(command_in, tmp_path_factory) -> Path:
    """The folder of a run that was killed in its fourth step, to be copied."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 3, kill)
        train_command("swr", command_in(folder))
    return folder


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def interrupt(monkeypatch, step: int, act) -> None:
    original, pending = QATrainer.training_step, [act]

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step and pending:  # a step is two micro-batches, and a second signal kills
            pending.pop()()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(QATrainer, "training_step", training_step)


def kill():
    raise Killed


def test_a_killed_run_ends_as_an_undisturbed_one_and_answers_the_untouched_model_s_questions_once(
    command, whole, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 3, kill)
        train_command("swr", command())
    answered = []
    original = QATrainer.run_evaluator
    monkeypatch.setattr(
        QATrainer,
        "run_evaluator",
        lambda self, e, *known: answered.append((e.name, self.state.global_step)) or original(self, e, *known),
    )
    assert train_command("swr", command()) == 0
    assert answered == [("eval", 4), ("test", 4)]
    assert weights(tmp_path / "run") == weights(whole)
    run, undisturbed = Run(tmp_path / "run"), Run(whole)
    assert run.history("eval_generation/f1") == undisturbed.history("eval_generation/f1")
    for name in ("base", "tuned"):
        assert run.metrics[name]["generation/f1"] == undisturbed.metrics[name]["generation/f1"]
    assert json.loads((tmp_path / "run/run.json").read_text())["resumed_from_step"] == 2

    # Now the run is finished.
    capsys.readouterr()
    assert train_command("swr", command()) == 0
    assert "already holds this run, finished: see" in capsys.readouterr().out
    assert train_command("swr", command(seed=7)) == 2
    assert "--seed: 42 in the finished run, 7 now" in capsys.readouterr().err.splitlines()
    # What was measured of the other model goes, and what the user wrote beside it stays.
    measured = [tmp_path / "run" / name for name in ("thresholds.json", "evaluation/predictions/retrieved.jsonl")]
    notes = tmp_path / "run/evaluation/notes.txt"
    notes.parent.mkdir()
    (notes.parent / "predictions").mkdir()
    for path in (*measured, notes):
        path.write_text("{}")
    assert train_command("swr", command(seed=7, overwrite_output_dir="true")) == 0
    assert not any(path.exists() for path in measured) and notes.exists()
    assert weights(tmp_path / "run") != weights(whole)


def test_what_changed_since_is_named_and_nothing_is_trained(
    command, killed, data_folder, tmp_path, monkeypatch, capsys
):
    shutil.copytree(killed, tmp_path / "run")
    other = tmp_path / "train.jsonl"
    other.write_bytes((data_folder / "train.jsonl").read_bytes() + b"\n")
    with monkeypatch.context() as patch:
        patch.setattr(QATrainer, "train", lambda *args, **kwargs: pytest.fail("training began"))
        assert train_command("swr", command(train_file=other, learning_rate=2e-2)) == 2
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--")]
    assert {line.split(":")[0] for line in problems} == {"--learning_rate", "--train_file"}
    assert train_command("swr", command(train_file=other, resume_anyway="true")) == 0


def test_rows_that_came_out_differently_are_another_run(command, killed, tmp_path, monkeypatch, capsys):
    """The files are the same, but something else changed: a library, for example."""
    shutil.copytree(killed, tmp_path / "run")
    original = ChatPrompt.prompt_ids
    monkeypatch.setattr(ChatPrompt, "prompt_ids", lambda self, *args: [*original(self, *args), 5])
    assert train_command("swr", command()) == 2
    assert "token ids of the training rows: sha256 " in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
@pytest.mark.usefixtures("signals_of_a_terminal")
@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_with_its_status_and_a_line(command, whole, tmp_path, monkeypatch, capsys, signum, status):
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: os.kill(os.getpid(), signum))
        assert train_command("swr", command()) == status
    expected = (
        f"stopped by {signum.name} after step 3, which is saved in {tmp_path / 'run/checkpoint-3'}; the same command"
    )
    assert expected in capsys.readouterr().err
    assert train_command("swr", command()) == 0
    assert weights(tmp_path / "run") == weights(whole)


def test_a_full_disk_ends_a_run_with_status_3_and_one_line(command, tmp_path, monkeypatch, capsys):
    import errno

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(QATrainer, "_save_rng_state", full)
        assert train_command("swr", command()) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "No space left" in line]
    assert (
        line.startswith(str(tmp_path / "run/checkpoint-2")) and "bytes are needed" in line and "bytes are free" in line
    )
    assert train_command("swr", command()) == 0


def test_a_run_that_diverges_ends_with_status_1_and_names_its_rows_by_file_and_line(command, data_folder, capsys):
    assert train_command("swr", command(learning_rate=1e30)) == 1
    said = capsys.readouterr().err
    line = (
        rf"^step \d: the loss is \w+, stopped before the weights changed; its rows are {data_folder}/train.jsonl:\d; "
    )
    assert re.search(line, said, re.MULTILINE) and "Traceback" not in said


def test_a_second_run_in_one_folder_is_refused_and_touches_nothing(command, whole, tmp_path, monkeypatch, capsys):
    shutil.copytree(whole, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr("groundtune.recipes.train.locked", partial(locked, patience=0.1))
    with locked(tmp_path / "run"):
        assert train_command("swr", command(overwrite_output_dir="true")) == 2
    expected = f"--output_dir: {tmp_path / 'run'} is in use by process {os.getpid()} on "
    assert capsys.readouterr().err.splitlines()[-1].startswith(expected)
    assert {path: path.read_bytes() for path in before} == before


def test_adding_or_removing_evaluations_changes_no_weight(command, tmp_path, data_folder):
    """End to end, with dropout: more evaluations, fewer questions, other batches, none at all, another test file."""
    last = {"load_best_model_at_end": "false", "save_strategy": "no"}
    changes = {
        "two": {},
        "all": {"eval_steps": 1, "eval_max_samples": 1, "per_device_eval_batch_size": 3},
        "none": {"eval_strategy": "no", "eval_on_start": "false", "test_file": data_folder / "eval.jsonl"},
    }
    for name, these in changes.items():
        assert train_command("swr", command(name, **last | these)) == 0
    assert len({weights(tmp_path / name) for name in changes}) == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the scripts fork")
@pytest.mark.parametrize(
    "words",
    ["kill_points.py --points 4", "signals.py --points 3 --twice 2", "disk_errors.py --calls 12 --limits 3 --runs 1",
     "corruptions.py --corruptions 60", "out_of_memory.py --limits 3"],
    ids=lambda words: words.split(".")[0],
)  # fmt: skip
def test_a_few_faults_of_each_kind(words):
    script, *options = words.split()
    done = subprocess.run(
        [sys.executable, ROOT / "tests/faults" / script, *options], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
