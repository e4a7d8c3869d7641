"""End-to-end evaluation: retrieve -> prompt -> generate -> score."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from groundtune.examples import Question, encode_questions
from groundtune.generation import Generated, generate_greedy
from groundtune.metrics import Interval, aggregate, generation_scores, retrieval_scores
from groundtune.passages import retrieved_passages
from groundtune.prompt import Prompt
from groundtune.schema import Example, Hit, Prediction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found: every metric's mean with its 95 % interval, and each prediction behind it."""

    metrics: dict[str, Interval]
    predictions: tuple[Prediction, ...]

    @property
    def n(self) -> int:
        return len(self.predictions)

    def values(self, metric: str) -> list[float]:
        """The metric question by question, in the order of the examples: what paired comparisons need."""
        return [prediction.scores[metric] for prediction in self.predictions]

    def to_dict(self) -> dict[str, Any]:
        return {"n": self.n, **{name: interval.to_dict() for name, interval in self.metrics.items()}}


@dataclass
class EndToEndEvaluator:
    """Answers the examples' questions from retrieved passages with the model it is called with, and scores them.

    What does not depend on the model is done once, here: `hits` are the retriever's (it is frozen), and the prompts are
    written when the evaluator is made. Gold passages are used for scoring only. Raises `DataError` for a question
    that leaves no room for an answer of `max_new_tokens` within `max_length`.
    """

    name: str
    examples: Sequence[Example]
    hits: Sequence[tuple[Hit, ...]]
    prompt: Prompt
    pad_id: int
    max_length: int
    max_new_tokens: int
    batch_size: int
    retrieval_seconds: float = 0.0
    bootstrap_samples: int = 2000
    questions: list[Question] = field(init=False, repr=False)

    primary_metric = "generation/f1"

    def __post_init__(self) -> None:
        passages = [retrieved_passages(hits) for hits in self.hits]
        room = self.max_length - self.max_new_tokens
        self.questions = encode_questions(self.examples, passages, self.prompt, room)
        cut = sum(question.passages_read < len(hits) for question, hits in zip(self.questions, self.hits))
        if cut:
            logger.warning(
                "%s: %d of %d prompts lost retrieved passages to fit into --max_seq_length %d less --max_new_tokens %d",
                self.name,
                cut,
                len(self.questions),
                self.max_length,
                self.max_new_tokens,
            )

    def __call__(self, model: Any, on_answer=lambda done: None) -> Evaluation:
        """Evaluate `model`; `on_answer` is told how many more questions were answered."""
        begin = time.perf_counter()
        generated = generate_greedy(
            model,
            [question.prompt_ids for question in self.questions],
            stop_ids=self.prompt.stop_ids,
            pad_id=self.pad_id,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            on_answer=on_answer,
        )
        seconds = (time.perf_counter() - begin) / len(self.questions)
        predictions = tuple(
            self._score(example, hits, question, answer, seconds)
            for example, hits, question, answer in zip(self.examples, self.hits, self.questions, generated, strict=True)
        )
        return Evaluation(aggregate([p.scores for p in predictions], samples=self.bootstrap_samples), predictions)

    def _score(
        self, example: Example, hits: Sequence[Hit], question: Question, generated: Generated, generation_seconds: float
    ) -> Prediction:
        answer = self.prompt.answer_text(generated.ids)
        ranked = [hit.document.id for hit in hits]
        scores = {
            **generation_scores(answer, example.answer),
            "generation/unfinished": float(not generated.finished),
            "generation/new_tokens": float(len(generated.ids)),
            **retrieval_scores(ranked, {document.id for document in example.gold_documents}, ks=(1, len(hits))),
            # Questions are searched and answered in batches: a question's time is its share of the batch's.
            "latency/retrieval_s": self.retrieval_seconds / len(self.questions),
            "latency/generation_s": generation_seconds,
        }
        return Prediction(
            example=example,
            hits=tuple(hits),
            answer=answer,
            finished=generated.finished,
            passages_read=question.passages_read,
            prompt_tokens=len(question.prompt_ids),
            new_tokens=len(generated.ids),
            scores=scores,
        )
