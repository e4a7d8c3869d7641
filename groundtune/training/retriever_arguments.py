"""The arguments of `groundtune retriever`; `more` are further ones of `transformers.TrainingArguments`.

Nothing here imports torch, so that help and checks take no time.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundtune.arguments import (
    MAXSIM,
    NO_RERANKER,
    REWRITE,
    DataArguments,
    OutputArguments,
    RetrievalArguments,
    argument,
    check_retrieval,
    no_such_file,
    too_small,
)
from groundtune.data.files import in_the_way
from groundtune.system.packages import pip_install
from groundtune.system.servers import server_kind

KINDS = ("embedding", "cross_encoder")
# What training arguments cannot mean here, and what to do instead.
_REFUSED = {
    "push_to_hub": "not supported here; upload the finished folder with `hf upload`",
    "deepspeed": "not supported here: a retriever trains in one process",
    "fsdp": "not supported here: a retriever trains in one process",
    "torch_compile": "not supported here; remove it",
}


@dataclass
class RetrieverArguments:
    """What is trained, on which negatives, and how the result is compared with the untrained model."""

    _argument_group_name = "retriever training"

    kind: str = argument(
        "embedding",
        "What to train. embedding: --embedding_model. cross_encoder: --reranker, which reads a question and a passage "
        "together, on what the retriever finds.",
        list(KINDS),
    )
    hard_negatives: int | None = argument(
        None,
        "Passages without the answer per question: those given in hard_neg_docs, then the best that a mix of vectors "
        "and words finds. Default: 1, and 4 with --kind cross_encoder.",
    )
    temperature: float | None = argument(
        None, "Similarities are divided by it in the loss. Default: 0.05 for a cosine, else 1."
    )
    pooling_type: str = argument(
        "model", "How token vectors become one. model: as the embedding model says.", ["model", "mean", "cls"]
    )
    max_seq_length: int = argument(
        256, "Tokens of a question or a passage that training reads; a search reads what the model can."
    )
    folds: int = argument(
        5,
        "Cross-validation by article: the model is trained this many times without a part of the articles, and asked "
        "their questions. 0: none; the questions of --test_file or --eval_file are used for the comparison.",
    )
    keep: str = argument(
        "better",
        "better: the tuned model is saved only if it finds more than the untrained one inside the retriever that "
        "--retriever names. tuned: in any case.",
        ["better", "tuned"],
    )


@dataclass
class TrainingFlags:
    """The most used arguments of `transformers.TrainingArguments`, with our defaults."""

    _argument_group_name = "training (transformers.TrainingArguments)"

    output_dir: str = argument("", "Folder for the model, its checkpoints and the report.")
    learning_rate: float = argument(5e-5, "Peak learning rate.")
    num_train_epochs: float = argument(2.0, "Number of passes over the training file.")
    max_steps: int = argument(-1, "Number of steps; above 0, it replaces --num_train_epochs.")
    per_device_train_batch_size: int = argument(
        32, "Questions per step. The passages of the others are negatives, so more is better if it fits into memory."
    )
    weight_decay: float = argument(0.01, "Weight decay.")
    warmup_steps: float = argument(0.1, "Warm-up: a number of steps or, below 1, a share of all.")
    lr_scheduler_type: str = argument("linear", "Learning rate schedule after the warm-up.")
    logging_steps: float = argument(5, "Number of steps between logs of the loss.")
    eval_strategy: str = argument(
        "steps", "When to measure recall on --eval_file: no, steps or epoch.", ["no", "steps", "epoch"]
    )
    eval_steps: float = argument(
        0.5, "Steps between measurements and checkpoints or, if below 1, a share of all steps."
    )
    save_total_limit: int = argument(2, "Number of checkpoints to keep; the best is always one of them.")
    seed: int = argument(42, "Random seed.")
    bf16: bool = argument(False, "Compute in bfloat16.")
    report_to: str = argument("none", "Tracker: none, trackio, tensorboard, wandb, mlflow ...")
    resume_from_checkpoint: str | None = argument(
        "auto",
        "auto: resume from the last complete checkpoint of the same run in output_dir, if there is one. A folder: "
        "resume from that checkpoint. no: start from the beginning; output_dir must not contain a checkpoint.",
    )
    resume_anyway: bool = argument(False, "Resume even if arguments, data or model have changed since the checkpoint.")
    overwrite_output_dir: bool = argument(False, "Delete the results of an earlier run in output_dir and start over.")


@dataclass(frozen=True)
class RetrieverRun:
    """All arguments of a run."""

    data: DataArguments
    retrieval: RetrievalArguments
    retriever: RetrieverArguments
    training: TrainingFlags
    output: OutputArguments = field(default_factory=OutputArguments)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def negatives(self) -> int:
        given = self.retriever.hard_negatives
        return given if given is not None else 1 if self.retriever.kind == "embedding" else 4

    @property
    def recall(self) -> str:
        """The metric that decides."""
        return f"retrieval/recall@{self.retrieval.eval_num_to_retrieve}"

    def check(self) -> list[str]:
        """Every problem that can be found without reading data or loading a model, one line each."""
        return [
            *self._files(),
            *self._models(),
            *self._comparison(),
            *self._numbers(),
            *(f"--{name}: {why}" for name, why in _REFUSED.items() if self.more.get(name)),
        ]

    def _files(self) -> list[str]:
        needed = {
            "train_file": "name the questions to train on",
            "full_dataset_file_path": "name the document database",
        }
        names = [*needed, "eval_file", "test_file"]
        folders = {"full_dataset_index_path": self.data.full_dataset_index_path, "output_dir": self.training.output_dir}
        return [
            *(f"--{name}: missing; {what}" for name, what in needed.items() if not getattr(self.data, name)),
            *([] if self.training.output_dir else ["--output_dir: missing; name a folder for the model"]),
            *no_such_file(self.data, names),
            *(line for flag, path in folders.items() if path for line in in_the_way(flag, path, folder=True)),
        ]

    def _models(self) -> list[str]:
        problems = check_retrieval(self.retrieval)
        if self.retriever.kind == "cross_encoder":
            problems += reranker_problems(self.retrieval.reranker)
        if self.retrieval.query_history == REWRITE:
            problems.append("--query_history rewrite: not supported here; use fused or another value")
        if self.retriever.kind == "embedding" and self.retrieval.retriever == "bm25":
            problems.append("--retriever bm25: compares words only, so there is nothing to train; use mix or dense")
        if server_kind(self.retrieval.embedding_model):
            problems.append("--embedding_model: a server cannot be trained; name a hub model or a folder")
        if importlib.util.find_spec("datasets") is None:
            problems.append(f"groundtune retriever: needs the package datasets; {pip_install('retriever')}")
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            problems.append("groundtune retriever: trains in one process; start it without torchrun")
        return problems

    def _comparison(self) -> list[str]:
        folds, kept = self.retriever.folds, self.data.eval_file or self.data.test_file
        if folds < 0 or folds == 1:
            return [f"--folds: {folds}; give 2 or more, or 0 for no cross-validation"]
        if not folds and not kept:
            return ["--folds 0: leaves nothing to compare on; give --eval_file or --test_file, or use --folds 5"]
        return []

    def _numbers(self) -> list[str]:
        retriever, training = self.retriever, self.training
        problems = too_small([
            (self.retrieval, "eval_num_to_retrieve", 1),
            (self.retrieval, "embedding_batch_size", 1),
            (retriever, "hard_negatives", 0 if retriever.kind == "embedding" else 1),
            (retriever, "max_seq_length", 8),
            (training, "per_device_train_batch_size", 2),
            (training, "num_train_epochs", 0),
            (training, "weight_decay", 0),
            (training, "warmup_steps", 0),
        ])  # fmt: skip
        positive: list[tuple[object, str]] = [
            (training, "learning_rate"),
            (training, "eval_steps"),
            (training, "logging_steps"),
        ]
        positive += [(retriever, "temperature")] if retriever.temperature is not None else []
        for group, name in positive:
            if not 0 < (value := getattr(group, name)) < math.inf:
                problems.append(f"--{name}: {value}; give a number above 0")
        return problems


def reranker_problems(name: str) -> list[str]:
    """Problems with the name of the reranker to train, besides those of any reranker."""
    example = "name the cross-encoder to train, such as cross-encoder/ms-marco-MiniLM-L6-v2, or an encoder"
    if name in ("", NO_RERANKER):
        return [f"--reranker: missing; {example}"]
    return [f"--reranker: {name} cannot be trained; {example}"] if name == MAXSIM or server_kind(name) else []


def output_of(run: RetrieverRun) -> Path:
    return Path(run.training.output_dir)
