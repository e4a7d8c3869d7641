"""QATrainer: `transformers.Trainer` with the answer loss and an end-to-end evaluation at every evaluation step."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, SchedulerType

from groundtune.attention import use_packed_attention
from groundtune.batching import IGNORED, WORTH_GROUPING, EpochOrder, by_length, by_prefix, prefix_groups, share_saved
from groundtune.evaluation import EndToEndEvaluator, Evaluation
from groundtune.examples import Row
from groundtune.memory import with_what_fits
from groundtune.methods import Method
from groundtune.metrics import greater_is_better
from groundtune.models import ModelError, computes_bf16
from groundtune.processes import share
from groundtune.record import hide_secrets
from groundtune.safe_trainer import ROWS, SafeTrainer
from groundtune.signals import at_once
from groundtune.supervision import check_labels

logger = logging.getLogger(__name__)

GOLD_LOSS = "loss_with_gold_passage"
_SWITCH = {"nargs": "?", "const": True}  # a flag without a value means true


@dataclass
class QATrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the defaults of this kind of training; every flag of it is accepted.

    A save strategy that is not given follows the evaluation strategy, and the best checkpoint is loaded at the end
    wherever both allow it.
    """

    _argument_group_name = "training (transformers.TrainingArguments)"

    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows per device and forward pass."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Questions answered at once on a device."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training file."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate. Default: 2e-4 with --use_peft, 2e-5 without."}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "Shape of the learning rate after the warm-up."}
    )
    warmup_steps: float = field(
        default=0.05,
        metadata={"help": "Warm-up in steps, or below 1 as a share of all steps (--warmup_ratio maps to it)."},
    )
    logging_steps: float = field(default=5, metadata={"help": "Log the loss every so many steps."})
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Compute in bfloat16. Default: wherever the hardware does so itself.", **_SWITCH},
    )
    eval_strategy: IntervalStrategy | str = field(
        default="steps", metadata={"help": "When to evaluate end to end: no, steps or epoch."}
    )
    eval_steps: float | None = field(
        default=0.5, metadata={"help": "Evaluate every so many steps, or below 1 every such share of the run."}
    )
    eval_on_start: bool = field(
        default=True,
        metadata={"help": "Evaluate the untouched model before the first step: the baseline of the curves."},
    )
    save_strategy: str | None = field(default=None, metadata={"help": "When to save. Default: when evaluating."})
    save_steps: float | None = field(default=None, metadata={"help": "As --eval_steps. Default: the same."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best always among them."})
    load_best_model_at_end: bool | None = field(
        default=None,
        metadata={
            "help": "End with the best checkpoint. Default: if checkpoints are saved when evaluating.",
            **_SWITCH,
        },
    )
    metric_for_best_model: str | None = field(
        default=EndToEndEvaluator.primary_metric,
        metadata={"help": "End-to-end metric that chooses the best checkpoint; its direction is known."},
    )
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Trackers: none, trackio, tensorboard, wandb, mlflow ..."}
    )
    compile_layers: bool = field(
        default=False,
        metadata={
            "help": "torch.compile each layer for rows of any length: some minutes first, then faster steps. "
            "--torch_compile would compile the whole model anew for each length.",
            **_SWITCH,
        },
    )
    resume_from_checkpoint: str | None = field(
        default="auto",
        metadata={
            "help": "auto: go on from the last complete checkpoint of this very run in output_dir, if there is one. "
            "A folder: from that checkpoint. no: from the beginning; output_dir must hold no checkpoint then."
        },
    )
    resume_anyway: bool = field(
        default=False, metadata={"help": "Resume although arguments, data or model have changed since the checkpoint."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Remove what an earlier run left in output_dir, and begin anew."}
    )
    ddp_timeout: int = field(
        default=6 * 3600,
        metadata={"help": "Seconds that processes wait for each other, as while one builds the index."},
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN losses. Off: they must be seen."})
    auto_find_batch_size: bool = field(
        default=False,
        metadata={
            "help": "Has no effect here: when memory runs out fewer rows are computed at once, and the batch of a step "
            "stays what it is.",
            **_SWITCH,
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Has no effect here: rows have no columns."})

    def __post_init__(self) -> None:
        accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
        self.use_cpu = self.use_cpu or not accelerator
        if self.bf16 is None:
            self.bf16 = not self.fp16 and computes_bf16()
        if self.save_strategy is None:
            self.save_strategy = self.eval_strategy
        if self.save_steps is None:
            self.save_steps = self.eval_steps or 500
        saves_when_evaluating = self.save_strategy == self.eval_strategy != "no" and self.save_steps == self.eval_steps
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = self.eval_strategy != "no" and (
                saves_when_evaluating or self.save_strategy == self.eval_strategy == "epoch"
            )
        if self.auto_find_batch_size:
            logger.info("--auto_find_batch_size would change the batch of a step; what fits is found without it")
            self.auto_find_batch_size = False
        if getattr(self, "train_sampling_strategy", "random") != "random":
            logger.warning("--train_sampling_strategy has no effect: rows are batched by length or common passages")
        if self.greater_is_better is None:
            self.greater_is_better = greater_is_better(self.metric_for_best_model)
        if self.dataloader_pin_memory and not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()
        if (gpus := super().n_gpu) > 1:
            logger.warning(
                "1 of %d GPUs is used; `torchrun --nproc_per_node %d -m groundtune.cli` uses all", gpus, gpus
            )

    @property
    def n_gpu(self) -> int:
        """At most one: for several in one process Trainer takes `DataParallel`, which the loss knows nothing of."""
        return min(super().n_gpu, 1)

    def __getstate__(self) -> dict[str, Any]:
        """Trainer pickles its arguments beside every model, in a file that people share: tokens stay out of it."""
        hidden = {name: hide_secrets(value) for name, value in vars(self).items() if isinstance(value, str)}
        return vars(self) | hidden | {name: None for name in vars(self) if name.endswith("_token")}


class QATrainer(SafeTrainer):
    """Trains `method`'s rows; `evaluate` returns the end-to-end metrics of `evaluator` beside the gold-passage loss.

    Rows are packed end to end where the model's attention can, and prompts that begin alike share their beginning
    (`share_prefix`: auto, on, off; `ModelError` if it is on and cannot be exact). `on_evaluation(step, evaluation)`
    receives every end-to-end evaluation with its predictions.
    """

    def __init__(
        self,
        *args: Any,
        method: Method,
        evaluator: EndToEndEvaluator | None,
        pad_id: int,
        share_prefix: str = "auto",
        on_evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None,
        **kwargs: Any,
    ):
        super().__init__(*args, data_collator=partial(_collate, method, pad_id), **kwargs)
        self._choose_batches(share_prefix)
        if self.args.compile_layers:
            compile_layers(self.model)
        self.method, self.evaluator, self.on_evaluation = method, evaluator, on_evaluation
        # The loss is divided by the answer tokens of the whole step: Trainer is to count them, and not to divide again.
        self.model_accepts_loss_kwargs = True
        self.accelerator.gradient_accumulation_steps = 1  # nor accelerate, as in early releases of transformers 5
        self._own_autocast = self.args.bf16 and not self._sharded()
        if self._own_autocast:
            # accelerate's would hand on the logits as float32, in twice their memory; the loss computes in that anyway.
            self.accelerator.native_amp = False
        self.add_callback(_EvaluateAtTheEnd())
        if not self.args.disable_tqdm:
            self.pop_callback(ProgressCallback)
            self.add_callback(_Progress())

    def _choose_batches(self, share_prefix: str) -> None:
        """Packed or padded, and the order of the rows that suits it."""
        with self._precision():
            not_packed = "the model is split over devices" if self._sharded() else use_packed_attention(self.model)
        # Dropout draws once for a shared token where separate rows would draw for each.
        not_shared = not_packed or ("dropout is on" if _drops_out(self.model) else None)
        if share_prefix == "on" and not_shared:
            raise ModelError(f"--share_prefix on: it would not be exact here: {not_shared}; use auto")
        if not_packed:
            logger.info("rows are padded, not packed: %s", not_packed)
        share = share_prefix != "off" and not not_shared
        self.data_collator.keywords.update(packed=not not_packed, share_prefix=share)
        rows, batch_size = self.train_dataset, self.args.train_batch_size
        if not_packed:
            self._order = partial(by_length, [len(row) for row in rows], batch_size)
            return
        groups = prefix_groups([row.prompt_ids for row in rows]) if share else []
        saved = share_saved(rows, groups) if share else 0
        if share_prefix == "auto" and saved < WORTH_GROUPING:
            groups = []
        if groups:
            logger.info("prompts with a common beginning share a batch: %.0f %% of the tokens saved", 100 * saved)
        self._order = partial(by_prefix, groups or [[i] for i in range(len(rows))], batch_size)

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The method's loss over the answer tokens of the optimizer step, all micro-batches and devices."""
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        with self._precision() if self._own_autocast else nullcontext():
            loss = self.method.loss(model, inputs, answer_tokens=num_items_in_batch, head=head)
        # Each device's gradient is averaged with the others'; the count is over all of them.
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    def _precision(self) -> torch.autocast:
        """What training computes in."""
        dtype = torch.float16 if self.args.fp16 else torch.bfloat16
        return torch.autocast(self.args.device.type, dtype=dtype, enabled=self.args.bf16 or self.args.fp16)

    def run_evaluator(self, evaluator: EndToEndEvaluator) -> Evaluation:
        """The current weights, end to end, in the precision that training computes in."""
        # Compiled layers would be compiled again and again for steps of one token.
        as_it_is = torch.compiler.set_stance("force_eager" if self.args.compile_layers else "default")
        with as_it_is, self._precision():
            model = self.model.to(self.args.device)
            n, in_step = len(evaluator.examples), self._sharded()
            total = n if in_step else len(share(n))
            quiet = self.args.disable_tqdm or not self.is_world_process_zero()
            with tqdm(total=total, desc=f"answering {evaluator.name}", unit="q", leave=False, disable=quiet) as bar:
                return evaluator(model, on_answer=bar.update, in_step=in_step)

    @at_once()
    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """In place of Trainer's: the exact loss per answer token, then the end-to-end evaluation."""
        metrics = {GOLD_LOSS: self._gold_loss(dataloader)}
        if self.evaluator is not None:
            evaluation = self.run_evaluator(self.evaluator)
            self.on_evaluation(self.state.global_step, evaluation)
            for name, interval in evaluation.metrics.items():
                metrics |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(None, None, metrics, num_samples=self.num_examples(dataloader))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Each row once: Trainer's would repeat rows until all processes have as many, and could leave some out.

        What a process holds a part of the model for must be computed by all, so there the repeats stay.
        """
        even, drop = self.accelerator.even_batches, self.args.dataloader_drop_last
        self.accelerator.even_batches, self.args.dataloader_drop_last = self._sharded(), False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.accelerator.even_batches, self.args.dataloader_drop_last = even, drop

    @torch.no_grad()
    def _gold_loss(self, dataloader: Any) -> float:
        model = self._wrap_model(self.model, training=False)
        was_training = model.training
        model.eval()
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        sums = torch.zeros(2, device=self.args.device)
        for batch in dataloader:
            rows = batch.pop(ROWS)
            compute = partial(self._sum_of_losses, model, head, rows, batch)
            found = with_what_fits(self.at_once["eval"], compute, self._too_much) if self._halves() else compute()
            sums += torch.tensor(found, device=sums.device)
        model.train(was_training)
        total, tokens = self.accelerator.reduce(sums).tolist()
        return total / tokens

    def _sum_of_losses(self, model: Any, head: Any, rows: Sequence[Row], batch: dict[str, Any]) -> tuple[float, int]:
        """Of the answer tokens of a batch, and how many these are; in parts of as many rows as fit."""
        total, tokens = 0.0, 0
        for part in self.at_once["eval"].parts(rows):
            inputs = self._prepare_inputs(batch if len(part) == len(rows) else self._collated(part))
            with self._precision():
                total += self.method.loss(model, inputs, answer_tokens=1, head=head).item()
            tokens += (inputs["labels"][:, 1:] != IGNORED).sum().item()
        return total, tokens

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        rows = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochOrder(len(rows), self._order, seed)


def compile_layers(model: Any, **options: Any) -> None:
    """Let `torch.compile` (and its `options`) fuse the small operations of each layer, in place."""
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.get_text_config().num_hidden_layers:
            for layer in module:
                layer.compile(dynamic=True, **options)


def compile_problems(training: QATrainingArguments) -> list[str]:
    """Why layers, if they are to be compiled, cannot be; empty if they can."""
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    if not training.compile_layers or torch.cuda.is_available() or any(map(shutil.which, filter(None, compilers))):
        return []
    return ["--compile_layers: needs a C++ compiler, and neither $CXX nor c++, g++ or clang++ is there; install one"]


def metric_problems(training: QATrainingArguments) -> list[str]:
    """A direction that was given, and is not that of the metric: the worst checkpoint would be taken for the best."""
    name, given = training.metric_for_best_model, training.greater_is_better
    if not name or given == greater_is_better(name):
        return []
    better = "lower" if given else "higher"
    return [f"--greater_is_better: {str(given).lower()}, but {better} {name} is better; leave the flag out"]


def loss_problems(training: QATrainingArguments) -> list[str]:
    """What was asked for, and the answers' cross-entropy on packed rows does not do."""
    problems = []
    if training.label_smoothing_factor:
        problems.append("--label_smoothing_factor: answers are learnt by plain cross-entropy; leave the flag out")
    if training.neftune_noise_alpha is not None:
        problems.append("--neftune_noise_alpha: its noise would depend on what rows are packed with; leave it out")
    return problems


def _drops_out(model: Any) -> bool:
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def _collate(method: Method, pad_id: int, rows: Sequence[Row], **how: Any) -> dict[str, Any]:
    batch = method.collate(rows, pad_id, **how)
    check_labels(batch, rows)
    return {**batch, ROWS: rows}


class _EvaluateAtTheEnd(TrainerCallback):
    """The last step is evaluated and saved even where it is no multiple of `eval_steps`: it may be the best."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy == "steps":
            control.should_evaluate = True
            control.should_save = control.should_save or args.save_strategy == "steps"


class _Progress(ProgressCallback):
    """Transformers' progress bar, with a line for what a person follows and not for all that is logged."""

    _shown = ("loss", f"eval_{GOLD_LOSS}", "eval_generation/f1", "eval_generation/rougeL", "eval_generation/unfinished")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        shown = [
            f"{name.removeprefix('eval_')} {float(logs[name]):.3f}" for name in self._shown if name in (logs or {})
        ]
        if shown and self.training_bar is not None:
            self.training_bar.write(f"step {state.global_step}: {', '.join(shown)}")
