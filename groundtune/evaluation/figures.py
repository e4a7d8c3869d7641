"""The figures of a finished cell in one small JSON file, without any text of the data: it can be committed, and the
results of a sweep are made from such files alone.

A question is a hash of its text, history and answer; its passage is a number that only says which questions share it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from groundtune.data.files import sha256_of, write_text
from groundtune.errors import DataError
from groundtune.evaluation.predictions import read_predictions
from groundtune.evaluation.statistics import clusters_of
from groundtune.runs.cells import Asked, Cell, changed
from groundtune.runs.resume import model_identity
from groundtune.schema import Example, Prediction
from groundtune.system.inputs import read_text
from groundtune.system.text import hide_secrets, one_line, plain, to_json, without_secrets

_KEPT = re.compile(
    r"generation/(f1|rougeL|exact_match|unfinished|new_tokens)|errors/\w+|retrieval/(recall@\d{1,4}|mrr)|"
    r"grounded/tokens|citations/\w+|judge/\w+"
)
_LARGEST = 32 * 2**20  # bytes of a file of figures
_NAME = re.compile(r"[\w.,=+-]{1,120}")
TRAINING, BESIDES = "training", "besides training"  # minutes: the latter to load, to index, to test
_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}
_FILES = ("eval_file", "full_dataset_file_path", "judge_prompt", "rewrite_prompt", "abstentions", "forgetting")
_MODELS = ("embedding_model", "eval_embedding_model", "reranker", "rewriter", "judge")


@dataclass(frozen=True)
class Scored:
    """The answers in one context: a hash per question, the number of its passage, and a value per question by metric,
    None where the question does not have it."""

    questions: tuple[str, ...]
    passages: tuple[int, ...]
    scores: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Figures:
    """What a finished cell leaves behind. `minutes`: of the training and of each evaluation, None if it was resumed.

    `evaluations` holds the settings of each evaluation, `scored` its answers by context.
    """

    cell: str
    method: str
    seed: int | None
    settings: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]
    scored: Mapping[str, Mapping[str, Scored]]
    minutes: Mapping[str, float | None]
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    finished: str

    @property
    def precision(self) -> str:
        """What it was computed in, by its flags where `machine` does not say; empty if unknown."""
        flags = (self.settings.get("--bf16"), *(one.get("bf16") for one in self.evaluations.values()))
        given = {str(flag).lower() for flag in flags}
        by_flags = "bfloat16" if "true" in given else "float32" if "false" in given else ""
        return self.machine.get("precision") or by_flags

    def other_than(self, cell: Cell) -> list[str]:
        """Why these are not the figures of `cell`, one line each; empty if they are or, as far as it was evaluated,
        will be."""
        problems = [] if self.method == cell.method else [f"method: {self.method} there, {cell.method} here"]
        problems += changed(self.settings, cell.settings)
        for asked in cell.evaluations:
            there = self.evaluations.get(asked.name, asked.settings)
            if {n: v for n, v in there.items() if n not in cell.by_machine} != without_secrets(asked.settings):
                problems.append(f"evaluation {asked.name}: has other settings there")
        return problems

    def missing(self, cell: Cell) -> list[str]:
        """The evaluations of `cell` that are still to be made, one line each."""
        return [f"evaluation {one.name}: missing there" for one in cell.evaluations if one.name not in self.evaluations]


def figures_of(
    cell: Cell, folder: Path, record: Mapping[str, Any], took: Mapping[str, float], finished: str
) -> Figures:
    """The figures of a cell from its run folder, whose evaluations are in `evaluation-NAME`.

    `record` is what run.json of the training says, or of an evaluation if there was none; `took` the minutes of the
    commands that ran just now. Raises `DataError` if predictions are missing.
    """
    minutes: dict[str, float | None] = {}
    if cell.method:
        training = record.get("durations", {}).get("train and evaluate", 0.0) / 60
        besides = max(_minutes(record), took.get(TRAINING, 0.0)) - training
        whole = record.get("resumed_from_step") is None
        minutes |= {TRAINING: round(training, 2) if whole else None, BESIDES: round(besides, 2) if whole else None}
    scored = {}
    for asked in cell.evaluations:
        place = folder / f"evaluation-{asked.name}"
        minutes[asked.name] = round(
            max(_minutes(json.loads(read_text(place / "run.json"))), took.get(asked.name, 0)), 2
        )
        scored[asked.name] = {
            context: scored_of(read_predictions(place / "predictions" / f"{context}.jsonl"))
            for context in asked.contexts
        }
    machine = {name: hide_secrets(str(record.get(name, ""))) for name in ("platform", "device")}
    machine["precision"] = _precision(record)
    return Figures(
        cell.name, cell.method, cell.seed, without_secrets(cell.settings),
        {asked.name: without_secrets(asked.settings) for asked in cell.evaluations},
        scored, minutes, machine, dict(record.get("versions", {})), finished,
    )  # fmt: skip


def _precision(record: Mapping[str, Any]) -> str:
    """What a run computed in; empty if the hardware decided and the record does not say."""
    given = {
        flag: group[flag] for group in record.get("arguments", {}).values() for flag in _PRECISIONS if flag in group
    }
    if None in given.values() or not given:
        return ""
    return next((_PRECISIONS[flag] for flag, chosen in given.items() if chosen), "float32")


def _minutes(record: Mapping[str, Any]) -> float:
    return sum(record.get("durations", {}).values()) / 60


def scored_of(predictions: Sequence[Prediction]) -> Scored:
    """The scores that are kept, rounded to four decimals."""
    examples = [prediction.example for prediction in predictions]
    names = dict.fromkeys(name for p in predictions for name in p.scores if _KEPT.fullmatch(name))
    scores = {name: tuple(_rounded(p.scores.get(name)) for p in predictions) for name in names}
    return Scored(tuple(_hashes(examples)), tuple(clusters_of(examples)), scores)


def is_kept(metric: str) -> bool:
    """Whether files of figures have this metric, if a question has it."""
    return bool(_KEPT.fullmatch(metric))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _hashes(examples: Iterable[Example]) -> Iterable[str]:
    """A hash per question; a repeated one gets its number, too."""
    seen: Counter[str] = Counter()
    for example in examples:
        turns = [[turn.speaker, turn.message] for turn in example.chat_history]
        text = to_json([example.question, turns, example.answer])
        yield hashlib.sha256(f"{text}{seen[text] or ''}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[text] += 1


def write_figures(path: Path, figures: Figures) -> None:
    """Write the file, with one line for each of its parts."""
    parts = (f"{to_json(name)}: {to_json(plain(value))}" for name, value in asdict(figures).items())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")


def read_figures(path: Path) -> Figures:
    """Read what `write_figures` wrote, perhaps on another machine. Raises `DataError` if it is something else."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"has more than {_LARGEST:,} bytes")
        row = json.loads(read_text(path))
        scored = {
            name: {context: _scored(one) for context, one in contexts.items()}
            for name, contexts in row.pop("scored").items()
        }
        return _checked(Figures(**row, scored=scored))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        why = one_line(f"{type(error).__name__}: {error}", 200)
        problem = f"{path}: not the figures of a cell ({why}); remove it, and the sweep measures the cell again"
        raise DataError([problem]) from error


