"""Functions that answer questions: with a model in this process, or one on a server.

Each is a callable `answer(asked, on_done) -> Evaluation`. The evaluator supplies the prompts, the same as in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, cast

from groundtune.aliases import Model, Tokenizer
from groundtune.arguments import OFF, TAUGHT, room_for_prompt
from groundtune.errors import DataError
from groundtune.evaluation.abstention import read_wordings
from groundtune.evaluation.arguments import InferenceArguments
from groundtune.evaluation.evaluator import EndToEndEvaluator, passages_of, score_replies
from groundtune.evaluation.forgetting import Measured, UnrelatedText, measure
from groundtune.evaluation.predictions import Evaluation, evaluation_of
from groundtune.model.endpoint import Endpoint, lasting
from groundtune.model.generators import computing
from groundtune.prompts.policies import kept
from groundtune.prompts.prompt import Prompt, chat_messages, make_prompt, to_continue
from groundtune.prompts.rows import fits
from groundtune.retrieval.opening import index_folder, open_retriever
from groundtune.retrieval.queries import Query, queries_of, too_long_note
from groundtune.retrieval.rewriting import open_rewriter
from groundtune.runs.known_answers import KnownAnswers
from groundtune.schema import Document, Example, Hit

if TYPE_CHECKING:
    from peft import PeftModel

OnDone = Callable[[int], None]


@dataclass(frozen=True)
class Asked:
    """Questions to be answered in one context; `evaluator` holds their prompts if a tokenizer is known."""

    context: str
    examples: Sequence[Example]
    hits: Sequence[tuple[Hit, ...]]
    instruction: str
    max_new_tokens: int
    retrieval_seconds: float
    bootstrap_samples: int
    evaluator: EndToEndEvaluator | None = None
    abstentions: str = ""
    citations: str = OFF

    @property
    def prompted(self) -> EndToEndEvaluator:
        """The evaluator, for who answers prompts; a server that is sent messages needs none."""
        if self.evaluator is None:
            raise ValueError(f"{self.context}: no tokenizer is known here, so there are no prompts")
        return self.evaluator


Answer = Callable[[Asked, OnDone], Evaluation]
Fits = Callable[[str, Example, tuple[Hit, ...]], bool]  # of a context, a question and its hits
Reads = Callable[[Sequence[UnrelatedText], OnDone], Measured]


def read_here(
    model: Model,
    bf16: bool,
    tokenizer: Tokenizer,
    batch_size: int,
    without_adapter: bool = False,
    known: KnownAnswers | None = None,
) -> Reads:
    """Read texts with the model of `answer_here`."""

    def read(texts: Sequence[UnrelatedText], on_done: OnDone) -> Measured:
        with computing(model, bf16), cast("PeftModel", model).disable_adapter() if without_adapter else nullcontext():
            return measure(model, texts, tokenizer, batch_size, known, on_done)

    return read


def answer_here(model: Model, bf16: bool, without_adapter: bool = False, known: KnownAnswers | None = None) -> Answer:
    """Answer with a model in this process, computed as in training's evaluation; `known` are its kept answers."""

    def answer(asked: Asked, on_done: OnDone) -> Evaluation:
        with computing(model, bf16), cast("PeftModel", model).disable_adapter() if without_adapter else nullcontext():
            return asked.prompted(model, on_answer=on_done, known=known)

    return answer


def answer_by_completions(endpoint: Endpoint) -> Answer:
    """Answer with a server that receives the token ids of our own prompts."""
    ask = lasting(endpoint.continue_prompts)

    def answer(asked: Asked, on_done: OnDone) -> Evaluation:
        begin, evaluator = time.perf_counter(), asked.prompted
        replies = ask(
            [question.prompt_ids for question in evaluator.questions],
            asked.max_new_tokens,
            **to_continue(evaluator.prompt),
            on_done=on_done,
        )
        return evaluator.score(replies, time.perf_counter() - begin)

    return answer


def answer_by_chat(endpoint: Endpoint) -> Answer:
    """Answer with a server that receives messages and applies its own chat template.

    Its tokenizer is unknown, so tokens cannot be counted: all passages are sent, and a prompt that is too long for the
    server fails.
    """
    ask = lasting(endpoint.complete)

    def answer(asked: Asked, on_done: OnDone) -> Evaluation:
        begin = time.perf_counter()
        read = [kept(passages) for passages in passages_of(asked.context, asked.examples, asked.hits)]
        messages = [
            chat_messages(asked.instruction, these, example.chat_history, example.question, asked.citations == TAUGHT)
            for these, example in zip(read, asked.examples, strict=True)
        ]
        replies = ask(messages, asked.max_new_tokens, on_done=on_done)
        seconds = time.perf_counter() - begin
        predictions = score_replies(
            asked.examples,
            asked.hits,
            read,
            replies,
            asked.context,
            asked.retrieval_seconds,
            seconds,
            asked.abstentions,
            asked.citations,
        )
        return evaluation_of(predictions, asked.bootstrap_samples)

    return answer


