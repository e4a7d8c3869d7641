"""`groundtune compare A B ...`: one table with paired intervals, and one page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.commands.parsing import given, light_parser
from groundtune.commands.terminal import add_output_flags, print_comparison, say, say_json, tell
from groundtune.data.files import in_the_way
from groundtune.errors import DataError
from groundtune.system.durable import disk_errors

if TYPE_CHECKING:
    from groundtune.evaluation.comparison import Comparison
    from groundtune.evaluation.grades import People

USAGE = "A B [C ...] [--names NAME ...] [--fail_if CONDITION ...] [-o FILE]"
DESCRIPTION = """Compare systems that answered the same questions: run folders (the tuned model's answers to the test
questions), folders written by `groundtune evaluate`, or prediction files. Every other system is compared with the
first, question by question. No model is loaded. With --fail_if, the exit status is 1 unless every other system meets
the condition, so that a script or a CI job stops."""
EXAMPLES = """examples:
  groundtune compare runs/sft runs/swr
  groundtune compare runs/swr/predictions/test_base.jsonl runs/swr runs/other --names base swr other
  groundtune compare runs/released runs/new --fail_if worse worse:f1:0.02"""


def main(argv: Sequence[str]) -> int:
    """Compare, print the table, write the page; returns 1 if a condition of --fail_if does not hold, else 0."""
    words = given(parser(), argv)
    _check_all_is_used(words)

    from groundtune.evaluation.requirements import check_worse, read_worse

    conditions = read_worse(words.get("fail_if", []))
    page = words.get("output") or beside(words["systems"][0])
    if words["curve"]:
        return _learning_curve(words, page)
    comparison, people = compared_with_people(words["systems"], words.get("names", []), page, words.get("grades", []))
    notes, checked = comparison.notes, check_worse(comparison, conditions)
    if words["json"]:
        from groundtune.reporting.comparison_page import failures

        listed: dict[str, Any] = {"checked": [one.to_dict() for one in checked]} if conditions else {}
        listed |= {"people": people.to_dict()} if people else {}
        say_json(comparison.to_dict() | {"notes": notes, "failures": failures(comparison)} | listed)
    else:
        print_comparison(comparison)
        say(*people or ())
        if not words["quiet"]:
            say(*notes, f"Report: {page}")
    return tell(checked, words["json"] or words["quiet"])


def _learning_curve(words: Mapping[str, Any], page: str) -> int:
    """Compare runs on nested shares of the same rows, with the curve above the table."""
    runs = words["systems"]
    _check(runs, [], page, fewest=2)

    from groundtune.evaluation.learning_curve import read_curve
    from groundtune.reporting.comparison_page import write_comparisons
    from groundtune.reporting.study_page import html_curve
    from groundtune.runs.record import provenance

    curve = read_curve(runs)
    facts = {"Questions": str(curve.comparison.n), "Runs": ", ".join(runs), "Compared with": "base"}
    record = provenance({run: str(Path(run) / "predictions/test_tuned.jsonl") for run in runs})
    notes = [*curve.comparison.notes, curve.slope()]
    with disk_errors(page):
        write_comparisons(
            page, "comparison", "Learning curve", [curve.comparison], facts, notes, record, more=html_curve(curve)
        )
    if words["json"]:
        say_json(curve.comparison.to_dict() | {"curve": curve.to_dict(), "notes": notes})
        return 0
    print_comparison(curve.comparison)
    say(*notes)
    if not words["quiet"]:
        say(f"Report: {page}")
    return 0


def compared(paths: Sequence[str], names: Sequence[str], output: str | None) -> Comparison:
    """Compare the systems and write the page, unless `output` is None. Raises `DataError` with all problems."""
    return compared_with_people(paths, names, output, [])[0]


def compared_with_people(
    paths: Sequence[str], names: Sequence[str], output: str | None, grades: Sequence[str]
) -> tuple[Comparison, People | None]:
    """The same with what people's grades say, if there are files of grades."""
    _check(paths, names, output, fewest=1 if grades else 2)

    from groundtune.evaluation.comparison import compare, find_predictions, read_systems
    from groundtune.evaluation.grades import graded, people_on, read_grades, with_grades
    from groundtune.reporting.comparison_page import write_comparisons
    from groundtune.runs.record import provenance

    by_people, systems = graded(read_grades(grades)), read_systems(paths, names)
    *others, last = systems
    title = f"{', '.join(others)} and {last}" if others else last
    comparison = compare(title, {name: with_grades(answers, by_people) for name, answers in systems.items()})
    people = people_on(comparison, by_people) if grades else None
    if output is None:
        return comparison, people
    record = provenance({name: str(find_predictions(path)) for name, path in zip(systems, paths)})
    facts = {"Questions": str(comparison.n), "Compared with": comparison.reference}
    try:
        with disk_errors(output):
            write_comparisons(
                output, "comparison", comparison.title, [comparison], facts, comparison.notes, record, people=people
            )
    except OSError as error:
        problem = f"--output: {output} cannot be written ({error.strerror}); name another file"
        raise DataError([problem]) from error
    return comparison, people


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = light_parser("groundtune compare", USAGE, DESCRIPTION, EXAMPLES)
    made.add_argument("systems", nargs="+", metavar="A B", help="Run folders, evaluation folders or prediction files.")
    made.add_argument("--names", nargs="+", metavar="NAME", help="Names of the systems, in the same order.")
    made.add_argument(
        "--curve", action="store_true", default=False,
        help="The systems are runs on nested shares of the same rows (--train_share): plot token F1 by the number of "
        "rows, and give the slope of the last piece.",
    )  # fmt: skip
    made.add_argument(
        "--grades", nargs="+", metavar="FILE",
        help="Grades from `groundtune rate`: the table shows them, and lines say whom people prefer, how far raters "
        "agree, and whether to trust a judge here. One system suffices then.",
    )  # fmt: skip
    made.add_argument(
        "--fail_if", nargs="+", metavar="CONDITION",
        help="Exit with status 1 if a system meets a condition: worse or worse:METRIC (significantly worse than the "
        "first by token F1, or by METRIC), or worse:METRIC:MARGIN (not shown to be less than MARGIN worse: its 95 %% "
        "interval reaches that far). METRIC is f1, recall@4, judge/correctness ..., as in metrics.json.",
    )  # fmt: skip
    made.add_argument(
        "-o", "--output", metavar="FILE",
        help="Output page (.html); the numbers are written next to it as .json. (default: comparison.html beside the "
        "first system)",
    )  # fmt: skip
    add_output_flags(made)
    return made


