"""The recipe of a sweep: each cell is trained and evaluated by the ordinary commands, in processes of its own.

So a cell is what its commands would have made by hand: it resumes where it was stopped, and its memory and signals are
its own. One that fails is reported, and the others follow. Several processes may run the same sweep: each takes the
cells that no other is working on.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from groundtune.errors import DataError
from groundtune.evaluation.figures import (
    BESIDES,
    TRAINING,
    Figures,
    evaluated,
    failed,
    figures_of,
    finished_cells,
    write_figures,
)
from groundtune.runs.cells import Asked, Cell, Plan
from groundtune.system.durable import disk_errors
from groundtune.system.inputs import read_text
from groundtune.system.locks import alone
from groundtune.system.signals import Stopped
from groundtune.system.text import one_line

Run = Callable[[Sequence[str], Path], int]  # words of `groundtune`, and the file of its output -> exit status
Tell = Callable[[str], None]
BEFORE, FINISHED, FAILED, NO_TIME, IN_USE = "finished before", "finished", "failed", "not started", "in use"
_PRECISIONS = {"--bf16=true": "bfloat16", "--bf16=false": "float32"}
# Windows has no signal that another process could take for a wish to stop in good order.
_STOP: int = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)
# Of a new process: the same modules as here, and a record that names the command.
_CODE = "sys.argv[0] = 'groundtune'; from groundtune.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class CellEnded:
    """How a cell ended: one of the words above, and why."""

    cell: Cell
    how: str
    why: str = ""


def sweep(
    plan: Plan, cells: Sequence[Cell], seconds: float | None, tell: Tell, run: Run | None = None, device: str = "",
    estimated: Mapping[str, float | None] = {},
) -> list[CellEnded]:  # fmt: skip
    """Measure each cell that is not finished yet, and write its figures; `tell` gets a line for each.

    `seconds`: no cell is started that would take longer than what is left of them, by the minutes that finished ones
    took on this `device`, or else by those that are `estimated` by label. Raises `DataError` if figures of finished
    cells cannot be read, and `Stopped` or `KeyboardInterrupt` after a cell was asked to stop.
    """
    begin, ended = time.monotonic(), []
    for number, cell in enumerate(cells, 1):
        left = None if seconds is None else seconds - (time.monotonic() - begin)
        tell(f"{number} of {len(cells)}  {cell.label} ...")
        one = _one(plan, cell, left, tell, run or in_a_process, device, estimated.get(cell.label))
        tell(f"{number} of {len(cells)}  {cell.label}: {one.how}{one.why and f', {one.why}'}")
        ended.append(one)
    return ended


def _one(
    plan: Plan, cell: Cell, left: float | None, tell: Tell, run: Run, device: str, estimated: float | None
) -> CellEnded:
    try:
        with alone(plan.output_dir, file=f"{cell.label}.cell"):
            return _alone(plan, cell, left, tell, run, device, estimated)
    except DataError as error:
        if any("is in use by" in problem for problem in error.problems):
            return CellEnded(cell, IN_USE, "by another process")
        return CellEnded(cell, FAILED, one_line(error, 300))


def _alone(
    plan: Plan, cell: Cell, left: float | None, tell: Tell, run: Run, device: str, estimated: float | None
) -> CellEnded:
    known, other = finished_cells(plan.cells, plan.results)
    if cell.label in known:
        return CellEnded(cell, BEFORE)
    for reason in other.get(cell.label, ()):
        tell(f"    {plan.results_file(cell)} is not this cell, finished: {reason}")
    if left is not None:
        expected = expected_minutes(cell, on(device, known.values())) or estimated
        if left <= 0 or (expected is not None and 60 * expected > left):
            takes = "" if expected is None else f"it takes about {expected:.0f} min, and "
            return CellEnded(cell, NO_TIME, f"{takes}{max(0, left) / 60:.0f} min are left")
    return _measured(plan, cell, run)


def _measured(plan: Plan, cell: Cell, run: Run) -> CellEnded:
    """Run what is missing of the cell, and write its figures."""
    log = plan.output_dir / f"{cell.label}.log"
    minutes: dict[str, float] = {}
    for name, words in steps(plan, cell):
        begin = time.monotonic()
        status = run(words, log)
        minutes[name] = (time.monotonic() - begin) / 60
        if status:
            why = failed(plan.folder(cell) / f"evaluation-{name}") or [_last_line(log)]
            return CellEnded(cell, FAILED, f"exit status {status}: {one_line(why[0], 200)} (all of it: {log})")
        _write(plan, cell, minutes)
    _write(plan, cell, minutes)
    if left := [name for name, _ in steps(plan, cell) if name != TRAINING]:
        odd = plan.folder(cell) / f"evaluation-{left[0]}"
        return CellEnded(cell, FAILED, f"{odd} is not the evaluation that was asked for (all of it: {log})")
    return CellEnded(cell, FINISHED)


def _write(plan: Plan, cell: Cell, minutes: Mapping[str, float]) -> None:
    """Write the figures of what is evaluated so far: the rest may never come."""
    folder = plan.folder(cell)
    done = [asked for asked in cell.evaluations if _is_done(plan, cell, asked)]
    if not done:
        return
    place = folder if cell.method else folder / f"evaluation-{done[0].name}"
    record = json.loads(read_text(place / "run.json"))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with disk_errors(plan.results):
        write_figures(
            plan.results_file(cell), figures_of(replace(cell, evaluations=tuple(done)), folder, record, minutes, now)
        )


def steps(plan: Plan, cell: Cell) -> Iterator[tuple[str, list[str]]]:
    """Name and words of the commands that are still missing, each looked up when its turn comes. Training is always one
    of them: a finished run says so, and that its settings are these."""
    if cell.method:
        yield TRAINING, [cell.method, *cell.words]
    for asked in cell.evaluations:
        if not _is_done(plan, cell, asked):
            yield asked.name, ["evaluate", *asked.words]


def _is_done(plan: Plan, cell: Cell, asked: Asked) -> bool:
    folder, trained = plan.folder(cell), ""
    if cell.method:
        with suppress(OSError, ValueError, KeyError, TypeError):
            trained = str(json.loads(read_text(folder / "run.json"))["finished"])
    return evaluated(asked, folder / f"evaluation-{asked.name}", trained)


def in_a_process(words: Sequence[str], log: Path) -> int:
    """The exit status of `groundtune WORDS` in a new process, whose output is added to `log`.

    A signal goes to it once, and it stops where nothing is lost; then the signal has its effect here. A second one ends
    it.
    """
    code = f"import sys; sys.path[:] = {[entry for entry in sys.path if entry]!r}; {_CODE}"
    # A group of its own: Ctrl-C on a terminal reaches this process only, which passes it on.
    windows = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    own: dict[str, Any] = {"creationflags": windows} if windows else {"start_new_session": True}
    log.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(log), open(log, "a", encoding="utf-8") as output:
        output.write(f"\n$ {shlex.join(['groundtune', *words])}\n")
        output.flush()
        child = subprocess.Popen(  # noqa: S603  our own program, and words that were parsed
            [sys.executable, "-c", code, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output, **own
        )
        try:
            return child.wait()
        except (Stopped, KeyboardInterrupt):
            child.send_signal(_STOP)
            with suppress(Stopped, KeyboardInterrupt):
                child.wait()
            raise
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def _last_line(log: Path) -> str:
    with suppress(OSError, ValueError):
        lines = [line for line in read_text(log).splitlines() if line.strip()]
        if lines:
            return one_line(lines[-1], 200)
    return "it printed nothing"


def on(device: str, known: Iterable[Figures]) -> list[Figures]:
    """The cells that were measured on this device: minutes on another one say nothing here."""
    return [one for one in known if not device or one.machine.get("device") == device]


def expected_minutes(cell: Cell, known: Sequence[Figures], training: float | None = None) -> float | None:
    """About how many minutes a cell takes: as cells of its name did, else of its method, else any that were trained,
    too; None if no such cell is finished in its precision. `training`: an estimate of its training, used where none is
    finished."""
    parts = [asked.name for asked in cell.evaluations]
    dtype = next((dtype for word, dtype in _PRECISIONS.items() if word in cell.words), "")
    known = [one for one in known if not dtype or one.precision in ("", dtype)]
    alike = (
        [one for one in known if one.cell == cell.name],
        [one for one in known if one.method == cell.method],
        [one for one in known if bool(one.method) == bool(cell.method)],
    )

    def of(part: str) -> float | None:
        measured = ([m for one in some if (m := one.minutes.get(part)) is not None] for some in alike)
        return next((median(some) for some in measured if some), None)

    of_evaluations = [of(part) for part in parts]
    if not cell.method:
        return None if None in of_evaluations else sum(minutes or 0.0 for minutes in of_evaluations)
    of_training = of(TRAINING) or training
    if of_training is None or (None in of_evaluations and training is None):
        return None
    return of_training + (of(BESIDES) or 0.0) + sum(minutes or 0.0 for minutes in of_evaluations)
