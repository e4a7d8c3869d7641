"""What more training examples bring: runs on nested shares of the same rows, measured on the same questions.

Only what was measured is shown: points, and the slope of the last piece. A forecast would need a law that fits.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundtune.data.files import in_folder
from groundtune.errors import DataError
from groundtune.evaluation.comparison import Comparison, compare
from groundtune.evaluation.predictions import read_predictions
from groundtune.evaluation.statistics import Interval, PairedDifference, clusters_of
from groundtune.evaluation.verdicts import F1
from groundtune.prompts.policies import draw
from groundtune.schema import Example
from groundtune.system.inputs import read_text
from groundtune.system.text import one_line

_MOST_ROWS = 10**9
# Of what identifies a run: what may differ along a curve, and where it ran.
_OF_ROWS = {
    "--train_file", "--train_share", "--max_train_samples", "token ids of the training rows",
    "passages of the training rows", "versions", "number of processes",
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Token F1 by the number of training rows: `rows` are those of the comparison's systems, fewest first."""

    comparison: Comparison
    rows: Sequence[int]

    @property
    def points(self) -> list[tuple[int, str, Interval]]:
        """Rows, name and mean of each run, 0 rows for the base model."""
        found = zip(self.rows, self.comparison.evaluations.items(), strict=True)
        return [(rows, name, e.metrics[F1]) for rows, (name, e) in found if F1 in e.metrics]

    def last(self) -> tuple[PairedDifference, float] | None:
        """Token F1 of the largest run - the one before, and how often the rows were doubled between them."""
        (_, before), (_, after) = list(self.comparison.evaluations.items())[-2:]
        found = compare("", {"before": before.predictions, "after": after.predictions}).differences["after"].get(F1)
        return (found, math.log2(self.rows[-1] / self.rows[-2])) if found and self.rows[-2] else None

    def slope(self) -> str:
        """The last slope in words; no forecast."""
        found = self.last()
        if found is None:
            return "Last slope: unknown; it needs two runs on different numbers of rows"
        change, doublings = found
        per = [value / doublings for value in (change.value, change.low, change.high)]
        return (
            f"Last slope, {self.rows[-2]} to {self.rows[-1]} rows: {per[0]:+.3f} [{per[1]:+.3f}, {per[2]:+.3f}] token "
            "F1 per doubling of the rows; one run each, and no forecast of what more rows would bring"
        )

    def to_dict(self) -> dict[str, Any]:
        points = [{"rows": rows, "run": name, F1: found.to_dict()} for rows, name, found in self.points]
        found = self.last()
        last = {"change": found[0].to_dict(), "doublings": found[1]} if found else None
        return {"points": points, "last": last, "slope": self.slope()}


def nested_share(examples: list[Example], share: float, seed: int) -> list[Example]:
    """About `share` of the examples in their order, with all examples on a gold passage in or out.

    The groups are drawn in an order that depends on the seed alone, so that a smaller share is part of a larger one.
    At least one group is drawn.
    """
    if share >= 1:
        return examples
    groups = clusters_of(examples)
    sizes = Counter(groups)
    numbers = list(sizes)
    draw(seed, 0, "share of the rows").shuffle(numbers)
    chosen: set[int] = set()
    count = 0
    for number in numbers:
        if chosen and count + sizes[number] / 2 > share * len(examples):  # it would go further beyond than is missing
            break
        chosen.add(number)
        count += sizes[number]
    return [example for example, group in zip(examples, groups) if group in chosen]


def read_curve(folders: Sequence[str]) -> Curve:
    """The learning curve of finished runs and their base model.

    Raises `DataError` with every problem: a folder that holds no run, runs with as many rows or with other settings,
    other test questions.
    """
    problems: list[str] = []
    runs: list[tuple[int, str]] = []
    for folder in folders:
        try:
            runs.append((_trained_on(Path(folder)), folder))
        except DataError as error:
            problems += error.problems
    counts = [rows for rows, _ in runs]
    problems += _trained_otherwise([folder for _, folder in runs])
    if len(set(counts)) < len(counts):
        problems.append(f"--curve: {', '.join(map(str, counts))} rows; each run needs another number of rows")
    if problems:
        raise DataError(problems)
    runs.sort()
    base = in_folder(Path(runs[0][1]), "predictions/test_base.jsonl")
    systems = {"base": read_predictions(base)}
    for rows, folder in runs:
        systems[f"{rows} rows"] = read_predictions(in_folder(Path(folder), "predictions/test_tuned.jsonl"))
    return Curve(compare("Learning curve", systems), [0, *(rows for rows, _ in runs)])


def _trained_otherwise(folders: Sequence[str]) -> list[str]:
    """A problem for each setting other than the rows in which a run differs from the first one."""
    identities = [json.loads(read_text(Path(folder) / "run.json")).get("identity") for folder in folders]
    first, *others = [one if isinstance(one, dict) else {} for one in identities] or [{}]
    return [
        f"--curve: {folder}: {name}: {one_line(other[name], 60)}, and {one_line(first[name], 60)} in {folders[0]}; "
        "name runs that differ in their rows alone"
        for folder, other in zip(folders[1:], others)
        for name in first
        if name in other and first[name] != other[name] and name not in _OF_ROWS
    ]


def _trained_on(folder: Path) -> int:
    """The number of training rows of a run, from its record."""
    path = folder / "run.json"
    try:
        rows = json.loads(read_text(path))["training_rows"]
        if type(rows) is not int or not 0 < rows <= _MOST_ROWS:
            raise ValueError(f"training_rows is {ascii(rows):.60}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        problem = f"--curve: {path}: does not say how many rows were trained on ({why}); name a finished run"
        raise DataError([problem]) from error
    return rows
