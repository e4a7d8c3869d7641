"""`groundtune compare A B ...`: one table with paired intervals, and one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from groundtune.commands.parsing import given, light_parser
from groundtune.commands.terminal import add_output_flags
from groundtune.data.files import in_the_way
from groundtune.errors import DataError
from groundtune.system.durable import disk_errors

DESCRIPTION = """Compare systems that answered the same questions: the folders of runs (the test questions, answered by
the tuned model), folders that `groundtune evaluate` wrote, or files of predictions. The others are compared with the
first, question by question. No model is loaded."""
EXAMPLES = """examples:
  groundtune compare runs/sft runs/swr
  groundtune compare runs/swr/predictions/test_base.jsonl runs/swr runs/other --names untouched swr other"""


def main(argv: Sequence[str]) -> int:
    """Compare, print the table, write the page."""
    words = given(parser(), argv)
    paths, names = words["systems"], words.get("names", [])
    _check(paths, names, words["output_file"])

    from groundtune.evaluation.comparison import compare, find_predictions, read_systems
    from groundtune.reporting.comparison_page import failures, write_comparisons
    from groundtune.runs.record import provenance
    from groundtune.system.text import as_json, harmless_lines

    systems = read_systems(paths, names)
    *others, last = systems
    comparison = compare(f"{', '.join(others)} and {last}", systems)
    inputs = {name: str(find_predictions(path)) for name, path in zip(systems, paths)}
    facts = {"Questions": str(comparison.n), "Compared with": comparison.reference}
    page, record = words["output_file"], provenance(inputs)
    notes = [unanswerable] if (unanswerable := comparison.unanswerable) else []
    try:
        with disk_errors(page):
            write_comparisons(page, "comparison", comparison.title, [comparison], facts, notes, record)
    except OSError as error:
        raise DataError([f"--output_file: {page} cannot be written ({error.strerror}); name another file"]) from error
    failed = failures(comparison)
    if words["json"]:
        print(as_json(comparison.to_dict() | {"notes": notes, "failures": failed}), end="")
        return 0

    from groundtune.commands.terminal import print_comparison

    print_comparison(comparison)
    if not words["quiet"]:
        print(harmless_lines([*notes, f"Report: {page}"]))
    return 0


def parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    made = light_parser("groundtune compare", "A B [C ...] [--names NAME ...] [-o FILE]", DESCRIPTION, EXAMPLES)
    made.add_argument("systems", nargs="+", metavar="A B", help="Folders of runs, or files of predictions.")
    made.add_argument("--names", nargs="+", metavar="NAME", help="What to call them, in their order.")
    made.add_argument(
        "-o", "--output_file", default="comparison.html", metavar="FILE",
        help="The page; the numbers go beside it as .json. (default: comparison.html)",
    )  # fmt: skip
    add_output_flags(made)
    return made


def _check(paths: Sequence[str], names: Sequence[str], output_file: str) -> None:
    problems = []
    if len(paths) < 2:
        problems.append(f"compare: {len(paths)} system is given; name at least two")
    if names and len(set(names)) != len(paths):
        problems.append(f"--names: {len(set(names))} different names for {len(paths)} systems; give one for each")
    if Path(output_file).suffix != ".html":
        problems.append(f"--output_file: {output_file} does not end in .html")
    for path in (Path(output_file), Path(output_file).with_suffix(".json")):
        problems += in_the_way("output_file", path)
    if problems:
        raise DataError(problems)
