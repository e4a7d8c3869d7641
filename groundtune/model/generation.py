"""Greedy generation with continuous batching: a finished row's slot is refilled with the next prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
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
from groundtune.system.out_of_memory import MicroBatch, halve_on_oom

_PREFILL_TOKENS = 8192  # prompt tokens per forward pass; more only takes more memory
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
        given = (model, fewer, set(stop_ids), pad_id, max_new_tokens, batch.size)
        cuts = [borders[i] for i in these] if borders else []
        for i, answer in _generate_packed(*given, cuts, kept) if packed else _generate_by_rows(*given):
            generated[these[i]] = answer
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
) -> Iterator[int]:  # fmt: skip
    """Stream the ids that `generate_greedy` gives for one prompt. The model must be in evaluation mode."""
    check_vocabulary([prompt], model)
    decoder = open_decoder(model, 1, len(prompt) + max_new_tokens, stop_ids, kept)
    (sequence,) = decoder.start([prompt], [max_new_tokens], [borders])
    shown = 0
    while True:
        yield from sequence.new[shown:]
        if sequence.done:
            return
        shown = len(sequence.new)
        decoder.step()


class Growing:
    """A prompt and its answer so far; `first` is a token with its log-probability."""

    def __init__(self, prompt: Sequence[int], first: tuple[int, float], stop_ids: Collection[int], max_new_tokens: int):
        self.lookup, self.stop_ids, self.max_new_tokens = Lookup(prompt), stop_ids, max_new_tokens
        self.new: list[int] = []
        self.logprobs: list[float] = []
        self.add([first[0]], [first[1]])

    def guess(self) -> Sequence[int]:
        """Guessed next tokens, at most as many as leave room for one more."""
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
    def done(self) -> bool:
        return self.finished or len(self.new) == self.max_new_tokens


class Decoder(Protocol):
    """Answers that grow side by side, up to `slots` of them; each takes a free slot and can leave it at any time."""

    slots: int
    running: list[Growing]

    def start(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], borders: Sequence[Sequence[int]] = ()
    ) -> list[Growing]:
        """Read the prompts, at most as many as slots are free; each answer has its first token then.

        `borders` as of `packing.pack`. Raises `ValueError` for those of a model without packed attention.
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
    return RowDecoder(model, slots, capacity, set(stop_ids))


class PackedDecoder:
    """Prompts are read without padding, and shared prefixes once; each step adds the guessed tokens that were right and
    one more."""

    def __init__(
        self, model: Model, slots: int, capacity: int, stop_ids: Collection[int], kept: PassageCache | None = None
    ):
        self.model, self.slots, self.stop_ids, self.kept = model, slots, stop_ids, kept
        self.cache = KVCache(slots, capacity)
        self.running: list[Growing] = []  # the i-th is in slot i

    @torch.no_grad()
    def start(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], borders: Sequence[Sequence[int]] = ()
    ) -> list[Growing]:
        begin = len(self.running)
        for part in _up_to_tokens(range(len(prompts)), prompts, _PREFILL_TOKENS):
            these, cuts = [prompts[i] for i in part], [borders[i] for i in part] if borders else []
            first = _read(self.model, these, self.cache, len(self.running), cuts, self.kept)
            self.running += [
                Growing(prompts[i], id, self.stop_ids, max_new_tokens[i]) for i, id in zip(part, first, strict=True)
            ]
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

    def __init__(self, model: Model, slots: int, capacity: int, stop_ids: Collection[int]):
        self.model, self.slots, self.stop_ids = model, slots, stop_ids
        self.running: list[Growing] = []
        self._rows: list[FromCache | FromStart] = []

    @torch.no_grad()
    def start(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], borders: Sequence[Sequence[int]] = ()
    ) -> list[Growing]:
        if any(borders):
            raise ValueError("block attention needs packed attention")
        begin = len(self.running)
        for prompt, most in zip(prompts, max_new_tokens, strict=True):
            row = read(self.model, [prompt], pad_id=0)
            self._rows.append(row)
            (first,) = _likeliest(row.logits().reshape(1, -1))
            self.running.append(Growing(prompt, first, self.stop_ids, most))
        return self.running[begin:]

    @torch.no_grad()
    def step(self) -> None:
        for growing, row in zip(self.running, self._rows, strict=True):
            row.go_on([0], [growing.new[-1]])
            ((id, logprob),) = _likeliest(row.logits().reshape(1, -1))
            growing.add([id], [logprob])

    def leave(self, growing: Growing) -> None:
        slot = self.running.index(growing)
        del self.running[slot], self._rows[slot]


def _generate_packed(
    model: Model, prompts: Sequence[list[int]], stop_ids: set[int], pad_id: int, max_new_tokens: int, batch_size: int,
    borders: Sequence[Sequence[int]] = (), kept: PassageCache | None = None,
) -> Iterator[tuple[int, Generated]]:  # fmt: skip
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
            yield numbers.pop(growing), Generated(growing.new, growing.finished, _mean(growing.logprobs))


