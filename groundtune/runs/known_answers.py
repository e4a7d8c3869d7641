"""Answers that a model gave before, kept in the user's cache: the same prompts to the same model are not asked again.

The key says everything that shapes an answer: the weights in memory, the precision and the machine that compute it,
the prompts' ids, and which prompts are answered together, because rounding depends on what else is in a batch.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from groundtune.aliases import Model
from groundtune.errors import DataError
from groundtune.model import attention
from groundtune.model.attention import inside_adapter
from groundtune.model.generation import Generated, generate_greedy
from groundtune.model.kv_cache import PassageCache
from groundtune.runs.record import device, versions
from groundtune.system.durable import Damaged, DiskError, cache_folder, read_sealed, write_sealed
from groundtune.system.text import to_json

logger = logging.getLogger(__name__)

_FORMAT = 1
_MOST = 10_000  # blocks in the cache, of about 30 KB each; the ones unused for longest are removed
_LARGEST = 64 * 2**20  # bytes of a file that is read
_ON_CPU = 64  # prompts of a block; a CPU gains nothing from more, and a run that is killed loses at most a block
_BATCHES = 16  # of a block elsewhere: the slots of a batch are idle only at the end of a block
# Entries of a model's configuration that change no output. Trainer sets some of them.
_WITHOUT_INFLUENCE = {
    "_name_or_path", "name_or_path", "transformers_version", "use_cache", "pad_token_id", "bos_token_id",
    "eos_token_id", "_attn_implementation_autoset",
}  # fmt: skip
_ABOUT_AN_ADAPTER = {"base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version"}


@dataclass
class KnownAnswers:
    """The kept answers of one model, `model` being its `fingerprint`, and how many were `reused` of those `asked`."""

    model: str
    asked: int = 0
    reused: int = 0
    seconds: float = field(default=0.0, repr=False)  # that the reused answers once took

    def note(self, name: str) -> str:
        """How many answers of the model `name` were reused."""
        return f"{self.reused} of {self.asked} answers of {name} are reused from {_path('').parent}"

    def key(self, model: Model, prompts: Sequence[list[int]], **options: Any) -> str:
        """The key of a block of prompts, answered by `model` as it computes now."""
        kind = model.device.type
        dtype = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
        computed = [_FORMAT, self.model, dtype, model.config._attn_implementation]
        return hashlib.sha256(to_json([computed, prompts, sorted(options.items())]).encode()).hexdigest()

    def missing(
        self,
        model: Model,
        prompts: Sequence[list[int]],
        *,
        batch_size: int,
        borders: Sequence[Sequence[int]] = (),
        passage_cache: int = 0,
        **options: Any,
    ) -> dict[str, int]:
        """The blocks of prompts whose answers are not kept: their keys, and how many prompts each has."""
        options |= _of_passages(borders, passage_cache)
        keys = {
            self.key(model, [prompts[i] for i in block], batch_size=batch_size, **options): len(block)
            for block in _blocks(model, prompts, batch_size, any(borders))
        }
        return {key: number for key, number in keys.items() if not os.path.isfile(_path(key))}

    def read(self, key: str, of: int, model: Model, **options: Any) -> list[Generated] | None:
        """The `of` answers of a block; None if they are not kept, or the file is damaged."""
        self.asked += of
        path = _path(key)
        if not os.path.isfile(path):
            return None
        try:
            content = read_sealed(path, _LARGEST)
            found = [_answer(row, model, **options) for row in content["answers"]]
            seconds = float(content["seconds"])
            if content["key"] != key or len(found) != of or not 0 <= seconds < math.inf:
                raise ValueError("it holds other answers")
        except (Damaged, OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s cannot be used (%s); its questions are asked again", path, error)
            return None
        with suppress(OSError):
            os.utime(path)  # the least recently used are removed first
        self.reused += of
        self.seconds += seconds
        return found

    def keep(self, key: str, answers: Sequence[Generated], seconds: float) -> None:
        """Keep a block's answers, if the cache can be written to."""
        rows = [[answer.ids, answer.logprob] for answer in answers]
        path = _path(key)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_sealed(path, {"key": key, "seconds": seconds, "answers": rows})
            _remove_oldest(path.parent)
        except (OSError, DiskError, DataError) as error:
            logger.info("the answers cannot be kept in %s (%s)", path, error)


def answer_all(
    model: Model,
    prompts: Sequence[list[int]],
    *,
    known: KnownAnswers | None = None,
    batch_size: int,
    on_answer: Callable[[int], None] = lambda done: None,
    on_fewer: Callable[[int], None] = lambda batch_size: None,
    sources: Sequence[str] = (),
    borders: Sequence[Sequence[int]] = (),
    passage_cache: int = 0,
    **options: Any,
) -> list[Generated]:
    """`generate_greedy` in blocks of prompts, of which those that `known` has are not generated again.

    The blocks are the same with and without `known`, so the answers are, too. The block with the longest prompt comes
    first, so that memory runs out immediately or not at all. If any prompt has `borders`, all are one block: passages
    that were read for one answer are kept for the next, in `passage_cache` bytes.
    """
    about = options | _of_passages(borders, passage_cache)
    passages: dict[str, Any] = {"borders": borders, "kept": PassageCache(passage_cache)} if any(borders) else {}
    found: dict[int, Generated] = {}
    sizes = [batch_size]  # the last one is used; memory may run out

    def fewer(now: int) -> None:
        sizes.append(now)
        on_fewer(now)

    for block in _blocks(model, prompts, batch_size, whole=bool(passages)):
        these, asked_with = [prompts[i] for i in block], sizes[-1]
        key = known.key(model, these, batch_size=asked_with, **about) if known else ""
        answers = known.read(key, len(these), model, **options) if known else None
        if answers is not None:
            on_answer(len(answers))
        else:
            begin = time.perf_counter()
            named = [sources[i] for i in block] if sources else ()
            answers = generate_greedy(
                model, these, batch_size=asked_with, on_answer=on_answer, on_fewer=fewer, sources=named,
                **passages, **options,
            )  # fmt: skip
            if known and sizes[-1] == asked_with:  # else the batches were smaller than the key says
                known.keep(key, answers, time.perf_counter() - begin)
        found.update(zip(block, answers, strict=True))
    return [found[i] for i in range(len(prompts))]


