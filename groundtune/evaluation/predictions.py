"""Answered questions: their mean scores with intervals, and the file that stores them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from groundtune.data.files import write_jsonl
from groundtune.errors import DataError
from groundtune.evaluation.abstention import answer_scores
from groundtune.evaluation.contradictions import contradiction_scores
from groundtune.evaluation.groundedness import groundedness_scores
from groundtune.evaluation.metrics import greater_is_better, largest
from groundtune.evaluation.statistics import Interval, aggregate, clusters_of
from groundtune.schema import Document, Example, Hit, Prediction, Turn
from groundtune.system.inputs import read_text
from groundtune.system.text import HALF_A_CHARACTER, encodable, one_line, plain

_MOST_LEVELS = 100


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation: the mean of every metric with its 95 % interval, and the predictions behind it."""

    metrics: dict[str, Interval]
    predictions: tuple[Prediction, ...] = field(repr=False)

    @property
    def n(self) -> int:
        return len(self.predictions)

    @property
    def failed(self) -> int:
        """Number of questions whose answer failed; they are excluded from all means."""
        return sum(bool(prediction.failure) for prediction in self.predictions)

    def scored(self, metric: str) -> int:
        """Number of predictions in the metric's mean."""
        return sum(metric in prediction.scores for prediction in self.predictions)

    def values(self, metric: str) -> list[float]:
        """The metric's values in the order of the examples, for those that have it."""
        return [prediction.scores[metric] for prediction in self.predictions if metric in prediction.scores]

    def clusters(self, metric: str = "") -> list[int]:
        """The cluster of each question in the order of the examples, or of those that have the metric."""
        return clusters_of([p.example for p in self.predictions if not metric or metric in p.scores])

    @property
    def passages(self) -> int:
        """Number of clusters: of gold passages that no question connects."""
        return len(set(self.clusters()))

    def to_dict(self) -> dict[str, Any]:
        """n, then every metric; a mean over fewer than all n questions includes its own count."""
        counts = {"n": self.n, "passages": self.passages, **({"failed": self.failed} if self.failed else {})}
        of = {name: self.scored(name) for name in self.metrics}
        return counts | {
            name: interval.to_dict() | ({"scored": of[name]} if of[name] != self.n else {})
            for name, interval in self.metrics.items()
        }


def evaluation_of(predictions: Sequence[Prediction], samples: int = 10_000) -> Evaluation:
    """The mean of every metric over the predictions that have it.

    All predictions have the same metrics except failed ones, quotes (few answers quote), failed judgements, and metrics
    that unanswerable questions do not have; `scored` gives the count.
    """
    rows_with: dict[str, tuple[int, ...]] = {
        name: tuple(i for i, prediction in enumerate(predictions) if name in prediction.scores)
        for name in dict.fromkeys(name for prediction in predictions for name in prediction.scores)
    }
    means: dict[str, Interval] = {}
    for rows in dict.fromkeys(rows_with.values()):
        names = [name for name in rows_with if rows_with[name] == rows]
        scores = [{n: predictions[i].scores[n] for n in names} for i in rows]
        means |= aggregate(scores, clusters_of([predictions[i].example for i in rows]), samples=samples)
    return Evaluation({name: means[name] for name in rows_with}, tuple(predictions))


def text_scores(
    example: Example, read: Sequence[Document], answer: str, unknown: frozenset[str], abstentions: str
) -> dict[str, float]:
    """The scores of an answer's text, whatever it took to write it."""
    return {
        **answer_scores(answer, example, unknown, abstentions),
        **contradiction_scores(answer, example),
        **(groundedness_scores(answer, read) if read else {}),
    }


def write_predictions(path: str | os.PathLike[str], evaluation: Evaluation) -> None:
    """Write an evaluation's predictions as JSONL, in the order of its examples."""
    write_jsonl(path, (plain(prediction.to_dict()) for prediction in evaluation.predictions))


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """Read what `write_predictions` wrote.

    Raises `DataError` if the file is missing or empty, or if a line is not a prediction.
    """
    try:
        lines = read_text(path).split("\n")
    except (OSError, ValueError) as error:
        raise DataError([f"{path}: cannot be read ({error}); name a prediction file"]) from error
    predictions, problems = [], []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                predictions.append(_checked(_prediction(_shallow(json.loads(line)))))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            why = one_line(f"{type(error).__name__}: {error}", 200)
            problems.append(f"{path}:{number}: not a prediction ({why}); write it again with `groundtune evaluate`")
    if not predictions and not problems:
        problems.append(f"{path}: is empty; it needs at least one prediction")
    if problems:
        raise DataError(problems)
    return predictions


