"""Tasks that may hang, crash or take all memory, such as reading a stranger's file, run in other processes.

A process that exceeds a limit or crashes is replaced, and only its task fails. The pools of the standard library cannot
do this: they never end a single task, and when one process dies they give up all tasks. What is sent in either
direction is one line of JSON, so that nothing is unpickled, and works alike on Linux, macOS and Windows. A new process
imports only what its function needs, and neither the main module nor anything in the current folder.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO, cast

from groundtune.errors import DataError
from groundtune.system.text import one_line

_MB = 2**20
_START = 120.0  # seconds for a new process to be ready
_TICK = 0.1  # seconds between two looks at the limits
_AHEAD = 32  # tasks that may be finished before their turn
# Isolated (-I): a file in the current folder that is named like a module must not be imported.
_BEGIN = (
    "import json, sys; order = json.loads(sys.stdin.buffer.readline()); sys.path[:] = order['path']; "
    "from groundtune.system.workers import serve; serve(order)"
)

Give = Callable[[Any], Any]
Run = Callable[[Any, Give], Any]  # takes a task, gives its items one by one, and returns a summary


@dataclass(frozen=True)
class Limits:
    """What one task may take. `seconds` start again after each MB of results; `memory_mb` is that of its process."""

    seconds: float
    memory_mb: int
    results_mb: int


class Result:
    """The items of a task, in JSON types, and its summary; if it failed, `failure` says how, and nothing else is there.

    `failure` is "time", "memory" or "results" for a limit, "crash" if the process ended, "error" for an exception, and
    "told" for a `DataError`; `why` has the details.
    """

    failure: str
    why: str
    summary: Any

    def __init__(self, folder: Path) -> None:
        # On disk if it is large; without a name, so that it leaves nothing.
        self.items: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(_MB, "w+b", dir=str(folder))  # noqa: SIM115
        self.failure, self.why, self.summary = "", "", None

    def __iter__(self) -> Iterator[Any]:
        self.items.seek(0)
        yield from map(json.loads, self.items)


def results(
    function: str, settings: dict[str, Any], tasks: Sequence[Any], limits: Limits, folder: Path
) -> Generator[Result, None, None]:
    """The result of each task, in order, computed by several processes. Large results wait in files in `folder`.

    `function` is "package.module:name". Each process calls it once with `settings`; what it returns is a `Run`, called
    with each task. A task whose process crashes is tried once more in a new one: an earlier task may be to blame.

    Raises:
        DataError: as raised by `function`, or no process can be started.
    """
    pool = _Pool(function, settings, limits, folder)
    threads = ThreadPoolExecutor(_processes(len(tasks), limits))
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(threads.submit(pool.run, task))
            if len(waiting) > _AHEAD:
                yield _soon(waiting.popleft())
        while waiting:
            yield _soon(waiting.popleft())
    finally:
        pool.close(threads)


def _soon(future: Future[Result]) -> Result:
    while not future.done():
        wait([future], timeout=1.0)  # on Windows, Ctrl-C is noticed only between two waits
    return future.result()


def _processes(tasks: int, limits: Limits) -> int:
    """One for each core, if their memory is there."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    room = psutil.virtual_memory().available // (limits.memory_mb * _MB)
    return max(1, min(tasks, cores, room))


class _Pool:
    """The processes, one for each thread that calls `run`, and a thread that looks after their limits."""

    def __init__(self, function: str, settings: dict[str, Any], limits: Limits, folder: Path) -> None:
        ours = str(Path(__file__).parents[2])
        self.order = {"path": [*sys.path, ours], "function": function, "settings": settings, "memory": limits.memory_mb}
        self.limits, self.folder = limits, folder
        self.alive: set[_Worker] = set()
        self.of_thread = threading.local()
        self.closed = threading.Event()
        threading.Thread(target=self._watch, name="limits", daemon=True).start()

    def run(self, task: Any) -> Result:
        """The task's result; after a crash, of the second attempt."""
        first = self._attempt(task)
        return self._attempt(task) if first.failure == "crash" and not self.closed.is_set() else first

    def close(self, threads: ThreadPoolExecutor) -> None:
        """End every process, and so the threads that wait for one."""
        self.closed.set()
        for worker in tuple(self.alive):
            worker.end()
        threads.shutdown(cancel_futures=True)
        for worker in tuple(self.alive):
            self._discard(worker)

    def _attempt(self, task: Any) -> Result:
        worker = getattr(self.of_thread, "worker", None) or self._start()
        result = worker.run(task, Result(self.folder))
        # One that keeps much memory is replaced, too: the next file would have to do without it.
        usable = result.failure in ("", "told") and not worker.exceeded and worker.memory() < self.limits.memory_mb / 4
        self.of_thread.worker = worker if usable else None
        if not usable:
            self._discard(worker)
        return result

    def _start(self) -> _Worker:
        worker = _Worker(self.limits)
        self.alive.add(worker)
        if self.closed.is_set():  # `close` may have missed it
            worker.end()
        started = worker.run(self.order, Result(self.folder), _START)
        if started.failure:
            self._discard(worker)
            cannot = f"a process that reads files cannot be started ({started.why or started.failure}); try again"
            raise DataError([started.why if started.failure == "told" else cannot])
        return worker

    def _discard(self, worker: _Worker) -> None:
        """End the process; called by its thread, or if that has ended."""
        worker.end()
        self.alive.discard(worker)
        for pipe in (worker.tasks, worker.lines):
            with suppress(OSError):  # it holds a task that was not sent
                pipe.close()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self.closed.wait(_TICK):
            # At most a second: if the whole program was suspended (Ctrl-Z), that time is not the task's.
            elapsed, before = min(time.monotonic() - before, 1.0), time.monotonic()
            for worker in tuple(self.alive):
                worker.look(elapsed)


