"""How a model continues a sequence: from its cache if a trial shows that this is exact, else by rereading everything.

Models cache keys and values, states, or both, and expect them back under different argument names. A model that gets
its cache under the wrong name silently ignores it and answers from the last token alone.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch

from groundtune.aliases import Model
from groundtune.errors import ModelError
from groundtune.model.attention import error_of_logits, inside_adapter
from groundtune.model.head import head_reads_only
from groundtune.system.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)

# The current name, and those before transformers 5.24, which models with custom code still use.
_NAMES = ("cache", "past_key_values", "cache_params")
_LENGTHS = (7, 5, 9)  # of the rows in the trial, in tokens


@dataclass(frozen=True)
class ByCache:
    """The argument that takes the cache, whether later steps get a mask as well, and whether rows may be padded.

    State-space models need the mask for the padding before a prompt, and none in later steps.
    """

    name: str
    masked: bool
    padded: bool


class FromCache:
    """Left-padded rows; each step reads only the last token of each row."""

    def __init__(self, model: Model, rows: Sequence[Sequence[int]], pad_id: int, how: ByCache) -> None:
        self.model, self.how = model, how
        self.cache: Any = None
        self.ids, self.mask = _left_padded(rows, pad_id, model.device)
        self.positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        # The last position as an index tensor, not as 1: indexing copies, whereas a slice would give the head a strided
        # view, which PyTorch multiplies row by row, copying the frozen head each time (45 s instead of 9 s for 16
        # prompts of 600 tokens on two cores).
        self.last = torch.tensor([-1], device=model.device)

    def logits(self) -> torch.Tensor:
        """Next-token logits of each row, [rows, vocabulary]."""
        mask = self.mask if self.cache is None or self.how.masked else None
        output = self.model(
            input_ids=self.ids, attention_mask=mask, position_ids=self.positions, use_cache=True,
            logits_to_keep=self.last, **{self.how.name: self.cache},
        )  # fmt: skip
        self.cache = _cache_of(output)
        return output.logits[:, -1]

    def go_on(self, rows: Sequence[int], ids: Sequence[int]) -> None:
        """Keep only `rows` and append one id to each: without the finished rows, the batch is smaller and cheaper."""
        kept = torch.tensor(rows, device=self.mask.device)
        if len(rows) < len(self.mask):
            self.cache.reorder_cache(kept)  # supported by every kind of cache layer
        self.ids = torch.tensor(ids, device=self.mask.device)[:, None]
        self.positions = self.positions[kept, -1:] + 1
        self.mask = torch.nn.functional.pad(self.mask[kept], (0, 1), value=1)


class FromStart:
    """Rows that are reread for each new token: slow, but exact for every causal model.

    They are padded on the right, where no token attends.
    """

    def __init__(self, model: Model, rows: Sequence[Sequence[int]], pad_id: int) -> None:
        self.model, self.rows, self.pad_id = model, [list(row) for row in rows], pad_id

    def logits(self) -> torch.Tensor:
        longest = max(map(len, self.rows))
        ids = [row + [self.pad_id] * (longest - len(row)) for row in self.rows]
        ends = torch.tensor([len(row) - 1 for row in self.rows])
        keep = torch.nn.functional.one_hot(ends, longest).bool()
        with head_reads_only(keep, self.model.get_output_embeddings()):
            return self.model(input_ids=torch.tensor(ids, device=self.model.device), use_cache=False).logits

    def go_on(self, rows: Sequence[int], ids: Sequence[int]) -> None:
        self.rows = [[*self.rows[i], id] for i, id in zip(rows, ids)]


_FOUND: WeakKeyDictionary[Model, ByCache | None] = WeakKeyDictionary()  # by model: the trial is made once


def read(model: Model, rows: Sequence[Sequence[int]], pad_id: int) -> FromCache | FromStart:
    """Read the rows, ready to continue each. The model must be in evaluation mode, and gradients must be off."""
    how = way_of(model)
    return FromCache(model, rows, pad_id, how) if how else FromStart(model, rows, pad_id)


def exact_batch_size(model: Model, wanted: int) -> int:
    """`wanted` rows, or 1 if padding would change the continuations."""
    how = way_of(model)
    return wanted if how is None or how.padded else 1


def way_of(model: Model) -> ByCache | None:
    """The fastest way to continue that gives the same logits as rereading everything; None if none does."""
    base = inside_adapter(model)
    if base not in _FOUND:
        _FOUND[base], problem = _tried(model, inspect.signature(type(base).forward).parameters)
        if problem:
            logger.warning(
                "every token of an answer is computed from the start of the prompt, which is slow: %s", problem
            )
    return _FOUND[base]


def _tried(model: Model, parameters: Collection[str]) -> tuple[ByCache | None, str]:
    """The first way that is exact; else None, and the problem with the first one tried."""
    ways = [
        ByCache(name, masked, padded)
        for padded in (True, False) for masked in (True, False) for name in _NAMES if name in parameters
    ]  # fmt: skip
    problems = []
    for how in ways:
        problem = _difference(model, how)
        if not problem:
            return how, ""
        problems.append(problem)
    return None, next(iter(problems), f"the model accepts none of {', '.join(_NAMES)}")


def _difference(model: Model, how: ByCache) -> str | None:
    """Compare steps from the cache with rereading everything; how they differ, or None if they agree."""
    try:
        wrong_by = error_of_logits(model, partial(_cached_and_reread, model, how))
    except ModelError:
        raise
    except Exception as error:  # a model may do anything with a cache under a name that it does not expect
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"steps from its {how.name} are wrong by {wrong_by:.2g} of the logits" if wrong_by else None


@torch.no_grad()
def _cached_and_reread(model: Model, how: ByCache, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits from the cache, and of everything read again. One row leaves before the last step, as finished rows do."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    lengths = _LENGTHS if how.padded else _LENGTHS[:1]
    rows = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
    cached = FromCache(model, [row[:-2] for row in rows], 0, how)
    found = [cached.logits()]
    cached.go_on(range(len(rows)), [row[-2] for row in rows])
    found.append(cached.logits())
    stay = [i for i in range(len(rows)) if i != 1]
    cached.go_on(stay, [rows[i][-1] for i in stay])
    found.append(cached.logits())
    alone = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0] for row in rows]
    expected = [logits[end] for end in (-3, -2) for logits in alone] + [alone[i][-1] for i in stay]
    if torch.stack(expected).isnan().any():
        raise ModelError(f"{model.config.name_or_path}: its outputs are NaN; are its weights damaged?")
    return torch.cat(found), torch.stack(expected)


def _cache_of(output: Any) -> Any:
    there = [name for name in _NAMES if name in [*output]]  # `in output` would accept deprecated names as well
    if not there:
        raise ValueError("the model returns no cache")
    return output[there[0]]


def _left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and attention mask, both [rows, longest], padded on the left so that all answers start at one position."""
    longest = max(len(ids) for ids in rows)
    ids = torch.tensor([[pad_id] * (longest - len(ids)) + list(ids) for ids in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows], device=device)
    return ids, mask
