"""Trackers of a run (--report_to): they never stop a run; those that cannot be used are reported at its start."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from groundtune.system.text import hide_secrets, one_line

logger = logging.getLogger(__name__)


def never_stop_the_run(callbacks: Iterable[TrainerCallback], failures: list[str]) -> None:
    """Catch whatever a tracker among the callbacks raises and record it once, in `failures` and the log: numbers can be
    sent again later, weights cannot be recovered."""
    for callback in callbacks:
        if type(callback) in INTEGRATION_TO_CALLBACK.values():
            for name in dir(TrainerCallback):
                if name.startswith("on_"):
                    setattr(callback, name, _forgiving(getattr(callback, name), type(callback).__name__, failures))


def _forgiving(method: Callable[..., Any], tracker: str, failures: list[str]) -> Callable[..., Any]:
    failed = f"{tracker} failed"

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if not any(line.startswith(failed) for line in failures):
                why = hide_secrets(one_line(error))  # an address may hold a key
                failures.append(f"{failed} ({type(error).__name__}: {why}); the run continues without it")
                logger.warning(failures[-1])

    return call