def beside(system: str) -> str:
    """comparison.html in the folder of a run or an evaluation, also if one of its prediction files is named."""
    folder = Path(system) if os.path.isdir(system) else Path(system).parent
    folder = folder.parent if folder.name == "predictions" else folder
    return str(folder / "comparison.html")


def _check_all_is_used(words: Mapping[str, Any]) -> None:
    """A gate must not pass because nothing looked at it."""
    problems = [
        f"--{name}: does not go with --curve, which compares runs by their rows with the base model; leave out one"
        for name in ("names", "grades", "fail_if") if words["curve"] and words.get(name)
    ]  # fmt: skip
    if words.get("fail_if") and len(words["systems"]) == 1:
        problems.append("--fail_if: 1 system is given, so there is none to compare it with; name at least two")
    if problems:
        raise DataError(problems)


def _check(paths: Sequence[str], names: Sequence[str], output: str | None, fewest: int) -> None:
    problems = []
    if len(paths) < fewest:
        problems.append(f"compare: {len(paths)} system is given; name at least two")
    if names and len(set(names)) != len(paths):
        problems.append(f"--names: {len(set(names))} different names for {len(paths)} systems; give one for each")
    if not all(map(str.strip, names)):
        problems.append("--names: a name is empty; give each system one")
    if output is not None:
        if Path(output).suffix != ".html":
            problems.append(f"--output: {output} does not end in .html")
        page = Path(output)
        for path in (page, page.with_suffix(".json"), page.with_name(f"{page.stem}_answers.html")):
            problems += in_the_way("output", path)
    if problems:
        raise DataError(problems)
