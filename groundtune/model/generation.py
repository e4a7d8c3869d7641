"""Greedy generation with continuous batching: a finished row's slot is refilled with the next prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Protocol

import torch

from groundtune.aliases import Model
from groundtune.model.attention import attends_by_layout
from groundtune.model.continuing import FromCache, FromStart, exact_batch_size, read
from groundtune.model.head import head_reads_only
from groundtune.model.kv_cache import Decoding, KVCache, PassageCache
from groundtune.model.limits import check_vocabulary
from groundtune.model.lookup import Lookup
from groundtune.model.packing import model_inputs, pack, prefix_groups
from groundtune.schema import Sampling
from groundtune.system.out_of_memory import MicroBatch, halve_on_oom

_PREFILL_TOKENS = 8192  # prompt tokens per forward pass; more only takes more memory
Draw = Callable[[torch.Tensor], int]  # logits (vocabulary,) -> a token
_GUESSED = 5  # tokens; with more, wrong guesses cost as much as right ones save


@dataclass(frozen=True)
class Generated:
    """New ids for one prompt (including the stop token), and whether the model stopped by itself.

    `logprob` is the mean log-probability of the ids: how likely the model itself finds its answer.
    """

    ids: list[int]
    finished: bool
    logprob: float | None = None


@torch.no_grad()
def generate_greedy(
    model: Model,
    prompts: Sequence[list[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
    on_answer: Callable[[int], None] = lambda done: None,
    on_fewer: Callable[[int], None] = lambda batch_size: None,
    sources: Sequence[str] = (),
    borders: Sequence[Sequence[int]] = (),
    kept: PassageCache | None = None,
) -> list[Generated]:
    """Greedy completion of each prompt, in the order given; up to `batch_size` are generated at the same time.

    The model's own generation settings (sampling, penalties) are ignored: an evaluation must be repeatable.
    `on_answer` is called with the number of prompts finished since its last call. When memory runs out, the remaining
    prompts run at half the batch size, passages are no longer kept, and `on_fewer` gets the new size. Raises
    `OutOfMemory` if a single prompt does not fit; `sources` names the prompts in its message. `borders` are those of
    passages that do not read each other, as in `packing.pack`, and `kept` holds such passages; only a model with packed
    attention can do that.
    """
    check_vocabulary([*prompts, [pad_id]], model)
    was_training = model.training
    model.eval()
    packed = attends_by_layout(model)
    if any(borders) and not packed:
        raise ValueError("block attention needs packed attention")
    generated: dict[int, Generated] = {}
    batch = MicroBatch("--per_device_eval_batch_size", batch_size, unchanged="every answer stays")

    def left() -> list[int]:
        return [i for i in range(len(prompts)) if i not in generated]

    def answer_the_rest() -> None:
        if kept is not None and batch.size < batch_size:
            kept.close()
        these = left()
        fewer = [prompts[i] for i in these]
        stops, size, cuts = set(stop_ids), batch.size, [borders[i] for i in these] if borders else []
        answered = (
            _generate_packed(model, fewer, stops, max_new_tokens, size, cuts, kept)
            if packed
            else _generate_by_rows(model, fewer, stops, pad_id, max_new_tokens, size)
        )
        for i, answer in answered:
            generated[these[i]] = Generated(answer.new, answer.finished, answer.logprob)
            on_answer(1)

    def too_much(batch: MicroBatch) -> str:
        longest = max(left(), key=lambda i: len(prompts[i]))
        name = f"{sources[longest]}: " if sources else ""
        return (
            f"{name}a prompt of {len(prompts[longest]):,} tokens, the longest one left, does not fit into memory with "
            "its answer. Lower --max_seq_length, --eval_num_to_retrieve or --max_new_tokens"
        )

    try:
        halve_on_oom(batch, answer_the_rest, too_much)
    finally:
        model.train(was_training)
    if batch.size < batch_size:
        on_fewer(batch.size)
    return [generated[i] for i in range(len(prompts))]


def stream_greedy(
    model: Model, prompt: Sequence[int], *, stop_ids: Sequence[int], max_new_tokens: int,
    borders: Sequence[int] = (), kept: PassageCache | None = None,
) -> Generator[int, None, float]:  # fmt: skip
    """Stream the ids that `generate_greedy` gives for one prompt, and return their mean log-probability.

    The model must be in evaluation mode.
    """
    check_vocabulary([prompt], model)
    decoder = open_decoder(model, 1, len(prompt) + max_new_tokens, stop_ids, kept)
    (sequence,) = decoder.start([prompt], [max_new_tokens], [borders])
    shown = 0
    while True:
        yield from sequence.new[shown:]
        if sequence.done:
            return sequence.logprob
        shown = len(sequence.new)
        decoder.step()


class Growing:
    """A prompt and its answer so far, whose next token is the most likely one or, if there is `draw`, a drawn one."""

    def __init__(
        self, prompt: Sequence[int], stop_ids: Collection[int], max_new_tokens: int, sampling: Sampling | None = None
    ):
        self.lookup, self.stop_ids, self.max_new_tokens = Lookup(prompt), stop_ids, max_new_tokens
        self.draw = _drawing(sampling) if sampling else None
        self.new: list[int] = []
        self.logprobs: list[float] = []

    def guess(self) -> Sequence[int]:
        """Guessed next tokens, at most as many as leave room for one more; none where tokens are drawn."""
        if self.draw:
            return []
        return self.lookup.guess(min(_GUESSED, self.max_new_tokens - len(self.new) - 1))

    def add(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Append `ids` until the answer stops."""
        end = next((j + 1 for j, id in enumerate(ids) if id in self.stop_ids), len(ids))
        self.new += ids[:end]
        self.logprobs += logprobs[:end]
        self.lookup.extend(ids[:end])

    @property
    def finished(self) -> bool:
        return self.new[-1] in self.stop_ids

    @property
    def logprob(self) -> float:
        """The mean log-probability of the new tokens, rounded: the last digits depend on what else is in the batch."""
        return round(sum(self.logprobs) / len(self.logprobs), 3)

    @property
    def done(self) -> bool:
        return self.finished or len(self.new) == self.max_new_tokens


