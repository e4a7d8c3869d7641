"""SIGTERM and SIGINT: a run stops where nothing is lost. A second signal leaves at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """The run was asked to stop. No `Exception`, so that nothing on the way takes it for an error and goes on."""

    def __init__(self, signum: int, where: str = ""):
        self.signum, self.where = signum, where
        super().__init__(signum, where)

    @property
    def exit_status(self) -> int:
        """As the shell counts: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}{self.where}"


@dataclass
class _State:
    asked: int | None = None  # the signal that came
    deferred: bool = False  # it is only noted; whoever deferred it looks with `asked`
    interruptible: bool = True  # whether `at_once` counts
    heard: bool = False  # whether a thread listens


_state = _State()  # signals belong to the process, so there is one


def asked() -> int | None:
    """The signal that asked the run to stop, if one did."""
    return _state.asked


@contextmanager
def watched() -> Iterator[None]:
    """Inside, the first SIGTERM or SIGINT raises `Stopped`, or is noted where stopping is `deferred`.

    A signal that the parent process had ignored (`nohup`, a shell's `&`) stays ignored. In another thread than the main
    one Python allows no handlers, and nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    with _listening():
        for signum, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(signum, _handle)
        try:
            yield
        finally:
            _state.asked = None
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: set by other than Python


@contextmanager
def deferred(interruptible: bool = True) -> Iterator[None]:
    """Inside, a signal is only noted, except within `at_once` if this is `interruptible`; at the end it counts."""
    before = _state.deferred, _state.interruptible
    _state.deferred, _state.interruptible = True, interruptible
    try:
        yield
    finally:
        _state.deferred, _state.interruptible = before
    if _state.asked is not None and not _state.deferred:
        raise Stopped(_state.asked)


@contextmanager
def at_once() -> Iterator[None]:
    """Within `deferred`, a part that may be torn: a signal raises `Stopped` again, as does one noted before."""
    if not _state.interruptible:
        yield
        return
    before, _state.deferred = _state.deferred, False
    try:
        if _state.asked is not None:
            raise Stopped(_state.asked)
        yield
    finally:
        _state.deferred = before


def _handle(signum: int, frame: FrameType | None) -> None:
    _state.asked = signum
    for each in _SIGNALS:
        if signal.getsignal(each) is _handle:
            signal.signal(each, signal.SIG_DFL)
    if not _state.deferred:
        raise Stopped(signum)


@contextmanager
def _listening() -> Iterator[None]:
    """A thread that hears a signal when it comes, and leaves at the second.

    `_handle` has to wait until a library gives the main thread back, after a whole backward pass for one. Two signals
    in that time would be one to it.
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
                # Not print or a logger: what the signal interrupted may be writing there.
                name = signal.Signals(heard[0]).name
                os.write(2, f"{name}: finishing the step; a second signal exits immediately\n".encode())


def _deaf() -> None:
    """A forked process is told of Ctrl-C too; its parent must not take that for a second one."""
    if _state.heard:
        signal.set_wakeup_fd(-1)
        _state.heard = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_deaf)
