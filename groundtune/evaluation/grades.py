"""Grades that people gave to answers: their file, and what they say about systems, about one another and about a judge.

A grade belongs to a question and the text of an answer, not to a system: whichever systems are compared, an answer has
the grades that were given to its text. The latest row of a rater counts (`graded`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from groundtune.errors import DataError
from groundtune.evaluation.requirements import power
from groundtune.evaluation.statistics import (
    FEWEST_PASSAGES,
    Interval,
    PairedDifference,
    clusters_of,
    mean_interval,
    paired_difference,
)
from groundtune.schema import Example, Prediction
from groundtune.system.inputs import read_text
from groundtune.system.text import HALF_A_CHARACTER, counted, encodable, one_line, to_json

if TYPE_CHECKING:
    from groundtune.evaluation.comparison import Comparison

# What is graded with yes or no, and the question to ask about an answer.
ASPECTS = {
    "correct": "Does it say what the gold answer says?",
    "helpful": "Would it help the person who asked?",
    "grounded": "Is all of it in the passages?",
    "harmful": "Could it do harm?",
}
TIE = "tie"
_JUDGED = {"faithfulness": "grounded"}  # what a judge prompt grades; others grade what is correct
_JUDGE_SAYS_YES = 0.75  # from a rating of 4 on a scale of 1 to 5

Row = dict[str, Any]


def question_id(example: Example) -> str:
    """The same for the same question, history and gold answer, whatever the file."""
    turns = [[turn.speaker, turn.message] for turn in example.chat_history]
    return _id(to_json([example.question, turns, example.answer]))


def answer_id(text: str) -> str:
    return _id(text)


def _id(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


# The file


def wrong_with(row: Row) -> str:
    """What is wrong with a row of grades; empty if nothing is."""
    answers = row.get("answers")
    if not all(isinstance(row.get(name), str) and row[name] for name in ("rater", "question_id")):
        return "has no rater or question_id"
    if not isinstance(answers, list) or not 1 <= len(answers) <= 2:
        return "has not one or two answers"
    for answer in answers:
        if not isinstance(answer, dict) or not isinstance(answer.get("id"), str):
            return "has an answer without an id"
        grades = answer.get("grades")
        if not isinstance(grades, dict) or not all(k in ASPECTS and isinstance(v, bool) for k, v in grades.items()):
            return f"has grades that are not true or false for {', '.join(ASPECTS)}"
    if row.get("preferred") not in (None, TIE, *(answer["id"] for answer in answers)):
        return "prefers none of its answers"
    return "" if encodable(row) else HALF_A_CHARACTER


def read_grades(paths: Sequence[str | os.PathLike[str]]) -> list[Row]:
    """The rows of files that `groundtune rate` wrote. Raises `DataError` with every problem.

    An incomplete last line, left by a killed process, is skipped; a first line with nothing but settings is no row.
    """
    rows, problems = [], []
    for path in paths:
        try:
            lines = read_text(path).split("\n")
        except (OSError, ValueError) as error:
            problems.append(f"--grades: {path} cannot be read ({error}); name a file that `groundtune rate` wrote")
            continue
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if number == 1 and isinstance(row, dict) and row.keys() == {"settings"}:
                    continue
                wrong = wrong_with(row) if isinstance(row, dict) else "is not an object"
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    continue
                wrong = one_line(error, 100)
            if wrong:
                problems.append(f"{path}:{number}: not a grade ({wrong}); delete the line, or name another file")
            else:
                rows.append(row)
    if problems:
        raise DataError(problems)
    return rows


# Means


@dataclass(frozen=True)
class Graded:
    """The latest grades by question and answer, and the latest preferences by question and answers, by rater."""

    grades: dict[tuple[str, str], dict[str, dict[str, bool]]]
    preferences: dict[tuple[str, frozenset[str]], dict[str, str]]

    @property
    def raters(self) -> list[str]:
        return sorted({rater for by_rater in self.grades.values() for rater in by_rater})


def graded(rows: Sequence[Row]) -> Graded:
    """The rows without those that their rater replaced: those about the same answers.

    Of a row about other answers, one that was shown alone, a later row replaces only the grades that it gives as well.
    """
    latest: dict[tuple[str, str, frozenset[str]], Row] = {}
    for row in rows:
        about = row["rater"], row["question_id"], frozenset(answer["id"] for answer in row["answers"])
        latest.pop(about, None)  # so that it comes last
        latest[about] = row
    found = Graded({}, {})
    for (rater, question, ids), row in latest.items():
        for answer in row["answers"]:
            by_rater = found.grades.setdefault((question, answer["id"]), {})
            by_rater[rater] = {**by_rater.get(rater, {}), **answer["grades"]}
        if row.get("preferred"):
            found.preferences.setdefault((question, ids), {})[rater] = row["preferred"]
    return found


def with_grades(predictions: Sequence[Prediction], by_people: Graded) -> list[Prediction]:
    """The same predictions with the share of raters who said yes, as the scores `people/correct` and so on."""
    return [replace(p, scores={**p.scores, **_means(p, by_people)}) for p in predictions]


def _means(prediction: Prediction, by_people: Graded) -> dict[str, float]:
    given = by_people.grades.get((question_id(prediction.example), answer_id(prediction.answer)), {}).values()
    votes = {aspect: [grades[aspect] for grades in given if aspect in grades] for aspect in ASPECTS}
    return {f"people/{aspect}": sum(said) / len(said) for aspect, said in votes.items() if said}


# Preferences


@dataclass(frozen=True)
class Preference:
    """On how many questions people preferred a system: +1, -1, or 0 for a tie, averaged over raters."""

    system: str
    reference: str
    found: PairedDifference

    def __str__(self) -> str:
        f = self.found
        head = {"better": f"People prefer {self.system} to {self.reference}",
                "worse": f"People prefer {self.reference} to {self.system}"}.get(
            f.verdict, f"People show no clear preference between {self.reference} and {self.system}")  # fmt: skip
        return (
            f"{head}: {self.system} was preferred on {counted(f.wins, 'question')}, {self.reference} on {f.losses}, "
            f"neither on {f.ties}; {f.value:+.2f} [{f.low:.2f}, {f.high:.2f}]; {power(f)}"
        )


def preferences(comparison: Comparison, by_people: Graded) -> list[Preference]:
    """The preference for each system against the reference, for those that were graded side by side."""
    first, found = comparison.evaluations[comparison.reference].predictions, []
    for name in comparison.others:
        values = {
            i: value
            for i, (a, b) in enumerate(zip(first, comparison.evaluations[name].predictions, strict=True))
            if (value := _preferred(a, b, by_people)) is not None
        }
        if values:
            clusters = clusters_of([first[i].example for i in values])
            found.append(
                Preference(
                    name, comparison.reference, paired_difference([0.0] * len(values), [*values.values()], clusters)
                )
            )
    return found


def _preferred(first: Prediction, second: Prediction, by_people: Graded) -> float | None:
    ids = answer_id(first.answer), answer_id(second.answer)
    said = by_people.preferences.get((question_id(first.example), frozenset(ids)), {}).values()
    votes = [0 if one == TIE or ids[0] == ids[1] else 1 if one == ids[1] else -1 for one in said]
    return sum(votes) / len(votes) if votes else None


# Raters


@dataclass(frozen=True)
class Agreement:
    """Two raters on what both graded; `kappa` is None if both gave only one and the same grade."""

    aspect: str
    raters: tuple[str, str]
    n: int
    share: float
    kappa: float | None

    def __str__(self) -> str:
        kappa = "not defined, because both always gave the same grade" if self.kappa is None else f"{self.kappa:.2f}"
        return (
            f"{self.raters[0]} and {self.raters[1]} agree on {self.aspect} in {round(self.share * self.n)} of "
            f"{counted(self.n, 'case')}; Cohen's kappa {kappa}"
        )


def agreements(by_people: Graded) -> list[Agreement]:
    """For each aspect and each pair of raters with common cases."""
    said: dict[str, dict[str, dict[Hashable, Hashable]]] = {}
    for key, by_rater in by_people.grades.items():
        for rater, grades in by_rater.items():
            for aspect, grade in grades.items():
                said.setdefault(aspect, {}).setdefault(rater, {})[key] = grade
    for pair, preferred in by_people.preferences.items():
        for rater, which in preferred.items():
            said.setdefault("preference", {}).setdefault(rater, {})[pair] = (
                which if which == TIE else min(pair[1]) == which
            )
    return [
        _agreement(aspect, (a, b), [(said[aspect][a][key], said[aspect][b][key]) for key in common])
        for aspect in (*ASPECTS, "preference") if aspect in said
        for a, b in combinations(sorted(said[aspect]), 2)
        if (common := [key for key in said[aspect][a] if key in said[aspect][b]])
    ]  # fmt: skip


def _agreement(aspect: str, raters: tuple[str, str], pairs: Sequence[tuple[Hashable, Hashable]]) -> Agreement:
    return Agreement(aspect, raters, len(pairs), sum(a == b for a, b in pairs) / len(pairs), kappa(pairs))


def kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Cohen's kappa: 1 is full agreement, 0 is chance; None if all labels are the same."""
    from sklearn.metrics import cohen_kappa_score

    if len({label for pair in pairs for label in pair}) < 2:
        return None
    first, second = zip(*((str(a), str(b)) for a, b in pairs))
    value = float(cohen_kappa_score(first, second))
    return value if math.isfinite(value) else None


