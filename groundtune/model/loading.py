"""Loading the decoder and its tokenizer: dtype, attention, LoRA, GGUF."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from groundtune.aliases import Model, Tokenizer
from groundtune.arguments import ModelArguments, is_commit
from groundtune.errors import ModelError
from groundtune.model.limits import check_vocabulary
from groundtune.system.hub_access import HubError, cache_if_no_hub
from groundtune.system.model_folders import hub_problems, loading, model_problems, why_not_loaded
from groundtune.system.out_of_memory import is_out_of_memory
from groundtune.system.panics import TRIAL, panics_raised

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel

logger = logging.getLogger(__name__)

# Put before a chat template that writes today's date (Llama 3.2, gpt-oss), this fixes the date to Llama's fallback:
# otherwise the rows would change from day to day, and a run could not resume.
_SAME_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


def load_tokenizer(arguments: ModelArguments) -> Tokenizer:
    """The model's tokenizer; without a padding token it pads with its end token (labels never depend on it).

    Raises `ModelError` if it cannot be loaded or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    _refuse(arguments, weights=False)
    try:
        with loading(arguments.model_name_or_path), panics_raised():
            tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path, **_source(arguments))
            _try(tokenizer)
    except Exception as error:  # the tokenizers library raises bare exceptions on a damaged file
        raise ModelError(_cannot_load("tokenizer", arguments, error)) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{arguments.model_name_or_path}: the tokenizer has no end-of-sequence token; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template and not template.startswith(_SAME_DAY):
        tokenizer.chat_template = _SAME_DAY + template  # saved with the model, so a server builds the same prompt
    tokenizer.model_end_ids = tuple(id for id in end_ids(arguments) if id < len(tokenizer))
    return tokenizer


def _try(tokenizer: Any) -> None:
    """Raise `ValueError`, or what the library raises, if it is no working tokenizer: some damage shows only now."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"tokenizer_config.json names a {type(tokenizer).__name__} in place of a tokenizer")
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise ValueError(f"model_max_length of tokenizer_config.json is {tokenizer.model_max_length!r:.60}, no number")
    if not (ids := tokenizer(TRIAL, verbose=False)["input_ids"]):
        raise ValueError("tokenizer.json gives no tokens for a text")
    tokenizer.decode(ids)


def end_ids(arguments: ModelArguments) -> list[int]:
    """Every end token that generation_config.json and config.json of a model name, each once.

    A chat model often has several, and its template writes none of them: its own `generate` stops at each.
    """
    found: dict[int, None] = {}
    for name in ("generation_config.json", "config.json"):
        config = _json_of(arguments, name)
        text = config.get("text_config")
        for part in (config, text if isinstance(text, dict) else {}):
            named = part.get("eos_token_id")
            ids = named if isinstance(named, list) else [named]
            found |= {id: None for id in ids if type(id) is int and id >= 0}
    return list(found)


def _json_of(arguments: ModelArguments, name: str) -> dict[str, Any]:
    """A JSON file of a model, here or on the hub; empty if there is none, or it holds something else."""
    from transformers.utils import cached_file

    events = ("missing_entries", "connection_errors")
    quiet: dict[str, Any] = {f"_raise_exceptions_for_{event}": False for event in events}
    try:
        # For a folder, the hub is not even asked whether it is there.
        with nullcontext() if os.path.isdir(arguments.model_name_or_path) else cache_if_no_hub():
            path = cached_file(arguments.model_name_or_path, name, revision=arguments.model_revision, **quiet)
        content = json.loads(Path(path).read_text("utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):  # the model itself is loaded later, and says so
        return {}
    return content if isinstance(content, dict) else {}


def load_model(arguments: ModelArguments, *, bf16: bool, stop_ids: tuple[int, ...], pad_id: int) -> Model:
    """The model ready to train, with a new adapter if requested, and generation settings that stop at `stop_ids`.

    Weights are read from safetensors or GGUF files, never from a `.bin` file, which is a pickle. Raises `ModelError` if
    the model cannot be loaded, or if weights are missing, which would be initialised at random.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    _refuse(arguments)
    options: dict[str, Any] = {"dtype": _dtype(arguments, bf16), **_source(arguments)}
    options["attn_implementation"] = attention_for(arguments)
    if arguments.gguf_file:
        from transformers import GgufConfig

        # Otherwise the weights stay in GGUF blocks, which can be neither trained nor saved.
        options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True
    if arguments.load_in_4bit:
        options["quantization_config"] = _four_bits(options["dtype"])
    try:
        _without_weights(arguments)
        with loading(arguments.model_name_or_path):
            model = _with_attention(AutoModelForCausalLM, arguments.model_name_or_path, options)
    except Exception as error:  # libraries assume that a model's configuration is valid
        if is_out_of_memory(error):
            raise
        raise ModelError(_cannot_load("model", arguments, error)) from error
    if arguments.gguf_file:
        model.config.quantization_config = None
    # A new one: the model's own sampling and penalties would make plain `generate` differ from what was evaluated, and
    # its end tokens may not be the prompt's.
    bos = model.config.get_text_config().bos_token_id  # a multimodal model has it in its text configuration only
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=list(stop_ids), pad_token_id=pad_id, bos_token_id=bos
    )
    return add_lora(model, arguments) if arguments.use_peft else model


