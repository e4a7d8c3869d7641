"""Trackers receive the numbers in metrics.json, by step; a failing tracker loses only its own numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_recipes import flags
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from groundtune.cli import train_command

pytestmark = pytest.mark.usefixtures("no_drawing")

FOLLOWED = ("generation/f1", "generation/f1_low", "generation/rougeL", "retrieval/recall@1", "loss_with_gold_passage")


def run(families, embedding: Path, data: Path, folder: Path, **changes) -> dict[int, dict]:
    """Train with a tracker; the history of metrics.json by step."""
    changes = {"max_steps": 2, "eval_steps": 1, "logging_steps": 1, "max_new_tokens": 4} | changes
    assert train_command("swr", flags(families["mistral"], embedding, data, folder, **changes)) == 0
    history = json.loads((folder / "metrics.json").read_text("utf-8"))["history"]
    return {row["step"]: row for row in history}


def test_tensorboard_gets_every_end_to_end_metric_under_its_name_by_step(
    families, static_embedding_folder, data_folder, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard", reason="needs the extra [tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    output = tmp_path / "run"
    history = run(families, static_embedding_folder, data_folder, output, report_to="tensorboard")
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert {f"eval/{name}" for name in FOLLOWED} < set(board.Tags()["scalars"])
    for name in FOLLOWED:
        found = {event.step: event.value for event in board.Scalars(f"eval/{name}")}
        assert found == pytest.approx({step: history[step][f"eval_{name}"] for step in (0, 1, 2)})
    assert {event.step for event in board.Scalars("train/loss")} == {1, 2}


def test_trackio_gets_every_end_to_end_metric_under_its_name_by_step(
    families, static_embedding_folder, data_folder, tmp_path, monkeypatch
):
    pytest.importorskip("huggingface_hub")
    if "trackio" in sys.modules:
        pytest.skip("it was imported before, with another folder")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="needs the extra [trackio]")
    from trackio.sqlite_storage import SQLiteStorage

    options = {"report_to": "trackio", "project": "tiny", "run_name": "first"}
    history = run(families, static_embedding_folder, data_folder, tmp_path / "run", **options)
    assert SQLiteStorage.get_runs("tiny") == ["first"]
    rows = [row for row in SQLiteStorage.get_logs("tiny", "first") if "eval/generation/f1" in row]
    assert [row["train/global_step"] for row in rows] == [0, 1, 2]
    for row in rows:
        sent = {name: row[f"eval/{name}"] for name in FOLLOWED}
        assert sent == pytest.approx({name: history[row["train/global_step"]][f"eval_{name}"] for name in FOLLOWED})


class Broken(TrainerCallback):
    def on_log(self, *args, **kwargs):
        raise ConnectionError("no route to https://me:hunter2@tracker.example/log")

    on_train_end = on_log


def test_a_tracker_that_fails_stops_no_run_and_is_named_in_log_and_report(
    families, static_embedding_folder, data_folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "broken", Broken)
    history = run(families, static_embedding_folder, data_folder, tmp_path, report_to="broken")
    assert set(history) == {0, 1, 2}
    line = "Broken failed (ConnectionError: no route to https://***@tracker.example/log); the run continues without it"
    assert [record.getMessage() for record in caplog.records].count(line) == 1
    assert "Broken failed" in (tmp_path / "report.md").read_text("utf-8")
    assert "Broken failed" in (tmp_path / "report.html").read_text("utf-8")


def test_no_tracker_is_used_unless_it_is_asked_for(
    families, static_embedding_folder, data_folder, tmp_path, monkeypatch
):
    """Even if some are installed: transformers' former default was to use all of them."""
    for name in INTEGRATION_TO_CALLBACK:
        monkeypatch.setitem(INTEGRATION_TO_CALLBACK, name, type("Unwanted", (), {"__init__": pytest.fail}))
    run(families, static_embedding_folder, data_folder, tmp_path)
