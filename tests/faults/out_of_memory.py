"""Tiny runs with less and less memory, down to too little: each ends with the same weights, or names what does not fit.

    python tests/faults/out_of_memory.py

The kernel limits the address space of a forked run when its training begins, so that memory runs out where it happens
to: in a forward pass, in the middle of a gradient, in an evaluation. A run that goes on must end with the weights of
one that had enough, to the rounding of a sum in another order; one that cannot must end with status 1 and one line.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from conftest import make_family, save_static_embedder, write_data
from tiny_run import Child, flags, warm_up

TOLERANCE = 1e-5  # of the largest change of a weight
MODEL = "wide"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limits", type=int, default=16, help="amounts of memory, evenly spread")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="out_of_memory_"))
    warm_up()
    assert Child(lambda: _make_inputs(work / "inputs"), work / "inputs.log").wait() == 0
    status, needed = _run(work, work / "enough", None)
    assert status == 0, (work / "enough.log").read_text()
    results: Counter[str] = Counter()
    for i in range(options.limits):
        memory = needed * (i + 1) // options.limits
        output = work / f"limit_{i}"
        status, _ = _run(work, output, memory)
        result = _result(work, output, status)
        results[result.partition(":")[0]] += 1
        print(f"{memory / 2**20:6.0f} MiB of {needed / 2**20:.0f}: {result}", flush=True)
        shutil.rmtree(output, ignore_errors=True)
    wrong = results["WRONG"]
    print(
        f"{options.limits} limits of memory: {', '.join(f'{n} {r}' for r, n in results.most_common())}; {wrong} wrong"
    )
    shutil.rmtree(work)
    return bool(wrong)


def _make_inputs(folder: Path) -> int:
    """A model whose layers are so wide that a batch takes hundreds of MiB."""
    for name in ("models", "embedding", "data"):
        (folder / name).mkdir(parents=True)
    make_family("llama", folder / "models" / MODEL, intermediate_size=16384)
    save_static_embedder(folder / "embedding")
    write_data(folder / "data")
    return 0


def _run(work: Path, output: Path, memory: int | None) -> tuple[int, int]:
    """Exit status of a run whose training gets `memory` bytes, and the bytes that it takes without a limit."""
    peak = work / "peak"

    def run() -> int:
        from groundtune.cli import train_command
        from groundtune.training.trainer import QATrainer

        train = QATrainer.train

        def limited(self: QATrainer, *args: Any, **kwargs: Any) -> Any:
            before = _status("VmSize")
            if memory is not None:
                resource.setrlimit(resource.RLIMIT_AS, (before + memory, resource.RLIM_INFINITY))
            try:
                return train(self, *args, **kwargs)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                peak.write_text(str(_status("VmPeak") - before))

        QATrainer.train = limited
        changes = {
            "use_peft": "true", "lora_dropout": 0, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1,
            "per_device_eval_batch_size": 4, "max_steps": 3, "eval_steps": 3, "optim": "sgd", "learning_rate": 1e-3,
            "max_grad_norm": 0, "lr_scheduler_type": "constant", "warmup_steps": 0, "load_best_model_at_end": "false",
        }  # fmt: skip
        return train_command("swr", flags(work / "inputs", output, MODEL, **changes))

    log = output.with_suffix(".log")
    log.unlink(missing_ok=True)
    return Child(run, log).wait(), int(peak.read_text())


def _status(name: str) -> int:
    """Bytes of this process, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024


def _result(work: Path, output: Path, status: int) -> str:
    log = output.with_suffix(".log").read_text()
    said = [line for line in log.splitlines() if "memory" in line]
    if status == 0:
        far = _distance(work / "enough", output)
        times = sum("at once" in line for line in said)
        return f"the same weights: halved {times} times, {far:.0e} away" if far < TOLERANCE else f"WRONG: {far} away"
    if status == 1 and "Traceback" not in log and said:
        return f"named what does not fit: {said[-1][:120]}"
    return f"WRONG: exit {status}\n{log[-1500:]}"


def _distance(one: Path, other: Path) -> float:
    """The largest difference between two adapters, relative to the largest trained weight."""
    from safetensors.torch import load_file

    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    trained = max(first[name].abs().max().item() for name in first if "lora_B" in name)  # these start at zero
    return max((first[name] - second[name]).abs().max().item() for name in first) / trained


if __name__ == "__main__":
    sys.exit(main())
