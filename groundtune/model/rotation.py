"""Keys moved to other positions: with rotary position embeddings (RoPE, Su et al. 2021) that is a rotation.

Attention then depends on distances alone, so a passage that was read once can stand anywhere in a prompt: its values
stay as they are, and its keys are turned by the angles of the distance. How a layer turns its keys is found by trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch

from groundtune.aliases import Config

_BY_LENGTH = {"dynamic", "longrope"}  # kinds of RoPE whose frequencies depend on the length of the input
# By attention layer: the angle per position of each pair of components; empty if the layer's keys have no position.
_FREQUENCIES: WeakKeyDictionary[torch.nn.Module, torch.Tensor] = WeakKeyDictionary()


def moved(layer: torch.nn.Module, keys: torch.Tensor, by: int) -> torch.Tensor:
    """Keys of `layer`, [..., tokens, size], as they would be `by` positions later."""
    return _turned(keys, _FREQUENCIES[layer], by) if by else keys


def _turned(keys: torch.Tensor, frequencies: torch.Tensor, by: int) -> torch.Tensor:
    """Component i of the first half of what is rotated pairs with component i of the second, as in transformers."""
    n = len(frequencies)
    if not n:
        return keys
    angles = by * frequencies.double()
    cos, sin = (x.float().to(keys.device) for x in (angles.cos(), angles.sin()))
    first, second, rest = keys[..., :n].float(), keys[..., n : 2 * n].float(), keys[..., 2 * n :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([*(x.to(keys.dtype) for x in turned), rest], dim=-1)


def depends_on_length(config: Config) -> str:
    """The kind of RoPE, if its angles depend on the length of the input, so that no key can be moved; else empty."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [found, *(value for value in found.values() if isinstance(value, dict))]
    return next((kind for each in kinds if (kind := each.get("rope_type")) in _BY_LENGTH), "")


def learn(model: torch.nn.Module, layer: torch.nn.Module, before: torch.Tensor, after: torch.Tensor, by: int) -> float:
    """Find how `layer` of `model` turns its keys, from the keys of the same tokens at two places `by` positions apart.

    Returns the relative error that is left, which rounding must explain.
    """
    errors = [(_error(_turned(before, frequencies, by), after), frequencies) for frequencies in _candidates(model)]
    error, _FREQUENCIES[layer] = min(errors, key=lambda one: one[0])
    return error


def _candidates(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """No rotation, which some layers have, then the model's own frequencies; it may have several kinds of layers."""
    yield torch.zeros(0)
    yield from (b.cpu() for name, b in model.named_buffers() if name.endswith("inv_freq") and "original" not in name)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()