Samplings = Sequence[Sampling | None]


class Decoder(Protocol):
    """Answers that grow side by side; each takes a free slot and can leave it at any time."""

    def start(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], borders: Sequence[Sequence[int]] = (),
        samplings: Samplings = (),
    ) -> list[Growing]:  # fmt: skip
        """Read the prompts, at most as many as slots are free; each answer has its first token then.

        `borders` as of `packing.pack`. Without `samplings`, or where one is None, tokens are the most likely ones.
        Raises `ValueError` for borders of a model without packed attention.
        """

    def step(self) -> None:
        """Extend every answer by at least one token; answers that are `done` must have left."""

    def leave(self, growing: Growing) -> None:
        """Free the slot of an answer."""


def open_decoder(
    model: Model, slots: int, capacity: int, stop_ids: Collection[int], kept: PassageCache | None = None
) -> Decoder:
    """A decoder for prompts that have at most `capacity` tokens with their answers; it looks passages up in `kept`."""
    if attends_by_layout(model):
        return PackedDecoder(model, slots, capacity, set(stop_ids), kept)
    return RowDecoder(model, set(stop_ids))


class PackedDecoder:
    """Prompts are read without padding, and shared prefixes once; each step adds the guessed tokens that were right and
    one more."""

    def __init__(
        self, model: Model, slots: int, capacity: int, stop_ids: Collection[int], kept: PassageCache | None = None
    ):
        self.model, self.stop_ids, self.kept = model, stop_ids, kept
        self.cache = KVCache(slots, capacity)
        self.running: list[Growing] = []  # the i-th is in slot i

    @torch.no_grad()
    def start(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], borders: Sequence[Sequence[int]] = (),
        samplings: Samplings = (),
    ) -> list[Growing]:  # fmt: skip
        begin, samplings = len(self.running), samplings or [None] * len(prompts)
        for part in _prefilled_together(prompts):
            these, cuts = [prompts[i] for i in part], [borders[i] for i in part] if borders else []
            logits = _read(self.model, these, self.cache, len(self.running), cuts, self.kept)
            new = [Growing(prompts[i], self.stop_ids, max_new_tokens[i], samplings[i]) for i in part]
            _add_next(new, logits)
            self.running += new
        return self.running[begin:]

    @torch.no_grad()
    def step(self) -> None:
        _step(self.model, self.running, self.cache)

    def leave(self, growing: Growing) -> None:
        slot = self.running.index(growing)
        # Move the last sequence into the gap, so that the running ones always occupy the first slots.
        last = self.running.pop()
        if slot < len(self.running):
            self.cache.move(len(self.running), slot)
            self.running[slot] = last


