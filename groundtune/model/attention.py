"""Packed attention inside a `transformers` model: how it gets there, and the trial before it is used.

`transformers` hands what a model is called with on to its attention function. That is how `layout` (a `Packed` or a
`Decoding`) gets there, without a mask of tokens x tokens ever being built.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from groundtune.aliases import Config, Model
from groundtune.model.kv_cache import Decoding, KVCache
from groundtune.model.packing import Packed, Segment, model_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "groundtune"  # of this attention among those of transformers
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")  # what configurations call it


def attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, layout: Packed | Decoding | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention for transformers' interface: by `layout` where the model was called with one, else PyTorch's own.

    Raises `NotImplementedError` for attention that needs more than queries, keys, values and a window.
    """
    if layout is None:
        from transformers import AttentionInterface

        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)
    extras = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    extras += ["dropout"] if kwargs.get("dropout") else []
    if extras:
        raise NotImplementedError(f"its attention needs {', '.join(extras)}")
    return layout.attend(module, query, key, value, kwargs.get("scaling"), kwargs.get("sliding_window")), None


def use_packed_attention(model: Model, to_train: bool = True) -> str | None:
    """Let `model` attend by layouts if its outputs are those of separate rows then; else it stays as it is: why.

    Call it on the device that the model is going to run on, under the autocast that it will compute in. A model that is
    only to answer, and not `to_train`, needs no kernel that has a gradient.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    base = inside_adapter(model)
    before = base.config._attn_implementation
    if before != "sdpa":
        return f"attention is {before}"
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    was_training = base.training
    base.eval()
    try:
        base.set_attn_implementation(NAME)
        problem = _static_problem(base.config.get_text_config(), to_train) or _difference(base, to_train)
        if not problem and to_train and base.device.type == "cuda":
            problem = _kernel_problem(base.config.get_text_config(), base.dtype, base.device)
    except Exception as error:  # whatever a model does with a layout that it does not know
        problem = f"{type(error).__name__}: {error}"
    finally:
        base.train(was_training)
    if problem:
        base.set_attn_implementation(before)
    return problem


def inside_adapter(model: Model) -> PreTrainedModel:
    """The model that an adapter is on; a model without one is that itself."""
    whole: Any = model
    return whole.get_base_model() if hasattr(whole, "get_base_model") else whole


def attends_by_layout(model: Model) -> bool:
    """Whether `model` (or the model inside an adapter) may be called with a layout."""
    return model.config._attn_implementation == NAME


def _static_problem(config: Config, to_train: bool) -> str | None:
    """What the trial below cannot see: a few tokens are in one chunk of attention, and it does not drop out."""
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        return f"the model has layers of type {', '.join(sorted(unknown))}"
    dropout = [f"{name} is {rate}" for name in _DROPOUTS if to_train and (rate := getattr(config, name, 0))]
    return f"the model's {' and '.join(dropout)}" if dropout else None


def _window(config: Config) -> int | None:
    """The sliding window of any layer, which sequences as short as those of the trial do not show."""
    types = getattr(config, "layer_types", None)
    slides = "sliding_attention" in types if types else getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if slides else None


@torch.no_grad()
def _difference(model: Model, to_train: bool) -> str | None:
    """Why a packed row would not be what its sequences are alone, found by trying; None if it is.

    State-space layers, or a model that drops what it is called with, show here.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (26,), generator=generator).to(model.device)
    # Two sequences behind one prefix of 8 tokens, and a third by itself; then one more token for the first two.
    segments = [Segment(0, 8), Segment(8, 13, (0,)), Segment(13, 18, (0,)), Segment(18, 24)]
    cache = KVCache(2, 14)
    together = []
    layouts = [*([Packed(segments)] if to_train else []), Packed(segments, cache, (None, 0, 1, None))]
    for packed in layouts:
        positions = torch.tensor([packed.positions()], device=model.device)
        logits = model(**model_inputs(ids[None, :24], positions, packed), use_cache=False).logits
        together += logits[0, [12, 17, 23]]
        if (window := _window(model.config.get_text_config())) and packed.windows == {None}:
            return f"its attention ignores its window of {window} tokens"
    decoding = Decoding(cache, (13, 13), (1, 1), model.device)
    inputs = model_inputs(ids[None, 24:], decoding.positions[None], decoding)
    together += model(**inputs, use_cache=False).logits[0]
    rows = [ids[[*range(13), 24]], ids[[*range(8), *range(13, 18), 25]], ids[18:24]]
    first, second, third = (model(input_ids=row[None], use_cache=False).logits[0] for row in rows)
    apart = torch.stack([*[first[12], second[12], third[5]] * len(layouts), first[13], second[13]])
    error = error_of_logits(model, torch.stack(together), apart)
    return f"packed and separate rows differ by {error:.2g} of the logits" if error else None


def error_of_logits(model: Model, found: torch.Tensor, expected: torch.Tensor) -> float | None:
    """By how much of their variation logits [rows, vocabulary] are wrong at worst; None where rounding explains it."""
    found, expected = found.float(), expected.float()
    # A leak moves logits by as much as they vary; rounding in bfloat16 by a few hundredths of that.
    exact = model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    tolerance = 1e-3 if exact else 0.1
    variation = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    error = ((found - expected).norm(dim=-1) / variation).max().item()
    return None if error < tolerance else error


@torch.enable_grad()
def _kernel_problem(config: Config, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why FlexAttention's gradients would not be those of the loop over segments; None if they are.

    Its kernels are compiled for the heads of the model and for the GPU, and some need more than a GPU has.
    """
    layout = Packed([Segment(0, 200), Segment(200, 330, (0,)), Segment(330, 450, (0,)), Segment(450, 500)])
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, n, 500, size, generator=generator).to(device, dtype).requires_grad_() for n in heads]
    for window in {None, getattr(config, "sliding_window", None)}:
        ways: tuple[Callable[..., torch.Tensor], ...] = (
            layout._attend_in_blocks,
            partial(layout._attend_by_segments, None),
        )
        outputs = [attend(*inputs, None, window) for attend in ways]
        blocks, segments = (torch.autograd.grad(output.float().square().sum(), inputs) for output in outputs)
        error = max(((a - b).float().norm() / b.float().norm()).item() for a, b in zip(blocks, segments))
        if not error < 0.05:
            return f"gradients of FlexAttention and of separate segments differ by {error:.2g} of the gradient"
    return None
