"""SIGTERM (every sixth time SIGINT) at random points of a tiny run: exit 143 (130), the step saved, nothing lost.

Then two signals in a row, at points of other runs: the second does not wait for the step, and nothing is lost either.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from tiny_run import VARIANTS, Child, Events, flags, make_inputs, outcome, warm_up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--twice", type=int, default=20, help="points at which two signals come")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, work = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="signals_"))
    warm_up()
    make_inputs(work / "inputs")
    expected = {variant: _undisturbed(work, variant) for variant in VARIANTS[: options.points]}
    ages, delays, failures = Counter(), [], 0
    for point in range(options.points):
        variant = VARIANTS[point % len(VARIANTS)]
        undisturbed, wanted = expected[variant]
        signum = _signal(point)
        output = work / f"point_{point}"
        status, events, (where,), delay = _stopped(work, output, variant, [signum], undisturbed.choose(rng))
        saved, done = _saved_step(output), events.steps
        again = Child(lambda v=variant, o=output: _run(work, o, v), work / "again.log").wait()
        same = again == 0 and outcome(output, variant) == wanted
        right = status == 128 + signum and done - saved <= 1 and same
        failures += not right
        ages[done - saved] += 1
        delays.append(delay)
        print(
            f"{point + 1}/{options.points} {signum.name} at {where}: exit {status} after {delay:.1f} s, "
            f"{done} steps done, {saved} saved, then {'identical' if same else 'DIFFERENT'}",
            flush=True,
        )
        if not right:
            print((work / "stopped.log").read_text()[-2000:], (work / "again.log").read_text()[-2000:])
        shutil.rmtree(output)
    print(
        f"\n{options.points} signals, {failures} failures; steps not saved: {dict(ages)}; "
        f"longest wait {max(delays, default=0):.1f} s"
    )
    failures += _twice(work, options.twice, rng, expected)
    shutil.rmtree(work)
    return 1 if failures else 0


def _signal(point: int) -> signal.Signals:
    return signal.SIGINT if point % 6 == 5 else signal.SIGTERM


def _twice(work: Path, points: int, rng: random.Random, expected: dict[str, tuple[Events, dict]]) -> int:
    """Number of runs in which a second signal was delayed or lost data."""
    delays, failures = [], 0
    for point in range(points):
        variant = list(expected)[point % len(expected)]
        undisturbed, wanted = expected[variant]
        output, first, second = work / f"twice_{point}", _signal(point), _signal(point // 2)
        at = undisturbed.choose(rng, "micro-batch", "backward", "optimizer step", "write tensors", "fsync")
        status, _, where, delay = _stopped(work, output, variant, [first, second], at)
        # Where it tears nothing (an evaluation, an index), the first signal already ends the run.
        left_at_once = status == 128 + second and "stopped by" not in (work / "stopped.log").read_text()
        again = Child(lambda v=variant, o=output: _run(work, o, v), work / "again.log").wait()
        same = again == 0 and outcome(output, variant) == wanted
        right = same and (left_at_once if len(where) == 2 else status == 128 + first)
        failures += not right
        delays += [delay] if len(where) == 2 else []
        print(
            f"{point + 1}/{points} {first.name}, {second.name} at {where[0]}: exit {status} after {delay:.2f} s, then "
            f"{'identical' if same else 'DIFFERENT'}{'' if right else ' WRONG'}",
            flush=True,
        )
        shutil.rmtree(output)
    print(f"\n{len(delays)} second signals, {failures} failures; longest wait {max(delays, default=0):.2f} s")
    return failures


def _undisturbed(work: Path, variant: str) -> tuple[Events, dict]:
    output, events = work / "undisturbed", Events()
    status = Child(lambda: _watched(events, work, output, variant), work / "undisturbed.log").wait()
    assert status == 0, (work / "undisturbed.log").read_text()
    result = events, outcome(output, variant)
    shutil.rmtree(output)
    return result


def _stopped(
    work: Path, output: Path, variant: str, signums: list[int], at: int
) -> tuple[int, Events, list[str], float]:
    """Exit status, events, place of each signal, and seconds from the first signal to the end."""
    sent = Events()  # one event for each signal that is sent

    def send(label: str) -> None:
        for signum in signums:
            sent.happened(label)
            os.kill(os.getpid(), signum)

    events = Events(at=at, act=send)
    (work / "stopped.log").unlink(missing_ok=True)
    child = Child(lambda: _watched(events, work, output, variant), work / "stopped.log")
    begin = time.monotonic()
    while child.running():
        if not sent.labels:
            begin = time.monotonic()
        time.sleep(0.002)
    return child.status, events, sent.labels, time.monotonic() - begin


def _saved_step(output: Path) -> int:
    from groundtune.runs.checkpoints import newest_checkpoint

    checkpoint = newest_checkpoint(output)
    return checkpoint.step if checkpoint else 0


def _watched(events: Events, work: Path, output: Path, variant: str) -> int:
    with events.watched():
        return _run(work, output, variant)


def _run(work: Path, output: Path, variant: str) -> int:
    from groundtune.cli import train_command

    return train_command("swr", flags(work / "inputs", output, variant))


if __name__ == "__main__":
    sys.exit(main())
