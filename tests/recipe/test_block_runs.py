"""A run with `--passage_attention block`: remembered, the same in every command, and refused where it is not exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_family
from test_evaluate import run
from test_recipes import flags, lines

from groundtune.cli import main


@pytest.fixture(scope="module")
def block_run(families, static_embedding_folder, data_folder, tmp_path_factory) -> Path:
    """A LoRA run by SwR."""
    folder = tmp_path_factory.mktemp("block")
    arguments = flags(
        families["llama"], static_embedding_folder, data_folder, folder, use_peft="true", lora_r=4, max_steps=4,
        learning_rate=5e-2, eval_strategy="no", passage_attention="block", eval_num_to_retrieve=3,
    )  # fmt: skip
    assert main(["swr", *arguments]) == 0
    return folder


def test_a_runs_folder_alone_repeats_its_numbers_and_full_attention_gives_others(block_run, capsys, tmp_path):
    status, found, err = run(capsys, "evaluate", block_run, "--with_base")
    assert status == 0, err
    trained = json.loads((block_run / "metrics.json").read_text("utf-8"))
    for system, then in (("model", "tuned"), ("base", "base")):
        for metric, interval in trained[then].items():
            if "latency" not in metric:
                assert found["evaluations"]["retrieved"][system][metric] == interval, (system, metric)
    for file, then in (("retrieved", "test_tuned"), ("retrieved_base", "test_base")):
        now = lines(block_run / f"evaluation/predictions/{file}.jsonl")
        assert [r["answer"] for r in now] == [r["answer"] for r in lines(block_run / f"predictions/{then}.jsonl")]
    again = ["evaluate", block_run, "--output_dir", tmp_path / "again", "--passage_cache", "0"]
    assert run(capsys, *again)[0] == 0
    full = ["evaluate", block_run, "--output_dir", tmp_path / "full", "--passage_attention", "full"]
    assert run(capsys, *full)[0] == 0
    once, without_cache, as_full = (
        [row["answer"] for row in lines(folder / "predictions/retrieved.jsonl")]
        for folder in (block_run / "evaluation", tmp_path / "again", tmp_path / "full")
    )
    assert once == without_cache != as_full


def test_asking_gives_the_answer_of_the_evaluation_and_the_card_says_how_it_was_read(block_run, capsys):
    row = next(row for row in lines(block_run / "predictions/test_tuned.jsonl") if not row["chat_history"])
    status, found, _ = run(capsys, "ask", block_run, row["question"])
    assert status == 0 and found["answer"] == row["answer"]
    card = (block_run / "README.md").read_text("utf-8")
    assert "block: a passage reads the instruction and itself" in card and "--passage_attention=block" in card
    assert "Unlike in training, a passage attends to the others here" in card
    assert "block: a passage reads" in (block_run / "report.md").read_text("utf-8")


def test_what_computes_full_attention_is_refused(block_run, families, capsys, tmp_path, data_folder):
    assert main(["export", str(block_run), "-o", str(tmp_path / "out")]) == 2
    assert "--passage_attention block" in capsys.readouterr().err and not (tmp_path / "out").exists()
    server = ["--generator", "openai:http://localhost:1/v1", "--generator_model", "m"]
    assert main(["evaluate", str(block_run), *server]) == 2
    assert "a server computes full attention" in capsys.readouterr().err


def test_a_model_that_cannot_is_refused_before_it_trains(static_embedding_folder, data_folder, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    padded = make_family("llama", tmp_path / "model", attention_dropout=0.2)
    arguments = flags(
        padded, static_embedding_folder, data_folder, tmp_path / "run", max_steps=1, passage_attention="block"
    )
    assert main(["swr", *arguments]) == 2
    assert "--passage_attention block: would not be exact" in capsys.readouterr().err
