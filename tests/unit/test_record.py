"""run.json contains everything needed to repeat the run, and no secret."""

from __future__ import annotations

import json
import pickle
import sys

import pytest

from groundtune.runs.record import run_record
from groundtune.system.text import hide_secrets, without_secrets, words_without_secrets


@pytest.fixture
def record(tmp_path, monkeypatch):
    (tmp_path / "test.jsonl").write_bytes(b"abc")
    monkeypatch.setattr(sys, "argv", [
        "/somewhere/bin/groundtune", "swr", "--hub_token", "hf_SECRET", "--api-key=SECRET", "--max_new_tokens", "64",
        "--milvus_uri", "http://me:SECRET@host:1/", "--output_dir", "my runs",
    ])  # fmt: skip
    arguments = {
        "model": {"model_name_or_path": "tiny", "hub_token": "hf_SECRET", "api_keys": ["SECRET"]},
        "Password": "SECRET", "client_secret": 12345, "push_token": None, "max_new_tokens": 64,
        "average_tokens_across_devices": True, "uri": "http://me:SECRET@host:1/", "deep": [{"key": "SECRET"}],
        "learning_rate": float("nan"),
    }  # fmt: skip
    return run_record(arguments, {"test_file": tmp_path / "test.jsonl", "train_file": ""}, {"training": 1.5}, seed=7)


def test_secrets_are_hidden_and_counts_of_tokens_are_not(record):
    assert "SECRET" not in json.dumps(record) and "12345" not in json.dumps(record["arguments"])
    arguments = record["arguments"]
    assert arguments["model"] == {"model_name_or_path": "tiny", "hub_token": "***", "api_keys": ["***"]}
    assert arguments["max_new_tokens"] == 64 and arguments["average_tokens_across_devices"] is True
    assert arguments["push_token"] is None
    assert record["command"] == (
        "groundtune swr --hub_token '***' '--api-key=***' --max_new_tokens 64 "
        "--milvus_uri 'http://***@host:1/' --output_dir 'my runs'"
    )


def test_the_record_says_what_it_takes_to_run_again(record):
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["seed"] == 7 and record["durations"] == {"training": 1.5} and record["device"]
    assert set(record["versions"]) == {
        "python", "groundtune", "torch", "transformers", "peft", "sentence-transformers", "faiss-cpu",
    }  # fmt: skip
    assert list(record["inputs"]) == ["test_file"]
    about = record["inputs"]["test_file"]
    assert about["bytes"] == 3
    assert about["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


TOKEN = "hf_" + "aB3" * 12  # made up; only the shape matters


@pytest.mark.parametrize(
    "text, hidden",
    [
        ("http://me:SECRET@host/x", "http://***@host/x"),
        ("http://me:SEC@RET@host/x", "http://***@host/x"),
        ("https://SECRET@host/x and ftp://a:SECRET@b", "https://***@host/x and ftp://***@b"),
        ("https://host/x?token=SECRET&k=3#part", "https://host/x?token=***&k=3#part"),
        ("https://host/x?a=1&api_key=SECRET", "https://host/x?a=1&api_key=***"),
        ("https://s3/x?X-Amz-Signature=SECRET", "https://s3/x?X-Amz-Signature=***"),
        (f"model {TOKEN}, please", "model ***, please"),
        ("sk-" + "x" * 30, "***"),
        ("me@example.com", "me@example.com"),
        ("https://host/x@1.0?page=3", "https://host/x@1.0?page=3"),
        ("max_new_tokens=64 a/b.jsonl", "max_new_tokens=64 a/b.jsonl"),
    ],
)
def test_secrets_are_known_by_where_they_stand_or_how_they_are_spelt(text, hidden):
    assert hide_secrets(text) == hidden


@pytest.mark.parametrize(
    "text, hidden",
    [
        ('{"api_key": "SECRET", "seed": 1}', '{"api_key": "***", "seed": 1}'),
        ('{"extra_headers": {"Authorization": "Bearer SECRET"}}', '{"extra_headers": {"Authorization": "***"}}'),
        ('{"max_tokens": 5,  "seed": 1}', '{"max_tokens": 5,  "seed": 1}'),
        ('{"no JSON, http://me:SECRET@host', '{"no JSON, http://***@host'),
    ],
)
def test_options_that_are_json_are_looked_into(text, hidden):
    assert without_secrets({"generator_options": text}) == {"generator_options": hidden}


def test_a_token_is_hidden_wherever_it_was_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["groundtune", "sft", "--run_name", TOKEN, "--note", f"x={TOKEN}"])
    record = run_record({"run_name": TOKEN, "deep": [{"url": f"https://host/?key={TOKEN}"}]}, {}, {}, seed=1)
    assert TOKEN not in json.dumps(record)


def test_the_arguments_that_trainer_pickles_beside_a_model_hold_no_token(tmp_path):
    import torch

    from groundtune.training.arguments import QATrainingArguments

    arguments = QATrainingArguments(output_dir=str(tmp_path), hub_token=TOKEN, learning_rate=0.25)
    torch.save(arguments, tmp_path / "training_args.bin")
    assert arguments.hub_token == TOKEN
    assert TOKEN.encode() not in (tmp_path / "training_args.bin").read_bytes()
    again = pickle.loads(pickle.dumps(arguments))  # noqa: S301  made here
    assert again.hub_token is None and again.learning_rate == 0.25


@pytest.mark.parametrize(
    "words, hidden",
    [
        ("ask --api_key a b --json c", "ask --api_key *** *** --json c"),
        ("ask --api_key=a b", "ask --api_key=*** ***"),
        ("ask --max_new_tokens 8 runs/a -o there", "ask --max_new_tokens 8 runs/a -o there"),
        ("ask --max_new_tokens=8 runs/a", "ask --max_new_tokens=8 runs/a"),
        ("ask --token -x", "ask --token ***"),
    ],
)
def test_a_command_line_hides_what_follows_the_name_of_a_secret(words, hidden):
    assert words_without_secrets(words.split()) == hidden.split()
