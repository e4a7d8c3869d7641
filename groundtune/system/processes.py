"""Several processes of one run (`torchrun`, `accelerate launch`): what one does for all, what each does a share of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


def _state() -> PartialState:
    from accelerate import PartialState  # here, for it takes torch

    return PartialState()


def is_main() -> bool:
    """Whether this process is the one that writes, or the only one."""
    return _state().is_main_process


def run_on_main(compute: Callable[[], T]) -> T:
    """What `compute` returns in the main process, in every process: so that they agree on it, and it is made once."""
    found: list[Any] = [compute() if is_main() else None]
    if _state().num_processes > 1:
        from accelerate.utils import broadcast_object_list

        found = broadcast_object_list(found)
    return found[0]


def share(n: int) -> range:
    """Which of 0 to n - 1 this process does.

    Every so many-th, so that neighbours, which are often alike, are spread.
    """
    state = _state()
    return range(state.process_index, n, state.num_processes)


def in_shares(n: int, compute: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
    """Results 0 to n - 1 in every process; each computes its `share`, of which `compute(numbers)` gives the results."""
    mine = share(n)
    done = list(zip(mine, compute(mine)))
    if _state().num_processes > 1:
        from accelerate.utils import gather_object

        done = gather_object(done)
    return [result for _, result in sorted(done, key=itemgetter(0))]
