"""SafeTrainer: a `transformers.Trainer` that resumes bit for bit, stops on request, and stops at NaN or infinity.

It does not depend on what is trained. `class RetrieverTrainer(SafeTrainer, SentenceTransformerTrainer)` adds the same
to another library's trainer; the methods from `rows_of` to `weights_to_save` can be overridden. The parts of `Trainer`
that it needs are listed in system/guarded.py. Under FSDP, one process writes the same files (`sharding.py`). Under
DeepSpeed a checkpoint has the weights only, and cannot be resumed: DeepSpeed saves its optimizer with pickle.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy

from groundtune.runs.checkpoints import (
    Checkpoint,
    checkpoint_folders,
    kept_randomness,
    load_state,
    newest_checkpoint,
    randomness,
    read_checkpoint,
    remove_old,
    restore_randomness,
    save_state,
    step_of,
    writing,
)
from groundtune.system import signals
from groundtune.system.durable import Damaged
from groundtune.system.guarded import require
from groundtune.system.model_folders import nothing_unpickled
from groundtune.system.out_of_memory import MicroBatch, OutOfMemory, halve_on_oom, is_out_of_memory, reason
from groundtune.system.outputs import usual_modes
from groundtune.training import sharding
from groundtune.training.trackers import never_stop_the_run

logger = logging.getLogger(__name__)

require("transformers", "accelerate")

TRAINER_STATE_NAME, TRAINING_ARGS_NAME = "trainer_state.json", "training_args.bin"
BESIDE = "beside_the_model"


class NonFiniteLoss(ArithmeticError):
    """The training loss or gradient is NaN or infinite: continuing would silently train nothing."""


class SafeTrainer(Trainer):
    """A `Trainer` with exact resume. `run` identifies the run: checkpoints contain it, and `resume.py` compares it."""

    tie_breaker = ""  # a metric of which less is better: it decides between equally good checkpoints
    model: torch.nn.Module  # all three are there whenever something here is called
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR

    def __init__(self, *args: Any, run: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.run = run or {}
        self._resumed: Checkpoint | None = None
        rows, unchanged = self.args.train_batch_size, "a step's batch and gradient stay"
        self.micro_batch = {"train": MicroBatch("--per_device_train_batch_size", rows, unchanged)}
        self._rows_of_step: list[Sequence[Any]] = []  # one entry per micro-batch
        self._randomness_of_step = randomness()
        self._epoch_ended = False
        self._saved_step: int | None = None
        self.tracker_failures: list[str] = []  # a line for each tracker that failed
        never_stop_the_run(self.callback_handler.callbacks, self.tracker_failures)
        self.add_callback(_Watch(self))

    def train(self, resume_from_checkpoint: Checkpoint | str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; True resumes from the latest complete checkpoint.

        Raises `Damaged` if the given checkpoint is incomplete or damaged, `Stopped` after a signal, once the step is
        finished and saved, and `NonFiniteLoss` before a step that would spoil the weights.
        """
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = newest_checkpoint(self._output_dir)
        elif isinstance(checkpoint, str):
            checkpoint = read_checkpoint(Path(checkpoint))
        self._resumed = checkpoint
        if checkpoint is not None:
            self.args.eval_on_start = False  # the base model was evaluated when the run began
            known = checkpoint.about.get("rows at once", {})
            for name, micro_batch in self.micro_batch.items():
                micro_batch.size = min(micro_batch.size, known.get(name, micro_batch.size))
            logging.getLogger("transformers.trainer_utils").addFilter(_no_false_alarm)
        with signals.deferred(everywhere=self.args.world_size > 1):
            return super().train(checkpoint and str(checkpoint.folder), *args, **kwargs)

    def _run_epoch(self, *args: Any, **of_epoch: Any) -> None:
        # Resumed from its last step in the middle of an epoch, Trainer would train one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # Earlier Trainers do not set the epoch of a batch sampler when they skip the first batches.
        sampler = getattr(of_epoch["train_dataloader"], "batch_sampler", None)
        while sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(of_epoch["epoch"])
            sampler = getattr(sampler, "batch_sampler", None)
        super()._run_epoch(*args, **of_epoch)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`, without advancing training's random generators, which even a data loader does."""
        with kept_randomness():
            return super().evaluate(*args, **kwargs)

    @signals.interruptible()
    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`; a signal stops it, and a resumed run repeats it."""
        return super().evaluation_loop(*args, **kwargs)

    # What a subclass may know of its batches and its model

    def rows_of(self, inputs: dict[str, Any]) -> Sequence[Any] | None:
        """Remove and return the rows that a batch was made from, so that it can be computed in smaller parts.

        None means that it cannot be split. Splitting is exact only if the loss of a batch is a sum over its rows; a
        contrastive loss compares each row with all others, so its batch must stay whole.
        """
        return None

    def batch_of(self, rows: Sequence[Any]) -> dict[str, Any]:
        """The batch for some of the rows that `rows_of` returned; it does not contain the rows themselves."""
        return self.data_collator(list(rows))

    def name_of(self, row: Any) -> str:
        """A name by which people can find a row, such as `train.jsonl:3`; empty if there is none."""
        return ""

    def size_of(self, row: Any) -> str:
        """A description of a row that does not fit into memory, such as "a row of 300 tokens"."""
        return "a row"

    def ways_to_save_memory(self) -> tuple[list[str], list[str]]:
        """Flags to lower if a row or a batch does not fit into memory, and flags to add."""
        # The flag was renamed in later releases of transformers 5.
        checkpointing = "activation" if hasattr(self.args, "activation_checkpointing") else "gradient"
        is_on = getattr(self.args, f"{checkpointing}_checkpointing")
        return [], [] if is_on else [f"--{checkpointing}_checkpointing true"]

    def weights_to_save(self) -> list[torch.Tensor]:
        """The tensors that `save_model` writes; a few small files are not counted."""
        return list(self.model.parameters())

    # Memory

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """As `Trainer.training_step`. When memory runs out, the step restarts with half as many rows per pass.

        The batch and its gradient stay the same. A batch that cannot be split (see `rows_of`) is computed whole. Raises
        `OutOfMemory` if a single row or a whole batch does not fit.
        """
        rows = self.rows_of(inputs)
        gradient = partial(self._add_gradient, model, num_items=num_items_in_batch)
        if rows is None:
            return self._whole("the loss of a batch is not the sum of its parts", gradient, rows, inputs)
        self._rows_of_step.append(rows)
        if not self._halves():
            return self._whole("the processes of a run stay in step", gradient, rows, inputs)

        def undo() -> None:
            # The failed pass left part of its gradient. Dropout's draws are repeated as well, so that the step equals
            # one that was split into these parts from the start.
            model.zero_grad()
            self._zero_grad_beside_the_model()
            restore_randomness(self._randomness_of_step)
            for before in self._rows_of_step[:-1]:
                gradient(before)

        return halve_on_oom(self.micro_batch["train"], partial(gradient, rows, inputs), self._too_much, undo)

    def _whole(self, why: str, gradient: Callable[..., torch.Tensor], *batch: Any) -> torch.Tensor:
        try:
            return gradient(*batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            what = f"a batch does not fit into memory, and is not computed in smaller parts, because {why}"
            raise OutOfMemory(f"{self._not_made(what, '--per_device_train_batch_size')} ({reason(error)})") from error

    def _add_gradient(
        self, model: torch.nn.Module, rows: Sequence[Any] | None, inputs: Any = None, *, num_items: Any
    ) -> torch.Tensor:
        """Forward and backward pass of a micro-batch, in parts of as many rows as fit; its loss."""
        losses = []
        for part in [()] if rows is None else self.micro_batch["train"].parts(rows):
            is_whole = inputs is not None and len(part) == len(rows or ())
            batch = copy.copy(inputs) if is_whole else self.batch_of(part)
            losses.append(super().training_step(model, batch, num_items))
            if not torch.isfinite(losses[-1]):
                self._refuse(f"the loss is {losses[-1].item()}, stopped before the weights changed", part)
        return cast(torch.Tensor, sum(losses))

    def _halves(self) -> bool:
        """Whether a smaller micro-batch may be tried: processes that compute together must stay in step."""
        return self.args.world_size == 1 and not self._sharded()

    def _begin_step(self) -> None:
        self._rows_of_step, self._randomness_of_step = [], randomness()
        self._zero_grad_beside_the_model()

    def _zero_grad_beside_the_model(self) -> None:
        """Reset gradients outside the model, which `model.zero_grad()` and sentence-transformers before 6.2 do not."""
        for parameter in self._trained_beside_the_model():
            parameter.grad = None

    def _too_much(self, micro_batch: MicroBatch) -> str:
        (row,) = micro_batch.now
        name = self.name_of(row)
        what = f"{self.size_of(row)} does not fit into memory by itself"
        return self._not_made(f"{name}: {what}" if name else what)

    def _not_made(self, what: str, *to_lower: str) -> str:
        lower, give = self.ways_to_save_memory()
        ways = {"lower": " or ".join([*to_lower, *lower]), "give": ", ".join(give)}
        way_out = ", or ".join(f"{verb} {flags}" for verb, flags in ways.items() if flags)
        said = f"{what}; step {self.state.global_step + 1} was not taken, {self._last_checkpoint()}"
        return f"{said}. {way_out[0].upper()}{way_out[1:]}" if way_out else said

    # NaN and infinity

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        rows = [row for micro_batch in self._rows_of_step for row in micro_batch]
        # With fp16, an infinite norm is normal: the loss scaler skips the step and lowers the scale.
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(norm):
            self._refuse(f"the norm of the gradient is {float(norm)}, stopped before the weights changed", rows)
        return norm

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self.args.metric_for_best_model is None:
            return False
        name = self._best_by()
        value = metrics.get(name)
        if value is None or not math.isfinite(value):
            step, found = self.state.global_step, "not measured" if value is None else value
            logger.warning("step %d: %s is %s, so this step cannot be the best checkpoint", step, name, found)
            return False
        best = self._evaluations().get(self.state.best_global_step)
        if best is None:
            return super()._determine_best_metric(metrics=metrics, trial=trial)
        wins = self._rank(metrics) < self._rank(best)
        if wins:
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step
        return wins

    def _evaluations(self) -> dict[int | None, dict[str, float]]:
        """The logged evaluations by step in which the metric that chooses the best checkpoint is finite."""
        name = self._best_by()
        logged = [row for row in self.state.log_history if math.isfinite(row.get(name, math.nan))]
        return {cast(int, row["step"]): row for row in logged}

    def _best_by(self) -> str:
        return f"eval_{cast(str, self.args.metric_for_best_model).removeprefix('eval_')}"

    def _rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """What orders evaluations, the best first; rounding must not separate equal means."""
        value, second = metrics[self._best_by()], metrics.get(self.tie_breaker, 0.0)
        return round(-value if self.args.greater_is_better else value, 9), second if math.isfinite(second) else math.inf

    def _refuse(self, what: str, rows: Sequence[Any]) -> NoReturn:
        names = list(dict.fromkeys(filter(None, map(self.name_of, rows))))
        named = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        raise NonFiniteLoss(
            f"step {self.state.global_step + 1}: {what}; {f'its rows are {named}; ' if names else ''}"
            f"{self._last_checkpoint()}. Lower --learning_rate, or try --bf16 false"
        )

    def _last_checkpoint(self) -> str:
        last = checkpoint_folders(self._output_dir)[-1:]
        return f"the last checkpoint is {last[0]}" if last else "there is no checkpoint yet"

    # Stopping

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except signals.Stopped:
            self._leave(evaluation_due=True)
        if self._stop_requested() and (self._epoch_ended or not self._ends_an_epoch()):
            self._leave(evaluation_due=False)

    def _stop_requested(self) -> bool:
        """Whether any process of the run was asked to stop: all must stop after the same step."""
        stopped = signals.stop_signal() is not None
        if self.args.world_size == 1:
            return stopped
        return self.accelerator.reduce(torch.tensor(float(stopped), device=self.args.device)).item() > 0

    def _ends_an_epoch(self) -> bool:
        """Whether end-of-epoch work follows this step, as it also does after the last step of a run."""
        return float(self.state.epoch).is_integer() or self.control.should_training_stop

    def finish_evaluation(self) -> None:
        """Wait for an evaluation that goes on elsewhere, if a subclass has any."""

    def _leave(self, evaluation_due: bool) -> NoReturn:
        self.finish_evaluation()
        if evaluation_due or self._saved_step != self.state.global_step:
            unfinished = {"evaluate": evaluation_due, "save": evaluation_due and self.control.should_save}
            self._write_checkpoint(scheduled=False, unfinished=unfinished)
        where = f" after step {self.state.global_step}, which is saved in {self._folder()}"
        raise signals.Stopped(signals.stop_signal() or signal.SIGTERM, where)

    def _catch_up(self) -> None:
        """After a resume, before the first step, repeat an evaluation that a signal cut short, and save if due."""
        self._epoch_ended = True
        if self._resumed is None:
            return
        folder = self._resumed.folder
        best = json.loads((folder / TRAINER_STATE_NAME).read_text("utf-8"))["best_model_checkpoint"]
        if best:  # its path is as seen by the process that wrote it
            self.state.best_model_checkpoint = str(folder.parent / Path(best).name)
        self.state.compute_steps(self.args, self.state.max_steps)  # may differ with --resume_anyway
        unfinished = self._resumed.about["unfinished"]
        if unfinished.get("evaluate"):
            self._load_rng_state(str(folder))
            better = self._determine_best_metric(metrics=self._evaluate(None, None), trial=None)
            if unfinished["save"] or (better and self.args.save_strategy == SaveStrategy.BEST):
                self._write_checkpoint(scheduled=True, unfinished={})

    # Saving

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # Trainer evaluates at the end of an epoch after it saved the epoch's last step.
        due = self.args.eval_strategy == "epoch" and self._ends_an_epoch() and not self._epoch_ended
        self._write_checkpoint(scheduled=True, unfinished={"evaluate": True, "save": False} if due else {})

    def _write_checkpoint(self, scheduled: bool, unfinished: dict[str, bool]) -> None:
        """`scheduled`: due by the arguments, not because of a signal; only then may the checkpoint become the best."""
        broken = [name for name, p in self._trained() if not torch.isfinite(p).all()]
        if broken:
            self._refuse(f"the previous step made {broken[0]} infinite or NaN, so it is not saved", [])
        step, target = self.state.global_step, self._folder()
        if scheduled and self.state.best_global_step == step:
            self.state.best_model_checkpoint = str(target)
        self.store_flos()
        about = {
            "step": step,
            "run": self.run,
            "resumable": not (self.args.save_only_model or self.is_deepspeed_enabled),
            "scheduled": scheduled,
            "unfinished": unfinished,
            "rows at once": {name: micro_batch.size for name, micro_batch in self.micro_batch.items()},
            "parameters": {name: _sum_of_bits(p) for name, p in self._trained()},
        }
        wait, needed = self.accelerator.wait_for_everyone, self._bytes_to_save()
        files = writing(target, about, needed=needed, writes=self.args.should_save, wait=wait)
        with kept_randomness(), files as folder:  # writing a model card may draw random examples
            if not self.args.save_only_model:
                self._save_rng_state(str(folder))
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
            self.save_model(str(folder), _internal_call=True)
            if self.args.should_save:
                callbacks: list[Any] = [
                    c for c in (*self.callback_handler.callbacks, self.control) if isinstance(c, ExportableState)
                ]
                self.state.stateful_callbacks = TrainerState(stateful_callbacks=callbacks).stateful_callbacks
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        self._saved_step = step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))
        if self.args.should_save:
            keep = {target, Path(self.state.best_model_checkpoint or target)}
            remove_old(target.parent, limit=self.args.save_total_limit, keep=keep)

    @property
    def _output_dir(self) -> Path:
        return Path(cast(str, self.args.output_dir))  # None only before `TrainingArguments` is made

    def _folder(self) -> Path:
        return self._output_dir / f"checkpoint-{self.state.global_step}"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        # Trainer would gather a frozen model too, and write no model at all if FSDP's own files are sharded.
        folder, weights = Path(output_dir or self._output_dir), sharding.whole_weights(self.model)
        self._save(str(folder), state_dict=weights)
        if self.args.should_save:
            sharding.save_renamed(self.model, weights, folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with usual_modes(Path(output_dir or self._output_dir)):
            super()._save(output_dir, state_dict)
        # A pickle that nobody needs: the arguments are in run.json.
        Path(output_dir or self._output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            return
        fsdp = self.is_fsdp_enabled
        optimizer = sharding.whole_state(self.model, self.optimizer) if fsdp else self.optimizer.state_dict()
        if self.args.should_save:
            save_state(Path(output_dir), "optimizer", optimizer)
            save_state(Path(output_dir), "scheduler", self.lr_scheduler.state_dict())
            if beside := self._trained_beside_the_model():
                save_state(Path(output_dir), BESIDE, beside)

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None and self.args.should_save:
            save_state(Path(output_dir), "scaler", self.accelerator.scaler.state_dict())

    def _save_rng_state(self, output_dir: str) -> None:
        save_state(Path(output_dir), f"randomness_{self.args.process_index}", randomness())

    def _sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Names and trained parameters; empty if this process holds only a part of each."""
        return [] if self._sharded() else [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def _trained_beside_the_model(self) -> list[torch.nn.Parameter]:
        """Parameters that the optimizer trains outside the model, such as the weights of a loss."""
        if self._sharded():
            return []
        inside = set(map(id, self.model.parameters()))
        return [p for group in self.optimizer.param_groups for p in group["params"] if id(p) not in inside]

    def _bytes_to_save(self) -> int:
        """The approximate size of a checkpoint, without a few small files."""
        optimized = {} if self.args.save_only_model else self.optimizer.state
        states = [value for state in optimized.values() for value in state.values()]
        tensors = [t for t in [*self.weights_to_save(), *states] if isinstance(t, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    # Loading

    def _load_from_checkpoint(self, folder: str, *args: Any) -> None:
        if self.is_fsdp_enabled:
            sharding.load_weights(self.model, Path(folder))
            return
        with nothing_unpickled():
            super()._load_from_checkpoint(folder, *args)
        if self._resumed is not None and self._resumed.folder == Path(folder):  # the best one is checked below
            self._check_loaded(self._resumed)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self.is_fsdp_enabled:
            sharding.load_state_of(self.model, self.optimizer, Path(checkpoint))
        else:
            self.optimizer.load_state_dict(load_state(Path(checkpoint), "optimizer"))
        self.lr_scheduler.load_state_dict(load_state(Path(checkpoint), "scheduler"))
        if beside := self._trained_beside_the_model():
            with torch.no_grad():
                for parameter, saved in zip(beside, load_state(Path(checkpoint), BESIDE), strict=True):
                    parameter.copy_(saved)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(load_state(Path(checkpoint), "scaler"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        name = f"randomness_{self.args.process_index}"
        if checkpoint is None:
            return
        if not (Path(checkpoint) / f"{name}.json").exists():
            logger.warning("%s was saved by fewer processes: the random state of this one starts over", checkpoint)
            return
        restore_randomness(load_state(Path(checkpoint), name))

    def _load_best_model(self) -> None:
        self.finish_evaluation()  # it may be the best
        best = self._whole_best()
        self.state.best_model_checkpoint = None if best is None else str(best.folder)
        if best is None:
            logger.warning("no checkpoint could be selected; the weights of the last step are kept")
            return
        if self._sharded():
            sharding.load_weights(self.model, best.folder)
            return
        with nothing_unpickled():
            super()._load_best_model()
        self._check_loaded(best)

    def _whole_best(self) -> Checkpoint | None:
        """The best checkpoint, or if it is damaged, the best intact one."""
        found, best = self._evaluations(), Path(cast(str, self.state.best_model_checkpoint))
        others = [folder for folder in checkpoint_folders(best.parent) if folder != best and step_of(folder) in found]
        for folder in [best, *sorted(others, key=lambda folder: self._rank(found[step_of(folder)]))]:
            try:
                return read_checkpoint(folder, to_resume=False)
            except Damaged as damage:
                logger.warning("%s would have been the best checkpoint, but %s; the next best is used", folder, damage)
        return None

    def _check_loaded(self, checkpoint: Checkpoint) -> None:
        """Raise `Damaged` if a loaded parameter differs from the saved one: a name mismatch would keep an old value."""
        now, then = dict(self.model.named_parameters()), checkpoint.about["parameters"]
        wrong = [name for name in then if name not in now or _sum_of_bits(now[name]) != then[name]]
        if wrong:
            raise Damaged(f"{checkpoint.folder}: {len(wrong)} parameters differ from what was saved, first {wrong[0]}")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Silenced: it reports tied weights as missing, and `_check_loaded` finds what really is."""


class _Watch(TrainerCallback):
    """Tells the trainer where it is in the training loop."""

    def __init__(self, trainer: SafeTrainer):
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._catch_up()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._epoch_ended = False

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._epoch_ended = True

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._begin_step()


def _no_false_alarm(record: logging.LogRecord) -> bool:
    """Drop a false warning: Trainer compares `--eval_steps 0.5` with its value in steps. `resume.py` checks flags."""
    return "do not match the ones in the `trainer_state.json`" not in record.getMessage()


def _sum_of_bits(parameter: torch.Tensor) -> int:
    """A checksum that is equal on all devices and changes with training: enough to notice weights not loaded."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    return int(parameter.detach().contiguous().view(width).sum(dtype=torch.int64))