def _blocks(model: Model, prompts: Sequence[list[int]], batch_size: int, whole: bool) -> list[range]:
    size = len(prompts) if whole else _ON_CPU if model.device.type == "cpu" else _BATCHES * batch_size
    blocks = [range(i, min(i + size, len(prompts))) for i in range(0, len(prompts), size)] if prompts else []
    return sorted(blocks, key=lambda block: -max(len(prompts[i]) for i in block))


def _of_passages(borders: Sequence[Sequence[int]], passage_cache: int) -> dict[str, Any]:
    """What shapes answers besides, where passages do not read each other."""
    return {"borders": list(map(list, borders)), "passage_cache": passage_cache} if any(borders) else {}


def fingerprint(model: Model, without_adapter: bool = False) -> str:
    """What computes the answers of `model` as it is now: weights, configuration, versions and machine, as SHA-256.

    `without_adapter`: its adapter is switched off. An adapter that adds nothing yet counts as none, so a model that is
    about to be trained is its base model. Empty if the weights are not all here.
    """
    base = inside_adapter(model)
    adapters = getattr(model, "peft_config", {}) if base is not model else {}
    none = all(_is_lora(config) for config in adapters.values()) and (without_adapter or _adds_nothing(base))
    digest, seen = hashlib.sha256(), set()
    for name, tensor in sorted(base.state_dict().items()):
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta or hasattr(tensor, "full_tensor"):
            return ""  # a part of it, on this device or on none
        if none and "lora_" in name or (tensor.data_ptr(), tensor.shape) in seen:
            continue
        seen.add((tensor.data_ptr(), tensor.shape))  # of tied weights, one is enough
        name = name.replace(".base_layer.", ".") if none else name
        digest.update(to_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    about = {} if none else {"adapters": [_plain(a.to_dict()) for a in adapters.values()], "off": without_adapter}
    about |= {
        "class": f"{type(base).__module__}.{type(base).__qualname__}", "config": _plain(base.config.to_dict()),
        "versions": {**versions(), "generation": _code()}, "device": device(), "on": base.device.type,
        "float32": torch.get_float32_matmul_precision(),
    }  # fmt: skip
    digest.update(to_json(about, sort_keys=True, default=str).encode("utf-8", "replace"))
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """The code that generates: between two releases it has the same version."""
    files = sorted(Path(attention.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _is_lora(config: Any) -> bool:
    """Whether an adapter is nothing but LoRA beside the layers, which leaves the base model as it was."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    return kind == "LORA" and not config.modules_to_save and not getattr(config, "trainable_token_indices", None)


def _adds_nothing(base: Model) -> bool:
    """Whether every low-rank product is 0 and there is nothing else, such as DoRA's magnitudes or the product of an
    embedding, whose factors have other names."""
    parts = [(name, parameter) for name, parameter in base.named_parameters() if "lora_" in name]
    return all(".lora_A." in name or (".lora_B." in name and not parameter.any()) for name, parameter in parts)


def _plain(config: Any) -> Any:
    """A configuration without what has no influence, sets in order."""
    if isinstance(config, dict):
        left_out = _WITHOUT_INFLUENCE | _ABOUT_AN_ADAPTER
        return {str(name): _plain(value) for name, value in config.items() if name not in left_out}
    return sorted(map(str, config)) if isinstance(config, (set, frozenset)) else config


def _answer(row: Any, model: Model, stop_ids: Sequence[int], max_new_tokens: int, **options: Any) -> Generated:
    """An answer as it was kept. Raises ValueError or TypeError if this model could not have given it."""
    ids, logprob = row
    vocabulary = model.config.get_text_config().vocab_size
    if not isinstance(ids, list) or not all(type(id) is int and 0 <= id < vocabulary for id in ids):
        raise ValueError("its ids are not those of tokens")
    ended = [id in stop_ids for id in ids]
    if not ids or len(ids) > max_new_tokens or any(ended[:-1]) or not (ended[-1] or len(ids) == max_new_tokens):
        raise ValueError("an answer ends elsewhere")
    if type(logprob) is not float or not -math.inf < logprob <= 0:
        raise ValueError("a log-probability is none")
    return Generated(ids, ended[-1], logprob)


def _path(key: str) -> Path:
    return cache_folder() / "answers" / f"{key}.json"


def _remove_oldest(folder: Path) -> None:
    files = [entry for entry in os.scandir(folder) if entry.name.endswith(".json")]
    if len(files) > _MOST:
        for entry in sorted(files, key=lambda entry: entry.stat().st_mtime)[: len(files) - _MOST * 9 // 10]:
            os.unlink(entry.path)
