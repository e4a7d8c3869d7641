"""What writes the answers of a server: a model in this process, whose answers grow side by side, or another server."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from groundtune.aliases import Tokenizer
from groundtune.arguments import PromptArguments, room_for_prompt
from groundtune.errors import DataError
from groundtune.evaluation.arguments import InferenceArguments
from groundtune.model.endpoint import Endpoint
from groundtune.prompts.policies import Passages, retrieved_passages
from groundtune.prompts.prompt import Prompt, make_prompt
from groundtune.prompts.rows import Question
from groundtune.schema import Document, Example, Hit, Sampling, Words
from groundtune.serving.dialogue import by_chat, by_completions, fitted
from groundtune.system.out_of_memory import is_out_of_memory, release

if TYPE_CHECKING:
    from groundtune.model.generation import Decoder, Growing

logger = logging.getLogger(__name__)

TUNED, BASE = "tuned", "base"
_TOO_LITTLE_MEMORY = "not enough memory for this question and its passages; ask a shorter one"


@dataclass(eq=False)
class Writing:
    """One answer: what is asked, and its words as they come. `gone`: nobody waits for it any more."""

    example: Example
    max_new_tokens: int
    instruction: str = ""  # in place of the trained one
    sampling: Sampling | None = None
    gone: bool = False
    read: Sequence[Document] = ()  # the passages in the prompt
    words: Words | None = None
    prompt_ids: list[int] = field(default_factory=list)
    borders: Sequence[int] = ()  # of passages that do not read each other
    sent: int = 0  # new tokens
    logprob: float | None = None  # of all of them, once there are no more
    ids: SimpleQueue[int | Exception | None] = field(default_factory=SimpleQueue)

    def passages(self, hits: Sequence[Hit]) -> Passages:
        return retrieved_passages(self.example, hits)

    def leave(self) -> None:
        """Give the slot back: the asker has hung up."""
        self.gone = True
        self.ids.put(None)

    def arriving(self) -> Generator[int, None, float | None]:
        """The ids of the answer, as they come from the thread that generates them, and their mean log-probability."""
        while (id := self.ids.get()) is not None:
            if isinstance(id, Exception):
                raise id
            yield id
        return self.logprob


class Voice(Protocol):
    """What writes answers. All of it runs in one thread, except for the words of an answer, which the asker reads."""

    @property
    def free(self) -> int:
        """How many more answers can begin."""

    @property
    def busy(self) -> int:
        """How many answers are being written."""

    def begin(self, writing: Writing, hits: Sequence[Hit]) -> None:
        """Write the prompt, and set `read` and `words`; the answer begins with the next step. Raises `DataError`."""

    @property
    def steps(self) -> bool:
        """Whether there is anything to do in `step`."""

    def step(self) -> None:
        """Go on with all answers."""

    def ended(self, writing: Writing) -> None:
        """The asker has all words, or has left."""


class LocalVoice:
    """A model in this process: a finished answer's slot is taken by the next question, as in an evaluation."""

    def __init__(
        self, model: Any, bf16: bool, prompts: Prompts, capacity: int, slots: int, without_adapter: bool = False,
        passage_cache: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.bf16, self.prompts = model, bf16, prompts
        self.capacity, self.slots, self.without_adapter = capacity, slots, without_adapter
        self.passage_cache = passage_cache  # MB
        self.decoder: Decoder | None = None
        self.waiting: deque[Writing] = deque()
        self.running: dict[Growing, Writing] = {}

    @property
    def free(self) -> int:
        return self.slots - len(self.running) - len(self.waiting)

    @property
    def busy(self) -> int:
        return len(self.running) + len(self.waiting)

    def begin(self, writing: Writing, hits: Sequence[Hit]) -> None:
        from groundtune.model.generators import spoken  # here, because it imports torch, which a server does not need

        prompt = self.prompts.of(writing.instruction)
        question = self.prompts.fitted(writing, hits, prompt)
        writing.prompt_ids, writing.borders, writing.read = question.prompt_ids, question.borders, question.read
        writing.words = spoken(prompt, writing.arriving())
        self.waiting.append(writing)

    @property
    def steps(self) -> bool:
        return self.busy > 0

    def step(self) -> None:
        from groundtune.model.generators import computing

        try:
            with computing(self.model, self.bf16), self._adapter():
                self._go_on()
            return
        except Exception as error:
            if not is_out_of_memory(error):
                logger.exception("the model failed")
                self._fail(error)
                return
        self._with_fewer_slots()  # here, because the error holds on to the memory

    def ended(self, writing: Writing) -> None:
        """Nothing to do: a slot is free as soon as the last word is written, or the asker seen to have left."""

    def _adapter(self) -> AbstractContextManager[Any]:
        return self.model.disable_adapter() if self.without_adapter else nullcontext()

    def _go_on(self) -> None:
        from groundtune.model.generation import open_decoder
        from groundtune.model.kv_cache import MB, PassageCache

        if self.decoder is None:
            stop_ids, kept = self.prompts.of("").stop_ids, PassageCache(self.passage_cache * MB)
            self.decoder = open_decoder(self.model, self.slots, self.capacity, stop_ids, kept)
        self._drop_the_gone(self.decoder)
        if self.running:
            self.decoder.step()
            self._deliver(self.decoder)
        while self.waiting and len(self.running) < self.slots:
            if self.waiting[0].gone:
                self.waiting.popleft()
                continue
            # One by one on a CPU, where the first then need not wait for the others; together on a GPU.
            at_once = 1 if self.model.device.type == "cpu" else self.slots - len(self.running)
            new = list(self.waiting)[:at_once]
            prompts, most = [one.prompt_ids for one in new], [one.max_new_tokens for one in new]
            borders, samplings = [one.borders for one in new], [one.sampling for one in new]
            started = self.decoder.start(prompts, most, borders, samplings)
            self.running.update(zip(started, new, strict=True))
            for _ in new:
                self.waiting.popleft()
            self._deliver(self.decoder)

    def _drop_the_gone(self, decoder: Decoder) -> None:
        for growing, writing in list(self.running.items()):
            if writing.gone:
                self._remove(growing, decoder)

    def _deliver(self, decoder: Decoder) -> None:
        for growing, writing in list(self.running.items()):
            for id in growing.new[writing.sent :]:
                writing.ids.put(id)
            writing.sent = max(writing.sent, len(growing.new))
            if growing.done:
                writing.logprob = growing.logprob
                writing.ids.put(None)
                self._remove(growing, decoder)

    def _remove(self, growing: Growing, decoder: Decoder) -> None:
        decoder.leave(growing)
        del self.running[growing]

    def _with_fewer_slots(self) -> None:
        """Begin the running answers again with half as many slots and no kept passages; an answer is the same, and is
        not sent twice."""
        again = [*self.running.values(), *self.waiting]
        self.decoder, self.running, self.passage_cache = None, {}, 0
        release()
        if self.slots == 1:
            again.pop(0).ids.put(DataError([_TOO_LITTLE_MEMORY]))
        else:
            self.slots //= 2
            logger.warning("out of memory: from now on, %d questions are answered side by side", self.slots)
        self.waiting = deque(again)

    def _fail(self, error: Exception) -> None:
        for writing in [*self.running.values(), *self.waiting]:
            writing.ids.put(error)
        self.decoder, self.running, self.waiting = None, {}, deque()


@dataclass
class RemoteVoice:
    """A model on an OpenAI-compatible server, which batches by itself; `ready` prepares one request."""

    ready: Callable[[Writing, Sequence[Hit]], tuple[Sequence[Document], Words]]
    slots: int
    writings: set[Writing] = field(default_factory=set)

    @property
    def free(self) -> int:
        return self.slots - len(self.writings)

    @property
    def busy(self) -> int:
        return len(self.writings)

    def begin(self, writing: Writing, hits: Sequence[Hit]) -> None:
        writing.read, writing.words = self.ready(writing, hits)
        self.writings.add(writing)

    steps = False

    def step(self) -> None:
        """Nothing to do: the askers read from the server."""

    def ended(self, writing: Writing) -> None:
        self.writings.discard(writing)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a tokenizer, by their instruction, with the trained one as the usual one."""

    tokenizer: Tokenizer
    arguments: PromptArguments
    room: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "_of", lru_cache(maxsize=32)(self._made))

    def of(self, instruction: str) -> Prompt:
        prompt: Prompt = self._of(instruction)  # type: ignore[attr-defined]
        return prompt

    def _made(self, instruction: str) -> Prompt:
        if not instruction:
            return make_prompt(self.tokenizer, self.arguments)
        inert = self.of("").tokens.inert(instruction)  # a client's text, which must not begin or end a turn
        return make_prompt(self.tokenizer, replace(self.arguments, instruction=inert))

    def fitted(self, writing: Writing, hits: Sequence[Hit], prompt: Prompt) -> Question:
        return fitted(writing.example, writing.passages(hits), prompt, self.room)


def open_voices(arguments: InferenceArguments) -> dict[str, Voice]:
    """What answers: the model or server of the arguments, and with --with_base the model it was trained from.

    Raises `DataError` or `ModelError` for problems that the user can fix.
    """
    if arguments.api == "chat":
        ready = partial(_by_chat, arguments.generator_endpoint(), arguments.prompt)
        return {TUNED: RemoteVoice(ready, arguments.generator.concurrency)}
    opening = arguments.answering_model()
    new, longest = arguments.evaluation.max_new_tokens, arguments.data.max_seq_length
    tokenizer = opening.open_tokenizer()
    prompts = Prompts(tokenizer, arguments.prompt, room_for_prompt(longest, new))
    if arguments.api == "completions":
        ready = partial(_by_completions, arguments.generator_endpoint(), prompts)
        return {TUNED: RemoteVoice(ready, arguments.generator.concurrency)}
    from groundtune.model.limits import check_positions  # here, because it imports torch

    slots, name = arguments.answers.per_device_eval_batch_size, arguments.model.model_name_or_path
    model = opening.open(prompts.of(""), tokenizer.pad_token_id)
    for note in check_positions(longest, model, name):
        logger.warning(note)
    cache = arguments.evaluation.passage_cache
    voices: dict[str, Voice] = {TUNED: LocalVoice(model, opening.bf16, prompts, longest, slots, passage_cache=cache)}
    if arguments.answers.with_base:
        if not opening.base and not arguments.base:
            problem = "does not name the model it was trained from; name it with --base_model"
            raise DataError([f"--with_base: {name} {problem}"])
        base = model if opening.base else arguments.base_model().open(prompts.of(""), tokenizer.pad_token_id)
        voices[BASE] = LocalVoice(base, opening.bf16, prompts, longest, slots, bool(opening.base), cache)
    return voices


def _by_chat(
    endpoint: Endpoint, flags: PromptArguments, writing: Writing, hits: Sequence[Hit]
) -> tuple[Sequence[Document], Words]:
    flags, passages = replace(flags, instruction=writing.instruction or flags.instruction), writing.passages(hits)
    return by_chat(endpoint, flags, writing.example, passages, writing.max_new_tokens, writing.sampling)


def _by_completions(
    endpoint: Endpoint, prompts: Prompts, writing: Writing, hits: Sequence[Hit]
) -> tuple[Sequence[Document], Words]:
    prompt = prompts.of(writing.instruction)
    question = prompts.fitted(writing, hits, prompt)
    return by_completions(endpoint, prompt, question, writing.max_new_tokens, writing.sampling)