def _scored(row: Mapping[str, Any]) -> Scored:
    found = Scored(
        tuple(row["questions"]), tuple(row["passages"]), {name: tuple(values) for name, values in row["scores"].items()}
    )
    columns = [found.passages, *found.scores.values()]
    if not found.questions or any(len(column) != len(found.questions) for column in columns):
        raise ValueError("no questions, or not one value for each")
    if not all(isinstance(one, str) and re.fullmatch(r"[0-9a-f]{16}", one) for one in found.questions):
        raise ValueError("a question is no hash")
    if len(set(found.questions)) < len(found.questions):
        raise ValueError("a question is there twice")
    if not all(type(one) is int for one in found.passages) or not all(map(_KEPT.fullmatch, found.scores)):
        raise ValueError("a passage is no number, or a metric has another name")
    values = [value for column in found.scores.values() for value in column if value is not None]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError("a score is no number")
    return found


def _checked(figures: Figures) -> Figures:
    names = [figures.cell, *figures.evaluations, *figures.scored, *(c for one in figures.scored.values() for c in one)]
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise ValueError("a name is none of a cell, an evaluation or a context")
    dictionaries = [figures.settings, figures.minutes, figures.machine, figures.versions, *figures.evaluations.values()]
    if not all(isinstance(one, dict) for one in dictionaries) or type(figures.seed) not in (int, type(None)):
        raise TypeError("settings, minutes, machine and versions must be objects, and the seed a number")
    texts = [figures.method, figures.finished, *figures.machine.values(), *figures.versions.values()]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("the method, the machine or a version is no text")
    times = [minutes for minutes in figures.minutes.values() if minutes is not None]
    if not all(type(one) in (int, float) and 0 <= one < 1e7 for one in times):
        raise ValueError("minutes are no numbers")
    return figures


