"""States are restored exactly and without pickle; a checkpoint exists completely or not at all."""

from __future__ import annotations

import copy
import errno
import logging
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from groundtune.runs import checkpoints
from groundtune.runs.checkpoints import (
    checkpoint_folders,
    kept_randomness,
    load_state,
    newest_checkpoint,
    randomness,
    read_checkpoint,
    remove_old,
    restore_randomness,
    save_state,
    writing,
)
from groundtune.system.durable import Damaged, DiskError

SHARED = torch.arange(12.0)
STATE = {
    "state": {
        0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)},
        1: {"step": 4, "8 bit": torch.ones(3).byte()},
    },
    "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "fused": None, "params": [0, 1], "$odd": True}],
    "whole": SHARED,
    "again": SHARED,
    "part": SHARED[3:7],
    "turned": torch.arange(6).reshape(2, 3).T,
    "nothing": torch.zeros(0),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "numbers": [1e-300, float("inf"), -0.0, 2**80, True],
    "empty": [{}, [], (), ""],
}


def same(one, other) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def test_a_state_comes_back_exactly(tmp_path):
    save_state(tmp_path, "optimizer", STATE)
    assert same(load_state(tmp_path, "optimizer"), STATE)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_a_state_without_tensors_is_one_file(tmp_path):
    save_state(tmp_path, "scheduler", {"last_epoch": 3, "_last_lr": [0.1]})
    assert [path.name for path in tmp_path.iterdir()] == ["scheduler.json"]
    assert load_state(tmp_path, "scheduler") == {"last_epoch": 3, "_last_lr": [0.1]}


@pytest.mark.parametrize("value", [print, {1, 2}, object(), b"bytes", np.zeros(2)])
def test_what_only_pickle_could_restore_is_refused(tmp_path, value):
    with pytest.raises(TypeError, match=r"optimizer.a.0 is \w+, which cannot be saved without pickle"):
        save_state(tmp_path, "optimizer", {"a": [value]})


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.SGD, torch.optim.RMSprop])
def test_an_optimizer_goes_on_from_its_saved_state_bit_for_bit(tmp_path, make):
    def steps(model, optimizer, n):
        for i in range(n):
            optimizer.zero_grad()
            model(torch.full((2, 4), i + 1.0)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = make(model.parameters(), lr=0.1)
    steps(model, optimizer, 3)
    save_state(tmp_path, "optimizer", optimizer.state_dict())
    other = copy.deepcopy(model)
    steps(model, optimizer, 3)
    fresh = make(other.parameters(), lr=0.3)
    fresh.load_state_dict(load_state(tmp_path, "optimizer"))
    steps(other, fresh, 3)
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), torch.rand(1).item()]


def test_every_generator_goes_on_where_it_was(tmp_path):
    draw()
    save_state(tmp_path, "randomness", randomness())
    expected = draw()
    restore_randomness(load_state(tmp_path, "randomness"))
    assert draw() == expected


def test_what_is_drawn_inside_is_not_missed_outside_also_after_an_error():
    state = randomness()
    with pytest.raises(ZeroDivisionError), kept_randomness():
        draw()
        raise ZeroDivisionError
    assert same(randomness(), state)


# Folders


def make(output: Path, step: int, text: str = "weights", **about) -> Path:
    target = output / f"checkpoint-{step}"
    with writing(target, {"step": step, "run": {}, "resumable": True, **about}, needed=1) as folder:
        (folder / "weights.txt").write_text(text)
    return target


def test_a_written_checkpoint_is_found_with_what_was_told_about_it(tmp_path):
    make(tmp_path, 2)
    make(tmp_path, 10, unfinished={"evaluate": True})
    found = newest_checkpoint(tmp_path)
    assert (found.step, found.folder, found.about["unfinished"]) == (10, tmp_path / "checkpoint-10", {"evaluate": True})
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_where_there_is_none_none_is_found(tmp_path):
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "not there") is None
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert checkpoint_folders(tmp_path) == []


