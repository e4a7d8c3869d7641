"""Text generators: a model in this process, or one on an OpenAI-compatible server."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch

from groundtune.aliases import Model, Tokenizer
from groundtune.errors import ModelError
from groundtune.model.endpoint import Messages
from groundtune.model.generation import Generated, generate_greedy, stream_greedy
from groundtune.model.kv_cache import PassageCache
from groundtune.model.replies import ONLY_THOUGHTS
from groundtune.prompts.prompt import Prompt, request_ids, request_prompt
from groundtune.prompts.thoughts import after_thoughts, outside_thoughts
from groundtune.schema import ASSISTANT, USER, Ended, Reply, Turn, Words

OnDone = Callable[[int], None]


class Writer(Protocol):
    """Anything that completes conversations: an `Endpoint` or a `LocalModel`."""

    def complete(
        self, messages_list: Sequence[Messages], max_tokens: int, *, on_done: OnDone = lambda done: None
    ) -> list[Reply]:
        """One reply per conversation, in order; a failed request gives a reply with its `failure`."""


STILL_THINKING = "only thoughts and no answer; raise --max_new_tokens, or use --thinking drop"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class LocalModel:
    """A model in this process with its tokenizer, ready for conversations."""

    model: Model
    tokenizer: Tokenizer
    bf16: bool
    batch_size: int = 4
    kept: PassageCache = field(default_factory=PassageCache)  # passages of earlier prompts, with block attention

    def complete(
        self, messages_list: Sequence[Messages], max_tokens: int, *, on_done: OnDone = lambda done: None
    ) -> list[Reply]:
        """As `Endpoint.complete`, with this model's chat template; always greedy. No request can fail."""
        prompt = request_prompt(self.tokenizer)
        prompts = [request_ids(prompt, _turns(messages)) for messages in messages_list]
        with computing(self.model, self.bf16):
            generated = generate_greedy(
                self.model, prompts, stop_ids=prompt.stop_ids, pad_id=self.tokenizer.pad_token_id,
                max_new_tokens=max_tokens, batch_size=self.batch_size, on_answer=on_done,
            )  # fmt: skip
        return [_reply(prompt, ids, written) for ids, written in zip(prompts, generated)]

    def stream(self, prompt: Prompt, ids: Sequence[int], max_new_tokens: int, borders: Sequence[int] = ()) -> Words:
        """Stream the text of the greedy answer to `ids`; joined, it is the answer that an evaluation would give.

        `borders` as of `prompts.rows.Question`.

        Raises `ModelError` if it ends inside a thought.
        """
        return spoken(prompt, self._ids(prompt, ids, max_new_tokens, borders))

    def _ids(self, prompt: Prompt, ids: Sequence[int], max_new_tokens: int, borders: Sequence[int]) -> Ids:
        stream = stream_greedy(
            self.model, ids, stop_ids=prompt.stop_ids, max_new_tokens=max_new_tokens, borders=borders, kept=self.kept
        )
        while True:
            try:
                with computing(self.model, self.bf16):  # left before the yield: it must not affect the caller
                    id = next(stream)
            except StopIteration as end:
                return cast(float, end.value)
            yield id


Ids = Generator[int, None, float | None]  # of an answer as they arrive; returns its mean log-probability, if known


def spoken(prompt: Prompt, ids: Ids) -> Words:
    """Stream the text of an answer whose ids arrive one by one.

    Raises `ModelError` if it ends inside a thought.
    """
    new: list[int] = []
    likely: list[float | None] = []
    if (yield from outside_thoughts(_pieces(prompt, _noting_the_end(ids, likely), new))):
        raise ModelError(STILL_THINKING)
    return Ended(bool(new) and new[-1] in prompt.stop_ids, likely[0])


def _noting_the_end(ids: Ids, likely: list[float | None]) -> Iterator[int]:
    likely.append((yield from ids))


def _pieces(prompt: Prompt, ids: Iterable[int], new: list[int]) -> Iterator[str]:
    """The text of the answer as it comes; its tokens are added to `new`."""
    shown, tokenizer = "", prompt.tokens.tokenizer
    for id in ids:
        new.append(id)
        text = prompt.answer_text(new)
        # What the next token may still change waits for it: half of a character of several bytes, a run of the byte
        # tokens that SentencePiece falls back to, a separator that is cut off.
        is_byte = _BYTE_TOKEN.fullmatch(cast(str, tokenizer.convert_ids_to_tokens(id)) or "")
        if text.startswith(shown) and not is_byte and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    if (text := prompt.answer_text(new)).startswith(shown):
        yield text[len(shown) :]


def _reply(prompt: Prompt, ids: Sequence[int], written: Generated) -> Reply:
    """What was said after the thoughts; a reply that ends inside them, or says nothing, has failed."""
    text, inside = after_thoughts(prompt.answer_text(written.ids))
    failure = ONLY_THOUGHTS if inside else "" if text else "an empty reply"
    return Reply(text, written.finished and not inside, len(ids), len(written.ids), failure)


def _turns(messages: Messages) -> list[Turn]:
    """The messages as turns; a system message counts as the start of the user's first turn."""
    return [Turn(ASSISTANT if m["role"] == "assistant" else USER, m["content"]) for m in messages]


@contextmanager
def computing(model: Model, bf16: bool) -> Iterator[None]:
    """Move the model to its device and enter the precision that training evaluates with."""
    with torch.autocast(to_device(model), dtype=torch.bfloat16, enabled=bf16):
        yield


def to_device(model: Model) -> str:
    """Move the model to the GPU if there is one; the type of the device that it is on afterwards."""
    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if model.device.type != kind:
        cast(Any, model).to(kind)  # transformers' wrapper of it loses its type
    return kind
