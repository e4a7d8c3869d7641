"""A sweep of real runs on tiny models: the ordinary commands, each in its own process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_recipes import flags

from groundtune.cli import main
from groundtune.data.files import write_text
from groundtune.evaluation.predictions import read_predictions

PLAN = """
output_dir: {folder}/runs
questions: {data}/dev.jsonl
seeds: [0, 1]
evaluate:
  mix: {{retriever: mix, contexts: "retrieved,gold"}}
  bm25: {{retriever: bm25}}
settings:
{settings}
cells:
  base: {{method: none}}
  sft: {{method: sft}}
  shuffled: {{method: swr, passage_order: shuffled, seeds: [0]}}
"""


@pytest.fixture
def plan(tmp_path, families, static_embedding_folder, data_folder) -> Path:
    given = flags(
        families["llama"], static_embedding_folder, data_folder, tmp_path, output_dir=..., eval_file=..., test_file=...,
        full_dataset_index_path=tmp_path / "index", max_steps=2, use_peft="true", lora_r=2, learning_rate=1e-2,
    )  # fmt: skip
    settings = [f"  {name.removeprefix('--')}: {json.dumps(value)}" for name, value in zip(given[::2], given[1::2])]
    write_text(tmp_path / "dev.jsonl", (data_folder / "eval.jsonl").read_text("utf-8"))
    text = PLAN.format(folder=tmp_path.as_posix(), data=tmp_path.as_posix(), settings="\n".join(settings))
    write_text(tmp_path / "try.yaml", text)
    return tmp_path / "try.yaml"


@pytest.mark.slow
def test_a_sweep_trains_and_evaluates_real_models_and_resumes(plan, capsys):
    assert main(["sweep", str(plan), "--only", "base", "sft-seed0"]) == 0
    shown = capsys.readouterr().out
    assert "base: finished" in shown and "sft-seed0: finished" in shown and "No clear winner" in shown
    runs = plan.parent / "runs"
    assert {path.stem for path in (runs / "results").iterdir()} == {"base", "sft-seed0"}
    figures = json.loads((runs / "results" / "sft-seed0.json").read_text("utf-8"))
    answers = read_predictions(runs / "sft-seed0" / "evaluation-mix" / "predictions" / "gold.jsonl")
    assert figures["scored"]["mix"]["gold"]["scores"]["generation/f1"] == [
        round(answer.scores["generation/f1"], 4) for answer in answers
    ]
    assert figures["settings"]["--seed"] == 0 and figures["minutes"]["training"] > 0
    log = (runs / "sft-seed0.log").read_text("utf-8")
    assert log.count("\n$ groundtune ") == 3
    record = json.loads((runs / "sft-seed0" / "run.json").read_text("utf-8"))
    assert record["command"].startswith("groundtune sft --")

    before = (runs / "sft-seed0" / "run.json").stat().st_mtime_ns
    (runs / "results" / "sft-seed0.json").unlink()  # as if its commands had been run by hand
    assert main(["sweep", str(plan), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["measured"], shown["runs"], shown["failed"]) == (4, 4, [])
    assert (runs / "sft-seed0" / "run.json").stat().st_mtime_ns == before
    seeds = {row["Cell"]: row["Seeds"] for row in shown["table"]}
    assert seeds == {"base": "1", "sft": "2", "shuffled": "1"}


@pytest.mark.slow
def test_a_cell_whose_training_fails_is_named_with_the_reason(plan, capsys):
    text = plan.read_text("utf-8").replace("passage_order: shuffled", "max_seq_length: 20")
    write_text(plan, text)
    assert main(["sweep", str(plan), "--only", "shuffled"]) == 2
    shown = capsys.readouterr().err
    assert (
        "more than 20; raise --max_seq_length" in shown
        and "shuffled-seed0: " in shown
        and "nothing was started" in shown
    )
    assert main(["sweep", str(plan), "--only", "sft-seed0", "shuffled"]) == 2  # and so are all others
    assert not (plan.parent / "runs" / "sft-seed0").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_sweep_that_is_stopped_resumes_in_the_middle_of_a_training(plan, capsys):
    text = plan.read_text("utf-8").replace('max_steps: "2"', 'max_steps: "400"\n  save_steps: 5')
    write_text(plan, text)
    words = [sys.executable, "-m", "groundtune.cli", "sweep", str(plan), "--only", "sft-seed0"]
    folder = plan.parent / "runs" / "sft-seed0"
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweep:
        begin = time.monotonic()
        while not list(folder.glob("checkpoint-*")) and time.monotonic() < begin + 200:
            time.sleep(0.1)
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait(60) == 143
        assert "stopped by SIGTERM" in sweep.stderr.read()
    log = plan.parent / "runs" / "sft-seed0.log"
    assert "the same command resumes from the last checkpoint" in log.read_text("utf-8")
    assert not (folder / "report.html").exists()
    assert main(["sweep", str(plan), "--only", "sft-seed0"]) == 0
    assert "sft-seed0: finished" in capsys.readouterr().out
    assert json.loads((folder / "run.json").read_text("utf-8"))["resumed_from_step"] > 0
    figures = json.loads((plan.parent / "runs" / "results" / "sft-seed0.json").read_text("utf-8"))
    assert figures["minutes"]["training"] is None  # of a part, so it says nothing of the next cell
