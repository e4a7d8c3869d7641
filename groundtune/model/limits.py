"""Inputs that a model cannot read: token ids without an embedding, positions beyond its limit."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from groundtune.aliases import Config, Model
from groundtune.errors import ModelError

logger = logging.getLogger(__name__)


_TABLES = ("wpe", "embed_positions", "position_embeddings")  # names of learned position tables


def check_vocabulary(texts: Iterable[Sequence[int]], model: Model, name: str = "") -> None:
    """Raise `ModelError` if some ids have no embedding in the model, as when tokens were added to its tokenizer."""
    largest = max(max(ids, default=0) for ids in texts)
    known = model.config.get_text_config().vocab_size
    if largest >= known:
        raise ModelError(
            f"{name or model.config.name_or_path}: the tokenizer produces ids up to {largest:,}, but the model has "
            f"only {known:,} embeddings; name a folder whose tokenizer and model match"
        )


def check_positions(longest: int, model: Model, name: str) -> list[str]:
    """Notes for the report if rows, or prompts with their answers, of `longest` tokens exceed the model's positions.

    Raises `ModelError` if the model cannot compute such positions at all.
    """
    config = model.config.get_text_config()
    known, rope = _positions(config), getattr(config, "rope_parameters", None) or {}
    reached = f"{name}: the longest row, or prompt with its answer, has {longest:,} tokens"
    if longest > known and _reads_a_table(model):
        raise ModelError(f"{reached}, but the model has only {known:,} positions; lower --max_seq_length")
    notes = []
    if longest > known:
        notes.append(f"{reached}, but the model was made for {known:,}; lower --max_seq_length")
    for kind, limit in _changing_ropes(rope, config):
        if longest > limit:
            notes.append(
                f"{reached}; beyond {limit:,} the rotary positions ({kind}) change for all rows of a batch, so results "
                "depend on how rows are batched; lower --max_seq_length"
            )
    for note in notes:
        logger.warning(note)
    return notes


def _positions(config: Config) -> float:
    """The number of positions that the model was made for; infinity if its configuration does not say."""
    known = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or 0
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "yarn":  # some configurations keep the original number of positions
        known = max(known, int(rope.get("factor", 1) * (rope.get("original_max_position_embeddings") or known)))
    return known if known > 0 else math.inf


def _reads_a_table(model: Model) -> bool:
    """Whether positions come from a table (GPT-2, OPT, GPT-J, MPT), which ends at the last one."""
    tables = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)]
    tables += [name for name, _ in model.named_buffers()]
    return hasattr(model.config, "max_seq_len") or any(name.endswith(_TABLES) for name in tables)


def _changing_ropes(rope: Mapping[str, Any], config: Config) -> Iterator[tuple[str, int]]:
    """Kind and limit of rotary embeddings that change with the longest row; `rope` may hold one per layer type."""
    for parameters in (rope, *(part for part in rope.values() if isinstance(part, Mapping))):
        if (kind := parameters.get("rope_type")) in ("longrope", "dynamic"):
            own = parameters.get("original_max_position_embeddings")
            yield kind, own or getattr(config, "original_max_position_embeddings", config.max_position_embeddings)
