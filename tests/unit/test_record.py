"""What run.json says: all that it takes to run again, and no secret."""

from __future__ import annotations

import json
import sys

import pytest

from groundtune.record import run_record


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
