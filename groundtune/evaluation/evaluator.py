"""End-to-end evaluation: retrieve -> prompt -> generate -> score."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from groundtune.aliases import Model
from groundtune.arguments import OFF, PASSAGE_CACHE, TAUGHT, room_for_prompt
from groundtune.evaluation.abstention import read_wordings, unknown_texts
from groundtune.evaluation.citations import citation_scores, marked
from groundtune.evaluation.metrics import retrieval_scores
from groundtune.evaluation.predictions import Evaluation, evaluation_of, text_scores
from groundtune.evaluation.verdicts import UNFINISHED
from groundtune.model.generation import Generated
from groundtune.model.kv_cache import MB
from groundtune.prompts.policies import CONTEXTS, STUDIED, Passages, draw
from groundtune.prompts.prompt import Prompt
from groundtune.prompts.rows import Question, encode_questions, shortening_note
from groundtune.prompts.thoughts import after_thoughts
from groundtune.runs.known_answers import KnownAnswers, answer_all
from groundtune.schema import Document, Example, Hit, Prediction, Reply
from groundtune.system.processes import in_shares, run_on_main

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class EndToEndEvaluator:
    """Answers the examples' questions from retrieved passages with the model it is called with, and scores the answers.

    Work that does not depend on the model is done once: the retriever is frozen, so `hits` are passed in, and the
    prompts are written on construction. Gold passages are used only for scoring, unless `context` is another of
    `policies.CONTEXTS` or `STUDIED`. Raises `DataError` for a question that leaves no room for an answer of
    `max_new_tokens` within `max_length` (tokens), `shorten` or not (see `prompts.rows.encode_rows`). `passage_cache`
    (MB) is for passages that do not read each other.
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
    bootstrap_samples: int = 10_000
    context: str = "retrieved"
    abstentions: str = ""  # file with more wordings, for `abstention.read_wordings`
    shorten: bool = False
    citations: str = OFF
    passage_cache: int = PASSAGE_CACHE
    passages: list[Passages] = field(init=False, repr=False)
    questions: list[Question] = field(init=False, repr=False)

    primary_metric = "generation/f1"

    def __post_init__(self) -> None:
        read_wordings(self.abstentions)  # before hours of work, if there is a problem
        self.passages = passages_of(self.context, self.examples, self.hits)
        room = room_for_prompt(self.max_length, self.max_new_tokens)
        self.questions = encode_questions(self.examples, self.passages, self.prompt, room, self.shorten)
        if self.note:
            logger.warning(self.note)

    @property
    def note(self) -> str:
        """What the prompts leave out to fit; empty if nothing."""
        return shortening_note(f"{self.name} questions", self.questions)

    def __call__(
        self,
        model: Model,
        on_answer: Callable[[int], None] = lambda done: None,
        in_step: bool = False,
        known: KnownAnswers | None = None,
    ) -> Evaluation:
        """Evaluate `model`; `on_answer` gets the number of questions answered since its last call.

        Each of several processes answers its share of the questions, and all get the full evaluation. `in_step`: each
        process holds only a part of the model, so all answer every question together. `known` are the model's kept
        answers; they count with the time that they once took.
        """
        begin, before = time.perf_counter(), known.seconds if known else 0.0
        answer, n = partial(self._answer, model, on_answer, known), len(self.questions)
        generated = answer(range(n)) if in_step else in_shares(n, answer)
        seconds = run_on_main(lambda: time.perf_counter() - begin + (known.seconds - before if known else 0.0))
        return self.score([self._reply(q, g) for q, g in zip(self.questions, generated)], seconds)

    def missing(self, model: Model, known: KnownAnswers) -> dict[str, int]:
        """What `model` has yet to answer, as `KnownAnswers.missing`; call it under the precision that it answers in."""
        return known.missing(model, batch_size=self.batch_size, **self._asked(range(len(self.questions))))

    def _asked(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What shapes the answers to these questions, as arguments of `answer_all`."""
        return {
            "prompts": [self.questions[i].prompt_ids for i in numbers],
            "borders": [self.questions[i].borders for i in numbers],
            "passage_cache": self.passage_cache * MB,
            "stop_ids": self.prompt.stop_ids,
            "pad_id": self.pad_id,
            "max_new_tokens": self.max_new_tokens,
        }

    def _answer(
        self, model: Model, on_answer: Callable[[int], None], known: KnownAnswers | None, numbers: Sequence[int]
    ) -> list[Generated]:
        return answer_all(
            model,
            **self._asked(numbers),
            known=known,
            batch_size=self.batch_size,
            on_answer=on_answer,
            on_fewer=partial(setattr, self, "batch_size"),
            sources=[self.examples[i].source for i in numbers],
        )

    def score(self, replies: Sequence[Reply], seconds: float) -> Evaluation:
        """The evaluation of replies to the evaluator's questions, in order; generating them took `seconds` in all."""
        return evaluation_of(self.predictions(replies, seconds), self.bootstrap_samples)

    def predictions(self, replies: Sequence[Reply], seconds: float) -> list[Prediction]:
        """The scored predictions behind `score`, one per question."""
        read = [question.read for question in self.questions]
        return score_replies(
            self.examples, self.hits, read, replies, self.context, self.retrieval_seconds, seconds, self.abstentions,
            self.citations,
        )  # fmt: skip

    def _reply(self, question: Question, generated: Generated) -> Reply:
        text, inside_thoughts = after_thoughts(self.prompt.answer_text(generated.ids))
        finished = generated.finished and not inside_thoughts
        return Reply(text, finished, len(question.prompt_ids), len(generated.ids), logprob=generated.logprob)


def passages_of(context: str, examples: Sequence[Example], hits: Sequence[Sequence[Hit]]) -> list[Passages]:
    """The passages that each example's question is answered from, in a context of `policies.CONTEXTS` or `STUDIED`."""
    policy = (CONTEXTS | STUDIED)[context]
    return [policy(example, found, draw(0, 0, example.question)) for example, found in zip(examples, hits, strict=True)]


def score_replies(
    examples: Sequence[Example],
    hits: Sequence[Sequence[Hit]],
    read: Sequence[Sequence[Document]],
    replies: Sequence[Reply],
    context: str,
    retrieval_seconds: float,
    generation_seconds: float,
    abstentions: str = "",
    citations: str = OFF,
) -> list[Prediction]:
    """Scored predictions, whatever generated the replies; all sequences are in the order of the examples.

    A failed reply gets retrieval scores only. Questions are searched and answered in batches, so the time of one is its
    share of `retrieval_seconds` and `generation_seconds`.
    """
    n, unknown = len(examples), unknown_texts(examples)
    cited = [
        marked(reply.text, these, citations)
        if not reply.failure and (citations == TAUGHT or (citations != OFF and these))
        else None
        for reply, these in zip(replies, read, strict=True)
    ]
    replies = [replace(reply, text=found.answer) if found else reply for reply, found in zip(replies, cited)]
    k = max([1, *map(len, hits)])  # a search by words may find fewer for some questions
    return [
        Prediction(
            example=example,
            hits=tuple(found),
            answer=reply.text,
            finished=reply.finished,
            passages_read=len(passages),
            prompt_tokens=reply.prompt_tokens,
            new_tokens=reply.new_tokens,
            scores={
                **(_retrieval(example, found, k, retrieval_seconds / n) if context == "retrieved" else {}),
                **_generation(example, passages, reply, generation_seconds / n, unknown, abstentions),
                **(citation_scores(marks, example, passages) if marks else {}),
            },
            context=context,
            read=tuple(passages),
            failure=reply.failure,
            logprob=reply.logprob,
            cited=marks.marked if marks else "",
        )
        for example, found, passages, reply, marks in zip(examples, hits, read, replies, cited, strict=True)
    ]


def _retrieval(example: Example, hits: Sequence[Hit], k: int, seconds: float) -> dict[str, float]:
    seconds_of_one = {"latency/retrieval_s": seconds}
    if not example.has_evidence:  # there is nothing to find
        return seconds_of_one
    ranked, gold = [hit.document.id for hit in hits], {document.id for document in example.gold_documents}
    return {**retrieval_scores(ranked, gold, ks=(1, k)), **seconds_of_one}


def _generation(
    example: Example, read: Sequence[Document], reply: Reply, seconds: float, unknown: frozenset[str], abstentions: str
) -> dict[str, float]:
    if reply.failure:
        return {}
    return {
        **text_scores(example, read, reply.text, unknown, abstentions),
        UNFINISHED: float(not reply.finished),
        **({} if reply.new_tokens is None else {"generation/new_tokens": float(reply.new_tokens)}),
        "latency/generation_s": seconds,
    }


def read_evaluation(path: str | os.PathLike[str], evaluator: EndToEndEvaluator) -> Evaluation | None:
    """The evaluation that `write_predictions` wrote; None if its questions are not those of `evaluator`.

    Raises OSError, ValueError or KeyError if the file is missing or not of that kind.
    """
    rows = [json.loads(line) for line in Path(path).read_text("utf-8").split("\n") if line]
    if [row["question"] for row in rows] != [example.question for example in evaluator.examples]:
        return None
    predictions = [
        Prediction(
            example=example,
            hits=tuple(hits),
            scores={name: math.nan if score is None else score for name, score in row["scores"].items()},
            context=evaluator.context,
            read=question.read,
            logprob=row.get("logprob"),
            cited=row.get("cited", ""),
            **{name: row[name] for name in ("answer", "finished", "passages_read", "prompt_tokens", "new_tokens")},
        )
        for example, hits, question, row in zip(
            evaluator.examples, evaluator.hits, evaluator.questions, rows, strict=True
        )
    ]
    return evaluation_of(predictions, evaluator.bootstrap_samples)


def spread(examples: list[T], at_most: int) -> list[T]:
    """At most `at_most` examples (0: all), spread evenly over the file: neighbours are often about the same passage."""
    if not 0 < at_most < len(examples):
        return examples
    return [examples[i * len(examples) // at_most] for i in range(at_most)]
