"""QATrainer: `transformers.Trainer` with the answer loss and an end-to-end evaluation at every evaluation step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import EvalLoopOutput

from groundtune.aliases import Batch, Model
from groundtune.errors import ModelError
from groundtune.evaluation.evaluator import EndToEndEvaluator, Evaluation
from groundtune.methods import Method
from groundtune.model.attention import no_blocks, use_packed_attention
from groundtune.prompts.rows import Row
from groundtune.runs.hub import Hub
from groundtune.system.out_of_memory import MicroBatch, halve_on_oom
from groundtune.system.processes import share
from groundtune.system.progress import bar
from groundtune.system.signals import interruptible
from groundtune.training.arguments import GOLD_LOSS, QATrainingArguments
from groundtune.training.batching import (
    IGNORED,
    WORTH_GROUPING,
    EpochOrder,
    length_order,
    prefix_order,
    rows_of_epoch,
    share_saved,
    sharing_groups,
)
from groundtune.training.callbacks import EvaluateAtTheEnd, Progress
from groundtune.training.labels import check_labels
from groundtune.training.safe_trainer import SafeTrainer

logger = logging.getLogger(__name__)

_SHOWN = ("loss", f"eval_{GOLD_LOSS}", "eval_generation/f1", "eval_generation/rougeL", "eval_generation/unfinished")
ROWS = "rows"  # key in a batch for the rows it was made from


class QATrainer(SafeTrainer):
    """Trains on `method`'s rows; `evaluate` returns the end-to-end metrics of `evaluator` and the gold-passage loss.

    Rows are packed if the model's attention supports it, and prompts then share common prefixes (`share_prefix`: auto,
    on, off; raises `ModelError` if it is on and cannot be exact). `blocks`: passages do not read each other; it is
    raised as well if that cannot be exact. `on_evaluation(step, evaluation)` receives every end-to-end evaluation with
    its predictions.
    """

    tie_breaker = f"eval_{GOLD_LOSS}"
    args: QATrainingArguments
    model: Model
    train_dataset: Sequence[Row]
    data_collator: partial[Batch]

    def __init__(
        self,
        *args: Any,
        method: Method,
        evaluator: EndToEndEvaluator | None,
        pad_id: int,
        share_prefix: str = "auto",
        blocks: bool = False,
        on_evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None,
        **kwargs: Any,
    ):
        super().__init__(*args, data_collator=partial(_collate, method, pad_id), **kwargs)
        rows = self.args.eval_batch_size
        self.micro_batch["eval"] = MicroBatch("--per_device_eval_batch_size", rows, "the loss stays")
        self._choose_batches(share_prefix, blocks)
        if self.args.compile_layers:
            compile_layers(self.model)
        self.method, self.evaluator, self.on_evaluation = method, evaluator, on_evaluation
        # The loss is divided by the answer tokens of the whole step: Trainer must count them and not divide again.
        self.model_accepts_loss_kwargs = True
        self.accelerator.gradient_accumulation_steps = 1  # nor may accelerate, as in early releases of transformers 5
        self._own_autocast = self.args.bf16 and not self._sharded()
        if self._own_autocast:
            # accelerate's autocast would return float32 logits, in twice the memory; the loss uses float32 anyway.
            self.accelerator.native_amp = False
        self.add_callback(EvaluateAtTheEnd())
        if not self.args.disable_tqdm:
            self.pop_callback(DEFAULT_PROGRESS_CALLBACK)  # in a notebook it is a table of every metric
            self.add_callback(Progress(_SHOWN))

    def _choose_batches(self, share_prefix: str, blocks: bool) -> None:
        """Choose packed or padded batches, and an order of rows that suits them."""
        not_packed: str | None = "the model is split over devices"
        if not self._sharded():
            with self._precision():
                not_packed = use_packed_attention(self.model, blocks=blocks)
        if blocks and not_packed:
            raise ModelError(no_blocks(self.model, not_packed))
        # Dropout would draw once for a shared token, but separately for separate rows.
        not_shared = not_packed or ("dropout is on" if _drops_out(self.model) else None)
        if share_prefix == "on" and not_shared:
            raise ModelError(f"--share_prefix on: would not be exact: {not_shared}; use auto")
        if not_packed:
            logger.info("rows are padded, not packed: %s", not_packed)
        share = share_prefix != "off" and not not_shared
        self.data_collator.keywords.update(packed=not not_packed, share_prefix=share)
        rows, batch_size = rows_of_epoch(self.train_dataset), self.args.train_batch_size
        if not_packed:
            self._order = length_order(batch_size)
            return
        self._order = prefix_order(batch_size, apart=True)
        saved = share_saved(rows, sharing_groups(rows, batch_size)) if share else 0
        if share and (share_prefix == "on" or saved >= WORTH_GROUPING):
            shared = "common passages" if blocks else "a common prefix"
            logger.info("prompts with %s share a batch: %.0f %% of the tokens saved", shared, 100 * saved)
            self._order = prefix_order(batch_size)

    # SafeTrainer's questions about rows and model

    def rows_of(self, inputs: dict[str, Any]) -> Sequence[Row]:
        """The rows; the loss is divided by the answer tokens of the whole step, so any split of a batch is exact."""
        return inputs.pop(ROWS)

    def batch_of(self, rows: Sequence[Row]) -> dict[str, Any]:
        batch = self.data_collator(rows)
        del batch[ROWS]
        return batch

    def name_of(self, row: Row) -> str:
        return row.source

    def size_of(self, row: Row) -> str:
        return f"a row of {len(row):,} tokens"

    def ways_to_save_memory(self) -> tuple[list[str], list[str]]:
        lower, give = super().ways_to_save_memory()
        give += [] if isinstance(self.model, PeftModel) else ["--use_peft true (LoRA)"]
        give += [] if getattr(self.model, "is_quantized", False) else ["--load_in_4bit true (QLoRA)"]
        return [*lower, "--max_seq_length"], give

    def weights_to_save(self) -> list[torch.Tensor]:
        whole = not isinstance(self.model, PeftModel)
        return [p for p in self.model.parameters() if whole or p.requires_grad]

    # The loss

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The method's loss, divided by the answer tokens of the optimizer step over all micro-batches and devices."""
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        with self._precision() if self._own_autocast else nullcontext():
            loss = self.method.loss(model, inputs, answer_tokens=num_items_in_batch, head=head)
        # Gradients are averaged over devices, whereas the token count is summed over them.
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    def _precision(self) -> torch.autocast:
        """The autocast that training computes in."""
        dtype = torch.float16 if self.args.fp16 else torch.bfloat16
        return torch.autocast(self.args.device.type, dtype=dtype, enabled=self.args.bf16 or self.args.fp16)

    def run_evaluator(self, evaluator: EndToEndEvaluator) -> Evaluation:
        """Evaluate the current weights end to end, in training's precision."""
        # Otherwise compiled layers would be recompiled repeatedly for steps of one token.
        as_it_is = torch.compiler.set_stance("force_eager" if self.args.compile_layers else "default")
        with as_it_is, self._precision():
            model = cast(Any, self.model).to(self.args.device)  # transformers' wrapper of it loses its type
            n, in_step = len(evaluator.examples), self._sharded()
            total = n if in_step else len(share(n))
            quiet = self.args.disable_tqdm or not self.is_world_process_zero()
            with bar(f"answering {evaluator.name}", total, hidden=quiet, unit="q", leave=False) as progress:
                return evaluator(model, on_answer=progress.update, in_step=in_step)

    @interruptible()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Replaces Trainer's loop: the exact loss per answer token, then the end-to-end evaluation."""
        metrics = {GOLD_LOSS: self._gold_loss(dataloader)}
        if self.evaluator is not None:
            evaluation = self.run_evaluator(self.evaluator)
            self.on_evaluation(self.state.global_step, evaluation)
            for name, interval in evaluation.metrics.items():
                metrics |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(cast(Any, None), None, metrics, num_samples=self.num_examples(dataloader))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """A data loader with each row once; Trainer's would pad processes with repeated rows, and could drop some.

        If each process holds only a part of the model, all must compute every batch, so there the repeats stay.
        """
        even, drop = self.accelerator.even_batches, self.args.dataloader_drop_last
        self.accelerator.even_batches, self.args.dataloader_drop_last = self._sharded(), False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.accelerator.even_batches, self.args.dataloader_drop_last = even, drop

    @torch.no_grad()
    def _gold_loss(self, dataloader: DataLoader) -> float:
        model = self._wrap_model(self.model, training=False)
        was_training = model.training
        model.eval()
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        sums = torch.zeros(2, device=self.args.device)
        for batch in dataloader:
            rows = self.rows_of(batch)
            compute = partial(self._sum_of_losses, model, head, rows, batch)
            found = halve_on_oom(self.micro_batch["eval"], compute, self._too_much) if self._halves() else compute()
            sums += torch.tensor(found, device=sums.device)
        model.train(was_training)
        total, tokens = self.accelerator.reduce(sums).tolist()
        return total / tokens

    def _sum_of_losses(
        self, model: torch.nn.Module, head: torch.nn.Module, rows: Sequence[Row], batch: dict[str, Any]
    ) -> tuple[float, int]:
        """Summed loss and number of the answer tokens of a batch, computed in parts of as many rows as fit."""
        total, tokens = 0.0, 0
        for part in self.micro_batch["eval"].parts(rows):
            inputs = self._prepare_inputs(batch if len(part) == len(rows) else self.batch_of(part))
            with self._precision():
                total += self.method.loss(model, inputs, answer_tokens=1, head=head).item()
            tokens += int((inputs["labels"][:, 1:] != IGNORED).sum())
        return total, tokens

    # The hub; hub.py decides what is pushed, and when

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        if self.is_world_process_zero():
            self.hub = Hub(self.args)
            self.hub_model_id = cast(Any, self.hub.create())

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push the model, tokenizer, card and metrics in `output_dir`; the URL. Raises `NotPushed`."""
        return self.hub.push(Path(self.args.output_dir)) if self.is_world_process_zero() else None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero():
            self.hub.push_checkpoint(Path(checkpoint_folder))

    def _finish_current_push(self) -> None:
        if self.args.push_to_hub and self.is_world_process_zero():
            self.hub.wait()

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        rows = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochOrder(rows, self._order, seed)


def compile_layers(model: Model, **options: Any) -> None:
    """Compile each layer in place with `torch.compile` and `options`, which fuses small operations."""
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.get_text_config().num_hidden_layers:
            for layer in module:
                layer.compile(dynamic=True, **options)


def _drops_out(model: Model) -> bool:
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def _collate(method: Method, pad_id: int, rows: Sequence[Row], **how: Any) -> dict[str, Any]:
    batch = method.collate(rows, pad_id, **how)
    check_labels(batch, rows)
    return {**batch, ROWS: rows}
