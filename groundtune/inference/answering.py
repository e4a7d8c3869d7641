"""Whatever answers questions: a model in this process, or one on a server.

Each is a callable `answer(asked, on_done) -> Evaluation`: the prompts are the evaluator's, the ones of training.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from groundtune.arguments import PromptArguments
from groundtune.endpoint import Endpoint, Messages, lasting
from groundtune.evaluation import EndToEndEvaluator, passages_of, score_replies
from groundtune.generation import generate_greedy, stream_greedy
from groundtune.predictions import Evaluation, evaluation_of
from groundtune.prompt import Prompt, chat_messages, make_prompt
from groundtune.schema import ASSISTANT, USER, Example, Hit, Reply, Turn

OnDone = Callable[[int], None]
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Asked:
    """Questions to be answered in one context; `evaluator` holds their prompts, where a tokenizer is known here."""

    context: str
    examples: Sequence[Example]
    hits: Sequence[tuple[Hit, ...]]
    instruction: str
    max_new_tokens: int
    retrieval_seconds: float
    bootstrap_samples: int
    evaluator: EndToEndEvaluator | None = None


Answer = Callable[[Asked, OnDone], Evaluation]


def answer_here(model: Any, bf16: bool, without_adapter: bool = False) -> Answer:
    """Answers by a model in this process, computed as training evaluates it."""

    def answer(asked: Asked, on_done: OnDone) -> Evaluation:
        with computing(model, bf16), model.disable_adapter() if without_adapter else nullcontext():
            return asked.evaluator(model, on_answer=on_done)

    return answer


def answer_by_completions(endpoint: Endpoint) -> Answer:
    """Answers by a server that is sent the token ids of our own prompts."""
    ask = lasting(endpoint.continue_prompts)

    def answer(asked: Asked, on_done: OnDone) -> Evaluation:
        begin, evaluator = time.perf_counter(), asked.evaluator
        replies = ask(
            [question.prompt_ids for question in evaluator.questions],
            asked.max_new_tokens,
            stop=evaluator.prompt.stop_texts,
            on_done=on_done,
        )
        return evaluator.score(replies, time.perf_counter() - begin)

    return answer


def answer_by_chat(endpoint: Endpoint) -> Answer:
    """Answers by a server that is sent messages, and writes the prompt by its own template.

    Without its tokenizer nothing is counted here: all passages are sent, and a prompt too long for the server fails.
    """
    ask = lasting(endpoint.complete)

    def answer(asked: Asked, on_done: OnDone) -> Evaluation:
        begin = time.perf_counter()
        read = [passages.all for passages in passages_of(asked.context, asked.examples, asked.hits)]
        messages = [
            chat_messages(asked.instruction, these, example.chat_history, example.question)
            for these, example in zip(read, asked.examples, strict=True)
        ]
        replies = ask(messages, asked.max_new_tokens, on_done=on_done)
        seconds = time.perf_counter() - begin
        predictions = score_replies(
            asked.examples, asked.hits, read, replies, asked.context, asked.retrieval_seconds, seconds
        )
        return evaluation_of(predictions, asked.bootstrap_samples)

    return answer


@dataclass(frozen=True)
class LocalModel:
    """A model in this process with its tokenizer, as something to talk to."""

    model: Any
    tokenizer: Any
    bf16: bool

    def complete(
        self,
        messages_list: Sequence[Messages],
        max_tokens: int,
        *,
        temperature: float = 0.0,
        on_done: OnDone = lambda done: None,
        batch_size: int = 4,
    ) -> list[Reply]:
        """`Endpoint.complete`, by this model and its chat template; always greedy. No request can fail."""
        prompt = make_prompt(self.tokenizer, PromptArguments(instruction=""))
        prompts = [prompt.prompt_ids([], *_conversation(messages)) for messages in messages_list]
        with computing(self.model, self.bf16):
            generated = generate_greedy(
                self.model, prompts, stop_ids=prompt.stop_ids, pad_id=self.tokenizer.pad_token_id,
                max_new_tokens=max_tokens, batch_size=batch_size, on_answer=on_done,
            )  # fmt: skip
        return [
            Reply(prompt.answer_text(g.ids), g.finished, len(ids), len(g.ids)) for ids, g in zip(prompts, generated)
        ]

    def stream(self, prompt: Prompt, ids: Sequence[int], max_new_tokens: int) -> Iterator[str]:
        """The words of the greedy answer to `ids` as they come; together they are what an evaluation would give."""
        new: list[int] = []
        shown = ""
        stream = stream_greedy(self.model, ids, stop_ids=prompt.stop_ids, max_new_tokens=max_new_tokens)
        while True:
            with computing(self.model, self.bf16):  # and not what the caller does between two words
                id = next(stream, None)
            if id is None:
                break
            new.append(id)
            text = prompt.answer_text(new)
            # What the next token may still change waits for it: half of a character of several bytes, a run of the
            # byte tokens that SentencePiece falls back to, a separator that is cut off.
            is_byte = _BYTE_TOKEN.fullmatch(self.tokenizer.convert_ids_to_tokens(id) or "")
            if text.startswith(shown) and not is_byte and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(shown) :]
                shown = text
        if (text := prompt.answer_text(new)).startswith(shown):
            yield text[len(shown) :]


def _conversation(messages: Messages) -> tuple[list[Turn], str]:
    """Chat history and question; a system message is the beginning of the first turn."""
    turns = [Turn(ASSISTANT if m["role"] == "assistant" else USER, m["content"]) for m in messages]
    return turns[:-1], turns[-1].message


@contextmanager
def computing(model: Any, bf16: bool) -> Iterator[None]:
    """On the device and in the precision that training evaluates with."""
    with torch.autocast(to_device(model), dtype=torch.bfloat16, enabled=bf16):
        yield


def to_device(model: Any) -> str:
    """Move the model to this machine's GPU if it has one; the type of the device that it is on then."""
    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if model.device.type != kind:
        model.to(kind)
    return kind
