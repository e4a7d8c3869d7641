"""Which run an output folder holds: whether it is this one, how far it got, and whether a process is using it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from array import array
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from groundtune.arguments import Arguments
from groundtune.data.files import sha256_of
from groundtune.errors import DataError
from groundtune.prompts.rows import EpochRows
from groundtune.runs.checkpoints import Checkpoint, checkpoint_folders, newest_checkpoint, read_checkpoint
from groundtune.runs.record import versions
from groundtune.runs.remembered import EVALUATION
from groundtune.system.durable import Damaged, discard
from groundtune.system.locks import alone
from groundtune.system.outputs import links_in
from groundtune.system.text import plain, to_json, without_secrets

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

# Anything not listed here may change the weights, so a new flag counts until it is listed.
_WITHOUT_INFLUENCE = {
    "output_dir", "resume_from_checkpoint", "resume_anyway", "overwrite_output_dir", "run_name", "project",
    "trackio_space_id", "report_to", "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node",
    "logging_dir", "logging_strategy", "logging_first_step", "logging_steps", "logging_nan_inf_filter",
    "save_total_limit", "save_on_each_node", "push_to_hub", "push_to_hub_model_id", "push_to_hub_organization",
    "push_to_hub_token", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push",
    "hub_revision", "per_device_eval_batch_size", "eval_accumulation_steps", "eval_on_start", "prediction_loss_only",
    "do_train", "do_eval", "do_predict", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "skip_memory_metrics", "debug", "local_rank",
    "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "remove_unused_columns",
    "restore_callback_states_from_checkpoint", "torch_empty_cache_steps", "include_num_input_tokens_seen",
    "full_dataset_index_path", "embedding_batch_size", "bootstrap_samples", "store", "eval_endpoint",
    "passage_cache", "reuse_answers",
}  # fmt: skip
_FILES = ("train_file", "eval_file", "test_file", "full_dataset_file_path", "rewrite_prompt")
_MODELS = ("model_name_or_path", "embedding_model", "eval_embedding_model", "reranker", "rewriter")
_MODEL_FILES = {".json", ".safetensors", ".bin", ".gguf", ".model", ".txt", ".jinja", ".py"}
_WHOLE = 64 * 2**20  # bytes up to which a model's file is hashed in full
_RESULTS = (
    "report.html",
    "report.md",
    "README.md",
    "run.json",
    "metrics.json",
    "trainer_state.json",
)  # report.html is written last
FOLDS = "folds"  # the subfolder of a cross-validation
# The subfolders that a run writes into; `runs` is TensorBoard's, and an earlier evaluation is removed.
_WRITTEN = (
    "predictions", "checkpoint-*", ".writing-*", ".pushing-*", "additional_chat_templates", "runs", FOLDS, EVALUATION,
)  # fmt: skip
_WAYS_OUT = "name another --output_dir, or give --overwrite_output_dir to start over"


class Resuming(Protocol):
    """What `QATrainingArguments` say about it."""

    output_dir: str
    overwrite_output_dir: bool
    resume_from_checkpoint: str | None
    resume_anyway: bool


class AlreadyFinished(Exception):
    """This exact run is finished, and its results are in the output folder."""


def identity(arguments: Arguments[TrainingArguments]) -> dict[str, Any]:
    """Everything that determines the weights, by flag name: values, contents of files and models, versions.

    Two starts with the same identity are the same run, wherever its files are. Raises `DataError` if a file cannot be
    read.
    """
    groups = (
        arguments.data, arguments.retrieval, arguments.passages, arguments.prompt, arguments.model,
        arguments.evaluation,
    )  # fmt: skip
    values = {"method": arguments.method, "number of processes": arguments.training.world_size}
    return identity_of((*groups, arguments.training), values)


def identity_of(groups: Iterable[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`identity` of a run with these argument groups (dataclasses), and further `values` that determine its weights."""
    values = dict(values)
    for group in groups:
        names = [field.name for field in fields(group) if field.init and field.name not in _WITHOUT_INFLUENCE]
        values |= {f"--{name}": getattr(group, name) for name in names}
    for flag in (f"--{name}" for name in _FILES):
        if flag in values:
            values[flag] = f"sha256 {sha256_of(values[flag])}" if values[flag] else ""
    for flag in (f"--{name}" for name in _MODELS):
        if flag in values:
            values[flag] = model_identity(values[flag])
    # Converted through JSON, as it will be read back; otherwise equal values would compare as different.
    return json.loads(to_json({**plain(without_secrets(values)), "versions": versions()}))


def rows_identity(rows: EpochRows) -> dict[str, str]:
    """What determines the rows of every epoch: the first epoch's rows as token ids (which depend on files, tokenizer,
    prompt and retriever), the passages that each example could read, and the policy that chooses them."""
    token_ids, passages = hashlib.sha256(), hashlib.sha256()
    for row in rows:
        for ids in (row.prompt_ids, row.answer_ids):
            token_ids.update(len(ids).to_bytes(8, "little") + array("q", ids).tobytes())
    for example, hits in zip(rows.examples, rows.hits, strict=True):
        known = (example.gold_documents, example.hard_negatives, [hit.document for hit in hits])
        passages.update(to_json([[document.id for document in some] for some in known]).encode())
    return {
        "token ids of the training rows": f"sha256 {token_ids.hexdigest()}",
        "passages of the training rows": f"sha256 {passages.hexdigest()}",
        "policy": f"{rows.policy.__module__}.{rows.policy.__qualname__}",
    }


