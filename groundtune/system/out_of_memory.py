"""Out of memory: the same again with fewer rows at once, or a line that says what does not fit and what to do."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
# How the allocators of CUDA, ROCm, MPS and the CPU say it (Linux, Windows), and what cuBLAS makes of it.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


class OutOfMemory(Exception):
    """Memory runs out even with a single row; one line with what does not fit and the ways out."""


@dataclass
class AtOnce:
    """How many rows are computed in one pass: as many as `flag` asked for, and fewer once memory has run out.

    `unchanged` says what that does not touch; `now` is the part that was begun last.
    """

    flag: str
    asked: int
    unchanged: str
    rows: int = field(init=False)
    now: Sequence[Any] = field(init=False, default=())

    def __post_init__(self) -> None:
        self.rows = self.asked

    def parts(self, rows: Sequence[T]) -> Iterator[Sequence[T]]:
        """`rows` in order, in parts of as many as are computed at once."""
        for i in range(0, len(rows), self.rows):
            self.now = rows[i : i + self.rows]
            yield self.now

    @property
    def notes(self) -> list[str]:
        """What to say of it at the end of a run."""
        if self.rows == self.asked:
            return []
        at_once = f"{self.rows} row{'' if self.rows == 1 else 's'} per pass"
        return [f"memory ran out with {self.flag} {self.asked}: computed with {at_once}; {self.unchanged} the same"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator found no memory: of Python, of PyTorch on any device, or of cuBLAS."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def reason(error: BaseException) -> str:
    """The first sentence of what an allocator says; the rest is about the allocator."""
    return " ".join(str(error).split()).partition(". GPU ")[0][:200] or type(error).__name__


def with_what_fits(
    at_once: AtOnce,
    compute: Callable[[], T],
    too_much: Callable[[AtOnce], str],
    begin_anew: Callable[[], None] = lambda: None,
) -> T:
    """What `compute` returns. Each time that memory runs out, `at_once` is halved, for good, and it is called again.

    `begin_anew` undoes what the failed call did. Raises `OutOfMemory` with `too_much(at_once)` if one row is too much.
    """
    failed = False
    while True:
        try:
            if failed:
                begin_anew()
            return compute()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            why = reason(error)
            if at_once.rows == 1:
                raise OutOfMemory(f"{too_much(at_once)} ({why})") from error
        # Not inside `except`: the error holds, by its traceback, all that the failed pass had in memory.
        failed = True
        release()
        before, at_once.rows = at_once.rows, (at_once.rows + 1) // 2
        logger.warning(
            "out of memory with %d rows per pass (%s): from here on %d per pass, in more passes; %s the same",
            before,
            why,
            at_once.rows,
            at_once.unchanged,
        )


def release() -> None:
    """Give back what nothing refers to any more, also what PyTorch keeps for the next tensor."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()