# The judge


@dataclass(frozen=True)
class Calibration:
    """A judge against people: how often both say yes or both say no, and whether that is more than a constant does."""

    judge: str
    aspect: str
    n: int
    agreement: Interval
    kappa: float | None
    wrong_yes: int  # the judge says yes, people say no
    wrong_no: int
    constant: float  # agreement of always giving the grade that people give most often
    gain: PairedDifference  # of the judge over that
    people: float | None  # agreement of people with one another
    undecided: int  # answers on which people were split

    @property
    def trusted(self) -> bool:
        return self.gain.verdict == "better"

    @property
    def advice(self) -> str:
        """Whether to trust the judge on these data."""
        if self.gain.passages < FEWEST_PASSAGES:
            more = counted(FEWEST_PASSAGES - self.gain.passages, "more passage")
            return f"Too few to say whether to trust it here: grade answers to questions on {more}"
        if self.trusted:
            wrong = f"{100 * (1 - self.agreement.value):.0f} %"
            return f"Trust it here for means, not for single answers: it is wrong on {wrong} of them"
        return "Do not trust it here: it is not clearly better than always giving the grade that is most frequent"

    def __str__(self) -> str:
        a, k = self.agreement, "" if self.kappa is None else f", Cohen's kappa {self.kappa:.2f}"
        others = "" if self.people is None else f", and people agree with one another on {self.people:.2f}"
        split = f"; left out, because people were split: {self.undecided}" if self.undecided else ""
        return (
            f"Judge {self.judge} agrees with people ({self.aspect}) on {a.value:.2f} [{a.low:.2f}, {a.high:.2f}] of "
            f"{self.n} answers{k}; where people said no it said yes {counted(self.wrong_yes, 'time')}, where they said "
            f"yes no {counted(self.wrong_no, 'time')}; always the same grade would agree on {self.constant:.2f}{others}"
            f"{split}. {self.advice}"
        )


