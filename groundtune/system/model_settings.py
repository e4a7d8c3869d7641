"""Checks of a model's JSON files before libraries read them.

Libraries use much of these files as arguments. Some values make them download code from a hub and run it, open or write
files anywhere, or load a second model. Every value that leads out of the model is refused before a library sees it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
_TYPE = re.compile(r"(torch\.)?(auto|half|double|(b?float|u?int)\d\w*)")  # libraries take any attribute of torch
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
_METHOD = re.compile(r"forward|encode|get_\w+_features")


def settings_problems(folder: Path, is_inside: Callable[[Path], bool]) -> Iterator[str]:
    """A line for each value in the JSON files of `folder` that leads out of the model.

    `is_inside` tells whether a path is part of the model.
    """
    for path in _named(folder):
        content = read_json(path)
        yield from _leads_out(path, content, is_inside)
        if isinstance(content, dict) and path.name == ADAPTER:
            yield from _adapter(path, content)
        if isinstance(content, dict) and not _are_texts(content.get("prompts")):
            yield f"{path}: prompts: {_shown(content['prompts'])} is not a mapping of names to texts; correct it"
        if isinstance(content, dict) and _OF_SENTENCES.fullmatch(path.name):
            yield from _of_sentences(path, content)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it cannot be read, which the library will report."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


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
        elif not _NOT_FOLLOWED & set(keys) and _is_elsewhere(keys[-1] if keys else "", text, is_inside):
            yield f"{path}: {'.'.join(keys)}: {_shown(text)} is outside the model and is not used; remove the entry"


def _texts(content: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in a JSON value, with the keys that lead to it. Not recursive, because values may nest deeply."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while waiting:
        keys, value = waiting.pop()
        if isinstance(value, str):
            yield keys, value
        elif isinstance(value, dict):
            waiting += [((*keys, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(keys, item) for item in value]


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