def loading_problem(arguments: ModelArguments, end_id: int) -> str:
    """Why a model cannot be loaded from its folder, or has no embedding for its end token; empty if it can be.

    No weights are read: that takes a second for a model of any size.
    """
    try:
        _refuse(arguments)
        if model := _without_weights(arguments):
            check_vocabulary([[end_id]], model, arguments.model_name_or_path)
    except ModelError as error:
        return str(error)
    except Exception as error:  # libraries assume that a model's configuration is valid
        return _cannot_load("model", arguments, error)
    return ""


def _without_weights(arguments: ModelArguments) -> Model | None:
    """The model in a folder, with every name and shape compared but no weights read; None where that is not possible.

    Otherwise memory would be taken for whatever sizes its settings claim, before they are compared.
    """
    from transformers import AutoModelForCausalLM
    from transformers.integrations import is_deepspeed_zero3_enabled

    name = arguments.model_name_or_path
    other = arguments.gguf_file or arguments.trust_remote_code or is_deepspeed_zero3_enabled()
    if other or not os.path.isdir(name) or _json_of(arguments, "config.json").get("quantization_config"):
        return None
    options = {**_source(arguments), "device_map": "meta", "use_safetensors": True, "attn_implementation": "eager"}
    with loading(name), panics_raised():
        return AutoModelForCausalLM.from_pretrained(name, **options)


def _with_attention(auto_class: Any, name: str, options: dict[str, Any]) -> Any:
    """The model, with eager attention where SDPA is unsupported (gpt-oss) or wrong: before
    transformers 5.23, Gemma 2 lost its score cap with SDPA."""
    try:
        model = auto_class.from_pretrained(name, **options)
    except ValueError as error:
        if options["attn_implementation"] != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        return auto_class.from_pretrained(name, **{**options, "attn_implementation": "eager"})
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


def add_lora(model: PreTrainedModel, arguments: ModelArguments) -> PeftModel:
    """`lora_on`, computed in fewer passes where that is exact; a line says what part of the model it does not reach."""
    from groundtune.model.lora import fuse

    adapted = lora_on(model, arguments)
    if list(arguments.lora_target_modules) == ["all-linear"]:
        _tell_share(model)
    fuse(adapted)
    return adapted


def lora_on(model: PreTrainedModel, arguments: ModelArguments) -> PeftModel:
    """Add PEFT's LoRA adapter (Hu et al. 2021) to the named linear layers; its weights are float32 in any model.

    Raises `ModelError` if no layer has such a name.
    """
    from peft import LoraConfig, get_peft_model

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
        return get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ModelError(f"--lora_target_modules: {error}; this model's linear layers: {', '.join(linear)}") from error