def measured_cells(cells: Iterable[Cell], place: Path) -> tuple[dict[str, Figures], dict[str, list[str]]]:
    """The figures by label of the cells of which at least one evaluation is in a folder, and why others that are there
    are not theirs.

    Raises `DataError` with every file that cannot be read.
    """
    found: dict[str, Figures] = {}
    other: dict[str, list[str]] = {}
    problems: list[str] = []
    for cell in cells:
        path = place / f"{cell.label}.json"
        if not path.is_file():
            continue
        try:
            figures = read_figures(path)
        except DataError as error:
            problems += error.problems
            continue
        if reasons := figures.other_than(cell):
            other[cell.label] = reasons
        else:
            found[cell.label] = figures
    if problems:
        raise DataError(problems)
    return found, other


def finished_cells(cells: Sequence[Cell], place: Path) -> tuple[dict[str, Figures], dict[str, list[str]]]:
    """As `measured_cells`, of the cells whose evaluations are all there; what the others lack is a reason, too."""
    found, other = measured_cells(cells, place)
    for cell in cells:
        if cell.label in found and (missing := found[cell.label].missing(cell)):
            del found[cell.label]
            other[cell.label] = missing
    return found, other


def unlike(figures: Sequence[Figures]) -> list[str]:
    """One line for each difference that makes figures incomparable, for whoever does not read the data: settings that
    differ between seeds of a cell, a seed that is there twice, and questions that differ between cells."""
    runs = Counter((one.cell, one.seed) for one in figures)
    found = [f"{cell}: two files are of seed {seed}" for (cell, seed), number in runs.items() if number > 1]
    first: dict[str, Figures] = {}
    questions: dict[str, tuple[str, Any]] = {}
    for one in figures:
        before = first.setdefault(one.cell, one)
        settings = {name: value for name, value in one.settings.items() if name not in ("--seed", "--bf16")}
        found += [
            f"{one.cell}: seeds {before.seed} and {one.seed}: {line}" for line in changed(before.settings, settings)
        ]
        for name, asked in one.evaluations.items():
            cell, there = questions.setdefault(name, (one.cell, asked.get("eval_file")))
            if there != asked.get("eval_file"):
                found.append(f"{one.cell}: evaluation {name}: its questions are not those of {cell}")
    return list(dict.fromkeys(found))


def evaluated(asked: Asked, place: Path, trained: str = "") -> bool:
    """Whether a folder of `groundtune evaluate` holds this evaluation, finished and without failures: it may have been
    made by hand. `trained`: when the model's training ended, in ISO 8601; an older evaluation is of another model."""
    try:
        record = json.loads(read_text(place / "run.json"))
        model = record["arguments"]["model"]["model_name_or_path"]
        if record["finished"] < trained or not _same_place(model, asked.words[0], record["working_directory"]):
            return False
        values = {name: value for group in record["arguments"].values() for name, value in group.items()}
        read = {about["path"]: about["sha256"] for about in record["inputs"].values()}
        there = compared({name: values.get(name) for name in asked.settings}, read)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    files = [place / "metrics.json", *(place / "predictions" / f"{context}.jsonl" for context in asked.contexts)]
    return there == without_secrets(asked.settings) and all(file.is_file() for file in files) and not failed(place)


def failed(place: Path) -> list[str]:
    """What an evaluation says of answers or judgements that failed, one line each."""
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        return [str(line) for line in json.loads(read_text(place / "metrics.json")).get("failures") or []]
    return []


def _same_place(there: str, here: str, started_in: str) -> bool:
    """Whether two names of models are one: as they are written, or as folders."""
    return there == here or os.path.realpath(os.path.join(started_in, there)) == os.path.realpath(here)


def compared(values: Mapping[str, Any], read: Mapping[str, str] | None = None) -> dict[str, str]:
    """Values of flags as text by which they are compared: files and models by their contents, 5e-4 as 0.0005.

    `read`: the SHA-256 by path of the files as they were read then, in place of those that are there now.
    """

    def contents(path: str) -> str:
        if read is not None:
            return f"sha256 {read[path]}" if path in read else path
        return f"sha256 {sha256_of(path)}" if os.path.isfile(path) else path

    found = {}
    for name, value in values.items():
        if name in _FILES and value:
            found[name] = " ".join(contents(str(one)) for one in (value if isinstance(value, list) else [value]))
        else:
            found[name] = model_identity(str(value)) if name in _MODELS and value else _as_text(value)
    return found


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_as_text, value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        number = float(text)
        return str(int(number)) if number.is_integer() else repr(number)
    except (ValueError, OverflowError):
        return text
