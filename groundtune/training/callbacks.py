"""Callbacks that all trainers share: an evaluation at the end, and progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from groundtune.system.progress import bar


class EvaluateAtTheEnd(TrainerCallback):
    """Evaluates and saves the last step even if it is not a multiple of `eval_steps`: it may be the best."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy == "steps":
            control.should_evaluate = True
            control.should_save = control.should_save or args.save_strategy == "steps"


class Progress(ProgressCallback):
    """Transformers' progress bar, with only the values `shown` instead of everything that is logged.

    In a log file it is a line every 30 seconds.
    """

    def __init__(self, shown: Sequence[str], what: str = "training steps") -> None:
        super().__init__()
        self.shown, self.what = shown, what

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = bar(self.what, state.max_steps, initial=state.global_step, dynamic_ncols=True)
        self.current_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        shown = [f"{name.removeprefix('eval_')} {float(logs[name]):.3f}" for name in self.shown if name in logs]
        if shown and self.training_bar is not None:
            self.training_bar.write(f"step {state.global_step}: {', '.join(shown)}")
