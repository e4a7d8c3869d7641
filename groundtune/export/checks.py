"""Where an export differs from its run, file by file: prompt, stop tokens, settings, weights. Each in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from groundtune.aliases import Model, Tokenizer
from groundtune.arguments import ModelArguments
from groundtune.data.files import in_folder
from groundtune.export.chat_template import encoded, rendered
from groundtune.export.merging import adapted, change_of, sum_of, without_adapter
from groundtune.model.loading import load_model
from groundtune.prompts.prompt import Prompt
from groundtune.system.model_settings import read_json
from groundtune.system.text import as_json, few, one_line

Messages = list[dict[str, str]]
# Settings that say where a model is from and how it is stored, not what it computes; ends are compared as stop tokens.
_OF_STORING = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id", "architectures", "_attn_implementation", "attn_implementation", "quantization_config",
}  # fmt: skip
# What a server may read from generation_config.json and still write the most likely token.
_GREEDY = {
    "do_sample": (False,), "temperature": (0, 1), "top_p": (1,), "top_k": (0, 50), "repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,), "num_beams": (1,), "min_new_tokens": (0,), "length_penalty": (1,),
}  # fmt: skip
_SAME = 0.25  # of the adapter's change: rounding it in two steps moves few weights by one


def prompts_differ(tokenizer: Tokenizer, asked: Sequence[Messages], trained: Sequence[list[int]]) -> Iterator[str]:
    """A line if the template of the export gives other ids than those that the run was measured with."""
    wrong = []
    for messages, ids in zip(asked, trained, strict=True):
        written = encoded(tokenizer, rendered(tokenizer, messages))
        if written != ids:
            wrong.append(_how(tokenizer, written, ids))
    if wrong:
        yield f"prompt: {len(wrong)} of {len(asked)} prompts are not the run's; {wrong[0]}"


def _how(tokenizer: Tokenizer, written: list[int], trained: list[int]) -> str:
    bos = [tokenizer.bos_token_id]
    if written[:2] == bos * 2 != trained[:2]:
        return "the first begins with one BOS token too many"
    if trained[:1] == bos != written[:1]:
        return "the first has lost its BOS token"
    at = next((i for i, (a, b) in enumerate(zip(written, trained)) if a != b), min(len(written), len(trained)))
    texts = [one_line(repr(tokenizer.decode(ids[at : at + 8])), 60) for ids in (written, trained)]
    return (
        f"the first has {len(written)} tokens for {len(trained)}, and {texts[0]} for {texts[1]} from token {at + 1} on"
    )


def vocabulary_differs(tokenizer: Tokenizer, of_run: Tokenizer) -> Iterator[str]:
    theirs, ours = tokenizer.get_vocab(), of_run.get_vocab()
    if other := sorted(token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token)):
        yield f"tokenizer: {len(other):,} tokens are not the run's: {few([repr(token) for token in other])}"


def stops_differ(folder: Path, prompt: Prompt) -> Iterator[str]:
    """Lines for stop tokens that generation_config.json lacks, and for settings that change the answers."""
    settings = _json(folder, "generation_config.json")
    named = settings.get("eos_token_id")
    known = named if isinstance(named, list) else [named]
    if missing := [prompt.tokens.spelling(id) for id in prompt.stop_ids if id not in known]:
        yield f"stop tokens: generation_config.json lacks {', '.join(missing)}: answers would not end there"
    for name, plain in _GREEDY.items():
        if settings.get(name, None) not in (None, *plain):
            yield f"generation_config.json: {name} is {settings[name]!r}: answers would not be the most likely ones"


def settings_differ(folder: Path, model: Model) -> Iterator[str]:
    """A line for each setting of config.json that is not that of the run's model, such as its number of positions."""
    theirs = _json(folder, "config.json")
    ours: Mapping[str, Any] = json.loads(as_json(model.config.to_dict()))
    for name in sorted((theirs.keys() & ours.keys()) - _OF_STORING):
        if _plain(theirs[name]) != _plain(ours[name]):
            yield f"config.json: {name} is {theirs[name]!r:.60}; the run's model has {ours[name]!r:.60}"


def _plain(value: Any) -> Any:
    """A setting without what belongs to storing, in the settings of parts too."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items() if name not in _OF_STORING}
    return value


def weights_differ(folder: Path, model: Model) -> Iterator[str]:
    """Lines for weights that are not those of the run's `model`, its adapter added once and rounded to their dtype."""
    layers = {f"{name}.weight": layer for name, layer in adapted(model)}
    tensors = without_adapter(model).state_dict()
    ours = {name.replace(".base_layer.", "."): w for name, w in tensors.items() if ".lora_" not in name}
    other, infinite, unknown, moved, wanted = [], [], [], 0.0, 0.0
    for name, theirs in _weights(folder, ours):
        if not bool(torch.isfinite(theirs).all()):
            infinite.append(name)
        elif name not in ours or ours[name].shape != theirs.shape:
            unknown.append(name)
        elif name in layers:
            before = ours[name].detach().cpu().to(theirs.dtype)
            after = sum_of(before, change_of(layers[name]).cpu())
            moved += float((theirs.float() - after.float()).square().sum())
            wanted += float((after.float() - before.float()).square().sum())
        elif not torch.equal(theirs, ours[name].detach().cpu().to(theirs.dtype)):
            other.append(name)
    if infinite:
        yield f"weights: {len(infinite)} are not finite, beyond the largest number of their dtype: {few(infinite)}"
    if unknown:
        yield f"weights: {len(unknown)} are not weights of the run's model: {few(unknown)}"
    if other:
        yield f"weights: {len(other)} are not those of the base model that the run was trained on: {few(other)}"
    if moved > _SAME**2 * wanted and moved > 0:
        off = (
            f"they differ by {(moved / wanted) ** 0.5:.2f} times what the adapter changes" if wanted else "they differ"
        )
        yield f"weights: not the base model with the adapter added once: {off}"


def _weights(folder: Path, known: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of the export: one at a time from its files, if their names are `known`, else from the loaded model.

    Some models are saved under other names than they have in memory, such as those with experts.
    """
    if all(name in known for name, _ in _tensors(folder)):
        yield from ((name, tensor()) for name, tensor in _tensors(folder))
        return
    dtype = str(_json(folder, "config.json").get("dtype", "auto"))
    arguments = ModelArguments(model_name_or_path=str(folder), dtype=dtype)
    yield from load_model(arguments, bf16=False, stop_ids=(0,), pad_id=0).state_dict().items()


def _tensors(folder: Path) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """The name of every tensor in the safetensors files of a folder, and what reads it."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(in_folder(folder, path.name), framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118  it is no dictionary
                yield name, partial(file.get_tensor, name)


def _json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of the export; empty if it cannot be read."""
    content = read_json(in_folder(folder, name))
    return content if isinstance(content, dict) else {}
