"""A signal stops a run where interrupting is safe and waits where it is not; a second one never waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from groundtune.system import signals
from groundtune.system.signals import Stopped, deferred, interruptible, watched

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send"),
    pytest.mark.usefixtures("signals_of_a_terminal"),
]
ROOT = Path(__file__).parents[2]


def send(signum: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), signum)
    for _ in range(100):  # until Python handles it
        pass


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_at_once_and_no_handler_of_errors_holds_it_up(signum, status):
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stopped, watched():
        try:
            send(signum)
            pytest.fail("went on")
        except Exception:
            pytest.fail("taken for an error")
    assert stopped.value.exit_status == status and signum.name in str(stopped.value)
    assert signal.getsignal(signum) is before


def test_what_may_not_be_torn_is_finished_and_then_it_stops(capfd):
    done, told = [], ""
    with pytest.raises(Stopped), watched():
        with deferred():
            send()
            assert signals.stop_signal() == signal.SIGTERM
            while not told:
                told = capfd.readouterr().err
            done.append("step")
        pytest.fail("went on")
    assert done == ["step"]
    assert told == "SIGTERM: finishing the step; a second signal exits immediately\n" and not capfd.readouterr().err


def test_within_it_an_evaluation_may_be_torn():
    with pytest.raises(Stopped), watched(), deferred():
        with interruptible():
            send()
            pytest.fail("the evaluation went on")
        pytest.fail("the step went on")


def test_an_evaluation_that_begins_after_the_signal_does_not_begin():
    with pytest.raises(Stopped), watched(), deferred():
        send()
        with interruptible():
            pytest.fail("began")


def test_several_processes_evaluate_to_the_end_together():
    done = []
    with pytest.raises(Stopped), watched(), deferred(everywhere=True):
        with interruptible():
            send()
            done.append("evaluation")
        done.append("step")
    assert done == ["evaluation", "step"]


def test_after_an_evaluation_it_waits_again():
    with pytest.raises(Stopped), watched(), deferred():
        with interruptible():
            pass
        send()


def test_interruptible_as_a_decorator_serves_every_call():
    @interruptible()
    def evaluate() -> int:
        return 1

    with watched(), deferred():
        assert evaluate() + evaluate() == 2
    with pytest.raises(Stopped), watched(), deferred():
        send()
        evaluate()


def test_a_run_begins_without_a_stop_signal():
    with pytest.raises(Stopped), watched():
        send()
    with watched():
        assert signals.stop_signal() is None


SECOND = """
import os, signal, time
from groundtune.system.signals import deferred, watched
with watched(), deferred():
    os.kill(os.getpid(), signal.{first})
    print("noted", flush=True)
    os.kill(os.getpid(), signal.{second})
    time.sleep(60)
"""


@pytest.mark.parametrize("first, second", [("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_a_second_signal_leaves_at_once(first, second):
    done = subprocess.run(
        [sys.executable, "-c", SECOND.format(first=first, second=second)], capture_output=True, text=True, timeout=120,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == -getattr(signal, second)
    assert done.stdout == "noted\n" and "Traceback" not in done.stderr


LIBRARY = """
import hashlib
from groundtune.system.signals import deferred, watched
with watched(), deferred():
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # far over a minute, and no line of Python
"""


@pytest.mark.parametrize("first, second", [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_signals_are_heard_while_a_library_computes(first, second):
    """A backward pass can take as long, and Python calls no handler until it ends."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", LIBRARY], cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.5)  # and now it is in the library
        process.send_signal(getattr(signal, first))
        assert process.stderr.readline() == f"{first}: finishing the step; a second signal exits immediately\n"
        process.send_signal(getattr(signal, second))
        assert process.wait(timeout=20) == 128 + getattr(signal, second)
        assert process.stderr.read() == ""


FORKED = """
import os, signal, time
from groundtune.system.signals import deferred, stop_signal, watched
with watched():
    with deferred():
        if child := os.fork():
            os.waitpid(child, 0)
            print("alone", stop_signal(), flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
            print("noted", stop_signal(), flush=True)
        else:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C tells every process of a terminal
            os._exit(0)
"""


def test_what_a_worker_is_told_is_not_a_second_signal():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout == "alone None\nnoted 2\n"


def test_whoever_listened_before_listens_again():
    before = signal.set_wakeup_fd(-1)
    threads = threading.active_count()
    with watched():
        assert signal.set_wakeup_fd(-1) != -1
    assert signal.set_wakeup_fd(before) == -1 and threading.active_count() == threads


def test_a_signal_that_the_parent_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with watched():
            send(signal.SIGINT)
        assert signals.stop_signal() is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_changes():
    handler, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with watched():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [handler]


def test_where_a_second_signal_does_not_end_the_process_it_is_handled_as_before(signals_of_a_terminal, capfd):
    """For example in a notebook, whose process holds more than this run."""
    done, wakeup = [], signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with pytest.raises(KeyboardInterrupt), watched(second_ends=False):
        assert signal.set_wakeup_fd(wakeup) == wakeup, "a loop of the program's own listens there"
        with deferred():
            send(signal.SIGINT)
            done.append("first")
            send(signal.SIGINT)
            pytest.fail("went on")
    assert done == ["first"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capfd.readouterr().err == "SIGINT: finishing the step; a second signal does not wait for it\n"


def test_a_run_in_another_thread_neither_hears_a_signal_nor_keeps_the_main_thread_from_it():
    inside, leave, heard = threading.Event(), threading.Event(), []

    def run() -> None:
        with watched(), deferred():
            inside.set()
            leave.wait(20)
            heard.append(signals.stop_signal())
            with interruptible():
                heard.append("evaluated")

    thread = threading.Thread(target=run)
    with pytest.raises(Stopped), watched():
        thread.start()
        inside.wait(20)
        try:
            send()
            pytest.fail("the signal waited for the other thread")
        finally:
            leave.set()
            thread.join()
    assert heard == [None, "evaluated"]
    with deferred():  # and the two restored the earlier state
        pass
    assert not signals._state.deferred
