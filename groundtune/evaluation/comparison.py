"""Compares systems that answered the same questions: means, differences from the first, wins per question."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from groundtune.data.files import in_folder
from groundtune.errors import DataError
from groundtune.evaluation.abstention import note
from groundtune.evaluation.metrics import greater_is_better, is_share
from groundtune.evaluation.outcomes import outcome_counts
from groundtune.evaluation.predictions import Evaluation, evaluation_of, read_predictions
from groundtune.evaluation.statistics import PairedDifference, clusters_of, paired_difference
from groundtune.evaluation.verdicts import (
    F1,
    HOW_MEASURED,
    OF_ANSWERS,
    Change,
    alike,
    most_changed,
    shown,
    verdict_parts,
)
from groundtune.schema import Prediction
from groundtune.system.inputs import special
from groundtune.system.text import harmless_line

HOW_TO_READ = (
    f"{HOW_MEASURED} Each difference is from the first system, over the questions that both answered. The differences "
    "are not corrected for multiple comparisons. Failed answers are counted and excluded from the means."
)
_OTHERS = {
    "grounded/tokens": "Found in passages",
    "grounded/quotes": "Quotes found",
    "citations/precision": "Citations, precision",
    "citations/afterwards_precision": "  found afterwards",
    "citations/most_similar": "  always the most similar",
    "citations/always_first": "  always the first",
    "citations/at_random": "  any, at random",
    "citations/recall": "Citations, recall",
    "citations/afterwards_recall": "  recall, found afterwards",
    "generation/unfinished": "Unfinished",
    "generation/new_tokens": "New tokens",
}
# The predictions that represent a run of `sft` or `swr`, and one of `evaluate`.
_IN_FOLDERS = ("predictions/test_tuned.jsonl", "predictions/retrieved.jsonl")


@dataclass(frozen=True)
class Comparison:
    """Evaluations by system name, of the same questions in the same order; the first one is the reference."""

    title: str
    evaluations: Mapping[str, Evaluation]
    left_out: Mapping[str, int]  # per system: answers to questions that not all systems have

    @property
    def reference(self) -> str:
        return next(iter(self.evaluations))

    @property
    def others(self) -> list[str]:
        return list(self.evaluations)[1:]

    @property
    def n(self) -> int:
        return self.evaluations[self.reference].n

    @cached_property
    def labels(self) -> dict[str, str]:
        """Display names of the metrics shown, by metric, in display order."""
        measured = list(dict.fromkeys(name for e in self.evaluations.values() for name in e.metrics))
        judges = {name: f"Judge: {name.partition('/')[2]}" for name in measured if name.startswith("judge/")}
        recalls = sorted((n for n in measured if "/recall@" in n), key=lambda n: int(n.partition("@")[2]))
        retrieval = {name: name.partition("/")[2].capitalize() for name in recalls} | {"retrieval/mrr": "MRR"}
        people = {name: f"People: {name.partition('/')[2]}" for name in measured if name.startswith("people/")}
        return shown(OF_ANSWERS | people | judges | _OTHERS | retrieval, *self.evaluations.values())

    @cached_property
    def differences(self) -> dict[str, dict[str, PairedDifference]]:
        """By system and metric: system - reference, over the questions for which both have the metric."""
        first = self.evaluations[self.reference].predictions
        return {name: _differences(first, self.evaluations[name].predictions, self.labels) for name in self.others}

    def difference(self, name: str, metric: str) -> PairedDifference | None:
        """The same by any metric, also one that no table shows; None if no question has it in both."""
        first, other = (self.evaluations[system].predictions for system in (self.reference, name))
        return _differences(first, other, [metric]).get(metric)

    def verdict(self, name: str) -> str:
        """One honest sentence that compares a system with the reference by token F1."""
        return ": ".join(self.verdict_parts(name))

    def verdict_parts(self, name: str) -> tuple[str, str]:
        """The same before and after its colon."""
        if F1 not in self.differences[name]:
            return "Nothing to compare", f"no question was answered by both {name} and {self.reference}"
        return verdict_parts(
            self.differences[name], self.evaluations[self.reference], self.evaluations[name], name, self.reference
        )

    def gained_and_lost(self, name: str) -> tuple[list[Change], list[Change]]:
        """The answers where a system gains most and loses most against the reference, by token F1."""
        pairs = zip(self.evaluations[self.reference].predictions, self.evaluations[name].predictions, strict=True)
        return most_changed(pair for pair in pairs if all(F1 in prediction.scores for prediction in pair))

    def outcomes(self) -> dict[str, dict[str, int]]:
        """Number of questions by system and outcome; empty if the outcomes are not known."""
        counts = {name: outcome_counts(e.predictions) for name, e in self.evaluations.items()}
        known = all(any(p.outcome for p in e.predictions) for e in self.evaluations.values())
        return counts if known else {}

    @property
    def alike(self) -> str:
        """How alike the questions on a passage are, for each system and each difference."""
        means = {name: evaluation.metrics.get(F1) for name, evaluation in self.evaluations.items()}
        changes = {f"{name} - {self.reference}": self.differences[name].get(F1) for name in self.others}
        return alike(means | changes)

    @property
    def notes(self) -> list[str]:
        """Notes for the reader: that some questions are unanswerable, if so."""
        unanswerable = note([prediction.example for prediction in self.evaluations[self.reference].predictions])
        return [unanswerable] if unanswerable else []

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "n": self.n,
            "reference": self.reference,
            "left_out": dict(self.left_out),
            "systems": {name: evaluation.to_dict() for name, evaluation in self.evaluations.items()},
            "outcomes": self.outcomes(),
            "differences": {
                name: {metric: found.to_dict() for metric, found in metrics.items()}
                for name, metrics in self.differences.items()
            },
            "verdicts": {name: self.verdict(name) for name in self.others},
        }


def compare(title: str, systems: Mapping[str, Sequence[Prediction]], samples: int = 10_000) -> Comparison:
    """Pair the systems' answers by question, chat history and gold answer.

    Raises `DataError` if no question was answered by all of them.
    """
    keyed = {name: _by_question(predictions) for name, predictions in systems.items()}
    first = next(iter(keyed.values()))
    common = [key for key in first if all(key in answers for answers in keyed.values())]
    if not common:
        sizes = ", ".join(f"{name} ({len(answers)})" for name, answers in keyed.items())
        raise DataError([f"compare: no question is in all of {sizes}; evaluate them on the same file of examples"])
    return Comparison(
        title,
        {name: evaluation_of([answers[key] for key in common], samples) for name, answers in keyed.items()},
        {name: len(answers) - len(common) for name, answers in keyed.items()},
    )


def find_predictions(path: str) -> Path:
    """The predictions file for a path: the file itself, or the one in a run's folder.

    Raises `DataError` if there is none.
    """
    given = Path(path)
    if kind := special(given):
        raise DataError([f"{path}: is {kind}, not a file; name a run folder, or a prediction file"])
    if os.path.isfile(given):
        return given
    found = next((name for name in _IN_FOLDERS if os.path.isfile(given / name)), None)
    if found is None:
        looked = "no such file or folder" if not os.path.exists(given) else f"holds neither {' nor '.join(_IN_FOLDERS)}"
        raise DataError([f"{path}: {looked}; name a run folder, or a prediction file"])
    return in_folder(given, found)


def read_systems(paths: Sequence[str], names: Sequence[str] = ()) -> dict[str, list[Prediction]]:
    """The predictions of each path by system name; without `names`, the shortest ends of the paths that differ.

    Raises `DataError` with every problem of every file.
    """
    found: list[tuple[str, list[Prediction]]] = []
    problems: list[str] = []
    for name, path in zip(names or short_names(paths), paths, strict=True):
        try:
            found.append((harmless_line(name), read_predictions(find_predictions(path))))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return dict(found)


def short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of each path, as few as make all names differ; a repeated path gets a number."""
    named = [Path(path.removesuffix(".jsonl")) for path in paths]
    parts = [path.parts or (path.resolve().name,) for path in named]  # "." has none
    longest = max(map(len, parts))
    depth = next((d for d in range(1, longest) if len({p[-d:] for p in parts}) == len(parts)), longest)
    names = ["/".join(p[-depth:]) for p in parts]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def _by_question(predictions: Sequence[Prediction]) -> dict[Hashable, Prediction]:
    """Predictions by question. A repeated question counts separately: first occurrences pair up, and so on."""
    seen: Counter[Hashable] = Counter()
    found: dict[Hashable, Prediction] = {}
    for prediction in predictions:
        example = prediction.example
        turns = tuple((turn.speaker, turn.message) for turn in example.chat_history)
        key = (example.question, turns, example.answer)
        found[(*key, seen[key])] = prediction
        seen[key] += 1
    return found


def _differences(
    first: Sequence[Prediction], other: Sequence[Prediction], metrics: Iterable[str]
) -> dict[str, PairedDifference]:
    found = {}
    for metric in metrics:
        pairs = [
            (a.example, a.scores[metric], b.scores[metric])
            for a, b in zip(first, other, strict=True)
            if metric in a.scores and metric in b.scores
        ]
        if pairs:
            examples, before, after = zip(*pairs)
            better = greater_is_better(metric)
            found[metric] = paired_difference(
                before, after, clusters_of(examples), greater_is_better=better, shares=is_share(metric)
            )
    return found
