"""What a task does to the process that runs it; other processes import this file (tests/unit/test_workers.py)."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

kept: list[Any] = []


def prepare(wrong: str = "") -> Callable[..., Any]:
    """The function that other processes call."""
    if wrong:
        ACTS[wrong](print)
    return lambda task, give: ACTS[task](give) if task in ACTS else plain(task, give)


def plain(task: str, give: Callable[[Any], Any]) -> str:
    if "next dies" in kept:
        os._exit(9)
    print("this must not get between the results", flush=True)
    for letter in task:
        give(letter)
    return task.upper()


def hang_in_c(give: Any) -> None:
    """Without giving back the lock of the interpreter."""
    re.match("(a+)+$", "a" * 60 + "b")


def out_of_memory(give: Any) -> None:
    while True:
        kept.append(bytearray(2**23))


def much(give: Any) -> None:
    while True:
        give("x" * 2**16)


def slow(give: Any) -> str:
    """Takes longer than a second, but finishes a MB now and then."""
    for _ in range(15):
        time.sleep(0.1)
        give("x" * 2**20)
    return "slow"


def raises(error: BaseException) -> Callable[[Any], None]:
    def act(give: Any) -> None:
        give("in vain")
        raise error

    return act


def too_deep(give: Any) -> None:
    too_deep(give)


ACTS: dict[str, Callable[[Any], Any]] = {
    "hang": lambda give: time.sleep(1000),
    "hang in c": hang_in_c,
    "out of memory": out_of_memory,
    "much": much,
    "slow": slow,
    "segfault": lambda give: ctypes.string_at(0),
    "abort": lambda give: os.abort(),
    "exit": lambda give: os._exit(0),
    "sys.exit": lambda give: sys.exit(3),
    "error": raises(ValueError("no\n good")),
    "interrupt": raises(KeyboardInterrupt()),
    "too deep": too_deep,
    "next dies": lambda give: kept.append("next dies"),
}
