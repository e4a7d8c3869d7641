"""The arguments of training: those of `transformers.TrainingArguments`, with our defaults and checks."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from groundtune.arguments import Arguments, ModelArguments
from groundtune.evaluation.evaluator import EndToEndEvaluator
from groundtune.evaluation.metrics import greater_is_better
from groundtune.model.endpoint import server_problems
from groundtune.model.loading import computes_bf16
from groundtune.system.text import hide_secrets, one_line

logger = logging.getLogger(__name__)


GOLD_LOSS = "loss_with_gold_passage"


_SWITCH = {"nargs": "?", "const": True}  # a flag without a value means true
_LATER: Any = None  # of a field that has its value once all are known; nobody sees None after that


@dataclass
class QATrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with defaults for this kind of training; all of its flags are accepted.

    The save strategy defaults to the evaluation strategy, and the best checkpoint is loaded at the end if both allow
    it.
    """

    _argument_group_name = "training (transformers.TrainingArguments)"

    output_dir: str = field(
        default=_LATER, metadata={"help": "Folder for the model, its checkpoints and the report.", "aliases": ["-o"]}
    )
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows per device and forward pass."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Questions answered per batch on a device."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Number of passes over the training file."})
    learning_rate: float = field(
        default=_LATER, metadata={"help": "Peak learning rate. Default: 2e-4 with --use_peft, 2e-5 without."}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "Learning rate schedule after the warm-up."}
    )
    warmup_steps: float = field(
        default=0.05,
        metadata={"help": "Warm-up: a number of steps or, below 1, a share of all (--warmup_ratio maps to it)."},
    )
    logging_steps: float = field(default=5, metadata={"help": "Number of steps between logs of the loss."})
    bf16: bool = field(
        default=_LATER, metadata={"help": "Compute in bfloat16. Default: if the hardware supports it.", **_SWITCH}
    )
    eval_strategy: IntervalStrategy | str = field(
        default="steps", metadata={"help": "When to evaluate end to end: no, steps or epoch."}
    )
    eval_steps: float | None = field(
        default=0.5, metadata={"help": "Steps between evaluations or, if below 1, a share of all steps."}
    )
    eval_on_start: bool = field(
        default=True, metadata={"help": "Evaluate the base model before the first step, as the baseline of the curves."}
    )
    save_strategy: str = field(default=_LATER, metadata={"help": "When to save. Default: at every evaluation."})
    save_steps: float = field(
        default=_LATER, metadata={"help": "Steps between checkpoints, like --eval_steps. Default: the same value."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints to keep; the best is always one of them."}
    )
    load_best_model_at_end: bool = field(
        default=_LATER,
        metadata={
            "help": "Use the best checkpoint at the end. Default: true if a checkpoint is saved at every evaluation.",
            **_SWITCH,
        },
    )
    metric_for_best_model: str = field(
        default=EndToEndEvaluator.primary_metric,
        metadata={
            "help": "End-to-end metric that selects the best checkpoint. Groundtune knows for each metric "
            "whether higher is better. Of equally good checkpoints, the one with the lowest "
            "loss_with_gold_passage is selected."
        },
    )
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Trackers: none, trackio, tensorboard, wandb, mlflow ..."}
    )
    compile_layers: bool = field(
        default=False,
        metadata={
            "help": "torch.compile each layer for rows of any length: takes a few minutes, then steps are faster. "
            "--torch_compile would recompile the whole model for each length.",
            **_SWITCH,
        },
    )
    resume_from_checkpoint: str | None = field(
        default="auto",
        metadata={
            "help": "auto: resume from the last complete checkpoint of the same run in output_dir, if there is one. A "
            "folder: resume from that checkpoint. no: start from the beginning; output_dir must not contain a "
            "checkpoint."
        },
    )
    resume_anyway: bool = field(
        default=False, metadata={"help": "Resume even if arguments, data or model have changed since the checkpoint."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the results of an earlier run in output_dir and start over."}
    )
    ddp_timeout: int = field(
        default=6 * 3600,
        metadata={"help": "Seconds that processes wait for each other, for example while one builds the index."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide NaN losses. Off by default, so that you notice them."}
    )
    auto_find_batch_size: bool = field(
        default=False,
        metadata={
            "help": "Has no effect: if memory runs out, fewer rows are computed per pass, and the batch size of a "
            "step does not change.",
            **_SWITCH,
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Has no effect: rows have no columns."})

    def __post_init__(self) -> None:
        accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
        self.use_cpu = self.use_cpu or not accelerator
        # transformers declares a text, and would read "true" as the name of an option.
        options: dict[str, Any] = {"true": True, "false": None}
        self.fsdp = options.get(str(self.fsdp).lower(), self.fsdp)
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
            logger.info(
                "--auto_find_batch_size has no effect: passes shrink automatically if memory runs out, "
                "without changing the batch size"
            )
            self.auto_find_batch_size = False
        if getattr(self, "train_sampling_strategy", "random") != "random":
            logger.warning("--train_sampling_strategy has no effect: rows are batched by length or common passages")
        if self.dataloader_persistent_workers:
            logger.warning("--dataloader_persistent_workers has no effect: each epoch has its own rows and workers")
            self.dataloader_persistent_workers = False
        if self.greater_is_better is None:
            self.greater_is_better = greater_is_better(self.metric_for_best_model)
        if self.dataloader_pin_memory and not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()
        if (gpus := super().n_gpu) > 1:
            logger.warning(
                "only 1 of %d GPUs is used; `torchrun --nproc_per_node %d -m groundtune.cli` uses all of them",
                gpus,
                gpus,
            )

    @property
    def n_gpu(self) -> int:
        """At most 1: with several GPUs in one process Trainer uses `DataParallel`, which the loss does not support."""
        return min(super().n_gpu, 1)

    def __getstate__(self) -> dict[str, Any]:
        """The state without tokens: Trainer pickles its arguments beside every model, in a file that people share."""
        hidden = {name: hide_secrets(value) for name, value in vars(self).items() if isinstance(value, str)}
        return vars(self) | hidden | {name: None for name in vars(self) if name.endswith("_token")}


RunArguments: TypeAlias = Arguments[QATrainingArguments]


def compile_problems(training: QATrainingArguments) -> list[str]:
    """Why layers cannot be compiled, if that was requested; empty if they can."""
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    if not training.compile_layers or torch.cuda.is_available() or any(map(shutil.which, filter(None, compilers))):
        return []
    return ["--compile_layers: needs a C++ compiler, but found none of $CXX, c++, g++ and clang++; install one"]


def metric_problems(training: QATrainingArguments) -> list[str]:
    """A problem if the given direction contradicts the metric: the worst checkpoint would be chosen as the best."""
    name, given = training.metric_for_best_model, training.greater_is_better
    if not name or given == greater_is_better(name):
        return []
    better = "lower" if given else "higher"
    return [f"--greater_is_better: {str(given).lower()}, but {better} {name} is better; remove the flag"]


def loss_problems(training: QATrainingArguments) -> list[str]:
    """Requested options that the cross-entropy of answers on packed rows does not support."""
    problems = []
    if training.label_smoothing_factor:
        problems.append("--label_smoothing_factor: not supported, the loss is plain cross-entropy; remove the flag")
    if training.neftune_noise_alpha is not None:
        problems.append(
            "--neftune_noise_alpha: not supported, the noise would depend on how rows are packed; remove the flag"
        )
    return problems


def eval_endpoint_problems(name: str, model: ModelArguments, training: QATrainingArguments) -> list[str]:
    """Why the server of --eval_endpoint cannot evaluate this run; sends no request."""
    if not name:
        return []
    problems = server_problems("eval_endpoint", name, "an adapter")
    if not model.use_peft:
        problems.append("--eval_endpoint: the server loads adapters; add --use_peft, or remove the flag")
    if training.eval_strategy == "no":
        problems.append("--eval_endpoint: has no effect with --eval_strategy no; remove one of them")
    if training.save_strategy == SaveStrategy.BEST:
        problems.append("--eval_endpoint: --save_strategy best would have to wait for the server; use steps or epoch")
    if training.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU:
        problems.append(
            "--eval_endpoint: --lr_scheduler_type reduce_lr_on_plateau would have to wait for the server; use another"
        )
    return problems


def sharding_problems(training: QATrainingArguments, model: ModelArguments) -> list[str]:
    """Why the model cannot be split over processes as FSDP or DeepSpeed is asked to; empty if it can, or is not."""
    problems = []
    deepspeed = training.deepspeed_plugin
    if deepspeed is not None and deepspeed.zero_stage == 3 and training.load_best_model_at_end:
        problems.append(
            "--deepspeed: with ZeRO stage 3 the best checkpoint cannot be loaded; use --fsdp true instead, or add "
            "--load_best_model_at_end false"
        )
    if not training.fsdp and os.environ.get("ACCELERATE_USE_FSDP", "").lower() not in ("1", "true", "yes"):
        return problems
    if training.world_size == 1:
        problems.append("--fsdp: splits a model over several processes, and this is one; use torchrun or accelerate")
    elif training.device.type == "cpu":
        problems.append("--fsdp: accelerate splits no model over CPUs; remove the flag, and each process holds it all")
    settings = training.fsdp_config if isinstance(training.fsdp_config, dict) else {}  # a file is read by now
    version = settings.get("version") or os.environ.get("FSDP_VERSION") or 2
    if str(version) != "2":
        problems.append(f"--fsdp: version {version} is not supported; set version 2 (accelerate's file: fsdp_version)")
    if model.load_in_4bit:
        problems.append("--fsdp: 4-bit weights are not split; remove it, and each process holds them all")
    if training.save_only_model and training.load_best_model_at_end:
        problems.append("--save_only_model: with --fsdp add --load_best_model_at_end false")
    return problems


def tracker_problems(names: Sequence[str]) -> list[str]:
    """Why trackers given by --report_to cannot be used, one line each."""
    problems = []
    for name in names:
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except KeyError:
            problems.append(
                f"--report_to: no tracker is called {name}; use one of {', '.join(INTEGRATION_TO_CALLBACK)}"
            )
        except Exception as error:  # trackers raise different errors for a missing package
            problems.append(f"--report_to: {name} cannot be used: {one_line(error)}")
    return problems
