"""`groundtune sweep FILE.yaml`: train and evaluate every cell of a plan, and say which one to choose."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.commands.parsing import given, light_parser, parse_arguments
from groundtune.commands.terminal import add_output_flags, be_quiet, complain, say, say_json, say_table
from groundtune.errors import DataError

if TYPE_CHECKING:
    from groundtune.evaluation.figures import Figures
    from groundtune.evaluation.standings import Standings
    from groundtune.runs.cells import Cell, Plan

USAGE = "FILE.yaml [--set FLAG=VALUE ...] [--only CELL ...] [--time_budget TIME] [--dry_run]"
DESCRIPTION = """Try settings: train every cell of a plan with `groundtune sft`, `swr` or `raft`, evaluate it, and
compare all cells on the same questions. A plan has fixed settings, a grid of values or a list of named cells,
seeds, and evaluations; any flag of training may vary. Each cell runs in processes of its own and leaves a small file
of figures without any text of the data. The same command resumes: finished cells are not measured again, nor those that
others measured and whose file is there. A cell that fails is reported, and the others follow."""
EXAMPLES = """examples:
  groundtune sweep sweep.yaml --dry_run
  groundtune sweep sweep.yaml --time_budget 90m
  groundtune sweep sweep.yaml --only learning_rate=2e-4 --set num_train_epochs=2 -o runs/longer"""
_PROBE_QUESTIONS = 4
# Flags that change neither how many steps a training takes nor what one of them costs.
_SAME_STEPS = {
    "--seed", "--output_dir", "--learning_rate", "--lr_scheduler_type", "--warmup_steps", "--weight_decay",
    "--lora_alpha", "--max_grad_norm",
}  # fmt: skip
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}


def main(argv: Sequence[str]) -> int:
    """Run the sweep, print the table and write the report; returns 1 if a cell failed, else 0."""
    words = given(parser(), argv)
    seconds = _seconds(words["time_budget"]) if "time_budget" in words else None
    if words["report_only"] and (idle := [name for name in ("dry_run", "time_budget") if words.get(name)]):
        raise DataError([f"--{idle[0]}: has no effect with --report_only, which starts nothing; remove one of them"])
    if words["quiet"] or words["json"]:
        be_quiet()

    from groundtune.commands.plan import read_plan
    from groundtune.reporting.sweep_report import check_report
    from groundtune.runs.cells import chosen

    plan = read_plan(words["file"], _changes(words.get("set", [])), words.get("output_dir", ""))
    only = words.get("only", [])
    if unknown := [name for name in only if not chosen(plan, [name])]:
        raise DataError([f"--only: no cell is called {unknown[0]}; take one of {', '.join(plan.names)}"])
    cells = chosen(plan, only)
    check_report(plan)
    tell = _teller(words)
    failed: list[str] = []
    if not words["report_only"]:
        plan, minutes = _checked(plan, cells, tell, words["dry_run"])
        if words["dry_run"]:
            if words["json"]:
                say_json({"left": minutes})
            return 0
        failed = _run(plan, cells, seconds, tell, minutes)
    found, figures = _reported(plan, words["report_only"], tell)
    _show(plan, found, figures, failed, words)
    return int(bool(failed))


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = light_parser("groundtune sweep", USAGE, DESCRIPTION, EXAMPLES)
    made.add_argument("file", metavar="FILE.yaml", help="The plan.")
    made.add_argument(
        "--set", nargs="+", metavar="FLAG=VALUE", help="Settings of all cells, in addition to those in the plan."
    )
    made.add_argument("--only", nargs="+", metavar="CELL", help="Only these cells, such as swr, or swr-seed0.")
    made.add_argument(
        "--time_budget", metavar="TIME",
        help="Start no cell that would not end in this time, such as 90m or 6h, judging by the finished ones.",
    )  # fmt: skip
    made.add_argument(
        "--dry_run", action="store_true", default=False, help="Check everything, print the cells and an estimate, stop."
    )
    made.add_argument(
        "--report_only", action="store_true", default=False,
        help="Write the report from the files of finished cells; reads neither data nor models.",
    )  # fmt: skip
    made.add_argument("-o", "--output_dir", metavar="DIR", help="Folder for the runs. (default: the plan's)")
    add_output_flags(made)
    return made


def _changes(words: Sequence[str]) -> dict[str, str]:
    wrong = [word for word in words if not re.match(r"(--)?\w+=", word)]
    if wrong:
        raise DataError([f"--set: {wrong[0]}: write FLAG=VALUE, such as learning_rate=2e-4"])
    return {name.removeprefix("--"): value for name, _, value in (word.partition("=") for word in words)}


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h)", text.strip())
    if not found:
        raise DataError([f"--time_budget: {text}: write a number with s, m or h, such as 90m"])
    return float(found[1]) * _UNITS[found[2]]


def _teller(words: dict[str, Any]) -> Any:
    """A function that prints a line of progress: with --json on standard error, with --quiet nowhere."""
    if words["quiet"]:
        return lambda line: None
    return complain if words["json"] else say


def _checked(plan: Plan, cells: Sequence[Cell], tell: Any, dry: bool) -> tuple[Plan, dict[str, float | None]]:
    """The plan with what its files hold, and the minutes that each of the cells that are left will take."""
    _make_probe(plan)

    from groundtune.commands.plan import identified
    from groundtune.evaluation.figures import finished_cells
    from groundtune.recipes.sweep import on
    from groundtune.runs.record import device

    plan = identified(plan)
    known, _ = finished_cells(plan.cells, plan.results)
    left = [cell for cell in cells if cell.label not in known]
    return plan, _estimate(left, on(device(), known.values()), tell, dry)


def _run(
    plan: Plan, cells: Sequence[Cell], seconds: float | None, tell: Any, minutes: Mapping[str, float | None]
) -> list[str]:
    """Measure the cells; one line for each that failed."""
    from groundtune.recipes.sweep import FAILED, sweep
    from groundtune.runs.cells import chosen
    from groundtune.runs.record import device

    ended = sweep(plan, chosen(plan, [cell.label for cell in cells]), seconds, tell, device=device(), estimated=minutes)
    return [f"{one.cell.label}: {one.why}" for one in ended if one.how == FAILED]


def _make_probe(plan: Plan) -> None:
    """The first questions, on which each training ends with a test; only where the plan names no eval file."""
    from groundtune.commands.plan import PROBE
    from groundtune.data.files import in_the_way, write_text

    path = plan.output_dir / PROBE
    used = any(word in (f"--eval_file={path}", f"--test_file={path}") for cell in plan.cells for word in cell.words)
    if not used or path.is_file():
        return
    if problems := in_the_way("output_dir", plan.output_dir, folder=True):
        raise DataError(problems)
    words = plan.cells[0].evaluations[0].words
    questions = next((word.partition("=")[2] for word in words if word.startswith("--eval_file=")), "")
    try:
        with open(questions, encoding="utf-8-sig") as file:
            lines = [line for line, _ in zip((line for line in file if line.strip()), range(_PROBE_QUESTIONS))]
    except (OSError, ValueError) as error:
        raise DataError([f"{plan.file}: questions: {questions} cannot be read ({error})"]) from error
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(line.rstrip("\n") + "\n" for line in lines))


def _estimate(left: Sequence[Cell], known: Sequence[Figures], tell: Any, dry: bool) -> dict[str, float | None]:
    """Print how long it will take, by the minutes of finished cells or, without any, by the doctor's estimate."""
    from groundtune.recipes.sweep import expected_minutes
    from groundtune.system.progress import rounded_time
    from groundtune.system.text import counted

    estimated = _estimated([cell for cell in left if cell.method])
    minutes = {cell.label: expected_minutes(cell, known, estimated.get(cell.label)) for cell in left}
    measured = {cell.label for cell in left if expected_minutes(cell, known) is not None}
    if dry:
        for cell in left:
            tell(f"{cell.label}: {_about(minutes[cell.label])}")
    total = sum(one or 0.0 for one in minutes.values())
    by_doctor = estimated.keys() - measured
    basis = "estimated by the doctor, without evaluations" if by_doctor else "measured"
    unknown = sum(one is None for one in minutes.values())
    runs = f"{counted(len(left), 'run')} {'is' if len(left) == 1 else 'are'} left"
    if not left:
        tell("no run is left")
    elif unknown == len(left):
        tell(f"{runs}; how long is not known")
    else:
        more = f", without {unknown} of which nothing is known" if unknown else ""
        tell(f"{runs}: about {rounded_time(60 * total)} ({basis}{more})")
    return minutes


