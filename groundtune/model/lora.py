"""PEFT's LoRA layers with fewer passes over memory: the low-rank product is added inside the matrix product."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear

from groundtune.aliases import Model
from groundtune.system.text import one_line

logger = logging.getLogger(__name__)


class _LoraProduct(torch.autograd.Function):
    """x W^T + bias + scaling (x A^T) B^T with the gradients of x, A and B; W and bias are frozen.

    Shapes: x [n, inputs], W [outputs, inputs], A [r, inputs], B [outputs, r], all of one type.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        low = x @ a.T
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scaling = scaling
        return torch.nn.functional.linear(x, weight, bias).addmm_(low, b.T, alpha=scaling)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        x, low, weight, a, b = ctx.saved_tensors
        to_low = (gradient @ b) * ctx.scaling
        to_x = (gradient @ weight).addmm_(to_low, a) if ctx.needs_input_grad[0] else None
        return to_x, None, None, to_low.T @ x, (gradient.T @ low) * ctx.scaling, None


class FusedLinear(Linear):
    """PEFT's LoRA layer over a frozen linear layer; anything but plain LoRA in one dtype is left to PEFT.

    PEFT casts the input to the adapter's type, scales, and adds in separate passes over [tokens, outputs], which on a
    CPU take as long as the adapter's products.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)
        name, weight, bias = self.active_adapters[0], self.base_layer.weight, self.base_layer.bias
        a, b = (lora[name].weight.to(x.dtype) for lora in (self.lora_A, self.lora_B))
        rows = x.reshape(-1, x.shape[-1])
        return _LoraProduct.apply(rows, weight, bias, a, b, self.scaling[name]).view(*x.shape[:-1], -1)

    def _is_plain(self, x: torch.Tensor) -> bool:
        base, names = self.base_layer, self.active_adapters
        return (
            not self.disable_adapters
            and not self.merged
            and len(names) == 1
            and names[0] in self.lora_A
            and names[0] not in self.lora_variant
            and not (self.training and getattr(self.lora_dropout[names[0]], "p", 0) > 0)
            and self.lora_B[names[0]].bias is None
            and type(base) is torch.nn.Linear
            and x.dtype == base.weight.dtype
            and (not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.get_autocast_dtype(x.device.type))
            and not base.weight.requires_grad
            and not hasattr(base.weight, "ds_id")  # DeepSpeed's ZeRO-3 gathers a weight in its own layer's forward only
        )


def fuse(model: Model) -> str | None:
    """Make the LoRA layers of a PEFT model compute as `FusedLinear` if outputs and gradients then equal PEFT's.

    Returns None, or why the layers were left unchanged. Names, weights and saving stay PEFT's either way.
    """
    layers = [module for module in model.modules() if type(module) is Linear]
    try:
        problem = next(filter(None, map(_difference, _smallest(layers))), None)
    except Exception as error:  # a later PEFT may raise anything
        problem = f"{type(error).__name__}: {one_line(error)}"
    if problem:
        logger.warning("LoRA layers are computed by PEFT, which is slower: %s", problem)
        return problem
    for layer in layers:
        layer.__class__ = FusedLinear
    return None


def _smallest(layers: Iterable[Linear]) -> Iterable[Linear]:
    """The smallest layer of each kind that is computed differently."""
    kinds: dict[tuple[torch.dtype, bool], Linear] = {}
    for layer in sorted(layers, key=lambda layer: _base(layer).weight.numel()):
        kinds.setdefault((_base(layer).weight.dtype, _base(layer).bias is None), layer)
    return kinds.values()


def _base(layer: Linear) -> torch.nn.Linear:
    return cast(torch.nn.Linear, layer.base_layer)


@torch.enable_grad()
def _difference(layer: Linear) -> str | None:
    """Compare outputs and gradients of a fused layer with PEFT's; how they differ, or None if they agree."""
    generator = torch.Generator().manual_seed(0)
    weight = _base(layer).weight
    if hasattr(weight, "ds_id"):  # a split weight, which `FusedLinear` leaves to PEFT
        return None
    trial = copy.deepcopy(layer).eval()  # no dropout: with it, PEFT computes the layer anyway
    trained: list[Any] = [lora[trial.active_adapters[0]].weight for lora in (trial.lora_A, trial.lora_B)]
    with torch.no_grad():
        for matrix in trained:  # B starts at zero, which would hide any error
            matrix.copy_(torch.randn(matrix.shape, generator=generator) / matrix.shape[1] ** 0.5).requires_grad_()
    x = torch.randn(5, weight.shape[1], generator=generator).to(weight.device, weight.dtype).requires_grad_()
    towards = torch.randn(5, weight.shape[0], generator=generator).to(weight.device, weight.dtype)
    found = []
    for kind in (FusedLinear, Linear):
        trial.__class__ = kind
        output = trial(x)
        found.append([output, *torch.autograd.grad(output, [x, *trained], towards)])
    errors = [((a - b).float().norm() / b.float().norm()).item() for a, b in zip(*found)]
    tolerance = 1e-4 if weight.dtype == torch.float32 else 0.05
    wrong = [f"{name} by {e:.2g}" for name, e in zip(("output", "dx", "dA", "dB"), errors) if not e < tolerance]
    return f"the fused product differs from PEFT's in {', '.join(wrong)}" if wrong else None