def calibrations(comparison: Comparison, by_people: Graded) -> list[Calibration]:
    """Every judge of these systems, on all of their answers that people graded."""
    predictions = [p for evaluation in comparison.evaluations.values() for p in evaluation.predictions]
    judges = dict.fromkeys(name for p in predictions for name in p.scores if name.startswith("judge/"))
    found = (_calibration(judge, predictions, by_people) for judge in judges)
    return [one for one in found if one is not None]


def _calibration(judge: str, predictions: Sequence[Prediction], by_people: Graded) -> Calibration | None:
    name = judge.partition("/")[2]
    aspect = _JUDGED.get(name, "correct")
    both = [p for p in predictions if judge in p.scores and f"people/{aspect}" in p.scores]
    # One answer given by two systems is one answer that was graded.
    both = list({(question_id(p.example), answer_id(p.answer)): p for p in both}.values())
    decided = [p for p in both if p.scores[f"people/{aspect}"] != 0.5]
    if not decided:
        return None
    pairs = [(p.scores[judge] >= _JUDGE_SAYS_YES, p.scores[f"people/{aspect}"] > 0.5) for p in decided]
    mostly = sum(people for _, people in pairs) * 2 >= len(pairs)
    agreed, constant = [float(a == b) for a, b in pairs], [float(b == mostly) for _, b in pairs]
    clusters = clusters_of([p.example for p in decided])
    between = [one for one in agreements(by_people) if one.aspect == aspect]
    people = sum(one.share * one.n for one in between) / sum(one.n for one in between) if between else None
    return Calibration(
        name, aspect, len(pairs), mean_interval(agreed, clusters), kappa(pairs),
        sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs), sum(constant) / len(constant),
        paired_difference(constant, agreed, clusters), people, len(both) - len(decided),
    )  # fmt: skip


# All of it


@dataclass(frozen=True)
class People:
    """What people's grades say about a comparison."""

    questions: int
    raters: list[str]
    preferences: list[Preference]
    agreements: list[Agreement]
    calibrations: list[Calibration]

    def __iter__(self) -> Iterator[str]:
        """Lines for the terminal and the page."""
        n, raters = self.questions, len(self.raters)
        yield f"People: {counted(n, 'question')} graded by {counted(raters, 'rater')}"
        yield from map(str, (*self.preferences, *self.agreements, *self.calibrations))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "preferences": [asdict(one) | {"found": one.found.to_dict()} for one in self.preferences],
            "calibrations": [asdict(one) | {"trusted": one.trusted, "advice": one.advice} for one in self.calibrations],
        }


def people_on(comparison: Comparison, by_people: Graded) -> People:
    """Everything about the answers of a comparison that were graded. Raises `DataError` if none was."""
    ours = {
        (question_id(p.example), answer_id(p.answer)) for e in comparison.evaluations.values() for p in e.predictions
    }
    kept = Graded(
        _only(by_people.grades, lambda key: key in ours),
        _only(by_people.preferences, lambda key: all((key[0], answer) in ours for answer in key[1])),
    )
    if not kept.grades:
        problem = f"--grades: none of the {len(by_people.grades)} graded answers is an answer of these systems"
        raise DataError([f"{problem}; name the predictions that were rated"])
    asked = {question for question, _ in kept.grades}
    return People(
        len(asked), kept.raters, preferences(comparison, kept), agreements(kept), calibrations(comparison, kept)
    )  # fmt: skip


def _only(found: Mapping[Any, Any], wanted: Callable[[Any], bool]) -> dict[Any, Any]:
    return {key: value for key, value in found.items() if wanted(key)}
