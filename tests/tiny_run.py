"""Whole tiny runs in forked processes, which can be disturbed at a chosen event or time.

The parent imports everything once and computes nothing, so a run takes seconds. An event is the beginning or the
end of a call through which a run computes, or through which anything reaches the disk.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conftest import SIGNALS_OF_A_TERMINAL, make_family, save_static_embedder, write_data

STEPS = 9
VARIANTS = ("LoRA with dropout", "all weights with dropout")
WEIGHTS = {VARIANTS[0]: "adapter_model.safetensors", VARIANTS[1]: "model.safetensors"}
_NEEDED_BY_A_RUN = """
    faiss matplotlib.backends.backend_svg matplotlib.figure matplotlib.ticker peft rich.console rich.table sacrebleu
    rouge_score.rouge_scorer safetensors.torch sentence_transformers transformers.models.gemma3.modeling_gemma3
    transformers.models.llama.modeling_llama transformers.trainer
    groundtune.cli groundtune.recipes.train groundtune.reporting.report groundtune.reporting.plots
"""


def warm_up() -> None:
    """Import what a run needs, so that a forked run starts immediately."""
    for name in _NEEDED_BY_A_RUN.split():
        importlib.import_module(name)
    gc.freeze()  # or garbage collection in a child would copy every page


def make_inputs(folder: Path) -> None:
    """Make models, embedding model and data, in a separate process: one that has computed cannot fork safely."""

    def make() -> int:
        for name in ("models", "embedding", "data"):
            (folder / name).mkdir()
        make_family("gemma", folder / "models" / VARIANTS[0])
        make_family("llama", folder / "models" / VARIANTS[1], attention_dropout=0.2)
        save_static_embedder(folder / "embedding")
        write_data(folder / "data")
        return 0

    folder.mkdir(parents=True)
    ended = Child(make, folder / "inputs.log").wait()
    assert ended == 0, (folder / "inputs.log").read_text()


def flags(inputs: Path, output: Path, variant: str, **changes: Any) -> list[str]:
    """SwR on six rows in micro-batches of one, accumulation 4: two steps per epoch, the second one of two rows.

    It evaluates and saves at every second step; the last step, the ninth, is alone in the middle of an epoch.
    """
    values = {
        "model_name_or_path": inputs / "models" / variant, "embedding_model": inputs / "embedding",
        "train_file": inputs / "data/train.jsonl", "eval_file": inputs / "data/eval.jsonl",
        "test_file": inputs / "data/test.jsonl", "full_dataset_file_path": inputs / "data/documents.jsonl",
        "output_dir": output, "full_dataset_index_path": output / "index", "instruction": "Answer.",
        "max_seq_length": 300, "max_new_tokens": 3, "bootstrap_samples": 100, "eval_num_to_retrieve": 2,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": STEPS, "eval_steps": 2,
        "learning_rate": 1e-2, "bf16": "false", "disable_tqdm": "true", "logging_steps": 1,
        "use_peft": str(variant == VARIANTS[0]).lower(), "lora_dropout": 0.2, "lora_r": 2,
        "metric_for_best_model": "loss_with_gold_passage", "reuse_answers": "false",
    } | changes  # fmt: skip
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def outcome(output: Path, variant: str) -> dict[str, Any]:
    """What must not depend on disturbances: the final weights, their step, and the curves."""
    metrics = json.loads((output / "metrics.json").read_text("utf-8"))
    curves = [
        [row["step"], row[name]]
        for row in metrics["history"]
        for name in ("eval_loss_with_gold_passage", "eval_generation/f1")
        if row.get(name) is not None
    ]
    return {"sha256": sha256(output / WEIGHTS[variant]), "best_step": metrics["best_step"], "curves": curves}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Processes


class Child:
    """A forked process that runs `work` and exits with its result; its output goes to `log`."""

    def __init__(self, work: Callable[[], int], log: Path):
        self.log, self.begin = log, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(work)

    def _run(self, work: Callable[[], int]) -> None:
        status = 70
        for signum, handler in SIGNALS_OF_A_TERMINAL.items():
            signal.signal(signum, handler)
        try:
            handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            status = work()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def wait(self) -> int:
        """Exit status as in a shell: 137 for kill -9."""
        while self.running():
            time.sleep(0.002)
        return self.status

    def running(self) -> bool:
        """Whether it is running; sets `status`, `seconds` and `usage` once it is not."""
        pid, status, self.usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self.seconds = time.monotonic() - self.begin
            self.status = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return pid == 0

    def send(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)


class Events:
    """The events of a run, in a file shared by parent and child; at event number `at`, `act(label)` is called."""

    def __init__(self, at: int | None = None, act: Callable[[str], None] = lambda label: None):
        self.at, self.act, self._count = at, act, 0
        handle, path = tempfile.mkstemp()
        os.unlink(path)
        self._trace = handle

    def __del__(self) -> None:
        os.close(self._trace)

    def happened(self, label: str) -> None:
        self._count += 1
        os.write(self._trace, f"{label}\n".encode())
        if self._count == self.at:
            self.act(label)

    @property
    def labels(self) -> list[str]:
        return os.pread(self._trace, os.fstat(self._trace).st_size, 0).decode().splitlines()

    @property
    def steps(self) -> int:
        """Number of finished optimizer steps."""
        return self.labels.count("optimizer step: end")

    def choose(self, rng: random.Random, *kinds: str) -> int:
        """The number of an event (of one of `kinds`, if any): each kind is as likely as any other, however often it
        happened."""
        labels = self.labels
        kind = rng.choice(sorted(label for label in set(labels) if not kinds or label.partition(":")[0] in kinds))
        return rng.choice([number for number, label in enumerate(labels, 1) if label == kind])

    @contextlib.contextmanager
    def watched(self, disk_only: bool = False) -> Iterator[None]:
        """Count the events inside the block."""
        undo = []
        for owner, name, label in _disk_calls() + ([] if disk_only else _computations()):
            original = getattr(owner, name)
            undo.append((owner, name, original))
            setattr(owner, name, self._counted(original, label))
        for owner in (builtins, io):
            undo.append((owner, "open", owner.open))
            owner.open = self._counted_open(owner.open)
        try:
            yield
        finally:
            for owner, name, original in reversed(undo):
                setattr(owner, name, original)

    def _counted(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.happened(f"{label}: begin")
            result = function(*args, **kwargs)
            if label == "write tensors":
                self._torn(args[1])
            self.happened(f"{label}: end")
            return result

        return call

    def _torn(self, path: Any) -> None:
        """An event at which half of a tensor file is written; it has no effect unless something happens there."""
        if self._count + 1 != self.at:
            self.happened("write tensors: half")
            return
        whole = Path(path).read_bytes()
        os.truncate(path, len(whole) // 2)
        self.happened("write tensors: half")
        Path(path).write_bytes(whole)  # the disturbance, a signal for example, let writing continue

    def _counted_open(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not isinstance(mode, str) or not set(mode) & set("wxa"):
                return original(file, mode, *args, **kwargs)
            self.happened("open: begin")
            return _CountedFile(original(file, mode, *args, **kwargs), self)

        return counted


class _CountedFile:
    """A file whose writes and closing are events. It fails `isinstance` checks, so that no writer bypasses it."""

    def __init__(self, file: Any, events: Events):
        self._file, self._events = file, events

    def write(self, data: Any) -> int:
        self._events.happened("write: begin")
        return self._file.write(data)

    def close(self) -> None:
        if not self._file.closed:
            try:
                self._events.happened("close: begin")
            finally:
                self._file.close()

    def __enter__(self) -> _CountedFile:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _disk_calls() -> list[tuple[Any, str, str]]:
    import safetensors.torch

    return [
        (os, "fsync", "fsync"),
        (os, "replace", "replace"),
        (os, "rename", "rename"),
        (os, "unlink", "unlink"),
        (os, "mkdir", "make folder"),
        (shutil, "rmtree", "remove folder"),
        (safetensors.torch, "serialize_file", "write tensors"),
    ]


def _computations() -> list[tuple[Any, str, str]]:
    import accelerate
    import sentence_transformers
    import torch
    import transformers

    import groundtune.model.generation

    return [
        (transformers.Trainer, "training_step", "micro-batch"),
        (accelerate.Accelerator, "backward", "backward"),
        (torch.optim.AdamW, "step", "optimizer step"),
        (groundtune.model.generation, "_generate_batch", "answering"),
        (sentence_transformers.SentenceTransformer, "encode", "embedding"),
    ]


def kill(label: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
