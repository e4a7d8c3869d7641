"""Whether progress is shown. Commands set the level of the package's log (`--quiet`); the Python API uses `bars`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_shown: ContextVar[bool | None] = ContextVar("whether progress is shown", default=None)


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Inside, progress is shown or not, whatever is logged."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


def bars_shown() -> bool:
    """Whether whatever takes long is to show how far it is."""
    shown = _shown.get()
    return logging.getLogger("groundtune").isEnabledFor(logging.INFO) if shown is None else shown
