"""Abstaining where an answer is unlikely: thresholds on its mean log-probability and on the score of its best passage.

They are chosen on some questions, among them unanswerable ones, and used on others. Each model has its own, found in
the same way: probabilities of two models are not alike.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np

from groundtune.data.files import in_folder, write_text
from groundtune.errors import DataError
from groundtune.evaluation.abstention import unknown_texts
from groundtune.evaluation.metrics import token_f1
from groundtune.evaluation.predictions import Evaluation, evaluation_of, text_scores
from groundtune.evaluation.verdicts import F1, UNFINISHED
from groundtune.schema import UNANSWERABLE, Hit, Prediction
from groundtune.system.inputs import read_text
from groundtune.system.outputs import inside
from groundtune.system.text import as_json, is_finite

logger = logging.getLogger(__name__)

STEPS = 20  # thresholds that are tried for each signal: at every 5 % of the answers
SIGNALS = ("logprob", "score")
KEPT = "thresholds.json"  # in a run's folder
NEVER = "never"
_LARGEST = 16 * 2**20  # bytes of a file with thresholds; real ones have a few thousand


@dataclass(frozen=True)
class Thresholds:
    """An answer with a signal below its threshold is withheld; None withholds nothing."""

    logprob: float | None = None
    score: float | None = None

    def withhold(self, logprob: float | None, score: float | None) -> bool:
        """Whether an answer with these signals is withheld; a signal that is not known withholds nothing."""
        known = zip((self.logprob, self.score), (logprob, score))
        return any(least is not None and value is not None and value < least for least, value in known)

    def __str__(self) -> str:
        names = {"log-probability": self.logprob, "retrieval score": self.score}
        return " or ".join(f"{name} below {least:.3g}" for name, least in names.items() if least is not None) or "never"


def signals(prediction: Prediction) -> tuple[float | None, float | None]:
    """The mean log-probability of the answer, and the retrieval score of the best passage, where that is read."""
    return prediction.logprob, best_score(prediction.hits) if prediction.context == "retrieved" else None


def best_score(hits: Sequence[Hit]) -> float:
    """The score of the best passage; less than any score if none was found."""
    return hits[0].score if hits else -math.inf


@dataclass(frozen=True)
class _Answers:
    """Answered questions as columns: whether they have an answer, were refused, F1 as it is and if withheld."""

    signals: dict[str, np.ndarray]
    answerable: np.ndarray
    refused: np.ndarray
    f1: np.ndarray
    f1_withheld: np.ndarray

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> _Answers:
        scored = [p for p in predictions if F1 in p.scores]
        columns = zip(*map(signals, scored)) if scored else ((), ())
        refused = [any(p.scores.get(name) == value for name, value in _REFUSED.items()) for p in scored]
        return cls(
            {n: np.array([math.inf if v is None else v for v in c]) for n, c in zip(SIGNALS, columns)},
            np.array([p.example.answerable for p in scored], bool),
            np.array(refused, bool),
            np.array([p.scores[F1] for p in scored]),
            np.array([_f1_withheld(p) for p in scored]),
        )

    def tried(self, name: str) -> list[float | None]:
        """The thresholds to try, none first; then those that withhold ever more."""
        known = self.signals[name][np.isfinite(self.signals[name])]
        steps = np.quantile(known, np.linspace(0, 1, STEPS + 1)[1:]) if len(known) else []
        return [None, *dict.fromkeys(float(step) for step in steps)]

    def point(self, **least: float | None) -> dict[str, Any]:
        """Both error rates and F1 with these thresholds."""
        withheld = np.zeros(len(self.f1), bool)
        for name, value in least.items():
            withheld |= self.signals[name] < (-math.inf if value is None else value)
        refused = self.refused | withheld
        return {
            **least,
            "withheld": _mean(withheld),
            "f1": _mean(np.where(withheld, self.f1_withheld, self.f1)),
            "unanswerable_answered": _mean(~refused[~self.answerable]),
            "answerable_refused": _mean(refused[self.answerable]),
        }


_REFUSED = {"errors/unanswerable_answered": 0.0, "errors/answerable_refused": 1.0}


def _f1_withheld(prediction: Prediction) -> float:
    """F1 if the model had abstained."""
    example = prediction.example
    return max(token_f1(UNANSWERABLE, gold) for gold in example.acceptable_answers) if example.answerable else 1.0


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def curve(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """What thresholds on each signal would do, and the best pair of both, `chosen`.

    The best has the highest mean F1, where an abstention scores 1 on an unanswerable question; of equal ones, the one
    that withholds least. Without unanswerable questions it would be none, so none is chosen.
    """
    answers = _Answers.of(predictions)
    found: dict[str, Any] = {
        name: [answers.point(**{name: least}) for least in answers.tried(name)] for name in SIGNALS
    }
    if len(answers.f1) and not answers.answerable.all():
        pairs = product(*(answers.tried(name) for name in SIGNALS))
        points = [answers.point(**dict(zip(SIGNALS, pair))) for pair in pairs]
        found["chosen"] = max(points, key=lambda point: (point["f1"], -point["withheld"]))
    return found


def abstaining(evaluation: Evaluation, thresholds: Thresholds, samples: int, abstentions: str = "") -> Evaluation:
    """The evaluation with unlikely answers withheld: they become `schema.UNANSWERABLE`, and are scored as that."""
    unknown = unknown_texts([prediction.example for prediction in evaluation.predictions])

    def given(prediction: Prediction) -> Prediction:
        if prediction.failure or not thresholds.withhold(*signals(prediction)):
            return prediction
        of_text = ("grounded/", "citations/")
        scores = {name: score for name, score in prediction.scores.items() if not name.startswith(of_text)}
        scores |= text_scores(prediction.example, prediction.read, UNANSWERABLE, unknown, abstentions)
        scores |= {UNFINISHED: 0.0} if UNFINISHED in scores else {}  # what is said in its place is whole
        return replace(
            prediction, answer=UNANSWERABLE, finished=True, withheld=prediction.answer, cited="", scores=scores
        )

    return evaluation_of([given(prediction) for prediction in evaluation.predictions], samples)


@dataclass(frozen=True)
class Chosen:
    """Thresholds by context and system; `default` is for all others, None: they have none.

    `questions`: the SHA-256 of the file on which they were chosen, if that is known.
    """

    by: Mapping[tuple[str, str], Thresholds] = field(default_factory=dict)
    default: Thresholds | None = None
    questions: str = ""

    def of(self, context: str, system: str) -> Thresholds | None:
        return self.by.get((context, system), self.default)


def read_thresholds(given: str, run: Path | None = None, scored_by: str = "") -> Chosen | None:
    """Thresholds from a folder that `groundtune evaluate` wrote, or the same for all from "LOGPROB" or "LOGPROB,SCORE";
    if nothing is given, those that `keep` wrote into the folder `run`, else None.

    `scored_by` names the retriever: thresholds on the scores of another one are not used. Raises `DataError` if `given`
    is neither, or if no threshold was chosen there.
    """
    kept = in_folder(run, KEPT) if run else None
    if given == NEVER or not (given or (kept and kept.is_file())):
        return None
    if (typed := _numbers(given)) is not None:
        return Chosen(default=typed)
    path = Path(given) / "metrics.json" if given else cast(Path, kept)
    given = given or str(run)
    try:
        if os.path.getsize(path) > _LARGEST:
            raise ValueError(f"over {_LARGEST:,} bytes")
        content = json.loads(read_text(path))
        by = {
            (context, system): Thresholds(*(_number(found["chosen"][name]) for name in SIGNALS))
            for context, by_system in content["abstention"].items()
            for system, found in by_system.items()
            if "chosen" in found
        }
        other = content.get("scored_by", scored_by) != scored_by
        questions = str(content.get("questions", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError([f"--abstain_below: {given}: no thresholds in {path} ({_why(error)}); {_WAYS_OUT}"]) from error
    if not by:
        raise DataError(
            [f"--abstain_below: {given}: its questions are all answerable, so none was chosen; {_WAYS_OUT}"]
        )
    if other and any(least.score is not None for least in by.values()):
        logger.warning("%s: was made with another retriever, so only log-probabilities count", path)
        by = {key: replace(least, score=None) for key, least in by.items()}
    return Chosen(by, questions=questions)


_WAYS_OUT = (
    "name a folder in which `groundtune evaluate` answered questions some of which are unanswerable, or give numbers: "
    f"a log-probability, or with a comma a retrieval score too; {NEVER}: withhold nothing"
)


def keep(run: Path, curves: Mapping[str, Mapping[str, Any]], scored_by: str, questions: str) -> bool:
    """Write the thresholds that were chosen into the folder of a run, which then remembers them; False if there are
    none. `curves` has the `curve` of each system by context; for the others see `read_thresholds` and `Chosen`."""
    chosen = {
        context: known
        for context, by_system in curves.items()
        if (known := {name: {"chosen": found["chosen"]} for name, found in by_system.items() if "chosen" in found})
    }
    if chosen:
        write_text(inside(run, KEPT), as_json({"abstention": chosen, "scored_by": scored_by, "questions": questions}))
    return bool(chosen)


def _numbers(given: str) -> Thresholds | None:
    try:
        values = [_number(float(part)) for part in given.split(",")]
    except ValueError:
        return None
    return Thresholds(*values) if len(values) <= len(SIGNALS) else None


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if not is_finite(value):
        raise ValueError(f"{ascii(value):.60} is not a number")
    return float(value)


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