class _Worker:
    """A process that does one task after another."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.left = math.inf  # seconds that its task still has
        self.exceeded = ""  # the limit for which it was ended
        self.lock = threading.Lock()  # only a process with a task exceeds a limit
        self.process = subprocess.Popen(  # noqa: S603  is this program's own code
            [sys.executable, "-I", "-X", f"utf8={sys.flags.utf8_mode}", "-c", _BEGIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        self.tasks, self.lines = cast("IO[bytes]", self.process.stdin), cast("IO[bytes]", self.process.stdout)

    def run(self, task: Any, result: Result, seconds: float = 0) -> Result:
        """Send the task, and fill in its result."""
        self.left = seconds or self.limits.seconds
        with suppress(OSError):  # it has ended; so nothing can be read from it either
            self.tasks.write(json.dumps(task).encode() + b"\n")
            self.tasks.flush()
        end = self._items(result)
        with self.lock:
            self.left = math.inf
        if end:
            result.failure, result.why, result.summary = json.loads(end)
        else:
            result.why = _how(self.process.wait())
            result.failure = self.exceeded or "crash"
        return result

    def _items(self, result: Result) -> bytes:
        """Keep the items; returns how the task ended, or nothing if the process did."""
        size = rewarded = 0
        for line in self.lines:
            if line[:1] == b"=" and line[-1:] == b"\n":  # no item begins so; it may be cut if the process is ended
                return line[1:]
            result.items.write(line)
            size += len(line)
            if size - rewarded > _MB:
                rewarded, self.left = size, self.limits.seconds
            if size > self.limits.results_mb * _MB:
                self._exceed("results")
        return b""

    def look(self, elapsed: float) -> None:
        """End the process if its task has exceeded a limit."""
        with self.lock:
            self.left -= elapsed
            if self.left <= 0:
                self._exceed("time")
            elif self.left < math.inf and self.memory() > self.limits.memory_mb:
                self._exceed("memory")

    def memory(self) -> float:
        """The memory that the process takes now, in MB."""
        import psutil

        try:
            return psutil.Process(self.process.pid).memory_info().rss / _MB
        except psutil.Error:  # it has ended
            return 0

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _exceed(self, limit: str) -> None:
        self.exceeded = self.exceeded or limit
        self.process.kill()


def _how(status: int) -> str:
    """How a process ended, by its exit status."""
    with suppress(ValueError):
        return signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"signal {-status}"


# In the other process


def serve(order: dict[str, Any]) -> None:
    """Do what the parent process sends, until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process of a terminal; the parent ends this one
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    out = os.fdopen(os.dup(1), "wb", buffering=2**18)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints must not get between the results
    _limit_memory(order["memory"])
    run: list[Run] = []
    _answer(out, lambda: run.append(_function(order)))
    while run:
        _answer(out, lambda: run[0](tasks.get(), lambda item: out.write(json.dumps(item).encode() + b"\n")))


def _function(order: dict[str, Any]) -> Run:
    module, _, name = order["function"].partition(":")
    return getattr(import_module(module), name)(**order["settings"])


def _answer(out: BinaryIO, compute: Callable[[], Any]) -> None:
    """Say that a task is done, or how it failed."""
    failure, why, summary = "", "", None
    try:
        summary = compute()
    except DataError as error:
        failure, why = "told", error.problems[0]
    except MemoryError:
        failure = "memory"
    except BaseException as error:  # whatever it is, this file has caused it
        failure, why = "error", f"{type(error).__name__}: {one_line(error, 200)}"
    out.write(b"=" + json.dumps([failure, why, summary]).encode() + b"\n")
    out.flush()


def _listen(tasks: queue.SimpleQueue[Any]) -> None:
    for line in sys.stdin.buffer:
        tasks.put(json.loads(line))
    os._exit(0)  # the parent has ended, in whatever way


def _limit_memory(memory_mb: int) -> None:
    """Let memory end with MemoryError on Linux; elsewhere the parent measures it and ends the process."""
    if sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb * _MB, memory_mb * _MB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
