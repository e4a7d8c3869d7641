"""Progress of long work: bars on a terminal, in a log file a line every 30 seconds; and whether it is shown at all.

Commands set the package's log level (`--quiet`); the Python API uses `bars`.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from groundtune.system.text import harmless_line

_shown: ContextVar[bool | None] = ContextVar("whether progress is shown", default=None)
EVERY = 30.0  # seconds between two lines


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Show or hide progress inside, independently of the log level."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


def bars_shown() -> bool:
    """Whether long operations should show their progress."""
    shown = _shown.get()
    return logging.getLogger("groundtune").isEnabledFor(logging.INFO) if shown is None else shown


def in_log_file() -> bool:
    """Whether standard error keeps everything that is written, so that a bar would be hundreds of lines."""
    return not sys.stderr.isatty() and "ipykernel" not in sys.modules  # a notebook draws bars itself


def bar(what: str, total: int, hidden: bool = False, initial: int = 0, **of_tqdm: Any) -> Any:
    """A context manager with `update(done)`, `write(line)` and `close()`: a tqdm bar, or `Lines` in a log file."""
    if in_log_file():
        return Lines(what, total, hidden, initial)
    from tqdm.auto import tqdm

    return tqdm(desc=harmless_line(what), total=total, disable=hidden, initial=initial, **of_tqdm)


class Lines:
    """Stands in for a bar in a log file: "answers: 120 of 500, about 3 min left" at most every 30 seconds.

    Work that takes less than that writes nothing.
    """

    def __init__(self, what: str, total: int | None, hidden: bool = False, initial: int = 0) -> None:
        self.what, self.total, self.hidden, self.initial, self.done = what, total, hidden, initial, initial
        self.begun = self.written = time.monotonic()
        self.lock = threading.Lock()  # requests to a server end in several threads

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def update(self, done: int = 1) -> None:
        """Count `done` more items."""
        with self.lock:
            self.at(self.done + done)

    def at(self, done: int, total: int | None = None) -> None:
        """Set the count of finished items, and of all if that is known only now."""
        self.done, self.total = done, total or self.total
        now = time.monotonic()
        if now - self.written >= EVERY:
            self.written = now
            self.write(f"{self.what}: {self._counted()}{self._left(now)}")

    def write(self, line: str) -> None:
        """Write a line at once."""
        if not self.hidden:
            sys.stderr.write(f"{harmless_line(line)}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Nothing is left to do, as there is no bar to remove."""

    def _counted(self) -> str:
        return f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"

    def _left(self, now: float) -> str:
        if self.total is None or not self.initial < self.done < self.total:
            return ""
        seconds = (now - self.begun) / (self.done - self.initial) * (self.total - self.done)
        return f", about {rounded_time(seconds)} left"


def rounded_time(seconds: float) -> str:
    """Seconds, minutes or hours without decimals: "3 min"."""
    size, unit = next(((s, u) for s, u in ((3600, "h"), (60, "min")) if seconds >= 1.5 * s), (1, "s"))
    return f"{max(1, round(seconds / size))} {unit}"