def _shallow(row: Any) -> Any:
    """`row`; raises `ValueError` if it nests so deeply that it could not be written again."""
    level = [row]
    for _ in range(_MOST_LEVELS):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return row
    raise ValueError(f"it nests more than {_MOST_LEVELS} levels deep")


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _prediction(row: dict[str, Any]) -> Prediction:
    _must_be(list, [row.get("gold_answers", [])], "a list")  # a text would become a list of its characters
    hits = tuple(Hit(_document(found), found["score"]) for found in row["retrieved_docs"])
    context = row.get("context", "retrieved")
    read = map(_document, row.get("read_docs", ())) if context != "retrieved" else (hit.document for hit in hits)
    return Prediction(
        example=Example(
            question=row["question"],
            answer=row["gold_answer"],
            gold_documents=tuple(map(_document, row["gold_docs"])),
            chat_history=tuple(Turn(turn["speaker"], turn["message"]) for turn in row["chat_history"]),
            source=row["source"],
            gold_answers=tuple(answers) if len(answers := row.get("gold_answers", ())) > 1 else (),
            answerable=row.get("answerable", True),
        ),
        hits=hits,
        answer=row["answer"],
        finished=row["finished"],
        passages_read=row["passages_read"],
        prompt_tokens=row["prompt_tokens"],
        new_tokens=row["new_tokens"],
        scores={name: float(value) for name, value in row["scores"].items()},
        context=context,
        read=tuple({document.id: document for document in read}.values())[: row["passages_read"]],
        failure=row.get("failure", ""),
        outcome=row.get("outcome", ""),
        judged=row.get("judged", {}),
        logprob=row.get("logprob"),
        withheld=row.get("withheld"),
        cited=row.get("cited", ""),
    )


def _checked(prediction: Prediction) -> Prediction:
    """Raise `TypeError` or `ValueError` for values that would otherwise cause an error much later."""
    example = prediction.example
    documents = [*example.gold_documents, *prediction.read, *(hit.document for hit in prediction.hits)]
    texts = [example.question, example.answer, *example.gold_answers, example.source]
    texts += [text for turn in example.chat_history for text in (turn.speaker, turn.message)]
    texts += [text for document in documents for text in (document.page_content, document.fmt_content)]
    texts += [prediction.answer, prediction.context, prediction.failure, prediction.outcome]
    texts += [*prediction.judged, *prediction.judged.values(), prediction.withheld or "", prediction.cited]
    _must_be(str, texts, "a text")
    _must_be(bool, [prediction.finished, example.answerable], "true or false")
    tokens = [n for n in (prediction.prompt_tokens, prediction.new_tokens) if n is not None]  # a server may not say
    _must_be(int, [prediction.passages_read, *tokens], "a whole number")
    _must_be(dict, [document.metadata for document in documents], "an object")
    numbers = [*(hit.score for hit in prediction.hits), *([] if prediction.logprob is None else [prediction.logprob])]
    _must_be((int, float), numbers, "a number")
    if not all(map(math.isfinite, [*prediction.scores.values(), *numbers])):
        raise ValueError("a score is not finite")
    for text in (*texts, *(document.metadata for document in documents)):
        if not encodable(text):
            raise ValueError(f"{ascii(text):.60} {HALF_A_CHARACTER}")
    for name, value in prediction.scores.items():
        _check_score(name, value)
    return prediction


def _check_score(name: str, value: float) -> None:
    if not re.fullmatch(r"[\w./@-]{1,100}", name):
        raise ValueError("a score has no name")
    if "/recall@" in name and not re.search(r"@\d{1,9}$", name):
        raise ValueError("a recall has no number of passages")
    greater_is_better(name)  # raises ValueError if it is no metric
    if not 0 <= value <= largest(name):
        raise ValueError(f"{name} is {value:g}, and lies between 0 and {largest(name):g}")


def _must_be(kind: type | tuple[type, ...], values: Iterable[object], name: str) -> None:
    for value in values:
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise TypeError(f"{ascii(value):.60} is not {name}")


def _document(row: dict[str, Any]) -> Document:
    return Document(row["page_content"], row.get("fmt_content") or "", row.get("metadata") or {})
