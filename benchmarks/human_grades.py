"""Which score agrees with people? Rank correlation of every score with the grades that people gave to the same answers.

python -m benchmarks.human_grades --grades FILE [--judge MODEL]

FILE holds one answer per line, as the human_grades.jsonl of MTRAG: {"task", "question", "chat_history", "passages",
"gold_answer", "answer", "model", "grades"}, with `grades` from 1 to 4 by several people for each of several qualities.
Answers of the model "reference" are the gold answers themselves and are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundtune.evaluation.contradictions import contradicts
from groundtune.evaluation.groundedness import groundedness_scores
from groundtune.evaluation.judge import judged, read_judge_prompts
from groundtune.evaluation.metrics import generation_scores
from groundtune.schema import Document, Example, Prediction, Turn

Row = Mapping[str, Any]
SCORES = ("generation/f1", "generation/precision", "generation/recall", "generation/rougeL", "generation/bleu")
OWN = ("grounded/tokens", "generation/contradiction (negated)", "words of the answer")
RESAMPLES = 2000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grades", type=Path, required=True)
    parser.add_argument("--judge", default="", help="model folder of a local judge; none is asked without it")
    parser.add_argument("--judge_prompt", nargs="+", default=["correctness", "faithfulness"])
    parser.add_argument("--judge_answers", type=int, default=240, help="answers that the judge grades")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.grades.read_text("utf-8").splitlines() if line.strip()]
    answers = [row for row in rows if row["model"] != "reference"]
    scores = {name: np.array(values) for name, values in scored(answers).items()}
    if options.judge:
        scores |= by_judge(answers, options.judge, options.judge_prompt, options.judge_answers)
    print(table(answers, scores))
    return 0


def scored(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Every score of every answer; higher is better for all of them."""
    found: dict[str, list[float]] = {name: [] for name in (*SCORES, *OWN)}
    for row in rows:
        against = generation_scores(row["answer"], row["gold_answer"])
        for name in SCORES:
            found[name].append(against[name])
        passages = [Document(text) for text in row["passages"]]
        found[OWN[0]].append(groundedness_scores(row["answer"], passages)[OWN[0]] if passages else np.nan)
        found[OWN[1]].append(-float(contradicts(row["answer"], row["gold_answer"], row["question"])))
        found[OWN[2]].append(float(len(row["answer"].split())))
    return found


def by_judge(rows: Sequence[Row], model: str, prompts: Sequence[str], at_most: int) -> dict[str, np.ndarray]:
    """The grades of a local judge with the packaged prompts; NaN where it gave none."""
    from groundtune.model.opening import open_writer

    complete, found = open_writer(model, bf16=True).complete, {}
    predictions = [_prediction(row) for row in rows[:at_most]]
    for prompt in read_judge_prompts(prompts):
        graded = judged(predictions, prompt, complete, 150)
        name = f"judge/{prompt.name}"
        values = [one.scores.get(name, np.nan) for one in graded]
        found[name] = np.array(values + [np.nan] * (len(rows) - len(values)))
    return found


def _prediction(row: Row) -> Prediction:
    turns = tuple(Turn(turn["speaker"], turn["message"]) for turn in row["chat_history"])
    passages = tuple(Document(text) for text in row["passages"])
    example = Example(row["question"], row["gold_answer"], passages, turns)
    return Prediction(example, (), row["answer"], True, len(passages), None, None, read=passages)


def table(rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> str:
    """A line per score and a column per quality, with Spearman's correlation and its 95 % interval."""
    qualities = list(rows[0]["grades"])
    tasks = [row["task"] for row in rows]
    means = {quality: np.array([np.mean(row["grades"][quality]) for row in rows]) for quality in qualities}
    lines = [f"{len(rows)} answers to {len(set(tasks))} questions", "", row_of("score", ["n", *qualities])]
    for name, values in scores.items():
        known = np.isfinite(values)
        cells = [interval(values[known], means[q][known], [t for t, k in zip(tasks, known) if k]) for q in qualities]
        lines.append(row_of(name, [str(known.sum()), *cells]))
    cells = [interval(*one_against_others(rows, quality)) for quality in qualities]
    lines.append(row_of("one person, and the others", ["", *cells]))
    return "\n".join(lines)


def row_of(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def one_against_others(rows: Sequence[Row], quality: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The grade of the first person, and the mean of the others: what to expect of a very good score."""
    several = [row for row in rows if len(row["grades"][quality]) > 1]
    first, *rest = zip(*((row["grades"][quality][0], np.mean(row["grades"][quality][1:])) for row in several))
    return np.array(first, float), np.array(rest[0], float), [row["task"] for row in several]


def interval(values: np.ndarray, grades: np.ndarray, tasks: Sequence[str]) -> str:
    """Spearman's correlation; the interval resamples questions, because answers to one question are not independent."""
    groups: dict[str, list[int]] = {}
    for i, task in enumerate(tasks):
        groups.setdefault(task, []).append(i)
    members = [np.array(group) for group in groups.values()]
    generator, found = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        found.append(spearman(values[drawn], grades[drawn]))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return f"{spearman(values, grades):.2f} [{low:.2f}, {high:.2f}]"


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, ties with their mean rank; NaN if one side is constant."""
    ranks = [_ranks(side) for side in (a, b)]
    if any(np.ptp(side) == 0 for side in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]


if __name__ == "__main__":
    sys.exit(main())
