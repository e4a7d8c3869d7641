"""Tasks in other processes: whatever one does, it alone fails, within its limits, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from groundtune.errors import DataError
from groundtune.system import workers
from groundtune.system.workers import Limits, Result, results

ROOT = Path(__file__).parents[2]
LIMITS = Limits(seconds=1, memory_mb=300, results_mb=20)
PREPARE = "hostile_tasks:prepare"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Other processes find the tasks by the same `sys.path`."""
    monkeypatch.syspath_prepend(str(ROOT / "tests"))


def run(folder: Path, *tasks: str, limits: Limits = LIMITS) -> list[Result]:
    return list(results(PREPARE, {}, tasks, limits, folder))


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_results_come_in_the_order_of_the_tasks_whoever_finishes_first(tmp_path):
    tasks = ["slow", *(f"task {n}" for n in range(100))]
    found = run(tmp_path, *tasks, limits=Limits(60, 300, 20))
    assert [result.summary for result in found] == ["slow", *(task.upper() for task in tasks[1:])]
    assert ["".join(result) for result in found[1:]] == tasks[1:]
    assert len("".join(found[0])) == 15 * 2**20 and not any(result.failure for result in found)
    assert children() == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "act, failure, why",
    [
        ("hang", "time", "SIGKILL"),
        ("hang in c", "time", "SIGKILL"),
        ("out of memory", "memory", ""),
        ("much", "results", "SIGKILL"),
        ("segfault", "crash", "SIGSEGV"),
        ("abort", "crash", "SIGABRT"),
        ("exit", "crash", "status 0"),
        ("sys.exit", "error", "SystemExit: 3"),
        ("error", "error", "ValueError: no good"),
        ("interrupt", "error", "KeyboardInterrupt"),
        ("too deep", "error", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_a_task_that_goes_wrong_is_the_only_one_that_fails(tmp_path, monkeypatch, act, failure, why):
    monkeypatch.setattr(workers, "_processes", lambda tasks, limits: 1)  # all of them in one
    begin = time.monotonic()
    before, wrong, after = run(tmp_path, "before", act, "after")
    assert (wrong.failure, wrong.why.startswith(why)) == (failure, True), wrong.why
    assert ("".join(before), before.summary, "".join(after), after.summary) == ("before", "BEFORE", "after", "AFTER")
    assert time.monotonic() - begin < 10 and children() == []


def test_a_task_is_not_blamed_for_what_an_earlier_one_did(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_processes", lambda tasks, limits: 1)
    poison, after = run(tmp_path, "next dies", "after")
    assert (poison.failure, after.failure, after.summary) == ("", "", "AFTER")


def test_the_time_starts_again_after_each_mb_of_results(tmp_path):
    (slow,) = run(tmp_path, "slow")
    assert slow.summary == "slow"  # after 1.5 seconds, of which one is allowed


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere this is the only way")
def test_memory_is_limited_by_the_parent_where_the_system_does_not(tmp_path):
    pool = workers._Pool(PREPARE, {}, LIMITS, tmp_path)
    pool.order["memory"] = 2**30  # the system's limit
    try:
        assert pool.run("out of memory").failure == "memory"
    finally:
        pool.close(ThreadPoolExecutor())


def test_the_time_for_which_the_program_was_suspended_is_not_the_task_s(monkeypatch):
    looked: list[float] = []
    clock = iter([0.0, 0.1, 0.1, 500.0, 500.0])
    monkeypatch.setattr(workers.time, "monotonic", lambda: next(clock))
    pool = object.__new__(workers._Pool)
    worker = type("Worker", (), {"look": lambda self, elapsed: looked.append(elapsed)})()
    pool.alive, pool.closed = {worker}, type("Closed", (), {"wait": lambda self, _: len(looked) == 2})()
    pool._watch()
    assert looked == [0.1, 1.0]


def test_what_prevents_every_task_is_said_once(tmp_path):
    with pytest.raises(DataError, match="cannot be started .ValueError: no good.; try again"):
        list(results(PREPARE, {"wrong": "error"}, ["a"], LIMITS, tmp_path))
    with pytest.raises(DataError, match="cannot be started"):
        list(results(PREPARE, {"wrong": "exit"}, ["a", "b"], LIMITS, tmp_path))
    assert children() == []


def test_a_reader_that_stops_early_leaves_no_process(tmp_path):
    with closing(results(PREPARE, {}, ["first", "hang", "hang"], LIMITS, tmp_path)) as read:
        assert next(read).summary == "FIRST"
    assert children() == []


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_a_parent_that_is_ended(tmp_path, sent):
    code = (
        f"import signal, sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from pathlib import Path\n"
        "from groundtune.system.workers import Limits, results\n"
        f"for result in results({PREPARE!r}, dict(), ['first', 'hang', 'hang'], Limits(100, 300, 9), Path('.')):\n"
        "    print(result.summary, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as parent:
        assert parent.stdout and parent.stdout.readline() == b"FIRST\n"
        started = psutil.Process(parent.pid).children()
        parent.send_signal(sent)
        parent.wait(10)
    assert started
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []


def test_nothing_in_the_current_folder_is_imported(tmp_path, monkeypatch):
    for name in ("json.py", "groundtune.py", "signal.py", "hostile_tasks.py", "sitecustomize.py"):
        (tmp_path / name).write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # only read when a process starts
    (done,) = run(tmp_path, "done")
    assert done.summary == "DONE" and not os.path.exists("executed")


def test_a_process_imports_neither_torch_nor_what_it_does_not_need(tmp_path):
    code = (
        "import sys, groundtune.prepare.corpus\n"
        "unwanted = {'torch', 'transformers', 'sentence_transformers', 'numpy', 'rich', 'pypdfium2', 'mammoth'}\n"
        "assert not unwanted & set(sys.modules), unwanted & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
