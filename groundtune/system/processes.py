"""Distributed runs (`torchrun`, `accelerate launch`): work that one process does for all, and work that is shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


def _state() -> PartialState:
    from accelerate import PartialState  # here, because it imports torch

    return PartialState()


def is_main() -> bool:
    """Whether this is the main process, which writes files, or the only one."""
    return _state().is_main_process


def run_on_main(compute: Callable[[], T]) -> T:
    """Call `compute` in the main process only, and return its result in every process."""
    found: list[Any] = [compute() if is_main() else None]
    if _state().num_processes > 1:
        from accelerate.utils import broadcast_object_list

        found = broadcast_object_list(found)
    return found[0]


def share(n: int) -> range:
    """The numbers from 0 to n - 1 that this process handles.

    Strided, so that similar neighbours go to different processes.
    """
    state = _state()
    return range(state.process_index, n, state.num_processes)


def in_shares(n: int, compute: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
    """Results 0 to n - 1, in every process; each process computes its `share` with `compute(numbers)`."""
    mine = share(n)
    done = list(zip(mine, compute(mine)))
    if _state().num_processes > 1:
        from accelerate.utils import gather_object

        done = gather_object(done)
    return [result for _, result in sorted(done, key=itemgetter(0))]
