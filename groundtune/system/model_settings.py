"""Checks of a model's JSON files before libraries read them.

Libraries use much of these files as arguments. Some values make them download code from a hub and run it, open or write
files anywhere, or load a second model. Every value that leads out of the model is refused before a library sees it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from groundtune.system.text import one_line
from groundtune.system.weights import file_problem

ADAPTER = "adapter_config.json"
_OF_SENTENCES = re.compile(r"sentence_\w[\w-]*_config\.json")  # bert, roberta, xlm-roberta ...
# Small files from which libraries take arguments; sentence-transformers has more, matched by the pattern above.
_SETTINGS = {
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", ADAPTER,
    "processor_config.json", "preprocessor_config.json", "config_sentence_transformers.json",
}  # fmt: skip
PATTERNS = [pattern for name in (*sorted(_SETTINGS), "modules.json", "router_config.json", "sentence_*_config.json")
            for pattern in (name, f"*/{name}")]  # fmt: skip

_ATTENTION = re.compile(r"_?(attn|experts)_implementation(_internal)?")
_TYPE = re.compile(r"(torch\.)?(auto|half|double|(b?float|u?int)\d\w*)")  # libraries accept any attribute of torch
_TOKENIZER = re.compile(r"Tokenizer|Backend$")
# Keys that record a model's origin, which libraries do not open; the base model, which has its own checks; and texts.
_NOT_FOLLOWED = {
    "_name_or_path", "name_or_path", "base_model_name_or_path", "special_tokens_map_file", "chat_template", "content",
    "prompts",
}  # fmt: skip
_A_FILE = re.compile(r"\w+_(file|files|path)|vocab|merges|init_inputs")
# sentence-transformers: the only arguments that a folder may pass on to transformers.
_HANDED_ON = re.compile(r"(model|tokenizer|processor|config)_(args|kwargs)")
_HARMLESS_ARGUMENTS = {
    "add_bos_token", "add_eos_token", "add_pooling_layer", "attn_implementation", "do_lower_case", "dtype",
    "fix_mistral_regex", "is_causal", "max_length", "model_max_length", "padding", "padding_side", "torch_dtype",
    "truncation", "truncation_side", "trust_remote_code", "use_bidirectional_attention", "use_cache", "use_fast",
}  # fmt: skip
_OTHER_MODELS = ("tokenizer_name_or_path", "processor_name", "model_name_or_path")
_LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers"}
# How an adapter's weights began, which are then read from its file. PiSSA and OLoRA also change the base model, from
# its weights alone, which takes a while; with more rounds it would take for ever.
_INIT = re.compile(r"gaussian|orthogonal|eva|olora|pissa(_niter_\d{1,2})?")
# Libraries make as many objects of each of the first, and a table for as many positions.
_MOST = {r"layers?$|block|head|expert|label|depth|codebook": 10**5, r"^(max_(position|seq)|n_positions|n_ctx)": 10**8}
_METHOD = re.compile(r"forward|encode|get_\w+_features")


def settings_problems(folder: Path, is_inside: Callable[[Path], bool]) -> Iterator[str]:
    """A line for each value in the JSON files of `folder` that leads out of the model.

    `is_inside` tells whether a path is part of the model.
    """
    for path in _named(folder):
        try:
            content = _read(path)
        except OSError:  # reported with the other files
            continue
        except (ValueError, RecursionError) as error:
            reason = "it nests too deeply" if isinstance(error, RecursionError) else one_line(error, 100)
            yield f"{path}: is not the JSON object that it should be ({reason}); download it again"
            continue
        yield from _leads_out(path, content, is_inside)
        yield from _implausible(path, content)
        if isinstance(content, dict) and path.name == ADAPTER:
            yield from _adapter(path, content)
        if isinstance(content, dict) and not _are_texts(content.get("prompts")):
            yield f"{path}: prompts: {_shown(content['prompts'])} is not a mapping of names to texts; correct it"
        if isinstance(content, dict) and _OF_SENTENCES.fullmatch(path.name):
            yield from _of_sentences(path, content)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it cannot be read, which `settings_problems` or the library will report."""
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else None  # a pipe would be waited for
    except (OSError, ValueError, RecursionError):
        return None


def layer_counts(config: Any) -> Iterator[tuple[str, int]]:
    """Name and value of each number of layers in a configuration."""
    for keys, value in _values(config):
        if keys and keys[-1] in _LAYERS and type(value) is int:
            yield keys[-1], value


def _read(path: Path) -> dict[str, Any]:
    if problem := file_problem(path):
        raise OSError(problem)
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it is a {type(content).__name__}")
    return content


