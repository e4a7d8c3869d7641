"""LoRA layers of PEFT with one memory pass less per step: the low-rank product is added inside the matrix product."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear

from groundtune.aliases import Model


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
    """PEFT's LoRA layer of a frozen linear layer; whatever is not plain LoRA in one type is left to PEFT.

    PEFT casts the input to the adapter's type, scales and adds in passes of their own over [tokens, outputs]: on a CPU
    as much time as the products of the adapter.
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


def fuse(model: Model) -> None:
    """Let the LoRA layers of a PEFT model compute as `FusedLinear`; names, weights and saving stay PEFT's."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = FusedLinear
