"""The folder of an evaluation: it replaces what an earlier evaluation wrote there, whole, and nothing else."""

from __future__ import annotations

import re
from os.path import realpath
from pathlib import Path

from groundtune.errors import DataError
from groundtune.evaluation.arguments import BASE, MODEL, PARTS
from groundtune.evaluation.confidence import KEPT
from groundtune.evaluation.predictions import Evaluation, write_predictions
from groundtune.prompts.policies import CONTEXTS
from groundtune.runs.remembered import EVALUATION, remembered
from groundtune.system.outputs import inside

# What an evaluation writes: its results, and the names of its files of answers (`_files`).
_RESULTS = (
    "metrics.json", "run.json", "study.json", "evaluation.json", "evaluation.html", "evaluation_answers.html",
)  # fmt: skip
_PREDICTIONS = re.compile(rf"({'|'.join(CONTEXTS)}|study_({'|'.join(PARTS)})_\d+)(_{BASE})?\.jsonl")


def check_replaces(folder: Path, questions: Path) -> None:
    """Only an evaluation is replaced: neither a training nor the questions, which may be a file of answers."""
    if (run := remembered(str(folder))) and run.method:
        raise DataError([f"--output_dir: {folder} holds a training run; name another, such as {folder / EVALUATION}"])
    if _PREDICTIONS.fullmatch(questions.name) and realpath(questions.parent) == realpath(folder / "predictions"):
        raise DataError([f"--eval_file: {questions} is a result in --output_dir, and would be replaced; name another"])


def made(folder: Path) -> Path:
    """Create the results folder now, so that a failure is reported before hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError([f"--output_dir: {folder} cannot be made ({error.strerror}); name another folder"]) from error
    return folder


def remove_earlier(folder: Path, evaluations: dict[str, dict[str, Evaluation]]) -> None:
    """Remove what an earlier evaluation wrote here and these do not replace: `compare` would take it for theirs.

    Its results go, too, as these are written only after judging; files of other names are the user's.
    """
    for name in _RESULTS:
        inside(folder, name).unlink(missing_ok=True)
    for path in (folder / "predictions").glob("*.jsonl"):
        if _PREDICTIONS.fullmatch(path.name) and path.name not in _files(evaluations):
            inside(folder, "predictions", path.name).unlink()


def forget_earlier(run: Path) -> None:
    """Remove what was measured of the model that was in a run's folder: `groundtune evaluate RUN`, and thresholds."""
    remove_earlier(run / EVALUATION, {})
    inside(run, KEPT).unlink(missing_ok=True)


def write_answers(folder: Path, evaluations: dict[str, dict[str, Evaluation]]) -> None:
    for name, evaluation in _files(evaluations).items():
        write_predictions(inside(folder, "predictions", name), evaluation)


def _files(evaluations: dict[str, dict[str, Evaluation]]) -> dict[str, Evaluation]:
    """Evaluations by the names of their files."""
    return {
        f"{context}.jsonl" if name == MODEL else f"{context}_{name}.jsonl": evaluation
        for context, by_system in evaluations.items()
        for name, evaluation in by_system.items()
    }