def _implausible(path: Path, content: Any) -> Iterator[str]:
    """A line for each number that libraries would count up to for ever, or that makes every answer NaN."""
    for keys, value in _values(content):
        name = ".".join(keys)
        most = [most for pattern, most in _MOST.items() if keys and re.search(pattern, keys[-1])]
        if type(value) is int and most and value > most[0]:
            yield f"{path}: {name} is {_shown(value)}, which no model has; correct it"
        elif isinstance(value, float) and math.isnan(value):
            yield f"{path}: {name} is NaN, not a number; correct it"


def _named(folder: Path) -> list[Path]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    return [folder / name for name in names if name in _SETTINGS or _OF_SENTENCES.fullmatch(name)]


def _leads_out(path: Path, content: Any, is_inside: Callable[[Path], bool]) -> Iterator[str]:
    for keys, text in _texts(content):
        if any(_ATTENTION.fullmatch(key) for key in keys) and "/" in text:
            yield f"{path}: {keys[-1]} names {_shown(text)}, code on a hub, which is not run; use sdpa or eager"
        elif keys[-1:] in (("dtype",), ("torch_dtype",)) and not _TYPE.fullmatch(text):
            yield f"{path}: {keys[-1]} is {_shown(text)}, not a data type; use bfloat16 or float32"
        elif keys[-1:] == ("tokenizer_class",) and not _TOKENIZER.search(text):
            yield f"{path}: tokenizer_class is {_shown(text)}, which is no tokenizer; download the model again"
        elif not _NOT_FOLLOWED & set(keys) and _is_elsewhere(keys[-1] if keys else "", text, is_inside):
            yield f"{path}: {'.'.join(keys)}: {_shown(text)} is outside the model and is not used; remove the entry"


def _texts(content: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in a JSON value, with the keys that lead to it."""
    return ((keys, value) for keys, value in _values(content) if isinstance(value, str))


def _values(content: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value in a JSON value that is no list or object, with the keys that lead to it. Not recursive, because
    values may nest deeply."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while waiting:
        keys, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*keys, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(keys, item) for item in value]
        else:
            yield keys, value


def _is_elsewhere(key: str, text: str, is_inside: Callable[[Path], bool]) -> bool:
    """Whether a text names a file on this machine or a network that is not part of the model."""
    names_a_file = bool(_A_FILE.fullmatch(key))
    if text.startswith("\\\\") or (names_a_file and "://" in text):  # on Windows, checking a share would connect to it
        return True
    if not names_a_file and not (re.search(r"[/\\]", text) and len(text) < 4096 and text.isprintable()):
        return False
    try:
        return os.path.lexists(text) and not is_inside(Path(text))
    except (OSError, ValueError):  # not a valid file name
        return False


def _adapter(path: Path, content: Mapping[str, Any]) -> Iterator[str]:
    if content.get("peft_type") != "LORA":  # other types load a second model, or weights from anywhere
        kind = _shown(content.get("peft_type"))
        yield f"{path}: peft_type is {kind}, and only LoRA adapters are read; merge it into its base model"
    if content.get("megatron_config") is not None:
        yield f"{path}: megatron_config: would import modules, which is not allowed; set it to null"
    if content.get("layer_replication") is not None:  # a larger model than the base, as large as the file says
        yield f"{path}: layer_replication: is not supported; merge the adapter into its base model"
    init = content.get("init_lora_weights", True)
    if not (init is None or isinstance(init, bool) or (isinstance(init, str) and _INIT.fullmatch(init))):
        why = "would change the base model, or is unknown; save the adapter as plain LoRA"
        yield f"{path}: init_lora_weights is {_shown(init)}, which {why}"


def _of_sentences(path: Path, content: Mapping[str, Any]) -> Iterator[str]:
    for name in _OTHER_MODELS:
        if content.get(name) is not None:
            yield f"{path}: {name}: {_shown(content[name])} is another model, which is not used; remove the entry"
    for group, arguments in content.items():
        if not _HANDED_ON.fullmatch(group) or arguments is None:
            continue
        unknown = sorted(set(arguments) - _HARMLESS_ARGUMENTS) if isinstance(arguments, dict) else [_shown(arguments)]
        for name in unknown:
            yield f"{path}: {group}: {name} is not passed on to any library; remove the entry"
    for keys, text in _texts(content.get("modality_config")):
        if keys[-1:] == ("method",) and not _METHOD.fullmatch(text):
            yield f"{path}: modality_config: {_shown(text)} is not an embedding method; use forward"


def _are_texts(prompts: object) -> bool:
    texts = prompts.values() if isinstance(prompts, dict) else None
    return not prompts or (texts is not None and all(text is None or isinstance(text, str) for text in texts))


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