def test_a_damaged_one_is_passed_over_for_the_one_before_with_a_warning_for_each(tmp_path, caplog):
    make(tmp_path, 2)
    (make(tmp_path, 4) / "weights.txt").write_text("Weights")
    (tmp_path / "checkpoint-6").mkdir()
    make(tmp_path, 8).rename(tmp_path / "checkpoint-7")
    make(tmp_path, 9, resumable=False)
    with caplog.at_level(logging.WARNING, "groundtune"):
        assert newest_checkpoint(tmp_path).step == 2
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(": ")[2] for message in messages] == [
        "contains a model but no training state (--save_only_model, or DeepSpeed)", "was written as checkpoint-8",
        "has no manifest.json: never completed", "weights.txt does not match its checksum",
    ]  # fmt: skip


def test_a_save_that_fails_leaves_the_checkpoint_of_that_step_and_no_rubbish(tmp_path):
    make(tmp_path, 2, "before")
    with pytest.raises(RuntimeError, match="in the middle"), writing(tmp_path / "checkpoint-2", {}, needed=1) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError("in the middle")
    assert (read_checkpoint(tmp_path / "checkpoint-2").folder / "weights.txt").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("call", ["rename", "discard"])
def test_a_whole_checkpoint_that_did_not_get_its_name_is_given_it_by_the_next_start(tmp_path, monkeypatch, call):
    make(tmp_path, 2, "before")

    def fail(path, *args):
        if not str(path).endswith(".writing-checkpoint-2") or call == "rename":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(*((os, "rename") if call == "rename" else (checkpoints, "discard")), fail)
    with pytest.raises(DiskError, match="Input/output error"):
        make(tmp_path, 2, "after")
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path).step == 2
    assert (tmp_path / "checkpoint-2/weights.txt").read_text() == "after"


def test_what_a_killed_save_left_half_written_is_removed_by_the_next_start(tmp_path):
    make(tmp_path, 2)
    (tmp_path / ".writing-checkpoint-4").mkdir()
    (tmp_path / ".writing-checkpoint-4/weights.txt").write_text("ha")
    assert newest_checkpoint(tmp_path).step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_full_disk_is_told_with_the_checkpoint_that_is_left(tmp_path):
    make(tmp_path, 2)
    message = "bytes are needed, .* bytes are free; .*checkpoint-2 is intact"
    with pytest.raises(DiskError, match=message), writing(tmp_path / "checkpoint-4", {}, needed=10**18):
        pytest.fail("writing began")


@pytest.mark.parametrize(
    "there, keep, limit, left",
    [
        ([1, 2, 3, 4], [4], 2, [3, 4]),
        ([1, 2, 3, 4], [4, 1], 2, [1, 4]),
        ([1, 2, 3, 4], [4, 1], 1, [1, 4]),
        ([1, 2, 3, 4], [4], None, [1, 2, 3, 4]),
        ([1, 2, 3, 4], [4], 0, [1, 2, 3, 4]),
        ([1, 2, 3], [3], 9, [1, 2, 3]),
        ([2, 4, 10, 12], [4], 2, [2, 4]),  # someone went back to 2
    ],
)
def test_the_latest_and_the_best_stay(tmp_path, there, keep, limit, left):
    folders = {step: make(tmp_path, step) for step in there}
    remove_old(tmp_path, limit=limit, keep={folders[step] for step in keep})
    assert [read_checkpoint(path).step for path in checkpoint_folders(tmp_path)] == left


def test_a_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, caplog):
    folders = [make(tmp_path, step) for step in (1, 2)]
    monkeypatch.setattr(checkpoints, "discard", lambda path: (_ for _ in ()).throw(PermissionError("in use")))
    remove_old(tmp_path, limit=1, keep={folders[1]})
    assert "checkpoint-1 could not be removed: in use" in caplog.text


def test_a_pickle_beside_the_weights_makes_a_checkpoint_that_is_not_read(tmp_path):
    """Trainer would have loaded it instead of an adapter."""
    (make(tmp_path, 2) / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(Damaged, match="pytorch_model.bin not in manifest.json"):
        read_checkpoint(tmp_path / "checkpoint-2")