@dataclass(frozen=True)
class Found:
    """The examples to answer, with at least as many hits as a context reads; `ask` makes questions of some of them, and
    `fits` says which would be left out because they are too long."""

    examples: list[Example]
    hits: list[tuple[Hit, ...]]
    fits: Fits
    ask: Callable[[str, list[Example], list[tuple[Hit, ...]]], Asked]


def open_questions(
    arguments: InferenceArguments, examples: list[Example], documents: list[Document], notes: list[str], depth: int = 0
) -> tuple[list[Asked], Found]:
    """The questions of each context with their retrieved passages and, if a tokenizer is known, their prompts; and what
    other questions can be made of, with `depth` hits or more.

    `notes` gets a line about queries that were shortened.

    Raises `DataError` for questions that are too long, `ModelError` if tokenizer or embedding model cannot be loaded.
    """
    tokenizer = None
    if arguments.api != "chat":
        tokenizer = arguments.answering_model().open_tokenizer()
    hits: list[tuple[Hit, ...]] = [()] * len(examples)
    seconds = 0.0
    if arguments.searches:
        queries = _queries(arguments, examples, notes)
        retriever = open_retriever(arguments.retrieval, documents, index_folder(arguments.data))
        begin = time.perf_counter()
        hits = retriever.search(queries, max(depth, arguments.retrieval.eval_num_to_retrieve))
        seconds = time.perf_counter() - begin
        notes += too_long_note(queries, retriever.limit)
    usual = [found[: arguments.retrieval.eval_num_to_retrieve] for found in hits]
    fits_in = _fitting(arguments, tokenizer)
    fitting = [
        i for i, one in enumerate(zip(examples, usual)) if all(fits_in(context, *one) for context in arguments.contexts)
    ]  # so that all contexts have the same questions
    if not fitting:
        raise DataError(["--eval_file: every question is too long; raise --max_seq_length"])
    examples = [examples[i] for i in fitting]
    hits, usual = ([these[i] for i in fitting] for these in (hits, usual))

    def ask(context: str, some: list[Example], their: list[tuple[Hit, ...]]) -> Asked:
        return _asked(arguments, context, some, their, seconds, tokenizer)

    return [ask(context, examples, usual) for context in arguments.contexts], Found(examples, hits, fits_in, ask)


def _queries(arguments: InferenceArguments, examples: list[Example], notes: list[str]) -> list[Query]:
    """The search queries of the examples; `notes` gets a line about those that could not be rewritten."""
    rewriter = open_rewriter(arguments.searching, index_folder(arguments.data))
    if rewriter is None:
        return queries_of(examples, arguments.retrieval.query_history)
    queries = rewriter.queries(examples)
    rewriter.close()
    notes += rewriter.note
    return queries


def _fitting(arguments: InferenceArguments, tokenizer: Tokenizer | None) -> Fits:
    """Whether a prompt fits; with --too_long error all are taken to fit, and asking one that does not is the error."""
    if tokenizer is None or arguments.data.too_long == "error":
        return lambda context, example, hits: True
    room = room_for_prompt(arguments.data.max_seq_length, arguments.evaluation.max_new_tokens)

    @cache
    def prompt_of(context: str) -> Prompt:
        return make_prompt(tokenizer, replace(arguments.prompt, instruction=_instruction(arguments, context)))

    def fits_in(context: str, example: Example, hits: tuple[Hit, ...]) -> bool:
        (passages,) = passages_of(context, [example], [hits])
        return fits(example, passages, prompt_of(context), room, arguments.data.too_long == "shorten")

    return fits_in


def _instruction(arguments: InferenceArguments, context: str) -> str:
    """The instruction that opens a prompt; the usual one mentions passages, which closed_book does not have."""
    return arguments.answers.closed_book_instruction if context == "closed_book" else arguments.prompt.instruction


def _asked(
    arguments: InferenceArguments,
    context: str,
    examples: list[Example],
    hits: list[tuple[Hit, ...]],
    seconds: float,
    tokenizer: Tokenizer | None,
) -> Asked:
    instruction, evaluation = _instruction(arguments, context), arguments.evaluation
    citations = arguments.prompt.citations
    evaluator = None
    read_wordings(evaluation.abstentions)  # before hours of work, if there is a problem
    if tokenizer is not None:
        evaluator = arguments.method.evaluator(
            name=context,
            examples=examples,
            hits=hits,
            prompt=make_prompt(tokenizer, replace(arguments.prompt, instruction=instruction)),
            pad_id=tokenizer.pad_token_id,
            max_length=arguments.data.max_seq_length,
            max_new_tokens=evaluation.max_new_tokens,
            batch_size=arguments.answers.per_device_eval_batch_size,
            retrieval_seconds=seconds,
            bootstrap_samples=evaluation.bootstrap_samples,
            context=context,
            abstentions=evaluation.abstentions,
            shorten=arguments.data.too_long == "shorten",
            passage_cache=evaluation.passage_cache,
            **({} if citations == OFF else {"citations": citations}),
        )
    new, samples = evaluation.max_new_tokens, evaluation.bootstrap_samples
    return Asked(
        context, examples, hits, instruction, new, seconds, samples, evaluator, evaluation.abstentions, citations
    )
