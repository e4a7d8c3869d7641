"""QATrainer: `transformers.Trainer` with the answer loss and an end-to-end evaluation at every evaluation step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import EvalLoopOutput

from groundtune.aliases import Batch, Model
from groundtune.errors import ModelError
from groundtune.evaluation.evaluator import EndToEndEvaluator, Evaluation
from groundtune.methods import Method
from groundtune.model.attention import no_blocks, use_packed_attention
from groundtune.prompts.rows import Row
from groundtune.runs.hub import Hub
from groundtune.runs.known_answers import KnownAnswers, fingerprint
from groundtune.system.out_of_memory import MicroBatch, halve_on_oom
from groundtune.system.processes import run_on_main, share
from groundtune.system.progress import bar
from groundtune.system.signals import interruptible
from groundtune.training.adapter_server import AdapterServer
from groundtune.training.arguments import GOLD_LOSS, QATrainingArguments
from groundtune.training.batching import (
    IGNORED,
    WORTH_GROUPING,
    EpochOrder,
    EvenBatches,
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
    its predictions. `reuse_answers`: before the first step, with answers that the same model gave before.
    With a `server`, its evaluations go on beside training: each is logged under its own step before
    the next one begins, and before the best checkpoint is loaded.
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
        reuse_answers: bool = False,
        server: AdapterServer | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, data_collator=partial(_collate, method, pad_id), **kwargs)
        rows = self.args.eval_batch_size
        self.micro_batch["eval"] = MicroBatch("--per_device_eval_batch_size", rows, "the loss stays")
        self._choose_batches(share_prefix, blocks)
        if self.args.compile_layers:
            compile_layers(self.model)
        self.method, self.evaluator, self.on_evaluation = method, evaluator, on_evaluation
        self.reuse_answers = reuse_answers
        self.server = server
        self._under_way: tuple[int, float | None, dict[str, float]] | None = None  # step, epoch, its other metrics
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
        if self.is_fsdp_enabled:
            self._split()
        if self.is_deepspeed_enabled:
            logger.warning("with DeepSpeed a run that is interrupted cannot be resumed; with --fsdp true it can")
        if server is not None:
            self._try_server(server)

    def _split(self) -> None:
        """Split the model now: Trainer would do so when training starts, after the base model was evaluated."""
        self.create_optimizer()
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.model_wrapped = self.model

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

    def run_evaluator(self, evaluator: EndToEndEvaluator, known: KnownAnswers | None = None) -> Evaluation:
        """Evaluate the current weights end to end, in training's precision; `known` are their kept answers."""
        # Otherwise compiled layers would be recompiled repeatedly for steps of one token.
        as_it_is = torch.compiler.set_stance("force_eager" if self.args.compile_layers else "default")
        with as_it_is, self._precision():
            # transformers' wrapper of `to` loses the model's type; a model that is split is where it should be.
            model = self.model if self.is_fsdp_enabled else cast(Any, self.model).to(self.args.device)
            n, in_step = len(evaluator.examples), self._sharded()
            total = n if in_step else len(share(n))
            quiet = self.args.disable_tqdm or not self.is_world_process_zero()
            with bar(f"answering {evaluator.name}", total, hidden=quiet, unit="q", leave=False) as progress:
                found = evaluator(model, on_answer=progress.update, in_step=in_step, known=known)
        if known and known.reused:
            logger.info("%s: %s", evaluator.name, known.note("the base model"))
        return found

    def known_answers(self) -> KnownAnswers | None:
        """The kept answers of the model as it is before the first step, if answers may be reused."""
        if not self.reuse_answers or self._sharded():
            return None
        return KnownAnswers(self._untrained) if self._untrained else None

    @cached_property
    def _untrained(self) -> str:
        """The fingerprint of the model before the first step: it reads every weight, and two evaluations need it."""
        return fingerprint(cast(Any, self.model).to(self.args.device))

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
        metrics = {f"{metric_key_prefix}_{GOLD_LOSS}": self._gold_loss(dataloader)}
        if self.evaluator is not None and self.server is not None:
            self.finish_evaluation()
            self._begin_on_server(self.server, self.evaluator, metrics)
        elif self.evaluator is not None:
            known = self.known_answers() if self.state.global_step == 0 else None
            evaluation = self.run_evaluator(self.evaluator, known)
            self.on_evaluation(self.state.global_step, evaluation)
            metrics |= _prefixed(evaluation, metric_key_prefix)
        return EvalLoopOutput(cast(Any, None), None, metrics, num_samples=self.num_examples(dataloader))

    # An evaluation that a server answers while training goes on

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `SafeTrainer.train`; an evaluation on a server is finished at the end."""
        output = super().train(*args, **kwargs)
        self.finish_evaluation()
        return output

    def _try_server(self, server: AdapterServer) -> None:
        """Raise `DataError` now rather than after the first steps if the server cannot load an adapter from here."""
        self.save_model(str(server.folder(0)), _internal_call=True)
        run_on_main(lambda: server.check(0))

    def _begin_on_server(
        self, server: AdapterServer, evaluator: EndToEndEvaluator, metrics: Mapping[str, float]
    ) -> None:
        step = self.state.global_step
        self.save_model(str(server.folder(step)), _internal_call=True)
        run_on_main(lambda: server.start(step, evaluator))
        self._under_way = (step, self.state.epoch, dict(metrics))

    def finish_evaluation(self) -> None:
        """Log the evaluation that the server was asked for, under its step, and see whether it is the best so far."""
        if self.server is None or self._under_way is None:
            return
        evaluation = run_on_main(self.server.result)
        (step, epoch, metrics), self._under_way = self._under_way, None
        self.on_evaluation(step, evaluation)
        now = self.state.global_step, self.state.epoch
        self.state.global_step, self.state.epoch = step, cast(float, epoch)
        try:
            # With some answers missing, scores would be those of other questions than at the other steps.
            if failed := [prediction.failure for prediction in evaluation.predictions if prediction.failure]:
                logger.warning("step %d: %d answers failed, so it has no scores: %s", step, len(failed), failed[0])
            else:
                metrics |= _prefixed(evaluation, "eval")
            better = self._determine_best_metric(metrics=metrics, trial=None)
            self.log(metrics)
        finally:
            self.state.global_step, self.state.epoch = now
        if better and (checkpoint := self._output_dir / f"checkpoint-{step}").exists():
            self.state.best_model_checkpoint = str(checkpoint)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        later = self.server is not None and self._under_way is not None and self._best_by() not in metrics
        return False if later else super()._determine_best_metric(metrics=metrics, trial=trial)

    def get_train_dataloader(self) -> DataLoader:
        """As Trainer's; with several processes every row is in one batch (`EvenBatches`)."""
        if self.args.world_size == 1:
            return super().get_train_dataloader()
        rows, drop = self.train_dataset, self.args.dataloader_drop_last
        return self._evenly(rows, self._get_train_sampler(), self.args.train_batch_size, drop)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """A data loader with each row once; Trainer's would repeat some for several processes, and could drop some."""
        rows = cast(Any, self.eval_dataset if eval_dataset is None else eval_dataset)
        return self._evenly(rows, SequentialSampler(rows), self.args.eval_batch_size)

    def _evenly(self, rows: Any, order: Sampler[int], batch_size: int, drop_last: bool = False) -> DataLoader:
        batches = EvenBatches(order, len(rows), batch_size, self.args.world_size, drop_last)
        workers = self.args.dataloader_num_workers
        loader: DataLoader = DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        even, self.accelerator.even_batches = self.accelerator.even_batches, False
        try:
            return cast(DataLoader, self.accelerator.prepare(loader))
        finally:
            self.accelerator.even_batches = even

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


def _prefixed(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """Each metric and the ends of its interval, if they are known, named as Trainer names them."""
    return {
        f"{prefix}_{name}{end}": value
        for name, interval in evaluation.metrics.items()
        for end, value in (("", interval.value), ("_low", interval.low), ("_high", interval.high))
        if math.isfinite(value)
    }


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