def _estimated(cells: Sequence[Cell]) -> dict[str, float | None]:
    """The doctor's estimate for each cell by label, made once for those that take the same steps.

    It also checks their data: raises `DataError` with the errors of all of them.
    """
    alike: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        steps = (word for word in cell.words if word.partition("=")[0] not in _SAME_STEPS)
        alike.setdefault((cell.method, *steps), []).append(cell)
    found: dict[str, float | None] = {}
    problems: list[str] = []
    for some in alike.values():
        try:
            minutes = _training_minutes(some[0])
        except DataError as error:
            problems += [f"{some[0].label}: {problem}" for problem in error.problems]
            continue
        found |= {cell.label: minutes for cell in some}
    if problems:
        raise DataError([*problems, "nothing was started, because of these problems"])
    return found


def _about(minutes: float | None) -> str:
    return "nothing is known yet" if minutes is None else f"about {minutes:.0f} min"


def _training_minutes(cell: Cell) -> float | None:
    """The doctor's estimate of a cell's training. Raises `DataError` with every error in its data."""
    from groundtune.commands.doctor import cost_of
    from groundtune.training.doctor import diagnose

    arguments = parse_arguments(cell.method, cell.words)
    diagnosis = diagnose(arguments)
    diagnosis.raise_errors()
    cost = cost_of(arguments, diagnosis)
    return cost.seconds / 60 if cost else None


