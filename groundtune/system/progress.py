"""Whether progress is shown. Commands set the package's log level (`--quiet`); the Python API uses `bars`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_shown: ContextVar[bool | None] = ContextVar("whether progress is shown", default=None)


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
