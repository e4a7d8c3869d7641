"""Packed attention inside a `transformers` model, and the check that it is exact before it is used.

`transformers` passes extra arguments of a model call on to its attention function. That is how `layout` (a `Packed` or
a `Decoding`) reaches it, without a mask of tokens x tokens ever being built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from groundtune.aliases import Config, Model
from groundtune.model.kv_cache import Decoding, KVCache
from groundtune.model.packing import Packed, Segment, model_inputs
from groundtune.model.rotation import depends_on_length, learn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "groundtune"  # of this attention among those of transformers
_MOVED = 611  # positions, in the trial of moving keys
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")  # what configurations call it


def attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, layout: Packed | Decoding | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention function for transformers: follows `layout` if the model was called with one, else uses PyTorch's SDPA.

    Raises `NotImplementedError` for attention that needs more than queries, keys, values and a window.
    """
    if layout is None:
        from transformers import AttentionInterface

        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)
    extras = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    extras += ["dropout"] if kwargs.get("dropout") else []
    if extras:
        raise NotImplementedError(f"its attention needs {', '.join(extras)}")
    output = layout.attend(module, query, key, value, kwargs.get("scaling"), kwargs.get("sliding_window"))
    return output.contiguous(), None  # as those of transformers: AFMoE and JetMoE rely on it


def use_packed_attention(model: Model, to_train: bool = True, blocks: bool = False) -> str | None:
    """Switch `model` to packed attention if its outputs then equal those of separate rows.

    Returns None, or why the model was left unchanged. Call this on the device and under the autocast that the model
    will run with. A model that only answers (`to_train=False`) needs no kernel with a gradient. `blocks`: for block
    attention, passages must also be the same wherever they stand.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    base = inside_adapter(model)
    before = base.config._attn_implementation
    if before not in ("sdpa", "flash_attention_2"):  # packing saves more than the second saves alone
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
        if blocks:
            problem = problem or _place_problem(base)
    except Exception as error:  # a model may do anything with an argument that it does not know
        problem = f"{type(error).__name__}: {error}"
    finally:
        base.train(was_training)
    if problem:
        base.set_attn_implementation(before)
    return problem


def no_blocks(model: Model, why: str) -> str:
    """The message that `model` cannot compute block attention, and `why`."""
    name = model.config.name_or_path
    return f"--passage_attention block: would not be exact with {name}: {why}; use full, or another model"


def inside_adapter(model: Model) -> PreTrainedModel:
    """The model that an adapter is on; a model without one is that itself."""
    whole: Any = model
    return whole.get_base_model() if hasattr(whole, "get_base_model") else whole


def attends_by_layout(model: Model) -> bool:
    """Whether `model` (or the base model inside an adapter) can be called with a layout."""
    return model.config._attn_implementation == NAME


def _static_problem(config: Config, to_train: bool) -> str | None:
    """Problems that the trial below cannot show: its few tokens fit into one attention chunk, and dropout is off."""
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        return f"the model has layers of type {', '.join(sorted(unknown))}"
    dropout = [f"{name} is {rate}" for name in _DROPOUTS if to_train and (rate := getattr(config, name, 0))]
    return f"the model's {' and '.join(dropout)}" if dropout else None


def _window(config: Config) -> int | None:
    """The sliding window of any layer; the trial's sequences are too short to show it."""
    types = getattr(config, "layer_types", None)
    slides = "sliding_attention" in types if types else getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if slides else None


def _difference(model: Model, to_train: bool) -> str | None:
    """Compare a packed row with its sequences computed separately; how they differ, or None if they agree.

    This finds state-space layers, and models that drop unknown arguments.
    """
    windows = set[int | None]()
    error = error_of_logits(model, lambda draw: _packed_and_apart(model, to_train, windows, draw))
    if (window := _window(model.config.get_text_config())) and windows == {None}:
        return f"its attention ignores its window of {window} tokens"
    return f"packed and separate rows differ by {error:.2g} of the logits" if error else None