def _reported(plan: Plan, by_files: bool, tell: Any) -> tuple[list[Standings], list[Figures]]:
    """The standings, after the report is written.

    `by_files`: no data were read, so files count by their name. Raises `DataError` if they cannot be compared then.
    """
    from groundtune.evaluation.figures import measured_cells, read_figures, unlike
    from groundtune.reporting.sweep_report import all_standings, write_sweep
    from groundtune.system.durable import disk_errors

    if by_files:
        paths = [path for cell in plan.cells if (path := plan.results_file(cell)).is_file()]
        figures = [read_figures(path) for path in paths]
        if problems := unlike(figures):
            raise DataError([f"{plan.results}: {problem}" for problem in problems])
    else:
        measured, other = measured_cells(plan.cells, plan.results)
        figures = list(measured.values())
        for label, reasons in other.items():
            tell(f"not in the report: {plan.results / label}.json, which is another cell: {reasons[0]}")
    found = all_standings(plan, figures)
    with disk_errors(plan.report.parent):
        write_sweep(plan, figures, found)
    return found, figures


def _show(
    plan: Plan, found: Sequence[Standings], figures: Sequence[Figures], failed: Sequence[str], words: dict[str, Any]
) -> None:
    from groundtune.reporting.sweep_report import table
    from groundtune.system.tables import TextTable

    decides = found[0]
    header, rows = table(found if words["json"] else [decides])  # a screen has no room for more; the report has all
    if words["json"]:
        say_json({
            "measured": len(figures), "runs": len(plan.cells), "winner": decides.winner, "best": decides.best,
            "not_clearly_worse": decides.standing, "cheapest": decides.cheapest, "verdict": decides.sentence,
            "failed": list(failed), "table": [dict(zip(header, row)) for row in rows], "report": str(plan.report),
        })  # fmt: skip
    else:
        shown = TextTable(*header, box=None, padding=(0, 1, 0, 0))
        for row in rows:
            shown.add_row(*row)
        say_table(shown)
        say(decides.sentence)
        if not words["quiet"]:
            say(f"Report: {Path(plan.report)}")
    complain(*failed)
    sys.stdout.flush()
