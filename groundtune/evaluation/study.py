"""Where answers are lost: the same questions with other passages, for a model and its base model.

Each part has points, such as "3 passages", and the questions of a part are the same at every point, so points are
compared question by question, and so are the two models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from groundtune.evaluation.answering import Asked, Fits
from groundtune.evaluation.arguments import SEARCHED_PARTS
from groundtune.evaluation.predictions import Evaluation
from groundtune.evaluation.statistics import Interval, PairedDifference, clusters_of, paired_difference
from groundtune.evaluation.verdicts import F1
from groundtune.prompts.policies import DISTRACTORS, RANKS, STUDIED, draw
from groundtune.schema import Example, Hit
from groundtune.system.text import counted

KS = range(1, 9)  # passages per question, besides the usual number
DEPTH = 12  # hits: of the part distractors, some repeat gold
_TITLES = {
    "contexts": ("Which passages are read", "context"),
    "rank": ("The gold passage first and fourth", "rank of the gold passage"),
    "k": ("How many passages are retrieved", "passages retrieved"),
    "distractors": ("Gold among other passages", "passages beside gold"),
}
_HOW = {
    "contexts": "All questions in each context.",
    "rank": "The same questions with the same passages: gold before, and after, the three best retrieved ones that do "
    "not repeat it. A question with several gold passages has them side by side, from that rank on. Only questions "
    "whose passages all fit.",
    "k": "End to end with other values of --eval_num_to_retrieve. Recall is the share of a question's gold passages "
    "that were retrieved; passages that do not fit into --max_seq_length are not read.",
    "distractors": "The gold passage at a random place, the same for every model, among the best retrieved passages "
    "that do not repeat it. Only questions whose passages all fit.",
}


@dataclass(frozen=True)
class Cell:
    """The questions of one point: `part` and `label` say of which, `at` is its place on the axis."""

    part: str
    label: str
    at: int
    asked: Asked

    @property
    def name(self) -> str:
        """Its name in files."""
        return f"{self.part}_{self.at}"


@dataclass(frozen=True)
class Point:
    """The evaluation of each system at one point."""

    label: str
    at: int
    by_system: Mapping[str, Evaluation]

    def recall(self) -> Interval | None:
        """Retrieval recall with all its passages, which no model changes; None if nothing was retrieved."""
        evaluation = next(iter(self.by_system.values()))
        found = [name for name in evaluation.metrics if name.startswith("retrieval/recall@")]
        return evaluation.metrics[max(found, key=lambda name: int(name.partition("@")[2]))] if found else None

    def passages_read(self) -> float:
        predictions = next(iter(self.by_system.values())).predictions
        return sum(prediction.passages_read for prediction in predictions) / len(predictions)


@dataclass(frozen=True)
class Part:
    """A part of the study; the other points are compared with the point `reference`."""

    name: str
    points: Sequence[Point]
    reference: Point

    @property
    def title(self) -> str:
        return _TITLES[self.name][0]

    @property
    def axis(self) -> str:
        return _TITLES[self.name][1]

    @property
    def how(self) -> str:
        return _HOW[self.name]

    @property
    def systems(self) -> list[str]:
        """The base model first, if it answered."""
        return list(self.reference.by_system)

    @property
    def n(self) -> int:
        return next(iter(self.reference.by_system.values())).n

    def change(self, system: str, point: Point) -> PairedDifference | None:
        """Token F1 at the point - at the reference, question by question."""
        return difference(self.reference.by_system[system], point.by_system[system])

    def gain(self, point: Point) -> PairedDifference | None:
        """Token F1 of the model - of its base model; None if that was not asked."""
        return difference(*point.by_system.values()) if len(point.by_system) == 2 else None

    def gain_of_change(self, point: Point) -> PairedDifference | None:
        """How much more, or less, a point changes for the model than for its base model, question by question."""
        if len(point.by_system) != 2:
            return None
        changes = [_changes(self.reference.by_system[s], point.by_system[s]) for s in self.systems]
        both = [i for i in changes[0] if i in changes[1]]
        examples = [self.reference.by_system[self.systems[0]].predictions[i].example for i in both]
        values = [[change[i] for i in both] for change in changes]
        return paired_difference(values[0], values[1], clusters_of(examples)) if both else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "n": self.n,
            "reference": self.reference.label,
            "points": [self._point(point) for point in self.points],
        }

    def _point(self, point: Point) -> dict[str, Any]:
        found = {"recall": point.recall(), "gain": self.gain(point)}
        found |= {} if point is self.reference else {"gain_of_change": self.gain_of_change(point)}
        systems = {
            name: {
                **evaluation.to_dict(),
                **({} if point is self.reference or not (c := self.change(name, point)) else {"change": c.to_dict()}),
            }
            for name, evaluation in point.by_system.items()
        }
        about = {"label": point.label, "at": point.at, "passages_read": point.passages_read(), "systems": systems}
        return about | {name: value.to_dict() for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Study:
    """Everything that was found, and notes on what was not."""

    parts: Sequence[Part] = ()
    notes: Sequence[str] = field(default_factory=list)
    abstention: Mapping[str, Any] = field(default_factory=dict)  # by context and system, as `confidence.curve`
    outcomes: Mapping[str, Any] = field(default_factory=dict)  # by context and system

    def to_dict(self) -> dict[str, Any]:
        return {
            "parts": {part.name: part.to_dict() for part in self.parts},
            "outcomes": dict(self.outcomes),
            "abstention": dict(self.abstention),
            "notes": list(self.notes),
        }


def difference(before: Evaluation, after: Evaluation) -> PairedDifference | None:
    """Token F1 after - before, for evaluations of the same questions; None if none was answered both times."""
    both = _changes(before, after)
    if not both:
        return None
    pairs = [(before.predictions[i], after.predictions[i]) for i in both]
    first, second = ([prediction.scores[F1] for prediction in side] for side in zip(*pairs))
    return paired_difference(first, second, clusters_of([prediction.example for prediction, _ in pairs]))


def _changes(before: Evaluation, after: Evaluation) -> dict[int, float]:
    """Token F1 after - before, by the number of the question."""
    pairs = enumerate(zip(before.predictions, after.predictions, strict=True))
    return {i: b.scores[F1] - a.scores[F1] for i, (a, b) in pairs if F1 in a.scores and F1 in b.scores}


# What is asked


def cells_of(
    parts: Sequence[str],
    examples: Sequence[Example],
    hits: Sequence[tuple[Hit, ...]],
    ask: Callable[[str, list[Example], list[tuple[Hit, ...]]], Asked],
    notes: list[str],
    usual: int,
    fits: Fits = lambda context, example, hits: True,
) -> list[Cell]:
    """The questions of every point of the parts that need their own; `hits` has `DEPTH` or more of each example, and
    `usual` is the usual number of passages.

    `ask` makes the questions of a context; those that are too long for it (`fits`) are left out. `notes` gets a line
    about a part that no question, or not every one, suits.
    """
    cells = []
    for part in parts:
        if part == "k":
            most = max(map(len, hits), default=0)
            for k in sorted({*KS[: max(1, most)], max(1, min(usual, most))}):
                some = [found[:k] for found in hits]
                cells.append(Cell(part, counted(k, "passage"), k, ask("retrieved", list(examples), some)))
        elif part in SEARCHED_PARTS:
            cells += _with_gold(part, examples, hits, ask, notes, fits)
    return cells


def _with_gold(
    part: str,
    examples: Sequence[Example],
    hits: Sequence[tuple[Hit, ...]],
    ask: Callable[[str, list[Example], list[tuple[Hit, ...]]], Asked],
    notes: list[str],
    fits: Fits,
) -> list[Cell]:
    """The points of a part in which gold is read, with the questions that suit every point.

    Of distractors, as many as at least half of the questions have: a small database has few.
    """
    prefix, places = {"rank": ("gold_at", RANKS), "distractors": ("gold_with", DISTRACTORS)}[part]
    numbers = [
        _others(prefix, places[-1], *pair) if pair[0].has_evidence and fits(f"{prefix}_{places[0]}", *pair) else -1
        for pair in zip(examples, hits)
    ]
    known = sorted((number for number in numbers if number >= 0), reverse=True)
    if part == "distractors" and known:
        places = tuple(place for place in places if place <= known[(len(known) - 1) // 2])
    least = places[-1] - (part == "rank")

    def asked(chosen: Sequence[int]) -> list[Asked]:
        some, their = [examples[i] for i in chosen], [hits[i] for i in chosen]
        return [ask(f"{prefix}_{place}", some, their) for place in places] if chosen else []

    chosen = [i for i, number in enumerate(numbers) if number >= least]
    found = asked(chosen)
    cut = {i for one in found if one.evaluator for i, q in enumerate(one.evaluator.questions) if q.left_out}
    if cut:
        chosen = [number for i, number in enumerate(chosen) if i not in cut]
        found = asked(chosen)
    if len(chosen) < len(examples):
        why = "the others have no gold passage, too few other passages, or do not fit into --max_seq_length"
        notes.append(f"study, {part}: {len(chosen)} of {len(examples)} questions; {why}")
    labels = [f"rank {place}" if part == "rank" else counted(place, "other") for place in places]
    return [Cell(part, label, place, one) for label, place, one in zip(labels, places, found)]


def _others(prefix: str, place: int, example: Example, hits: tuple[Hit, ...]) -> int:
    """How many passages are read beside gold."""
    passages = STUDIED[f"{prefix}_{place}"](example, hits, draw(0, 0, example.question))
    return sum(passage.droppable for passage in passages)


def studied(
    cells: Sequence[Cell],
    answered: Mapping[str, Mapping[str, Evaluation]],
    in_contexts: Mapping[str, Mapping[str, Evaluation]],
    parts: Sequence[str],
    k: int,
) -> list[Part]:
    """The parts with their points; `answered` is by cell name and system, `in_contexts` by context and system, and `k`
    is the usual number of passages."""
    found = []
    if "contexts" in parts:
        points = [Point(context, i, by_system) for i, (context, by_system) in enumerate(in_contexts.items())]
        found.append(Part("contexts", points, next((p for p in points if p.label == "retrieved"), points[0])))
    for part in dict.fromkeys(cell.part for cell in cells):
        points = [Point(cell.label, cell.at, answered[cell.name]) for cell in cells if cell.part == part]
        usual = next((point for point in reversed(points) if part == "k" and point.at <= k), points[0])
        found.append(Part(part, points, usual))
    return found
