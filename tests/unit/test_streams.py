"""What a shell does with a command: pipes that end, full disks, closed streams, signals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from groundtune.cli import COMMANDS, main, run_command
from groundtune.data.files import replacing
from groundtune.errors import DataError
from groundtune.system.durable import DiskError
from groundtune.system.locks import alone
from groundtune.system.streams import ReaderGone, _Messages, _Output

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and signals are those of POSIX")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def squad(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("squad") / "squad.json"
    asked = {"id": "1", "question": "Where?", "answers": [{"text": "Here", "answer_start": 0}]}
    path.write_text(json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "Here.", "qas": [asked]}]}]}))
    return path


def start(words: list[object], **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": options.pop("unbuffered", "")}
    command = [sys.executable, "-m", "groundtune.cli", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, **options)


COMMAND_LINES = {
    "help": ["-h"],
    "help of a command": ["compare", "-h"],
    "help of the doctor": ["doctor", "-h"],
    "table": ["convert", "squad", "SQUAD", "-o", "OUT"],
    "json": ["convert", "squad", "SQUAD", "-o", "OUT", "--json"],
}


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("name", COMMAND_LINES)
def test_a_reader_that_has_gone_is_status_0_and_a_full_disk_is_one_line_and_status_3(squad, tmp_path, name, unbuffered):
    if unbuffered and name != "table":
        pytest.skip("one is enough")
    words = [{"SQUAD": squad, "OUT": tmp_path / "out"}.get(word, word) for word in COMMAND_LINES[name]]
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full" if os.path.exists("/dev/full") else os.devnull, "wb") as full:
        gone = start(words, stdout=writing, unbuffered=unbuffered)
        os.close(writing)
        assert (gone.communicate()[1], gone.returncode) == (b"", 0)
        if full.name == "/dev/full":
            ended = start(words, stdout=full, unbuffered=unbuffered)
            (line,) = ended.communicate()[1].decode().splitlines()
            assert line.startswith("standard output: No space left on device; ") and ended.returncode == 3


def test_without_standard_output_or_error_the_work_is_done_and_no_file_takes_their_place(squad, tmp_path):
    words = ["convert", "squad", str(squad), "-o", str(tmp_path)]
    command = [sys.executable, "-m", "groundtune.cli", *words]
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert closed.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"squad.jsonl", "documents.jsonl"}
    assert all(json.loads(line) for path in tmp_path.iterdir() for line in path.read_text().splitlines())


def test_an_error_of_standard_output_is_raised_once_and_no_library_takes_it_for_its_own():
    reading, writing = os.pipe()
    os.close(reading)
    for kind, error in ((_Output, ReaderGone), (_Messages, None)):
        stream = io.TextIOWrapper(io.BufferedWriter(kind(os.dup(writing), "w")), encoding="utf-8")
        try:
            stream.write("x")
            stream.flush()
        except BaseException as raised:
            assert type(raised) is error and not isinstance(raised, Exception)
        else:
            assert error is None
        stream.write("y")
        stream.close()
    os.close(writing)
    if os.path.exists("/dev/full"):
        with pytest.raises(DiskError, match="^standard output: No space left"):
            _Output(os.open("/dev/full", os.O_WRONLY), "w").write(b"x")


def test_a_pipe_that_breaks_elsewhere_is_not_taken_for_standard_output(command):
    with pytest.raises(BrokenPipeError):
        command(lambda: (_ for _ in ()).throw(BrokenPipeError("the server's")))


@pytest.fixture
def command(monkeypatch):
    """Run a function as a command of the program; its exit status."""

    def run(work) -> int:
        made = types.ModuleType("groundtune.commands.work")
        made.main = lambda argv: work() or 0
        monkeypatch.setitem(sys.modules, made.__name__, made)
        monkeypatch.setitem(COMMANDS, "work", ("", "commands.work:main"))
        return run_command("work", [])

    return run


# Signals


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
@pytest.mark.usefixtures("signals_of_a_terminal")
def test_a_command_that_is_ended_leaves_no_temporary_file(command, tmp_path, capsys, signum, status):
    before = signal.getsignal(signum)

    def work():
        with alone(tmp_path / "out"), replacing(tmp_path / "out" / "a.jsonl") as file:
            file.write(b"half")
            os.kill(os.getpid(), signum)
            for _ in range(100):
                pass

    assert command(work) == status
    assert os.listdir(tmp_path) == [] and signal.getsignal(signum) is before
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("interrupted" if signum == signal.SIGINT else f"stopped by {signum.name}")


@pytest.mark.usefixtures("signals_of_a_terminal")
def test_a_signal_that_is_ignored_stays_ignored_and_a_second_one_ends_the_process(command):
    seen = []

    def work():
        seen.append(signal.getsignal(signal.SIGHUP))
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(100):
                pass
        finally:
            seen.append(signal.getsignal(signal.SIGTERM))

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command(work) == 143
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert seen == [signal.SIG_IGN, signal.SIG_DFL]


# Two at the same time


def test_of_two_commands_that_write_one_output_the_second_is_refused_and_named(squad, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["convert", "squad", str(squad), "-o", str(out)]
    with alone(out):
        before = sorted(os.listdir(out))
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"--output_dir: {out} is in use by process {os.getpid()} on ")
        assert sorted(os.listdir(out)) == before
    assert main(words) == 0 and sorted(os.listdir(out)) == ["documents.jsonl", "squad.jsonl"]


def test_a_lock_for_one_file_is_no_lock_for_another_and_both_leave_nothing(tmp_path):
    with alone(tmp_path, "a.jsonl", "output"), alone(tmp_path, "b.jsonl", "output"):
        second, refused = (
            alone(tmp_path, "a.jsonl", "output", patience=0),
            r"--output: .*a.jsonl is in use by .* another file",
        )
        with pytest.raises(DataError, match=refused), second:
            pytest.fail("two at the same time")
    assert os.listdir(tmp_path) == []


def test_a_folder_in_which_nothing_was_written_is_removed_and_what_was_there_stays(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.lock").touch()  # a run's, which stays
    for name in ("new", "old", "run"):
        with pytest.raises(ZeroDivisionError), alone(tmp_path / name):
            1 / 0  # noqa: B018
    assert sorted(map(str, (path.relative_to(tmp_path) for path in tmp_path.rglob("*")))) == [
        "old", "run", "run/.run.lock"
    ]  # fmt: skip
