"""Out of memory: the same again with smaller micro-batches, or a line that says what does not fit and what to do."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from groundtune.system.text import one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")
# How the allocators of CUDA, ROCm, MPS and the CPU say it (Linux, Windows), and what cuBLAS makes of it.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


class OutOfMemory(Exception):
    """Memory runs out even with a single row; one line with what does not fit and the ways out."""


@dataclass
class MicroBatch:
    """How many rows are computed in one pass: the `wanted` number of `flag`, and fewer once memory has run out.

    `unchanged` says what a smaller `size` does not change; `now` is the part that was begun last.
    """

    flag: str
    wanted: int
    unchanged: str
    size: int = field(init=False)
    now: Sequence[Any] = field(init=False, default=())

    def __post_init__(self) -> None:
        self.size = self.wanted

    def parts(self, rows: Sequence[T]) -> Iterator[Sequence[T]]:
        """`rows` in order, in parts of `size`."""
        for i in range(0, len(rows), self.size):
            self.now = rows[i : i + self.size]
            yield self.now

    @property
    def notes(self) -> list[str]:
        """What a run says about it at its end."""
        if self.size == self.wanted:
            return []
        rows = f"{self.size} row{'' if self.size == 1 else 's'} per pass"
        return [f"memory ran out with {self.flag} {self.wanted}: computed with {rows}; {self.unchanged} the same"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator found no memory: of Python, of PyTorch on any device, or of cuBLAS."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def reason(error: BaseException) -> str:
    """The first sentence of what an allocator says; the rest is about the allocator."""
    return one_line(error).partition(". GPU ")[0][:200]


def halve_on_oom(
    micro_batch: MicroBatch,
    compute: Callable[[], T],
    too_much: Callable[[MicroBatch], str],
    undo: Callable[[], None] = lambda: None,
) -> T:
    """What `compute` returns. Each time memory runs out, `micro_batch` is halved for good, and `compute` called again.

    `undo` undoes what the failed call did. Raises `OutOfMemory` with `too_much(micro_batch)` if one row is too much.
    """
    failed = False
    while True:
        try:
            if failed:
                undo()
            return compute()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            why = reason(error)
            if micro_batch.size == 1:
                raise OutOfMemory(f"{too_much(micro_batch)} ({why})") from error
        # Not inside `except`: the error holds, by its traceback, all that the failed pass had in memory.
        failed = True
        release()
        before, micro_batch.size = micro_batch.size, (micro_batch.size + 1) // 2
        logger.warning(
            "out of memory with %d rows per pass (%s): from here on %d per pass, in more passes; %s the same",
            before,
            why,
            micro_batch.size,
            micro_batch.unchanged,
        )


def release() -> None:
    """Give back what nothing refers to any more, also what PyTorch keeps for the next tensor."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()
