"""Who writes questions and answers: a model loaded here, or one on an OpenAI-compatible server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from groundtune.endpoint import Endpoint, Messages
from groundtune.files import DataError
from groundtune.schema import Reply

SERVER = "openai:"


class Generator(Protocol):
    """Anything that completes conversations."""

    def complete(self, messages_list: Sequence[Messages], max_tokens: int) -> list[Reply]:
        """One reply for each conversation, in their order; a request that failed is a reply with its `failure`."""


@dataclass
class LocalGenerator:
    """A model in this process: greedy answers by the prompt that our own models read."""

    model: Any
    prompt: Any
    pad_id: int
    batch_size: int = 8

    def complete(self, messages_list: Sequence[Messages], max_tokens: int) -> list[Reply]:
        from groundtune.generation import generate_greedy
        from groundtune.prompt import request_ids

        generated = generate_greedy(
            self.model,
            [request_ids(self.prompt, messages[-1]["content"]) for messages in messages_list],
            stop_ids=self.prompt.stop_ids,
            pad_id=self.pad_id,
            max_new_tokens=max_tokens,
            batch_size=self.batch_size,
        )
        return [Reply(self.prompt.answer_text(one.ids), one.finished) for one in generated]


def load_generator(
    name: str,
    *,
    model: str = "",
    options: str = "",
    concurrency: int = 8,
    requests_per_minute: float = 0.0,
    batch_size: int = 8,
) -> Generator:
    """`name` is a model folder or hub name, or `openai:URL` with `model` as the server calls it.

    `options` are fields for every request to a server, as JSON.

    Raises:
        DataError: it cannot be used as asked for.
    """
    if name.startswith(SERVER):
        endpoint = Endpoint(
            name.removeprefix(SERVER),
            model,
            _object(options),
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
        )
        if problems := endpoint.check("generator"):
            raise DataError(problems)
        return endpoint
    return _load_local(name, batch_size)


def _object(options: str) -> dict[str, Any]:
    try:
        found = json.loads(options or "{}")
        if isinstance(found, dict):
            return found
        problem = "it is no object"
    except ValueError as error:
        problem = str(error)
    raise DataError([f'--generator_options: {options}: {problem}; write a JSON object, as in {{"seed": 1}}'])


def _load_local(name: str, batch_size: int) -> LocalGenerator:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from groundtune.arguments import ModelArguments, PromptArguments
    from groundtune.attention import use_packed_attention
    from groundtune.models import ModelError, computes_bf16, load_model, load_tokenizer
    from groundtune.prompt import make_prompt

    disable_progress_bar()  # it would write into the bar of the questions, which runs already
    arguments = ModelArguments(model_name_or_path=name, dtype="bfloat16" if computes_bf16() else "float32")
    try:
        tokenizer = load_tokenizer(arguments)
        prompt = make_prompt(tokenizer, PromptArguments(instruction=""))
        model = load_model(arguments, bf16=computes_bf16(), stop_ids=prompt.stop_ids, pad_id=tokenizer.pad_token_id)
    except ModelError as error:
        raise DataError([str(error)]) from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = model.to(device).eval().requires_grad_(False)
    use_packed_attention(model, to_train=False)  # where it can: prompts are read without padding then
    return LocalGenerator(model, prompt, tokenizer.pad_token_id, batch_size)