class RowDecoder:
    """As `PackedDecoder`, for a model without packed attention: every answer has a cache of its own."""

    def __init__(self, model: Model, stop_ids: Collection[int]):
        self.model, self.stop_ids = model, stop_ids
        self.running: list[Growing] = []
        self._rows: list[FromCache | FromStart] = []

    @torch.no_grad()
    def start(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], borders: Sequence[Sequence[int]] = (),
        samplings: Samplings = (),
    ) -> list[Growing]:  # fmt: skip
        if any(borders):
            raise ValueError("block attention needs packed attention")
        begin, samplings = len(self.running), samplings or [None] * len(prompts)
        for prompt, most, sampling in zip(prompts, max_new_tokens, samplings, strict=True):
            row = read(self.model, [prompt], pad_id=0)
            self._rows.append(row)
            self.running.append(Growing(prompt, self.stop_ids, most, sampling))
            _add_next(self.running[-1:], row.logits())
        return self.running[begin:]

    @torch.no_grad()
    def step(self) -> None:
        for growing, row in zip(self.running, self._rows, strict=True):
            row.go_on([0], [growing.new[-1]])
            _add_next([growing], row.logits())

    def leave(self, growing: Growing) -> None:
        slot = self.running.index(growing)
        del self.running[slot], self._rows[slot]


def _generate_packed(
    model: Model, prompts: Sequence[list[int]], stop_ids: set[int], max_new_tokens: int, batch_size: int,
    borders: Sequence[Sequence[int]], kept: PassageCache | None,
) -> Iterator[tuple[int, Growing]]:  # fmt: skip
    """Yield the number and answer of each prompt as it finishes; its slot goes to the next prompt."""
    waiting = deque(_in_order(prompts))
    slots = min(batch_size, len(prompts))
    decoder = PackedDecoder(model, slots, max(map(len, prompts), default=0) + max_new_tokens, stop_ids, kept)
    numbers: dict[Growing, int] = {}
    while waiting or decoder.running:
        # A CPU gains nothing from several prompts; waiting for a quarter of the slots spares a GPU small steps.
        if waiting and len(decoder.running) <= slots * 3 // 4:
            new = [waiting.popleft() for _ in range(min(slots - len(decoder.running), len(waiting)))]
            cuts = [borders[i] for i in new] if borders else []
            started = decoder.start([prompts[i] for i in new], [max_new_tokens] * len(new), cuts)
            numbers.update(zip(started, new, strict=True))
        else:
            decoder.step()
        for growing in [growing for growing in decoder.running if growing.done]:
            decoder.leave(growing)
            yield numbers.pop(growing), growing


def _in_order(prompts: Sequence[list[int]]) -> list[int]:
    """Longest first, so that memory runs out immediately or not at all; prompts with a common prefix side by side."""
    groups = [sorted(group, key=lambda i: -len(prompts[i])) for group in prefix_groups(prompts)]
    return [i for group in sorted(groups, key=lambda group: -len(prompts[group[0]])) for i in group]


