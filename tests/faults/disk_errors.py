"""A disk that fills up or fails at every single call of a save, and at random calls of whole runs.

After each failing save the newest checkpoint must be whole and load; after each failing run the exit status must be 3
with one line that names the free bytes, and the same command must end with the weights of an undisturbed run.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import re
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from tiny_run import VARIANTS, Child, Events, flags, make_inputs, outcome, warm_up

ERRORS = (errno.ENOSPC, errno.EIO)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=0, help="calls of a save that fail, evenly spread; 0: every one")
    parser.add_argument("--limits", type=int, default=20, help="largest file sizes that the kernel lets a save write")
    parser.add_argument("--runs", type=int, default=10, help="whole runs in which a random call fails")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, work = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="disk_errors_"))
    warm_up()
    make_inputs(work / "inputs")
    log = work / "saves.log"
    failures = Child(lambda: _run(work, work / "saves", VARIANTS[0], lambda: _failing_saves(options)), log).wait()
    print(log.read_text() if failures else "\n".join(re.findall("^SAVE.*", log.read_text(), re.MULTILINE)))
    failures += _failing_runs(work, rng, options.runs)
    shutil.rmtree(work)
    return 1 if failures else 0


def _run(work: Path, output: Path, variant: str, before: Callable[[], Any] = lambda: None) -> int:
    from groundtune.cli import train_command

    before()
    return train_command("swr", flags(work / "inputs", output, variant, save_total_limit=1))


# Saves


def _failing_saves(options: argparse.Namespace) -> None:
    """Let the run's second save (step 4) fail in every way, each in its own process; exits with the failure count."""
    from groundtune.training.safe_trainer import SafeTrainer

    original = SafeTrainer._write_checkpoint

    def instead(trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step == 4:
            os._exit(min(_all_failures(lambda: original(trainer, *args, **kwargs), trainer, options), 99))
        original(trainer, *args, **kwargs)

    SafeTrainer._write_checkpoint = instead


def _all_failures(save: Callable[[], None], trainer: Any, options: argparse.Namespace) -> int:
    output = Path(trainer.args.output_dir)
    before = output.with_name("before")
    shutil.copytree(output, before)
    events, failures = Events(), 0
    size = _attempt(output, before, save, trainer, events)
    largest = max(path.stat().st_size for path in output.glob("checkpoint-4/*"))
    assert size == "saved", size
    calls = events.labels
    step = max(len(calls) // options.calls, 1) if options.calls else 1
    ways: list[tuple[str, Events, int | None]] = [
        (os.strerror(number), Events(at=at + 1, act=_raise(number)), None)
        for at in range(0, len(calls), step)
        for number in ERRORS
    ]
    ways += [("file size limit", Events(), largest * (i + 1) // (options.limits + 1)) for i in range(options.limits)]
    results: Counter[str] = Counter()
    in_spite: Counter[str] = Counter()
    for name, events, limit in ways:
        result = _attempt(output, before, save, trainer, events, limit)
        where = calls[events.at - 1] if events.at else f"{limit} bytes"
        if result not in ("refused", "saved"):
            failures += 1
            print(f"{name} at call {events.at} ({where}): {result}")
        results[result] += 1
        in_spite[where] += result == "saved"
    print(f"SAVE {len(ways)} failing saves ({len(calls)} calls): {dict(results)}, {failures} failures")
    print(f"SAVE whole in spite of the error: {dict(+in_spite)}", flush=True)
    return failures


def _attempt(
    output: Path, before: Path, save: Callable[[], None], trainer: Any, events: Events, limit: int | None = None
) -> str:
    """Save with `events`, in a fork and on a copy of the folder; then check what is left."""
    shutil.rmtree(output)
    shutil.copytree(before, output)

    def attempt() -> int:
        from groundtune.system.durable import DiskError

        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            with events.watched(disk_only=True):
                save()
        except DiskError as error:
            print(error)
            return 3 if "bytes are free" in str(error) and "\n" not in str(error) else 71
        return 0

    log = output.with_name("attempt.log")
    log.unlink(missing_ok=True)
    status = Child(attempt, log).wait()
    if status not in (0, 3):
        return f"exit {status}: {log.read_text()[-600:]}"
    return _left(output, trainer) or ("refused" if status == 3 else "saved")


def _left(output: Path, trainer: Any) -> str | None:
    """The problem with the newest checkpoint, if there is one."""
    from safetensors.torch import load_file

    from groundtune.runs.checkpoints import load_state, newest_checkpoint

    checkpoint = newest_checkpoint(output)
    if checkpoint is None:
        return "no checkpoint is left"
    for name in ("optimizer", "scheduler", "randomness_0"):
        load_state(checkpoint.folder, name)
    if not load_file(checkpoint.folder / "adapter_model.safetensors"):
        return "an empty adapter is left"
    return None


def _raise(number: int) -> Callable[[str], None]:
    def act(label: str) -> None:
        raise OSError(number, os.strerror(number))

    return act


# Runs


def _failing_runs(work: Path, rng: random.Random, runs: int) -> int:
    failures, expected, wrong = 0, {}, []
    for variant in VARIANTS[:runs]:
        output, events = work / "undisturbed", Events()
        assert Child(lambda e=events, o=output, v=variant: _watched(e, work, o, v), work / "run.log").wait() == 0
        expected[variant] = events, outcome(output, variant)
        shutil.rmtree(output)
    for i in range(runs):
        variant, output, log = VARIANTS[i % len(VARIANTS)], work / f"run_{i}", work / "run.log"
        log.unlink()
        undisturbed, wanted = expected[variant]
        failing = Events(at=undisturbed.choose(rng), act=_raise(ERRORS[i // 2 % 2]))
        status = Child(lambda v=variant, o=output, e=failing: _watched(e, work, o, v), log).wait()
        told = [line for line in log.read_text().splitlines() if "bytes are free" in line]
        again = Child(lambda v=variant, o=output: _run(work, o, v), work / "again.log").wait()
        same = again == 0 and outcome(output, variant) == wanted
        right = same and ((status, len(told)) == (3, 1) and "Traceback" not in log.read_text() or status == 0)
        where = undisturbed.labels[failing.at - 1]
        print(f"run {i + 1}/{runs}: {where}: exit {status}, then {'identical' if same else 'DIFFERENT'}", flush=True)
        if not right:
            failures += 1
            wrong.append(log.read_text()[-3000:] + (work / "again.log").read_text()[-1000:])
        shutil.rmtree(output)
    print(*wrong, f"{runs} failing runs, {failures} failures", sep="\n")
    return failures


def _watched(events: Events, work: Path, output: Path, variant: str) -> int:
    with events.watched(disk_only=True):
        return _run(work, output, variant)


if __name__ == "__main__":
    sys.exit(main())
