"""SIGTERM (every fifth time SIGINT) at random points of a tiny run: exit 143 (130), the step saved, nothing lost."""

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, work = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="signals_"))
    warm_up()
    make_inputs(work / "inputs")
    expected = {variant: _undisturbed(work, variant) for variant in VARIANTS[: options.points]}
    ages, delays, failures = Counter(), [], 0
    for point in range(options.points):
        variant = VARIANTS[point % len(VARIANTS)]
        count, wanted = expected[variant]
        signum = signal.SIGINT if point % 5 == 4 else signal.SIGTERM
        output = work / f"point_{point}"
        status, events, where, delay = _stopped(work, output, variant, signum, rng.randint(1, count))
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
        f"longest wait {max(delays):.1f} s"
    )
    shutil.rmtree(work)
    return 1 if failures else 0


def _undisturbed(work: Path, variant: str) -> tuple[int, dict]:
    output, events = work / "undisturbed", Events()
    status = Child(lambda: _watched(events, work, output, variant), work / "undisturbed.log").wait()
    assert status == 0, (work / "undisturbed.log").read_text()
    result = events.count, outcome(output, variant)
    shutil.rmtree(output)
    return result


def _stopped(work: Path, output: Path, variant: str, signum: int, at: int) -> tuple[int, Events, str, float]:
    """Exit status, what was counted, where the signal came, and the seconds from there to the end."""
    sent = Events()  # used for the memory that it shares: the event at which the signal was sent

    def send(label: str) -> None:
        sent.happened(label)
        os.kill(os.getpid(), signum)

    events = Events(at=at, act=send)
    (work / "stopped.log").unlink(missing_ok=True)
    child = Child(lambda: _watched(events, work, output, variant), work / "stopped.log")
    begin = time.monotonic()
    while child.running():
        if sent.count == 0:
            begin = time.monotonic()
        time.sleep(0.002)
    return child.status, events, sent.last, time.monotonic() - begin


def _saved_step(output: Path) -> int:
    from groundtune.checkpoints import newest_checkpoint

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