def _prefilled_together(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The prompts' numbers in parts of at most `_PREFILL_TOKENS` tokens; a longer prompt forms its own part."""
    part: list[int] = []
    for i in range(len(prompts)):
        if part and sum(len(prompts[j]) for j in [*part, i]) > _PREFILL_TOKENS:
            yield part
            part = []
        part.append(i)
    yield part


def _read(
    model: Model, prompts: Sequence[Sequence[int]], cache: KVCache, slot: int, borders: Sequence[Sequence[int]] = (),
    kept: PassageCache | None = None,
) -> torch.Tensor:  # fmt: skip
    """Prefill the slots from `slot` with the prompts' keys and values; the logits after each (prompts, vocabulary).

    The passages that were read for it are `kept`.
    """
    packing = pack(prompts, [len(prompt) - 1 for prompt in prompts], borders, kept)
    slots: list[int | None] = [None] * len(packing.segments)
    for i, end in enumerate(packing.ends):
        slots[end] = slot + i
    inputs = packing.inputs(model.device, cache=cache, slots=slots)
    keep = torch.zeros(1, len(packing.ids), dtype=torch.bool, device=model.device)
    keep[0, packing.last] = True
    with head_reads_only(keep, model.get_output_embeddings()):
        logits = model(**inputs, use_cache=False).logits
    if kept is not None:
        kept.add_all(packing.blocks)
    # The head's outputs are in the order of the packed row, not of the prompts.
    row_order = sorted(range(len(prompts)), key=packing.last.__getitem__)
    return logits.reshape(len(prompts), -1)[torch.tensor(row_order).argsort()]


def _add_next(sequences: Sequence[Growing], logits: torch.Tensor) -> None:
    """Extend each sequence by the token that its row of logits gives."""
    logits = logits.reshape(len(sequences), -1).float()
    ids = _drawn(logits.argmax(dim=-1), logits, sequences, range(len(sequences)))
    for sequence, id, logprob in zip(sequences, ids.tolist(), _logprobs(logits, ids)):
        sequence.add([id], [logprob])


def _drawn(ids: torch.Tensor, logits: torch.Tensor, sequences: Sequence[Growing], rows: Iterable[int]) -> torch.Tensor:
    """`ids`, with those of sequences that draw their tokens replaced; `rows` says where their logits are."""
    for sequence, row in zip(sequences, rows):
        if sequence.draw:
            ids[row] = sequence.draw(logits[row])
    return ids


def _drawing(sampling: Sampling) -> Draw:
    """Draws one token after the other; on the CPU, so that a seed draws the same on every device."""
    generator = torch.Generator().manual_seed(sampling.seed)

    def draw(logits: torch.Tensor) -> int:
        likely = (logits.float().cpu() / sampling.temperature).softmax(dim=-1)
        return int(torch.multinomial(likely, 1, generator=generator))

    return draw


def _logprobs(logits: torch.Tensor, ids: torch.Tensor) -> list[float]:
    """The log-probability of `ids[i]` in row i of `logits`.

    `logits` are float32: over a vocabulary of 262,144, argmax and softmax of bfloat16 take six times as long on a CPU.
    """
    found: list[float] = logits.log_softmax(dim=-1).gather(-1, ids[:, None])[:, 0].tolist()
    return found


def _step(model: Model, sequences: Sequence[Growing], cache: KVCache) -> None:
    """Extend each sequence (the i-th is in slot i) by the guessed tokens that the model confirms, and by one more.

    Where tokens are drawn, nothing was guessed, and one is added.
    """
    guesses = [sequence.guess() for sequence in sequences]
    new = [[sequence.new[-1], *guess] for sequence, guess in zip(sequences, guesses)]
    lengths = [len(sequence.lookup.ids) - 1 for sequence in sequences]
    layout = Decoding(cache, lengths, [len(ids) for ids in new], model.device)
    row = torch.tensor([[id for ids in new for id in ids]], device=model.device)
    logits = model(**model_inputs(row, layout.positions[None], layout), use_cache=False).logits[0].float()
    starts = list(accumulate(layout.counts, initial=0))
    ids = _drawn(logits.argmax(dim=-1), logits, sequences, starts)
    chosen = [after.tolist() for after in ids.cpu().split(layout.counts)]
    # chosen[i][j] is the model's choice after guesses[i][:j]
    right = [after[: _agreeing(guess, after) + 1] for guess, after in zip(guesses, chosen)]
    kept = [start + j for start, agreed in zip(starts, right) for j in range(len(agreed))]
    logprobs = iter(_logprobs(logits[kept], ids[kept]))  # of these alone: over a large vocabulary it takes time
    for sequence, agreed in zip(sequences, right):
        sequence.add(agreed, list(islice(logprobs, len(agreed))))


def _agreeing(guess: Sequence[int], after: Sequence[int]) -> int:
    """How many of the guessed tokens are the model's own choices."""
    return next((j for j, id in enumerate(guess) if id != after[j]), len(guess))


def _generate_by_rows(
    model: Model, prompts: Sequence[list[int]], stop_ids: set[int], pad_id: int, max_new_tokens: int, batch_size: int
) -> Iterator[tuple[int, Growing]]:
    """As `_generate_packed`, for a model without packed attention: batches that shrink as rows finish."""
    size = exact_batch_size(model, batch_size)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        answers = _generate_batch(model, [prompts[i] for i in batch], stop_ids, pad_id, max_new_tokens)
        yield from zip(batch, answers)


def _generate_batch(
    model: Model, prompts: Sequence[Sequence[int]], stop_ids: set[int], pad_id: int, max_new_tokens: int
) -> list[Growing]:
    answers = running = [Growing(prompt, stop_ids, max_new_tokens) for prompt in prompts]
    rows = read(model, prompts, pad_id)
    while True:
        _add_next(running, rows.logits())
        going_on = [i for i, growing in enumerate(running) if not growing.done]
        if not going_on:
            return answers
        running = [running[i] for i in going_on]
        rows.go_on(going_on, [growing.new[-1] for growing in running])
