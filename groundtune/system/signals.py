"""SIGTERM and SIGINT: a run stops where nothing is lost. A second signal leaves at once.

Python runs handlers in the main thread alone. A run in another thread is never stopped by a signal, and does not touch
the state here: it belongs to the process, and the main thread may be in a run of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

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
    signal: int | None = None  # the one that came
    deferred: bool = False  # it is only noted; whoever deferred it looks with `stop_signal`
    everywhere: bool = False  # in `interruptible` parts, too
    heard: bool = False  # whether a thread listens
    next: Mapping[Any, Any] = field(default_factory=dict)  # who handles a second signal; nobody: the process ends


_state = _State()  # signals belong to the process, so there is one


def stop_signal() -> int | None:
    """The signal that asked the run of this thread to stop, if one did."""
    return _state.signal if _in_main_thread() else None


@contextmanager
def watched(second_ends: bool = True) -> Iterator[None]:
    """Inside, the first SIGTERM or SIGINT raises `Stopped`, or is noted where stopping is `deferred`.

    The second one ends the process or, unless `second_ends`, is handled as it was before: in a notebook, say, there is
    more to lose than the run. A signal that the parent process had ignored (`nohup`, a shell's `&`) stays ignored. In
    another thread than the main one Python allows no handlers, and nothing changes.
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
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: set by other than Python
            _state.next = {}


@contextmanager
def deferred(everywhere: bool = False) -> Iterator[None]:
    """Inside, a signal is only noted (in `interruptible` parts only if `everywhere`); at the end it counts."""
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
    """Within `deferred`, a part that may be torn: a signal raises `Stopped` again, as does one noted before."""
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
    if _state.next:  # else the thread that listens says so
        _say(signum, "a second signal does not wait for it")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _say(signum: int, then: str) -> None:
    """Not by print or a logger: what the signal interrupted may be writing there."""
    os.write(2, f"{signal.Signals(signum).name}: finishing the step; {then}\n".encode())


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
                _say(heard[0], "a second signal exits immediately")


def _deaf() -> None:
    """A forked process is told of Ctrl-C too; its parent must not take that for a second one."""
    if _state.heard:
        signal.set_wakeup_fd(-1)
        _state.heard = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_deaf)