@torch.no_grad()
def _packed_and_apart(
    model: Model, to_train: bool, windows: set[int | None], seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of packed and of separate rows; adds the windows that the attention was called with to `windows`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.get_text_config().vocab_size, (26,), generator=generator).to(model.device)
    # Two sequences that share a prefix of 8 tokens, and a third by itself; then one more token for the first two.
    segments = [Segment(0, 8), Segment(8, 13, (0,)), Segment(13, 18, (0,)), Segment(18, 24)]
    cache = KVCache(2, 14)
    together = []
    layouts = [*([Packed(segments)] if to_train else []), Packed(segments, cache, (None, 0, 1, None))]
    for packed in layouts:
        positions = torch.tensor([packed.positions()], device=model.device)
        logits = model(**model_inputs(ids[None, :24], positions, packed), use_cache=False).logits
        together += logits[0, [12, 17, 23]]
        windows |= packed.windows
    decoding = Decoding(cache, (13, 13), (1, 1), model.device)
    inputs = model_inputs(ids[None, 24:], decoding.positions[None], decoding)
    together += model(**inputs, use_cache=False).logits[0]
    rows = [ids[[*range(13), 24]], ids[[*range(8), *range(13, 18), 25]], ids[18:24]]
    first, second, third = (model(input_ids=row[None], use_cache=False).logits[0] for row in rows)
    apart = torch.stack([*[first[12], second[12], third[5]] * len(layouts), first[13], second[13]])
    return torch.stack(together), apart


@torch.no_grad()
def _place_problem(model: Model) -> str | None:
    """Why keys cannot be moved to another place by a rotation; None if they can. It is then known of every layer."""
    if kind := depends_on_length(model.config.get_text_config()):
        return f"its {kind} position embeddings depend on the length of the prompt"
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, 16), generator=generator).to(model.device)
    # Sequences of one token: their hidden states are the same anywhere, so that only the keys' own rounding is left.
    layouts = [_Noting([Segment(i, i + 1) for i in range(16)]) for _ in range(2)]
    logits = [
        model(**model_inputs(ids, torch.full_like(ids, place), layout), use_cache=False).logits[0]
        for place, layout in zip((0, _MOVED), layouts)
    ]
    here, there = (layout.keys for layout in layouts)
    tolerance = 1e-3 if _is_exact(model) else 0.03
    error = max([learn(model, layer, keys, there[layer], _MOVED) for layer, keys in here.items()])
    error = max(error, error_of_logits(model, lambda _: (logits[0], logits[1])) or 0.0)
    return f"a passage at another place differs by {error:.2g}" if error > tolerance else None


class _Noting(Packed):
    """A layout that notes the keys of every layer."""

    def __init__(self, segments: Sequence[Segment]):
        super().__init__(segments)
        self.keys: dict[torch.nn.Module, torch.Tensor] = {}

    def attend(self, layer: Any, query: torch.Tensor, key: torch.Tensor, *others: Any) -> torch.Tensor:
        self.keys[layer] = key
        return super().attend(layer, query, key, *others)


def error_of_logits(model: Model, trial: Callable[[int], tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """Largest error of logits relative to their spread; None if rounding explains it.

    `trial(seed)` draws tokens and computes logits [rows, vocabulary] in the way to be tested and in the usual one. A
    leak between sequences changes logits by about their spread, bfloat16 rounding by a few hundredths of it. But
    random tokens can amplify rounding in a row of a draw, in a tuned model above all. A leak is in every draw, so the
    least error of each row counts.
    """
    draws, tolerance = (1, 1e-3) if _is_exact(model) else (3, 0.1)
    least = torch.tensor(torch.inf)
    for seed in range(draws):
        found, expected = (logits.float() for logits in trial(seed))
        variation = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
        least = torch.minimum(least.to(found.device), (found - expected).norm(dim=-1) / variation)
        if least.max() < tolerance:
            return None
    return least.max().item()


def _is_exact(model: Model) -> bool:
    """Whether rounding is negligible."""
    return model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)


@torch.enable_grad()
def _kernel_problem(config: Config, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why FlexAttention's gradients differ from those of the loop over segments; None if they agree.

    Its kernels are compiled for the model's head sizes and the GPU, and some need more than the GPU has.
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
