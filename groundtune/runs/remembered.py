"""Settings that a run's folder remembers: the model, retriever and prompt that it was trained and evaluated with.

The folder may come from a stranger, so run.json is read through an allow-list. Settings can only change numbers. Names
point to models and files; one that points outside the folder is followed only if this machine made the run. Each
machine records its own runs in the user's cache, where no folder can write.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from groundtune.arguments import (
    MAXSIM,
    NO_RERANKER,
    DataArguments,
    EvaluationArguments,
    Group,
    ModelArguments,
    PassageArguments,
    PromptArguments,
    RetrievalArguments,
)
from groundtune.data.files import sha256_of, write_text
from groundtune.errors import DataError
from groundtune.system.durable import cache_folder
from groundtune.system.model_folders import adapter_base_of
from groundtune.system.text import harmless_line, to_json

logger = logging.getLogger(__name__)

RUN = "run.json"
EVALUATION = "evaluation"  # the folder in a run's that `groundtune evaluate RUN` writes
BASE_MODEL = "model_name_or_path"
# By the group that run.json keeps them in. Never: code to run, keys, judges, trackers, hub, paths to write to. A server
# can only be a name of a model, which is not followed unless this machine made the run.
_SETTINGS: dict[str, tuple[type[Group] | None, tuple[str, ...]]] = {
    "data": (DataArguments, ("max_seq_length", "too_long")),
    "retrieval": (
        RetrievalArguments,
        (
            "eval_num_to_retrieve", "retriever", "mix_weight", "query_history", "embedding_dtype", "query_prompt",
            "document_prompt", "filter", "vector_dtype", "embedding_server_model", "reranker_model", "rerank_depth",
            "rerank_weight", "rewriter_model", "rewriter_options",
        ),
    ),
    "passages": (PassageArguments, ("gold_dropout",)),
    "prompt": (PromptArguments, tuple(field.name for field in fields(PromptArguments))),
    "model": (ModelArguments, ("dtype", "use_peft", "load_in_4bit")),
    "evaluation": (EvaluationArguments, ("max_new_tokens", "bootstrap_samples")),
    "training": (None, ("bf16", "load_best_model_at_end")),
}  # fmt: skip
_NAMES = {
    "model": (BASE_MODEL,),
    "retrieval": ("embedding_model", "eval_embedding_model", "reranker", "rewriter", "rewrite_prompt"),
    "data": ("full_dataset_file_path", "eval_file", "test_file"),
}
_OF_TRAINING = {"bf16": "bool | None", "load_best_model_at_end": "bool"}  # types of transformers' flags
# The least and the most of each number: more would take all time or memory.
_BOUNDS = {
    "max_seq_length": (16, 10_000_000), "eval_num_to_retrieve": (1, 10_000_000), "max_new_tokens": (1, 10_000_000),
    "bootstrap_samples": (100, 100_000), "mix_weight": (0, 1), "rerank_depth": (1, 10_000), "rerank_weight": (0, 1),
    "gold_dropout": (0, 1),
}  # fmt: skip
_LARGEST = 16 * 2**20  # bytes of a run.json; real ones have a few thousand
_LONGEST_NAME = 4096  # characters: the longest path on Linux


@dataclass(frozen=True)
class Remembered:
    """The usable content of run.json; the keys of `settings` and `names` are names of flags.

    `own`: this machine made the run. `outside`: names that point outside the folder of somebody else's run; they are
    shown but not used. `revision` and `gguf_file` belong to the base model. `inputs` holds the SHA-256 of the files
    that the run read; `index_path` is where an own run keeps its index.
    """

    folder: Path
    method: str
    settings: Mapping[str, Any]
    names: Mapping[str, str]
    own: bool = True
    outside: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    gguf_file: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    index_path: str = ""


def remembered(folder: str) -> Remembered | None:
    """The run that made `folder`; None if no run did.

    A relative path that does not exist here is looked up in the folder where the run was started. Raises `DataError`
    with every problem of run.json.
    """
    path = Path(folder) / RUN
    if not folder or not os.path.isfile(path):
        return None
    record, digest = _read(path)
    groups = record.get("arguments")
    if not isinstance(groups, dict):
        raise DataError([f"{path}: arguments: missing; this is not the record of a run, so name another folder"])
    odd = [name for name in _SETTINGS if not isinstance(groups.get(name), (dict, type(None)))]
    told = f"{path}: arguments: {', '.join(odd)} must be an object; run.json was edited, so correct it"
    problems = [told] if odd else []
    settings = _settings(groups, str(path), problems)
    written = _names(groups, str(path), problems)
    method = _text(groups.get("method", ""), f"{path}: arguments.method", problems)
    revision = _text(_of(groups, "model").get("model_revision") or "", f"{path}: model_revision", problems)
    gguf_file = _text(_of(groups, "model").get("gguf_file") or "", f"{path}: gguf_file", problems)
    if gguf_file in (".", "..") or re.search(r"[/\\]", gguf_file):
        problems.append(f"{path}: gguf_file: {gguf_file!r} is not a file name; run.json was edited, so correct it")
    if problems:
        raise DataError(problems)
    own, outside = _own_run(digest), {}
    if own is None:
        outside = {name: value for name, value in written.items() if not _is_here(Path(folder), value)}
        names = {name: value for name, value in written.items() if name not in outside}
    else:
        started_in = str(record.get("working_directory") or "")
        names = {name: _findable(value, started_in) for name, value in written.items()}
    return Remembered(
        folder=Path(folder),
        method=method,
        settings=settings,
        names=names,
        own=own is not None,
        outside=outside,
        revision=revision or None,
        gguf_file=gguf_file or None,
        inputs=_hashes(record),
        index_path=str((own or {}).get("index_path") or ""),
    )


def record_own_run(folder: Path, index_path: str = "") -> None:
    """Note in the user's cache that this machine made the run, by the SHA-256 of its run.json.

    So a moved folder is still recognised, but not somebody else's run.json put in its place. `index_path` is used when
    the run is evaluated here. Failing to write the cache is only a warning.
    """
    record = {"folder": str(folder.absolute()), "index_path": os.path.abspath(index_path) if index_path else ""}
    try:
        runs = _own_runs()
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(runs / f"{sha256_of(folder / RUN)}.json", to_json(record) + "\n")
    except (OSError, DataError) as error:  # `DataError`: it is a link
        reason = getattr(error, "strerror", None) or error
        logger.warning(
            "cannot write to %s (%s): models and files outside %s must be named again for an evaluation",
            _own_runs(), reason, folder,
        )  # fmt: skip


def changed_inputs(run: Remembered, paths: Mapping[str, str]) -> list[str]:
    """A sentence for each file that differs from what the run read; `paths` are keyed by argument name."""
    return [
        f"{path} has changed since the run of {run.folder}"
        for name, path in paths.items()
        if name in run.inputs and sha256_of(path) != run.inputs[name]
    ]


def leads_out_of(folder: str, name: str) -> bool:
    """Whether the model `name`, given by a model folder, is outside it: another folder, or a model on the hub."""
    return not _lies_in(Path(folder), name)


def base_not_followed(flag: str, name: str) -> list[str]:
    """A problem if `--flag` is an adapter's folder whose base model is outside it, unless this machine made that run.

    Raises `DataError` if the adapter's configuration cannot be read.
    """
    base = adapter_base_of(Path(name)) if os.path.isdir(name) else ""
    if not base or not leads_out_of(name, base):
        return []
    run = remembered(name)
    if run is not None and run.own and run.names.get(BASE_MODEL) == base:
        return []
    why = "outside its folder, and this machine has no record of making it; if you trust both, merge the two"
    return [harmless_line(f"--{flag}: {name} is an adapter of {base}, {why}")]


def _own_runs() -> Path:
    return cache_folder() / "runs"


def _own_run(digest: str) -> dict[str, Any] | None:
    """This machine's record of the run; None if it did not make the run."""
    try:
        record = json.loads((_own_runs() / f"{digest}.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The content of run.json and the SHA-256 of its bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"over {_LARGEST:,} bytes")
        record = json.loads(data.decode("utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        problem = f"{path}: not the record of a run ({' '.join(str(error).split())})"
        raise DataError([f"{problem}; name another folder, or remove the file"]) from error
    return record, hashlib.sha256(data).hexdigest()


def _settings(groups: Mapping[str, Any], path: str, problems: list[str]) -> dict[str, Any]:
    found = {}
    for group, (arguments, names) in _SETTINGS.items():
        for name in names:
            value = _of(groups, group).get(name)
            if value in (None, "***"):
                continue
            about = arguments.__dataclass_fields__[name] if arguments else None
            kind = str(arguments.__annotations__[name] if arguments else _OF_TRAINING[name])
            choices = about.metadata.get("choices") if about else None
            if wrong := _wrong(value, kind.removesuffix(" | None"), choices) or _beyond(name, value):
                problems.append(f"{path}: {name}: {wrong}; run.json was edited, so correct it or remove it")
            else:
                found[name] = value
    return found


def _wrong(value: object, kind: str, choices: list[str] | None) -> str:
    """The problem with a setting, in words; empty if there is none."""
    if choices and value not in choices:
        return f"{_shown(value)} is not one of {', '.join(choices)}"
    kinds: dict[str, Callable[[Any], bool]] = {
        "str": lambda v: isinstance(v, str),
        "bool": lambda v: isinstance(v, bool),
        "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
        "float": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    }
    return "" if kinds[kind](value) else f"{_shown(value)} is not a {kind}"


def _beyond(name: str, value: Any) -> str:
    least, most = _BOUNDS.get(name, (value, value))
    return "" if least <= value <= most else f"{_shown(value)} is not from {least:,} to {most:,}"


def _names(groups: Mapping[str, Any], path: str, problems: list[str]) -> dict[str, str]:
    found = {
        name: _text(_of(groups, group).get(name) or "", f"{path}: {name}", problems)
        for group, names in _NAMES.items()
        for name in names
    }
    return {name: value for name, value in found.items() if value not in ("", "***")}


def _text(value: Any, where: str, problems: list[str]) -> str:
    if isinstance(value, str) and len(value) <= _LONGEST_NAME and "\0" not in value:
        return value
    problems.append(f"{where}: {_shown(value)} is not a name; run.json was edited, so correct it or remove it")
    return ""


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _of(groups: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group = groups.get(name)
    return group if isinstance(group, dict) else {}


def _hashes(record: Mapping[str, Any]) -> dict[str, str]:
    inputs = _of(record, "inputs")
    return {name: _of(inputs, name)["sha256"] for name in inputs if isinstance(_of(inputs, name).get("sha256"), str)}


def _is_here(folder: Path, name: str) -> bool:
    """Whether a name leads to nothing outside the folder: to a place inside it, or to no place at all."""
    return name in (MAXSIM, NO_RERANKER) or _lies_in(folder, name)


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a name is a path inside the folder, literally and after resolving links; accesses nothing outside it."""
    there = os.path.abspath(name)
    if not Path(there).is_relative_to(os.path.abspath(folder)):
        return False
    return os.path.exists(there) and Path(os.path.realpath(there)).is_relative_to(os.path.realpath(folder))


def _findable(value: str, working_directory: str) -> str:
    if os.path.exists(value):
        return value
    there = os.path.join(working_directory, value)
    return there if os.path.exists(there) else value
