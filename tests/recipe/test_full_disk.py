"""Every command that writes, on a full disk: one line with the free bytes, exit status 3, no traceback."""

from __future__ import annotations

import errno
import json
import os

import pytest
from fake_server import FakeServer

from groundtune.cli import main


@pytest.fixture
def commands(families, static_embedding_folder, data_folder, tmp_path):
    """The words of each command, and its output folder."""
    (tmp_path / "notes.txt").write_text("The library opens at nine in the morning.\n" * 20)
    answer = {"text": "At nine", "answer_start": 18}
    asked = {"id": "1", "question": "When does it open?", "answers": [answer], "is_impossible": False}
    paragraph = {"context": "The library opens At nine in the morning.", "qas": [asked]}
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "Library", "paragraphs": [paragraph]}]}))
    documents, out = data_folder / "documents.jsonl", tmp_path / "out"
    with FakeServer(lambda body: "1. When does the library open?") as server:
        yield {
            "documents": [tmp_path / "notes.txt", "-o", out / "d.jsonl", "--tokenizer", families["llama"].folder],
            "convert": ["squad", tmp_path / "squad.json", "-o", out],
            "index": [
                "--full_dataset_file_path", documents, "--embedding_model", static_embedding_folder,
                "--full_dataset_index_path", out / "index",
            ],
            "questions": [
                documents, "-o", out, "--generator", f"openai:{server.url}", "--generator_model", "m", "--min_words", 1,
            ],
        }  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
@pytest.mark.parametrize("name", ["documents", "convert", "index", "questions"])
def test_a_full_or_failing_disk_is_one_line_and_status_3(commands, tmp_path, monkeypatch, capsys, name, number):
    def fail(handle):
        raise OSError(number, os.strerror(number))

    words = [name, *map(str, commands[name]), "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert main(words) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if os.strerror(number) in line]
    assert line.startswith(str(tmp_path / "out")) and " bytes are free" in line
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.parametrize("name", ["documents", "convert", "index"])
def test_the_same_command_ends_the_work_once_there_is_room(commands, tmp_path, monkeypatch, name):
    def fail(handle):
        raise OSError(errno.ENOSPC, "")

    words = [name, *map(str, commands[name]), "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert main(words) == 3
    assert main(words) == 0


def test_room_for_an_index_is_looked_for_on_its_own_disk_and_before_it_is_written(
    commands, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("groundtune.system.durable._free", lambda target: 12 if "index" in str(target) else 10**12)
    assert main(["index", *map(str, commands["index"])]) == 3
    assert " bytes are needed, 12 bytes are free" in capsys.readouterr().err
    assert not list(tmp_path.rglob("vectors.npy"))
