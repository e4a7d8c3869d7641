"""A run resumes only if it is the same run; changes are named, and two runs never share a folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from groundtune.cli import parse_arguments
from groundtune.errors import DataError
from groundtune.prompts.policies import augmented_passages, gold_passages
from groundtune.prompts.rows import EpochRows, Row
from groundtune.runs.checkpoints import Checkpoint, writing
from groundtune.runs.resume import (
    AlreadyFinished,
    check_same_run,
    checkpoint_to_resume,
    identity,
    locked,
    rows_identity,
)
from groundtune.schema import Document, Example, Hit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with everything that a run reads, which can be moved to another disk."""
    place = tmp_path / "place"
    for name in (
        "train.jsonl",
        "eval.jsonl",
        "documents.jsonl",
        "model/config.json",
        "embedding/1_Pooling/config.json",
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(f"content of {name}")
    (place / "model/model.safetensors").write_bytes(bytes(1000))
    return place


def arguments(place: Path, *words: str):
    return parse_arguments(
        "swr",
        [
            "--model_name_or_path", str(place / "model"), "--embedding_model", str(place / "embedding"),
            "--train_file", str(place / "train.jsonl"), "--eval_file", str(place / "eval.jsonl"),
            "--full_dataset_file_path", str(place / "documents.jsonl"), "--output_dir", str(place / "output"),
            "--bf16", "false", *words,
        ],
    )  # fmt: skip


def changed(before, after) -> list[str]:
    return [name for name in after if before.get(name) != after[name]]


def test_two_starts_of_one_command_are_one_run_wherever_the_files_lie(place, tmp_path):
    before = identity(arguments(place))
    shutil.move(place, tmp_path / "elsewhere")
    assert identity(arguments(tmp_path / "elsewhere")) == before
    assert json.loads(json.dumps(before)) == before


@pytest.mark.parametrize(
    "words, names",
    [
        (["--learning_rate", "1e-3"], ["--learning_rate"]),
        (["--seed", "7"], ["--seed"]),
        (["--gradient_accumulation_steps", "4"], ["--gradient_accumulation_steps"]),
        (["--embedding_max_num_to_retrieve", "2"], ["--embedding_max_num_to_retrieve"]),
        (["--instruction", "Answer."], ["--instruction"]),
        (["--use_peft", "--learning_rate", "2e-5"], ["--use_peft"]),
        (["--eval_steps", "0.25"], ["--eval_steps", "--save_steps"]),
        (["--optim", "sgd"], ["--optim"]),
        (["--max_steps", "9"], ["--max_steps"]),
        (["--reranker", "maxsim", "--rerank_depth", "9"], ["--rerank_depth", "--reranker"]),
    ],
)
def test_whatever_may_change_the_weights_makes_another_run(place, words, names):
    assert sorted(changed(identity(arguments(place)), identity(arguments(place, *words)))) == names


def test_what_cannot_change_the_weights_may_change(place, tmp_path):
    words = (
        f"--output_dir {tmp_path} --logging_steps 1 --per_device_eval_batch_size 2 --report_to none "
        f"--save_total_limit 9 --disable_tqdm true --full_dataset_index_path {tmp_path} --resume_anyway "
        "--dataloader_num_workers 2 --run_name x"
    )
    assert changed(identity(arguments(place)), identity(arguments(place, *words.split()))) == []


@pytest.mark.parametrize(
    "name, flag",
    [
        ("train.jsonl", "--train_file"),
        ("eval.jsonl", "--eval_file"),
        ("documents.jsonl", "--full_dataset_file_path"),
        ("model/model.safetensors", "--model_name_or_path"),
        ("model/config.json", "--model_name_or_path"),
        ("embedding/1_Pooling/config.json", "--embedding_model"),
    ],
)
def test_a_changed_byte_of_any_input_is_seen(place, name, flag):
    before = identity(arguments(place))
    os.utime(place / name, (1, 1))
    assert identity(arguments(place)) == before
    data = bytearray((place / name).read_bytes())
    data[-1] ^= 1
    (place / name).write_bytes(data)
    assert changed(before, identity(arguments(place))) == [flag]


def test_large_models_are_told_apart_without_reading_all_of_them(place, monkeypatch):
    import groundtune.runs.resume

    monkeypatch.setattr(groundtune.runs.resume, "_WHOLE", 2**20)
    weights = place / "model/model.safetensors"
    data = os.urandom(2**22)
    weights.write_bytes(data)
    before = identity(arguments(place))
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert changed(before, identity(arguments(place))) == ["--model_name_or_path"]
    weights.write_bytes(os.urandom(2**22))
    assert changed(before, identity(arguments(place))) == ["--model_name_or_path"]


def test_no_secret_is_part_of_it(place):
    text = json.dumps(identity(arguments(place, "--hub_token", "hf_secret", "--push_to_hub_token", "hf_secret")))
    assert "hf_secret" not in text


def test_rows_are_the_same_if_every_token_is():
    def rows(*tokens):
        made = [Row(prompt, answer, "train.jsonl:1") for prompt, answer in tokens]
        return epoch_rows(lambda *_: made, [Example("Why?", "So.", ()) for _ in made])

    one = rows_identity(rows(([1, 2], [3]), ([4], [5])))
    assert one == rows_identity(rows(([1, 2], [3]), ([4], [5])))
    others = (([1], [2, 3]), ([4], [5])), (([4], [5]), ([1, 2], [3])), (([1, 2], [3]),), (([1, 2], [3]), ([4], [6]))
    assert all(rows_identity(rows(*other)) != one for other in others)


def epoch_rows(encode, examples, policy=gold_passages, hits=()):
    return EpochRows(encode, policy, examples, [hits] * len(examples), None, 100, seed=0)


def test_rows_are_the_same_if_each_may_read_the_same_passages_by_the_same_policy():
    """With a random policy, the first epoch does not determine what the others read."""

    def encode(examples, passages, prompt, limit):
        return [Row([1], [2], "") for _ in examples]

    example = Example("Why?", "So.", (Document("gold"),))
    hits = (Hit(Document("found"), 1.0),)
    one = rows_identity(epoch_rows(encode, [example], hits=hits))
    assert one == rows_identity(epoch_rows(encode, [example], hits=hits))
    others = [
        epoch_rows(encode, [example], hits=(Hit(Document("other"), 1.0),)),
        epoch_rows(encode, [example]),
        epoch_rows(encode, [example], policy=augmented_passages, hits=hits),
        epoch_rows(encode, [replace(example, hard_negatives=(Document("other"),))], hits=hits),
        epoch_rows(encode, [replace(example, gold_documents=(Document("other"),))], hits=hits),
    ]
    assert all(rows_identity(rows) != one for rows in others)


# Resuming


def save(output: Path, step: int, run) -> Path:
    target = output / f"checkpoint-{step}"
    with writing(target, {"step": step, "run": run, "resumable": True, "unfinished": {}}, needed=1) as folder:
        (folder / "weights").write_text("x")
    return target


def find(given):
    return checkpoint_to_resume(given.training, identity(given))


def test_the_default_begins_in_an_empty_folder_and_goes_on_from_the_latest_checkpoint(place):
    given = arguments(place)
    assert find(given) is None
    save(place / "output", 2, identity(given))
    save(place / "output", 4, identity(given))
    assert find(given).step == 4


def test_every_change_is_named_with_the_old_and_the_new_value_and_the_ways_out(place):
    save(place / "output", 4, identity(arguments(place)))
    (place / "train.jsonl").write_text("other rows")
    with pytest.raises(DataError) as refused:
        find(arguments(place, "--learning_rate", "1e-3", "--instruction", "Say it."))
    lines = sorted(refused.value.problems)
    assert lines[0].startswith("--instruction: Answer the user's question with the information in the passages below. ")
    assert lines[0].endswith(" when checkpoint-4 was saved, Say it. now")
    assert lines[1] == "--learning_rate: 2e-05 when checkpoint-4 was saved, 0.001 now"
    assert lines[2].startswith("--train_file: sha256 ") and lines[2].endswith(" now")
    assert "--resume_anyway" in lines[3] and "--overwrite_output_dir" in lines[3] and len(lines) == 4


def test_resume_anyway_goes_on_and_says_what_changed(place, caplog):
    save(place / "output", 4, identity(arguments(place)))
    with caplog.at_level(logging.WARNING, "groundtune"):
        assert find(arguments(place, "--learning_rate", "1e-3", "--resume_anyway")).step == 4
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "resumed although changed: --learning_rate: 2e-05 when checkpoint-4 was saved, 0.001 now"


def test_other_versions_are_a_warning(place, caplog):
    run = identity(arguments(place))
    old = {**run, "versions": {**run["versions"], "torch": "2.10.0"}}
    check_same_run(Checkpoint(place, 4, {"run": old}), run, anyway=False)
    assert f"torch: 2.10.0 then, {run['versions']['torch']} now" in caplog.text


def test_a_named_checkpoint_is_resumed_from_if_it_is_whole(place):
    given = arguments(place)
    path = save(place / "output", 2, identity(given))
    save(place / "output", 4, identity(given))
    assert find(arguments(place, "--resume_from_checkpoint", str(path))).step == 2
    (path / "weights").write_text("y")
    with pytest.raises(DataError, match="checkpoint-2 weights does not match its checksum; name another one, or auto"):
        find(arguments(place, "--resume_from_checkpoint", str(path)))


@pytest.mark.parametrize(
    "words, message", [("no", "output holds checkpoint-2; name another --output_dir"), ("true", None)]
)
def test_no_and_true_as_they_were_once_written(place, words, message):
    given = arguments(place, "--resume_from_checkpoint", words)
    if message is None:
        with pytest.raises(DataError, match="no complete checkpoint in"):
            find(given)
    else:
        assert find(given) is None
    save(place / "output", 2, identity(given))
    if message is None:
        assert find(given).step == 2
    else:
        with pytest.raises(DataError, match=message):
            find(given)


def finish(place: Path, **record) -> None:
    (place / "output").mkdir(exist_ok=True)
    (place / "output/report.html").write_text("<p>")
    (place / "output/run.json").write_text(json.dumps(record))


def test_a_finished_run_is_not_trained_again_and_the_ways_out_are_named(place):
    given = arguments(place)
    finish(place, identity=identity(given))
    with pytest.raises(AlreadyFinished, match="finished: see .*report.html; name another --output_dir, or give --over"):
        find(given)
    with pytest.raises(DataError, match="--seed: 42 in the finished run, 7 now"):
        find(arguments(place, "--seed", "7"))


@pytest.mark.parametrize("record", [{}, {"identity": 3}])
def test_results_of_an_unknown_run_are_not_written_over(place, record):
    finish(place, **record)
    with pytest.raises(DataError, match="holds the results of an earlier run; name another"):
        find(arguments(place))


def test_more_epochs_can_be_added_to_a_finished_run(place):
    given = arguments(place)
    finish(place, identity=identity(given))
    save(place / "output", 4, identity(given))
    assert find(arguments(place, "--num_train_epochs", "2", "--resume_anyway")).step == 4
    assert find(given).step == 4  # and until it ends, the folder holds no finished run


def test_overwriting_removes_what_a_run_leaves_and_nothing_else(place):
    given = arguments(place)
    finish(place, identity=identity(given))
    save(place / "output", 4, identity(given))
    for name in ("predictions/test_base.jsonl", "index/vectors.npy", "notes.txt"):
        (place / "output" / name).parent.mkdir(exist_ok=True)
        (place / "output" / name).write_text("x")
    assert find(arguments(place, "--overwrite_output_dir")) is None
    assert sorted(path.name for path in (place / "output").iterdir()) == ["index", "notes.txt"]


# The lock


def test_a_folder_that_can_be_none_is_a_problem(tmp_path):
    with pytest.raises(DataError, match="cannot be written to .*; name another folder"), locked(tmp_path / ("a" * 300)):
        pytest.fail("it was made")


def test_two_runs_are_refused_in_one_folder_and_the_second_is_told_who_is_there(tmp_path):
    with locked(tmp_path), pytest.raises(DataError) as refused, locked(tmp_path, patience=0.1):
        pytest.fail("both are in")
    assert f"is in use by process {os.getpid()} on " in str(refused.value)
    with locked(tmp_path, patience=0):
        pass


HOLD = """
import sys, time
from pathlib import Path
from groundtune.runs.resume import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_the_lock_of_a_killed_process_is_nobody_s(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(DataError, match=f"is in use by process {other.pid} on "), locked(tmp_path, patience=0):
        pytest.fail("both are in")
    other.send_signal(signal.SIGKILL)
    other.wait()
    begin = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, error):
    def fail(self, *args, **kwargs):
        raise error

    monkeypatch.setattr("groundtune.system.locks.FileLock.acquire", fail)
    with locked(tmp_path):
        assert "file system without locks" in caplog.text


def test_a_holder_that_has_just_gone_is_another_process(tmp_path, monkeypatch):
    with locked(tmp_path):
        (tmp_path / ".run.holder").unlink()
        with pytest.raises(DataError, match="is in use by another process; "), locked(tmp_path, patience=0):
            pytest.fail("both are in")


def test_a_folder_that_cannot_be_made_is_the_user_s_to_solve(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(DataError, match="--output_dir: .*file/inner cannot be written to"),
        locked(tmp_path / "file/inner"),
    ):
        pytest.fail("began")
