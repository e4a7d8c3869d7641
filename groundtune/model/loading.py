"""The decoder and its tokenizer: dtype, attention, LoRA, GGUF."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from groundtune.aliases import Model, Tokenizer
from groundtune.arguments import ModelArguments, is_commit
from groundtune.errors import ModelError
from groundtune.system.model_folders import hub_problems, loading, model_problems, why_not_loaded
from groundtune.system.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel

logger = logging.getLogger(__name__)

# Before a chat template that writes today's date (Llama 3.2, gpt-oss), it makes every day the one that Llama's falls
# back on: rows of tomorrow would be others than those of today, and a run could not go on.
_SAME_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


def load_tokenizer(arguments: ModelArguments) -> Tokenizer:
    """The model's tokenizer; one without a padding token pads with its end token (labels never depend on it).

    Raises `ModelError` when it cannot be loaded or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    _refuse(arguments, weights=False)
    try:
        with loading(arguments.model_name_or_path):
            tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path, **_source(arguments))
    except Exception as error:  # the tokenizers library raises bare exceptions on a damaged file
        raise ModelError(_cannot_load("tokenizer", arguments, error)) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{arguments.model_name_or_path}: the tokenizer has no end-of-sequence token; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template and not template.startswith(_SAME_DAY):
        tokenizer.chat_template = _SAME_DAY + template  # it is saved with the model: a server writes the prompt so too
    return tokenizer


def load_model(arguments: ModelArguments, *, bf16: bool, stop_ids: tuple[int, ...], pad_id: int) -> Model:
    """The model ready to train, with a fresh adapter if asked for, and generation settings that stop at `stop_ids`.

    Weights come from safetensors or GGUF files and never from a `.bin` file, which is a pickle.
    Raises `ModelError` when the model cannot be loaded, or lacks weights, which would be random then.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    _refuse(arguments)
    options: dict[str, Any] = {"dtype": _dtype(arguments, bf16), **_source(arguments)}
    options["attn_implementation"] = "flash_attention_2" if arguments.use_flash_attention else "sdpa"
    if arguments.gguf_file:
        from transformers import GgufConfig

        # Without it the weights stay in GGUF blocks, which neither train nor save.
        options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True
    if arguments.load_in_4bit:
        options["quantization_config"] = _four_bits(options["dtype"])
    try:
        with loading(arguments.model_name_or_path):
            model, found = _with_attention(AutoModelForCausalLM, arguments.model_name_or_path, options)
    except Exception as error:  # libraries trust the settings of a model to be right
        if is_out_of_memory(error):
            raise
        raise ModelError(_cannot_load("model", arguments, error)) from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{arguments.model_name_or_path}: {len(missing)} weights are missing and would be random: "
            f"{', '.join(missing[:3])} ...; name a folder with all weights of a {type(model).__name__}"
        )
    if arguments.gguf_file:
        model.config.quantization_config = None
    # A fresh one: sampling and penalties that came with the model would make plain `generate` differ from what was
    # evaluated, and its end tokens may not be the prompt's.
    bos = model.config.get_text_config().bos_token_id  # of a model that also sees, the whole knows none
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=list(stop_ids), pad_token_id=pad_id, bos_token_id=bos
    )
    return add_lora(model, arguments) if arguments.use_peft else model


def _with_attention(auto_class: Any, name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model and what was found of it, with plain attention where SDPA would not do (gpt-oss) or compute something
    else: before transformers 5.23, Gemma 2 lost the cap on its scores by it."""
    try:
        model, found = auto_class.from_pretrained(name, output_loading_info=True, **options)
    except ValueError as error:
        if options["attn_implementation"] != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        return auto_class.from_pretrained(name, output_loading_info=True, **{**options, "attn_implementation": "eager"})
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model, found


def add_lora(model: PreTrainedModel, arguments: ModelArguments) -> PeftModel:
    """A LoRA adapter (Hu et al. 2021) on the named linear layers; its weights are float32 whatever the model's are.

    Raises `ModelError` when no layer has such a name.
    """
    from peft import LoraConfig, get_peft_model

    from groundtune.model.lora import fuse

    names = list(arguments.lora_target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=names[0] if names == ["all-linear"] else names,
        exclude_modules=_beside_the_text(model),
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ModelError(f"--lora_target_modules: {error}; this model's linear layers: {', '.join(linear)}") from error
    fuse(adapted)
    return adapted


def _beside_the_text(model: Model) -> str | None:
    """A pattern of the modules that text does not go through, as Gemma 3's vision tower; None if there are none.

    An adapter there would cost memory and learn nothing.
    """
    if model.config.get_text_config() is model.config:
        return None
    decoder = model.get_decoder()
    name = next(name for name, module in model.named_modules() if module is decoder)
    return rf"(?!{re.escape(name)}\.|lm_head).*"


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's frozen weights (Dettmers et al. 2023): NF4, its constants quantised once more, computed in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def flash_attention_problems(arguments: ModelArguments) -> list[str]:
    """Why FlashAttention, if asked for, cannot be used here; empty if it can."""
    if not arguments.use_flash_attention:
        return []
    missing = [] if importlib.util.find_spec("flash_attn") else ["the package flash-attn is not installed"]
    missing += [] if torch.cuda.is_available() else ["there is no CUDA device"]
    if not missing:
        return []
    return [
        f"--use_flash_attention: {' and '.join(missing)}; pip install flash-attn on a CUDA machine, or remove the flag "
        "to use PyTorch's own attention"
    ]


def computes_bf16() -> bool:
    """Whether bfloat16 is computed by the hardware here and not emulated."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return True
    # On a CPU the answer is the instruction set: AVX512-BF16 or AMX. Asked by private names, so absence means no.
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def _dtype(arguments: ModelArguments, bf16: bool) -> torch.dtype:
    """Weights that are trained are kept in float32, or small updates are lost to rounding; frozen ones need not be."""
    if arguments.dtype != "auto":
        return getattr(torch, arguments.dtype)
    return torch.bfloat16 if arguments.use_peft and bf16 else torch.float32


def _source(arguments: ModelArguments) -> dict[str, Any]:
    # Where an adapter is opened on its base, only one of them has the revision that was given; the other runs no code.
    trusted = arguments.trust_remote_code and is_commit(arguments.model_revision)
    source: dict[str, Any] = {"revision": arguments.model_revision, "trust_remote_code": trusted}
    if trusted:
        # A model may name another repository for its code, which `revision` does not pin: this refuses it there.
        source["code_revision"] = arguments.model_revision
    return {**source, "gguf_file": arguments.gguf_file} if arguments.gguf_file else source


def _refuse(arguments: ModelArguments, weights: bool = True) -> None:
    """Raises `ModelError` for a model that no library may read."""
    name = arguments.model_name_or_path
    problems = model_problems(name, arguments.gguf_file, weights, with_base=weights)
    if problems := problems or hub_problems(name, arguments.model_revision):
        raise ModelError(problems[0])


def _cannot_load(what: str, arguments: ModelArguments, error: Exception) -> str:
    name = arguments.model_name_or_path
    inside = sorted(path.name for path in Path(name).iterdir())[:12] if os.path.isdir(name) else None
    where = f"the folder holds {', '.join(inside) or 'nothing'}" if inside is not None else "not a local folder either"
    return f"--model_name_or_path: cannot load the {what} of {name} ({where}): {why_not_loaded(error)}"