def _in_order(prompts: Sequence[list[int]]) -> list[int]:
    """Longest first, so that memory runs out immediately or not at all; prompts with a common prefix side by side."""
    groups = [sorted(group, key=lambda i: -len(prompts[i])) for group in prefix_groups(prompts)]
    return [i for group in sorted(groups, key=lambda group: -len(prompts[group[0]])) for i in group]


def _up_to_tokens(members: Sequence[int], prompts: Sequence[Sequence[int]], at_most: int) -> Iterator[list[int]]:
    """Split `members` into parts of at most `at_most` tokens; a longer prompt forms its own part."""
    part: list[int] = []
    for i in members:
        if part and sum(len(prompts[j]) for j in [*part, i]) > at_most:
            yield part
            part = []
        part.append(i)
    yield part


def _read(
    model: Model, prompts: Sequence[Sequence[int]], cache: KVCache, slot: int, borders: Sequence[Sequence[int]] = (),
    kept: PassageCache | None = None,
) -> list[tuple[int, float]]:  # fmt: skip
    """Prefill the slots from `slot` with the prompts' keys and values; each answer's first token, with its
    log-probability. The passages that were read for it are `kept`."""
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
    first = dict(zip(row_order, _likeliest(logits.reshape(len(prompts), -1))))
    return [first[i] for i in range(len(prompts))]


def _likeliest(logits: torch.Tensor) -> list[tuple[int, float]]:
    """The most likely token of each row of `logits`, with its log-probability."""
    logits = logits.float()
    ids = logits.argmax(dim=-1)
    return list(zip(ids.tolist(), _logprobs(logits, ids)))


def _logprobs(logits: torch.Tensor, ids: torch.Tensor) -> list[float]:
    """The log-probability of `ids[i]` in row i of `logits`.

    `logits` are float32: over a vocabulary of 262,144, argmax and softmax of bfloat16 take six times as long on a CPU.
    """
    found: list[float] = logits.log_softmax(dim=-1).gather(-1, ids[:, None])[:, 0].tolist()
    return found


def _mean(values: Sequence[float]) -> float:
    """Rounded, because the last digits depend on what else is in the batch."""
    return round(sum(values) / len(values), 3)


def _step(model: Model, sequences: Sequence[Growing], cache: KVCache) -> None:
    """Extend each sequence (the i-th is in slot i) by the guessed tokens that the model confirms, and by one more."""
    guesses = [sequence.guess() for sequence in sequences]
    new = [[sequence.new[-1], *guess] for sequence, guess in zip(sequences, guesses)]
    lengths = [len(sequence.lookup.ids) - 1 for sequence in sequences]
    layout = Decoding(cache, lengths, [len(ids) for ids in new], model.device)
    row = torch.tensor([[id for ids in new for id in ids]], device=model.device)
    logits = model(**model_inputs(row, layout.positions[None], layout), use_cache=False).logits[0].float()
    ids = logits.argmax(dim=-1)
    chosen = [after.tolist() for after in ids.cpu().split(layout.counts)]
    # chosen[i][j] is the model's choice after guesses[i][:j]
    right = [after[: _agreeing(guess, after) + 1] for guess, after in zip(guesses, chosen)]
    starts = accumulate(layout.counts, initial=0)
    kept = [start + j for start, agreed in zip(starts, right) for j in range(len(agreed))]
    logprobs = iter(_logprobs(logits[kept], ids[kept]))  # of these alone: over a large vocabulary it takes time
    for sequence, agreed in zip(sequences, right):
        sequence.add(agreed, list(islice(logprobs, len(agreed))))


def _agreeing(guess: Sequence[int], after: Sequence[int]) -> int:
    """How many of the guessed tokens are the model's own choices."""
    return next((j for j, id in enumerate(guess) if id != after[j]), len(guess))


def _generate_by_rows(
    model: Model, prompts: Sequence[list[int]], stop_ids: set[int], pad_id: int, max_new_tokens: int, batch_size: int
) -> Iterator[tuple[int, Generated]]:
    """As `_generate_packed`, for a model without packed attention: batches that shrink as rows finish."""
    size = exact_batch_size(model, batch_size)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        answers = _generate_batch(model, [prompts[i] for i in batch], stop_ids, pad_id, max_new_tokens)
        yield from zip(batch, answers)


def _generate_batch(
    model: Model, prompts: Sequence[Sequence[int]], stop_ids: set[int], pad_id: int, max_new_tokens: int
) -> list[Generated]:
    answers: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    rows = read(model, prompts, pad_id)
    alive = list(range(len(prompts)))  # prompt number of each remaining row
    for _ in range(max_new_tokens):
        likeliest = _likeliest(rows.logits().reshape(len(alive), -1))
        next_ids = [id for id, _ in likeliest]
        for row, (id, logprob) in zip(alive, likeliest):
            answers[row].append(id)
            logprobs[row].append(logprob)
        going_on = [i for i, id in enumerate(next_ids) if id not in stop_ids]
        if not going_on:
            break
        rows.go_on(going_on, [next_ids[i] for i in going_on])
        alive = [alive[i] for i in going_on]
    return [Generated(ids, ids[-1] in stop_ids, _mean(likely)) for ids, likely in zip(answers, logprobs)]