def _tell_share(model: Model) -> None:
    """A line with the share of the weights that the adapter reaches, if some lie outside linear layers.

    The experts of gpt-oss or Granite MoE are arrays of three dimensions, and most of the model.
    """
    from peft.tuners.lora.layer import LoraLayer

    decoder = model.get_decoder()
    layers: list[Any] = [module for module in decoder.modules() if isinstance(module, LoraLayer)]
    adapted = sum(layer.in_features * layer.out_features for layer in layers)
    embeddings = {id(m.weight) for m in decoder.modules() if isinstance(m, torch.nn.Embedding)}
    others: dict[str, int] = {}
    for name, weight in decoder.named_parameters():
        if weight.ndim > 1 and "lora_" not in name and "base_layer" not in name and id(weight) not in embeddings:
            kind = re.sub(r"^.*\d+\.", "", name)
            others[kind] = others.get(kind, 0) + weight.numel()
    share = adapted / max(1, adapted + sum(others.values()))
    if share < 0.95:
        largest = sorted(others, key=lambda kind: -others[kind])[:3]
        logger.warning(
            "--lora_target_modules all-linear: adapts %.0f %% of the weights of the layers; the others are not linear "
            "layers and are not trained: %s", 100 * share, ", ".join(largest),
        )  # fmt: skip


def _beside_the_text(model: Model) -> str | None:
    """A pattern for modules that text does not pass through, such as Gemma 3's vision tower; None if there are none.

    An adapter there would cost memory and learn nothing.
    """
    if model.config.get_text_config() is model.config:
        return None
    decoder = model.get_decoder()
    name = next(name for name, module in model.named_modules() if module is decoder)
    return rf"(?!{re.escape(name)}\.|lm_head).*"


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's quantisation of frozen weights (Dettmers et al. 2023): NF4, double quantisation, computed in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def attention_for(arguments: ModelArguments) -> str:
    """The name of the attention to load the model with: FlashAttention 2 if it is asked for and can run here.

    Otherwise PyTorch's own, which is exact and uses FlashAttention kernels of its own where there are any; a log line
    says so. Either is replaced by packed attention where that is exact (`attention.use_packed_attention`), and is what
    computes where it is not.
    """
    if not arguments.use_flash_attention:
        return "sdpa"
    missing = [] if importlib.util.find_spec("flash_attn") else ["the package flash-attn is not installed"]
    missing += [] if torch.cuda.is_available() else ["there is no CUDA device"]
    if not missing:
        return "flash_attention_2"
    why = " and ".join(missing)
    logger.warning("--use_flash_attention: %s; PyTorch's fastest exact attention is used instead", why)
    return "sdpa"


def computes_bf16() -> bool:
    """Whether this hardware computes bfloat16 natively rather than emulating it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return True
    # A CPU needs the instruction set AVX512-BF16 or AMX. The names are private, so a missing one means no.
    amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return amx or getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def _dtype(arguments: ModelArguments, bf16: bool) -> torch.dtype:
    """Dtype of the weights: trained ones need float32, or rounding would lose small updates; frozen ones do not."""
    if arguments.dtype != "auto":
        return getattr(torch, arguments.dtype)
    return torch.bfloat16 if arguments.use_peft and bf16 else torch.float32


def _source(arguments: ModelArguments) -> dict[str, Any]:
    # When an adapter is opened on its base model, the given revision belongs to one of them; the other runs no code.
    trusted = arguments.trust_remote_code and is_commit(arguments.model_revision)
    source: dict[str, Any] = {"revision": arguments.model_revision, "trust_remote_code": trusted}
    if trusted:
        # A model may take its code from another repository, which `revision` does not pin: this refuses it there.
        source["code_revision"] = arguments.model_revision
    return {**source, "gguf_file": arguments.gguf_file} if arguments.gguf_file else source


def _refuse(arguments: ModelArguments, weights: bool = True) -> None:
    """Raise `ModelError` for a model that no library may be allowed to read."""
    name = arguments.model_name_or_path
    problems = model_problems(name, arguments.gguf_file, weights, with_base=weights)
    if problems := problems or hub_problems(name, arguments.model_revision):
        raise ModelError(problems[0])


def _cannot_load(what: str, arguments: ModelArguments, error: Exception) -> str:
    name = arguments.model_name_or_path
    if isinstance(error, HubError):
        return f"--model_name_or_path: {error}"
    inside = sorted(path.name for path in Path(name).iterdir())[:12] if os.path.isdir(name) else None
    where = f"the folder holds {', '.join(inside) or 'nothing'}" if inside is not None else "not a local folder either"
    return f"--model_name_or_path: cannot load the {what} of {name} ({where}): {why_not_loaded(error)}"
