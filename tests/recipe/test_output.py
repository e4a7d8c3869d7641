"""Training's --json prints one object on standard output, whoever else prints; --quiet keeps table and problems."""

from __future__ import annotations

import json
import logging

import pytest
from test_recipes import flags
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

import groundtune.demo
from groundtune.cli import main

pytestmark = pytest.mark.usefixtures("no_drawing")


class Chatty(TrainerCallback):
    """Prints the address of its dashboard, as some trackers do."""

    def on_train_begin(self, *args, **kwargs):
        print("* View the dashboard by running ...")


@pytest.fixture
def words(families, static_embedding_folder, data_folder, tmp_path):
    return flags(
        families["mistral"], static_embedding_folder, data_folder, tmp_path / "out", max_steps=2, eval_steps=1,
        max_new_tokens=4, disable_tqdm=..., logging_steps=1,
    )  # fmt: skip


def test_json_is_the_results_and_nothing_else_also_of_a_run_that_is_finished(words, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "chatty", Chatty)
    command = ["swr", *words, "--json", "--report_to", "chatty"]
    assert main(command) == 0
    first = capfd.readouterr()
    found = json.loads(first.out)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert found.pop("next")[0].startswith(("0 of 3 questions", "1 of 3", "2 of 3", "3 of 3"))
    assert "history" not in found and {**found, "history": metrics["history"]} == {
        **metrics, "output_dir": str(tmp_path / "out"), "report": str(tmp_path / "out" / "report.html"),
    }  # fmt: skip
    assert found["verdict"] and found["tuned"]["n"] == 3
    assert "View the dashboard" in first.err and "it/s" not in first.err and "read and check" not in first.err
    assert main(command) == 0
    again = capfd.readouterr()
    assert json.loads(again.out) == json.loads(first.out) and "already holds this run, finished" in again.err


def test_quiet_shows_table_and_verdict_and_keeps_warnings(words, capfd):
    assert main(["swr", *words, "--quiet"]) == 0
    said = capfd.readouterr()
    assert "Token F1" in said.out and "questions" in said.out and "Report:" not in said.out
    assert "'loss'" not in said.out  # what transformers prints in place of a bar
    assert "it/s" not in said.err and "answering" not in said.err
    assert logging.getLogger("groundtune").level == logging.WARNING  # what the doctor found still comes


def test_quiet_and_json_make_no_other_run_of_it(words, tmp_path, capfd):
    assert main(["sft", *words]) == 0
    weights = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    for flag in ("--quiet", "--json", "--quiet=true"):
        assert main(["sft", *words, flag]) == 0
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == weights


def test_a_file_of_arguments_may_say_quiet(words, tmp_path, capfd):
    (tmp_path / "run.yaml").write_text("quiet: true\n")
    assert main(["swr", *words, "--config", str(tmp_path / "run.yaml")]) == 0
    assert "Report:" not in capfd.readouterr().out


def test_the_demo_is_quiet_too(words, monkeypatch, capfd):
    def prepare(folder):
        print("Unpacking Gemma ...")
        return words

    monkeypatch.setattr(groundtune.demo, "prepare", prepare)
    assert main(["demo", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["tuned"]["n"] == 3


def test_a_problem_is_on_standard_error_and_there_is_no_object(words, capfd):
    assert main(["swr", *words, "--json", "--lora_r", "0"]) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.startswith("--lora_r: 0 is too small")
