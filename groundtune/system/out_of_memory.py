"""Out of memory: repeat the work with smaller micro-batches, or report what does not fit and what to do."""

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
# Messages of the allocators of CUDA, ROCm, MPS and the CPU (Linux, Windows), and of cuBLAS.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


class OutOfMemory(Exception):
    """Memory runs out even with a single row; the message is one line: what does not fit, and what to do."""


@dataclass
class MicroBatch:
    """Number of rows computed in one pass: the `wanted` value of `flag`, or fewer after memory has run out.

    `unchanged` names the results that a smaller `size` does not change; `now` is the part that was started last.
    """

    flag: str
    wanted: int
    unchanged: str
    size: int = field(init=False)
    now: Sequence[Any] = field(init=False, default=())

    def __post_init__(self) -> None:
        self.size = self.wanted

    def parts(self, rows: Sequence[T]) -> Iterator[Sequence[T]]:
        """`rows` in order, in parts of `size`; of no rows, one empty part: processes compute every step together."""
        for i in range(0, max(1, len(rows)), self.size):
            self.now = rows[i : i + self.size]
            yield self.now

    @property
    def notes(self) -> list[str]:
        """Notes for the end of a run, if the size was reduced."""
        if self.size == self.wanted:
            return []
        rows = f"{self.size} row{'' if self.size == 1 else 's'} per pass"
        return [f"memory ran out with {self.flag} {self.wanted}: computed with {rows}; {self.unchanged} the same"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means out of memory: from Python, from PyTorch on any device, or from cuBLAS."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def reason(error: BaseException) -> str:
    """The first sentence of an allocator's message; the rest is about the allocator itself."""
    return one_line(error).partition(". GPU ")[0][:200]


def halve_on_oom(
    micro_batch: MicroBatch,
    compute: Callable[[], T],
    too_much: Callable[[MicroBatch], str],
    undo: Callable[[], None] = lambda: None,
) -> T:
    """Return `compute()`. Each time memory runs out, halve `micro_batch` permanently and call `compute` again.

    `undo` reverts the effects of the failed call. Raises `OutOfMemory` with `too_much(micro_batch)` if one row does
    not fit.
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
        # Not inside `except`: the error's traceback keeps the failed pass's tensors in memory.
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
    """Free unreferenced memory, including PyTorch's cached blocks."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()
