"""A LoRA adapter added to the weights of its base model, and how much of it their dtype keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch

from groundtune.aliases import Model
from groundtune.errors import ModelError


def merged(model: Model) -> tuple[Model, float]:
    """The model as one set of weights, and the share of the adapter's changes that is left after rounding.

    A model without an adapter is returned unchanged. Raises `ModelError` for adapters other than plain LoRA, and if a
    weight is not finite.
    """
    share = 1.0
    if layers := list(adapted(model)):
        lost = total = 0.0
        for _, layer in layers:
            before, change = layer.base_layer.weight, change_of(layer)
            after = sum_of(before, change)
            lost += float(((after.float() - before.float() - change) * change).sum())
            total += float((change * change).sum())
            layer.base_layer.weight.data = after
        share = 1 + lost / total if total else 1.0
        model = cast(Any, model).unload()
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise ModelError(f"--dtype {dtype}: {name} is beyond its largest number; use --dtype bfloat16 or float32")
    return model, share


def without_adapter(model: Model) -> Any:
    """The model inside a PEFT model, with its names; another model itself."""
    return cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model


def adapted(model: Model) -> Iterator[tuple[str, Any]]:
    """Name and layer of every layer with an adapter, as the base model names them."""
    from peft.tuners.lora.layer import LoraLayer

    for name, layer in without_adapter(model).named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


@torch.no_grad()
def change_of(layer: Any) -> torch.Tensor:
    """What the adapter adds to the layer's weight, in float32. Raises `ModelError` for other than plain LoRA."""
    names = layer.active_adapters
    if len(names) != 1 or names[0] in layer.lora_variant or getattr(layer.lora_B[names[0]], "bias", None) is not None:
        raise ModelError(f"the adapter is not plain LoRA ({', '.join(names)}); merge it with the tool that made it")
    return layer.get_delta_weight(names[0]).float()


def sum_of(weight: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Their sum, rounded once, to the dtype of the weight."""
    return (weight.detach().float() + change.to(weight.device)).to(weight.dtype)
