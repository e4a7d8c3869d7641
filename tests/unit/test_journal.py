"""A journal is read and understood before a byte of it changes, and whatever else has its name is left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from groundtune.errors import DataError
from groundtune.prepare.journal import Journal
from groundtune.prepare.questions import Settings as QuestionSettings
from groundtune.prepare.questions import open_journal, read_prompt

SETTINGS = {"generator": "m"}
HEADER = b'{"settings": {"generator": "m"}}\n'
ROWS = [
    {"passage": "a", "questions": ["Why?", "Who?"]},
    {"passage": "b", "questions": []},
    {"passage": "a", "question": "Why?", "answer": "So.", "finished": True},
    {"passage": "a", "question": "Why?", "check": "1", "supported": None, "said": "Hm."},
]


def journal(path: Path) -> Journal:
    return Journal(path, SETTINGS, lambda row: "" if isinstance(row.get("n"), int) else "has no n")


def settings() -> QuestionSettings:
    return QuestionSettings(*(read_prompt(None, f"{name}.txt") for name in ("questions", "answer", "support")))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    "content",
    [
        b"forty-six bytes without a line feed at the end",
        b"my notes\n",
        b"\n\n",
        b"\x00" * 64,
        b"\xff\xfe\n",
        b'{"question": "Why?"}\n{"question": "Who?"}',
        b'{"settings": []}\n',
        b'{"settings": {"generator": "m"}, "n": 1}\n',
        b'{"settings": {"generator": "m"}}',  # cut in its first line
        b"[1, 2]\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        b'{"settings": {"generator": "another"}}\n{"n": 1}\n{"n',
        HEADER + b'{"n": 1}\nmy notes',
        HEADER + b'{"n": 1}\n{"m": 2}\n{"n',
        HEADER + b"nothing\n",
        HEADER + b'"n"\n',
        HEADER + b"[" * 100_000,
        HEADER + b'{"n": ' + b"1" * 5000 + b"}\n",
        HEADER + HEADER,
    ],
)
def test_what_is_no_journal_of_this_command_is_refused_in_one_line_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "generated.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        journal(path)
    (line,) = refused.value.problems
    assert line.startswith(str(path)) and "name another --output_dir" in line and "\n" not in line
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["generated.jsonl"]


@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", os.mkdir)], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused_and_nothing_waits_for_it(tmp_path, make):
    make(tmp_path / "generated.jsonl")
    with pytest.raises(DataError, match="is not a regular file"):
        journal(tmp_path / "generated.jsonl")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "generated.jsonl").write_bytes(HEADER)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", args[0])

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        journal(tmp_path / "generated.jsonl")


@pytest.mark.parametrize("rest", [b"", b"{", b'{"n": 3', b'{"n": 3}'[:-1]])
def test_a_row_that_a_kill_cut_is_dropped_with_the_next_row_and_not_before(tmp_path, rest):
    path = tmp_path / "generated.jsonl"
    path.write_bytes(HEADER + b'{"n": 1}\n' + rest)
    read = journal(path)
    assert read.rows == [{"n": 1}] and path.read_bytes() == HEADER + b'{"n": 1}\n' + rest
    read.add([])
    assert path.read_bytes() == HEADER + b'{"n": 1}\n' + rest
    read.add([{"n": 2}])
    read.add([{"n": 4}])
    assert path.read_bytes() == HEADER + b'{"n": 1}\n{"n": 2}\n{"n": 4}\n'
    assert journal(path).rows == [{"n": 1}, {"n": 2}, {"n": 4}]


def test_a_complete_row_whose_line_feed_an_editor_removed_is_kept(tmp_path):
    path = tmp_path / "generated.jsonl"
    path.write_bytes(HEADER + b'{"n": 1}')
    read = journal(path)
    assert read.rows == [{"n": 1}]
    read.add([{"n": 2}])
    assert read.rows == [{"n": 1}, {"n": 2}] and path.read_bytes() == HEADER + b'{"n": 1}\n{"n": 2}\n'


def test_a_new_journal_appears_with_its_first_line_and_rows_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "generated.jsonl"
    made = journal(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made.add([{"n": 1}])
    assert os.listdir(path.parent) == []
    path.touch()  # an empty file holds nothing that could be lost
    made = journal(path)
    made.add([{"n": 1}])
    assert path.read_bytes() == HEADER + b'{"n": 1}\n'


def test_a_row_that_a_full_disk_cut_is_replaced_by_the_next_one(tmp_path, monkeypatch):
    path = tmp_path / "generated.jsonl"
    made = journal(path)
    made.add([{"n": 1}])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made.add([{"n": 2}])
    made.add([{"n": 3}])
    assert lines(path)[1:] == [{"n": 1}, {"n": 3}]


def test_rows_of_every_kind_that_the_command_writes_are_read(tmp_path):
    made = open_journal(tmp_path, settings(), "m")
    made.add(ROWS)
    assert open_journal(tmp_path, settings(), "m").rows == ROWS


@pytest.mark.parametrize("number", range(len(ROWS)))
@pytest.mark.parametrize("bad", [None, 5, "text", ["text", 1], {"a": "b"}, "\ud800", float("nan")], ids=ascii)
def test_a_row_of_another_shape_is_named_before_anything_is_asked(tmp_path, number, bad):
    row = ROWS[number]
    for name in row:
        changed = {**row, name: bad}
        if bad is None and name == "supported" or bad == "text" and isinstance(row[name], str):
            continue
        path = tmp_path / "generated.jsonl"
        path.unlink(missing_ok=True)
        open_journal(tmp_path, settings(), "m").add([ROWS[0]])
        with open(path, "a") as file:
            file.write(json.dumps(changed) + "\n")
        with pytest.raises(DataError) as refused:
            open_journal(tmp_path, settings(), "m")
        (line,) = refused.value.problems
        assert line.startswith(f"{path}:3: {name} is not ") and line.isprintable()


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_row_without_a_field_or_with_one_too_many_is_named(tmp_path, number):
    row = ROWS[number]
    for changed in [{n: v for n, v in row.items() if n != name} for name in row] + [{**row, "more": 1}, {}]:
        path = tmp_path / "generated.jsonl"
        path.unlink(missing_ok=True)
        open_journal(tmp_path, settings(), "m").add([ROWS[0], changed])
        with pytest.raises(DataError, match=r"generated.jsonl:3: "):
            open_journal(tmp_path, settings(), "m")
