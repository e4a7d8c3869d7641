"""A folder is trusted if every byte is as written, and disk failures are distinguished from other errors."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil

import pytest

from groundtune.system.durable import MANIFEST, Damaged, DiskError, discard, disk_errors, read_manifest, write_manifest

CONTENT = {"step": 3, "of": [1.5, None, "ü\u2028"], "path": {"a": 2}}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(range(256)) * 9)
    (folder / "inner" / "b.json").write_text("{}")
    (folder / "empty").write_bytes(b"")
    write_manifest(folder, CONTENT)
    return folder


def test_what_was_written_is_read_with_sizes_and_checksums_of_all_files(folder):
    content = read_manifest(folder)
    assert {name: content[name] for name in CONTENT} == CONTENT
    assert content["files"].keys() == {"a.bin", "inner/b.json", "empty"}
    assert content["files"]["a.bin"]["bytes"] == 2304


def test_a_manifest_is_written_again_over_changed_files(folder):
    (folder / "a.bin").write_bytes(b"other")
    with pytest.raises(Damaged):
        read_manifest(folder)
    write_manifest(folder, {})
    assert read_manifest(folder)["files"]["a.bin"]["bytes"] == 5


def test_hidden_files_are_nobody_s_business(folder):
    (folder / ".DS_Store").write_bytes(b"x")
    read_manifest(folder)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / MANIFEST).unlink(), "has no manifest.json: never completed"),
        (lambda f: (f / "a.bin").unlink(), "a.bin missing"),
        (lambda f: (f / "more.bin").write_bytes(b""), "more.bin not in manifest.json"),
        (lambda f: (f / "a.bin").write_bytes(b"12"), "a.bin has 2 bytes instead of 2,304"),
        (lambda f: (f / "a.bin").write_bytes(bytes(2304)), "a.bin does not match its checksum"),
        (lambda f: (f / MANIFEST).write_text("[]"), "cannot be read"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff"), "cannot be read"),
        (lambda f: (f / MANIFEST).write_text("[" * 100_000), "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(folder, damage, message):
    damage(folder)
    with pytest.raises(Damaged, match=message):
        read_manifest(folder)


def test_no_bit_of_a_manifest_can_change_unnoticed(folder):
    data, rng = (folder / MANIFEST).read_bytes(), random.Random(0)
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / MANIFEST).write_bytes(changed)
        with pytest.raises(Damaged):
            read_manifest(folder)
    # Nor may it say the same in other words.
    content = json.loads(data)
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(Damaged):
        read_manifest(folder)


def test_a_removal_that_is_cut_short_leaves_no_complete_folder(folder, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        discard(folder)
    assert (folder / "a.bin").exists()
    with pytest.raises(Damaged, match="never completed"):
        read_manifest(folder)


def fail_with(error: BaseException, cause: BaseException | None = None):
    raise error from cause


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error, cause",
    [
        (FULL, None),
        (OSError(errno.EIO, os.strerror(errno.EIO)), None),
        (RuntimeError("could not save"), FULL),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), None),
    ],
)
def test_a_full_or_failing_disk_is_told_in_one_line_with_needed_and_free_bytes(tmp_path, error, cause):
    with pytest.raises(DiskError) as told, disk_errors(tmp_path / "not there" / "yet", 1, "; do this"):
        fail_with(error, cause)
    line = str(told.value)
    assert "1 bytes are needed, " in line and " bytes are free; do this" in line and "\n" not in line
    assert (
        line.startswith(str(tmp_path))
        and os.strerror(errno.EIO if error.args[0] == errno.EIO else errno.ENOSPC) in line
    )


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), ValueError("os error"), FileNotFoundError("x")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, disk_errors(tmp_path):
        raise error
    assert raised.value is error


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DiskError, match=f"{10**18:,} bytes are needed, "), disk_errors(tmp_path, 10**18):
        pytest.fail("writing began")


def test_the_line_that_is_nearest_to_the_failure_is_kept(tmp_path):
    with (
        pytest.raises(DiskError, match="near"),
        disk_errors(tmp_path, hint="; far"),
        disk_errors(tmp_path, 7, "; near"),
    ):
        raise FULL
