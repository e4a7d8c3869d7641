"""SIGTERM, SIGINT and SIGHUP: a run stops where nothing is lost. A second signal exits immediately.

Python runs signal handlers only in the main thread. A run in another thread is never stopped by a signal and does not
touch the state here: it belongs to the process, and the main thread may be in a run of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

# Windows has no SIGHUP, which a terminal sends when it is closed.
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_SIGNALS = (signal.SIGINT, *_ENDING)


class Stopped(BaseException):
    """The run was asked to stop. Not an `Exception`, so that no `except Exception` swallows it."""

    def __init__(self, signum: int, where: str = ""):
        self.signum, self.where = signum, where
        super().__init__(signum, where)

    @property
    def exit_status(self) -> int:
        """The shell's convention: 143 for SIGTERM, 130 for SIGINT, 129 for SIGHUP."""
        return 128 + self.signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}{self.where}"


@dataclass
class _State:
    signal: int | None = None  # the signal that arrived
    deferred: bool = False  # a signal is only recorded; `stop_signal` returns it
    everywhere: bool = False  # deferred in `interruptible` parts, too
    heard: bool = False  # whether a thread is listening
    next: Mapping[Any, Any] = field(default_factory=dict)  # handlers of a second signal; empty: the process ends


_state = _State()  # signals belong to the process, so there is one


def stop_signal() -> int | None:
    """The signal that asked this thread's run to stop, if any."""
    return _state.signal if _in_main_thread() else None


@contextmanager
def ending() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `Stopped` where they would have ended the process, which would have left its
    temporary files behind. A second one ends it; SIGINT already raises `KeyboardInterrupt`."""
    if not _in_main_thread():
        yield
        return
    process = os.getpid()

    def stop(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a worker that was forked: it has nothing to clean up
            os._exit(128 + signum)
        signal.signal(signum, signal.SIG_DFL)
        raise Stopped(signum)

    changed = [signum for signum in _ENDING if signal.getsignal(signum) is signal.SIG_DFL]
    for signum in changed:
        signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum in changed:
            signal.signal(signum, signal.SIG_DFL)


@contextmanager
def watched(second_ends: bool = True) -> Iterator[None]:
    """Inside, the first SIGTERM, SIGINT or SIGHUP raises `Stopped`, or is recorded if stopping is `deferred`.

    The second one ends the process or, without `second_ends`, goes to the previous handler: in a notebook, for example,
    there is more to lose than the run. A signal that the parent process ignores (`nohup`, a shell's `&`) stays ignored.
    Outside the main thread Python allows no handlers, and nothing changes.
    """
    if not _in_main_thread():
        yield
        return
    before: dict[int, Any] = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    _state.next = {} if second_ends else before
    with _listening() if second_ends else nullcontext():
        for signum, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(signum, _handle)
        try:
            yield
        finally:
            _state.signal = None
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
            _state.next = {}


@contextmanager
def deferred(everywhere: bool = False) -> Iterator[None]:
    """Inside, a signal is only recorded (in `interruptible` parts only if `everywhere`); it takes effect at the end."""
    if not _in_main_thread():
        yield
        return
    before = _state.deferred, _state.everywhere
    _state.deferred, _state.everywhere = True, everywhere
    try:
        yield
    finally:
        _state.deferred, _state.everywhere = before
    if _state.signal is not None and not _state.deferred:
        raise Stopped(_state.signal)


@contextmanager
def interruptible() -> Iterator[None]:
    """A part of a `deferred` block that may be interrupted: a signal, even one recorded earlier, raises `Stopped`."""
    if not _in_main_thread() or _state.everywhere:
        yield
        return
    before, _state.deferred = _state.deferred, False
    try:
        if _state.signal is not None:
            raise Stopped(_state.signal)
        yield
    finally:
        _state.deferred = before


def _handle(signum: int, frame: FrameType | None) -> None:
    _state.signal = signum
    for each in _SIGNALS:
        if signal.getsignal(each) is _handle:
            signal.signal(each, _state.next.get(each) or signal.SIG_DFL)
    if not _state.deferred:
        raise Stopped(signum)
    if _state.next:  # otherwise the listening thread reports it
        _say(signum, "a second signal does not wait for it")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _say(signum: int, then: str) -> None:
    """Write directly, not with print or a logger, which the signal may have interrupted."""
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"{signal.Signals(signum).name}: finishing the step; {then}\n".encode())


@contextmanager
def _listening() -> Iterator[None]:
    """Run a thread that notices each signal when it arrives, and exits the process at the second.

    `_handle` runs only when a library returns to Python, for example after a whole backward pass, and would count two
    signals in that time as one.
    """
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(ear,), name="signals", daemon=True)
    thread.start()
    _state.heard = True
    try:
        yield
    finally:
        _state.heard = False
        signal.set_wakeup_fd(before)
        mouth.close()
        thread.join()
        ear.close()


def _listen(ear: socket.socket) -> None:
    signals = 0
    while heard := ear.recv(1):
        if heard[0] in _SIGNALS:
            signals += 1
            if signals > 1:
                os._exit(128 + heard[0])
            if _state.deferred:
                _say(heard[0], "a second signal exits immediately")


def _deaf() -> None:
    """Stop listening in a forked process: it also receives Ctrl-C, which its parent must not count as a second one."""
    if _state.heard:
        signal.set_wakeup_fd(-1)
        _state.heard = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_deaf)