def output_problems(output_dir: Path) -> list[str]:
    """The links in an output folder that a run would write through: libraries write models with a plain `open`."""
    return links_in(output_dir, *_WRITTEN, flag="output_dir")


def checkpoint_to_resume(training: Resuming, run: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint to resume, None to start; `training` holds the run's `QATrainingArguments`, `run` its `identity`.

    Raises `AlreadyFinished`, or `DataError` that names each difference from the run in the folder.
    """
    output_dir, asked = Path(training.output_dir), str(training.resume_from_checkpoint or "no").lower()
    if training.overwrite_output_dir:
        _remove_run(output_dir)
    if asked == "auto":
        _check_finished(output_dir, run, training.resume_anyway)
    if asked in ("no", "none", "false"):
        there = checkpoint_folders(output_dir)
        if there:
            raise DataError(
                [f"--resume_from_checkpoint: {asked}, but {output_dir} holds {there[-1].name}; {_WAYS_OUT}"]
            )
        checkpoint = None
    elif asked in ("auto", "true"):
        checkpoint = newest_checkpoint(output_dir)
        if checkpoint is None and asked == "true":
            raise DataError([f"--resume_from_checkpoint: no complete checkpoint in {output_dir}; remove the flag"])
    else:
        checkpoint = _named(Path(training.resume_from_checkpoint or "no"))
    if checkpoint is not None:
        check_same_run(checkpoint, run, training.resume_anyway)
        logger.info("resuming from %s", checkpoint.folder)
    (output_dir / _RESULTS[0]).unlink(missing_ok=True)  # or a killed run with an old report would seem finished
    return checkpoint


def check_same_run(checkpoint: Checkpoint, run: Mapping[str, Any], anyway: bool) -> None:
    """Raise `DataError` with each difference from the run that wrote the checkpoint; if `anyway`, warn instead."""
    changed = _differences(checkpoint.about["run"], run, f"when {checkpoint.folder.name} was saved")
    if changed and not anyway:
        ways_out = (
            f"{checkpoint.folder} is from a run with other settings: restore them, {_WAYS_OUT}, or use --resume_anyway"
        )
        raise DataError([*changed, ways_out])
    then, now = checkpoint.about["run"].get("versions", {}), run.get("versions", {})
    changed += [f"{name}: {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name]]
    for line in changed:
        logger.warning("resumed although changed: %s", line)


def locked(output_dir: Path, patience: float = 10.0) -> AbstractContextManager[None]:
    """Create the folder and lock it. Others get a `DataError` that names the holder after `patience` seconds: workers
    of a process that was just killed take a while to notice."""
    return alone(output_dir, patience=patience, stays=True)


def _check_finished(output_dir: Path, run: Mapping[str, Any], anyway: bool) -> None:
    if not all((output_dir / name).exists() for name in ("run.json", "report.html")):
        return
    try:
        before = json.loads((output_dir / "run.json").read_text("utf-8"))["identity"]
        changed = _differences(before, run, "in the finished run")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError([f"--output_dir: {output_dir} holds the results of an earlier run; {_WAYS_OUT}"]) from None
    if not changed:
        raise AlreadyFinished(
            f"{output_dir} already holds this run, finished: see {output_dir / 'report.html'}; {_WAYS_OUT}"
        )
    if not anyway:
        raise DataError([*changed, f"{output_dir} holds a finished run with other settings; {_WAYS_OUT}"])


def _named(folder: Path) -> Checkpoint:
    try:
        return read_checkpoint(folder)
    except Damaged as damage:
        raise DataError([f"--resume_from_checkpoint: {folder} {damage}; name another one, or auto"]) from damage


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], when: str) -> list[str]:
    """One line for each changed value. Keys of only one side are skipped: they come from another version."""
    names = [name for name in now if name != "versions" and name in before and before[name] != now[name]]
    return [f"{name}: {_shown(before[name])} {when}, {_shown(now[name])} now" for name in names]


def _shown(value: object) -> str:
    text = value if isinstance(value, str) and value else to_json(value)
    return text[:19] + "..." if text.startswith("sha256 ") else text


def model_identity(name: str, suffixes: Collection[str] = frozenset(_MODEL_FILES)) -> str:
    """The contents of a local folder, or the name of a hub model. Large files are sampled: this tells models apart, it
    does not detect damage."""
    folder = Path(name)
    if not os.path.isdir(name):
        return name
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size} ".encode())
        with open(path, "rb") as file:
            blocks = 64 if size > _WHOLE else 1
            for i in range(blocks):
                file.seek(i * (size - 2**16) // (blocks - 1) if blocks > 1 else 0)
                digest.update(file.read(2**16 if blocks > 1 else size))
    return f"sha256 {digest.hexdigest()}"


def _remove_run(output_dir: Path) -> None:
    """Remove what a run writes and nothing else in the folder; results first, because they mark it as finished."""
    for name in _RESULTS:
        (output_dir / name).unlink(missing_ok=True)
    for folder in (*checkpoint_folders(output_dir), *output_dir.glob(".writing-*")):
        discard(folder)
    for name in ("predictions", FOLDS):
        shutil.rmtree(output_dir / name, ignore_errors=True)
