"""Checks of a model before any library reads it: weights are safetensors or GGUF, and no file lies outside the model.

A `.bin` file is a pickle, and a pickle is a program. Libraries that are asked for safetensors still read some pickles:
an adapter's weights, a shard that an index lists, later modules of an embedding model. For a model on the hub, only its
settings are checked; they are downloaded first.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard, cast

from groundtune.errors import DataError
from groundtune.system.hub_access import HubError, cache_if_no_hub, comes_of_being_offline, from_hub
from groundtune.system.model_settings import ADAPTER, PATTERNS, layer_counts, read_json, settings_problems
from groundtune.system.outputs import is_link
from groundtune.system.text import harmless_line, one_line
from groundtune.system.weights import file_problem, tensors_in

# Pickles by name, each with the files that libraries prefer over it.
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = {
    "pytorch_model.bin": _SAFE,
    "pytorch_model.bin.index.json": _SAFE,
    "adapter_model.bin": ("adapter_model.safetensors",),
}
# Types of files that libraries read from a model's folder; other files are not checked.
_READ = {
    ".json", ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".model", ".txt", ".jinja", ".tiktoken", ".py",
}  # fmt: skip
# Folders that a run may leave next to its model, and hidden folders.
_NOT_READ = re.compile(r"\..*|checkpoint-.*|predictions|evaluation|index|runs|folds")
# Only the library's own classes are allowed; names of modules and functions begin with a lower-case letter.
_MODULE = re.compile(r"sentence_transformers\.(?:\w+\.)*[A-Z]\w*")
_WEIGHTS = {".safetensors", ".gguf", ".bin", ".pt", ".pth"}
_SWAPPED = "--model_name_or_path and --{flag} may be swapped"
_CONVERT = "weights are read from safetensors only; save it as safetensors where you trust it"


def adapter_base_of(folder: Path) -> str:
    """Name of a local adapter's base model; empty if the folder contains no adapter. Raises `DataError`."""
    if os.path.isfile(folder / "config.json") or not os.path.isfile(folder / ADAPTER):
        return ""
    return base_named_in(folder / ADAPTER)


def base_named_in(path: Path) -> str:
    """`base_model_name_or_path` of an adapter_config.json; raises `DataError`."""
    try:
        name = json.loads(path.read_text("utf-8"))["base_model_name_or_path"]
        if not isinstance(name, str) or not name:
            raise TypeError
    except (KeyError, TypeError) as error:
        raise DataError([f"{path}: has no base_model_name_or_path; add it"]) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(error)
        raise DataError([f"{path}: cannot be read ({reason}); is the adapter complete?"]) from error
    return name


def cannot_load(name: str, error: Exception) -> str:
    """The line for a model that a library could not load."""
    return str(error) if isinstance(error, HubError) else f"cannot load {name}: {why_not_loaded(error)}"


def why_not_loaded(error: Exception) -> str:
    """A library's error about a model on one line, with its class if the text alone says little: KeyError('types')."""
    if denied := _denied(error):
        return denied
    named = isinstance(error, (LookupError, TypeError, AttributeError))
    reason = one_line(repr(error) if named else error)
    if "safetensors" in reason:
        return f"{reason} Weights are read from safetensors only, as a .bin file is a pickle; convert them first"
    return reason if len(reason) <= 240 else f"{reason[:237]}..."


def _denied(error: BaseException | None) -> str:
    """The file that could not be read for lack of permission, in words; empty if that is not the cause."""
    while error is not None:
        # safetensors and tokenizers, which are written in Rust, have only the text.
        if isinstance(error, PermissionError) or "Permission denied (os error 13)" in str(error):
            path = getattr(error, "filename", None)
            return f"permission denied for {path}" if path else "permission denied"
        error = error.__cause__ or error.__context__
    return ""


def model_problems(name: str, gguf_file: str | None = None, weights: bool = True, with_base: bool = True) -> list[str]:
    """Reasons to refuse the folder of a decoder or adapter; empty for a name on the hub.

    `weights`: whether the weights will be read, not only tokenizer and configuration. `with_base`: whether a library
    will load the base model that an adapter names.
    """
    if not os.path.isdir(name):
        return list(_not_readable([Path(name)]))
    if (Path(name) / "modules.json").is_file():
        return [f"{name}: holds an embedding model (modules.json); {_SWAPPED.format(flag='embedding_model')}"]
    return _problems([Path(name)], gguf_file, weights, with_base)


def tokenizer_problems(name: str) -> list[str]:
    """Reasons to refuse the folder of any model of which only the tokenizer is read; empty for a name on the hub."""
    if not os.path.isdir(name):
        return list(_not_readable([Path(name)]))
    return _problems([Path(name)], None, weights=False, with_base=False)


def embedding_problems(name: str, flag: str = "embedding_model") -> list[str]:
    """Reasons to refuse the folder of a sentence-transformers model, named by `--flag`; empty for a name on the hub."""
    if not os.path.isdir(name):
        return list(_not_readable([Path(name)]))
    root = Path(name)
    folders = [Path(at) for at, _, _ in os.walk(root)]
    linked = [Path(at, entry) for at, entries, _ in os.walk(root) for entry in entries]
    read = {path: None for path in (*filter(is_link, linked), *_read_from(root))}
    if outside := _links_outside(iter(read), root):
        return outside  # before anything behind such a link is opened
    bases = (problem for folder in folders for problem in _base_outside(folder, root))
    problems = [*bases, *_problems(folders, None, weights=True, with_base=False), *_modules(root)]
    return problems or _decoder(root, name, flag)


def refuse_embedding_model(name: str) -> None:
    """Raise `ValueError` for an embedding model that is not safe to load."""
    if problems := embedding_problems(name) or hub_problems(name, wanted="embedding_model"):
        raise ValueError(problems[0])


def hub_problems(name: str, revision: str | None = None, wanted: str = "") -> list[str]:
    """Reasons to refuse a hub model, from its settings, which are downloaded; empty for a folder. `wanted` is the flag
    that names it if it must be no model that writes text."""
    if not name or os.path.isdir(name):
        return []
    from huggingface_hub import snapshot_download

    try:
        with cache_if_no_hub():
            root = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except Exception:  # no such model, or no network: loading the model reports it
        return []
    folders = [Path(at) for at, _, _ in os.walk(root)]
    problems = [problem.replace(str(root), name) for folder in folders for problem in _settings(folder, root)]
    return problems or (_decoder(root, name, wanted) if wanted else [])


def _decoder(root: Path, name: str, flag: str) -> list[str]:
    """A line if what should be an embedding model or a reranker writes text: it would load and find little."""
    config = read_json(root / "config.json")
    named = config.get("architectures") if isinstance(config, dict) else None
    kind = str(named[0]) if isinstance(named, list) and named else ""
    if not kind.endswith("ForCausalLM") or (root / "modules.json").exists():
        return []
    asks = {"reranker": "is this a reranker?"}.get(flag, "is this an embedding model?")
    swapped = _SWAPPED.format(flag=flag)
    return [f"{name}: holds a {harmless_line(kind)}, which writes text; {asks} {swapped}"]


def pickles(folder: Path) -> list[str]:
    """A line for each pickle in `folder` from which a library would read weights."""
    return [
        f"{folder / name} is a pickle, which can run code, and {_CONVERT}"
        for name, preferred in _PICKLES.items()
        if (folder / name).exists() and not any((folder / other).is_file() for other in preferred)
    ]


@contextmanager
def loading(name: str) -> Iterator[None]:
    """For use while a library loads the model `name`.

    Nothing is unpickled, every weight is there and chat templates have bounds. For a folder the hub is not used; for a
    name, its cache is used at once if the hub cannot be reached.
    """
    from groundtune.system.load_report import weights_complete  # here, because they import transformers
    from groundtune.system.templates import bound_templates

    bound_templates()
    with nothing_unpickled(), weights_complete(), _without_hub(name) if os.path.isdir(name) else from_hub(name):
        yield


@contextmanager
def _without_hub(name: str) -> Iterator[None]:
    """Set the hub client offline inside. Raises `ValueError` in place of errors that this causes."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    except Exception as error:
        if before or not comes_of_being_offline(error):
            raise
        why = "lacks a file or names another model, and nothing is downloaded for a folder"
        raise ValueError(f"{name} {why}") from error
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def nothing_unpickled() -> Iterator[None]:
    """Make `torch.load` raise ValueError while a library loads weights.

    For a hub model, the files that a library will read are not known before the download.
    """
    import torch

    def refuse(file: Any, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"{os.path.basename(str(file))} is a pickle, not safetensors.")

    load, torch.load = torch.load, cast(Any, refuse)
    try:
        yield
    finally:
        torch.load = load


def _problems(folders: list[Path], gguf_file: str | None, weights: bool, with_base: bool) -> list[str]:
    """Problems in the folders of one model (the first contains the others), and in an adapter's base model."""
    root, seen, problems = folders[0], set(), []
    while folders:
        folder = folders.pop(0)
        if os.path.realpath(folder) in seen:
            continue
        seen.add(os.path.realpath(folder))
        within = root if folder.is_relative_to(root) else folder
        if outside := _links_outside(_read_from(folder), within):
            problems += outside
            continue  # before anything behind such a link is opened
        if denied := list(_not_readable([folder, *_read_from(folder)])):
            problems += denied
            continue
        problems += [*_broken(folder, gguf_file, weights), *_settings(folder, within)]
        if weights:
            problems += _gguf(folder, gguf_file) if gguf_file else [*pickles(folder), *_indexes(folder, within)]
            problems += _no_adapter(folder)
        if weights and not gguf_file and not problems:
            problems += _too_many_layers(folder)
        folders += _base(folder) if with_base else []
    return problems


def may_not_read(path: Path) -> bool:
    """Whether a file or folder is there, but this user lacks the permission to read it, or to enter its folder."""
    try:
        return not os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(os.stat(path).st_mode) else 0))
    except PermissionError:  # of a folder above it
        return True
    except (OSError, ValueError):  # reported by whoever reads it
        return False


def _not_readable(paths: Iterable[Path]) -> Iterator[str]:
    """A line for each of these files and folders that this user may not read, if it exists at all."""
    for path in filter(may_not_read, paths):
        yield f"{path}: permission denied; let its owner make it readable for this user, or name another model"


def _broken(folder: Path, gguf_file: str | None, weights: bool) -> list[str]:
    """A line for each file that cannot be read; weights are looked at only if they will be read."""
    read = {".gguf" if gguf_file else ".safetensors"} if weights else set()
    folders = [path for path in _entries(folder) if path.suffix in read | {".json"} and path.is_dir()]
    paths = [path for path in _read_from(folder) if path.suffix not in _WEIGHTS - read]
    return list(filter(None, map(file_problem, [*folders, *paths])))


def _too_many_layers(folder: Path) -> Iterator[str]:
    """A line if the settings have more layers than the weights have tensors: building them would take for ever."""
    tensors = sum(len(tensors_in(path)) for path in _entries(folder) if path.suffix == ".safetensors")
    for name, value in layer_counts(read_json(folder / "config.json")):
        if 0 < tensors < value:  # without any, the library says which file it expects
            yield (
                f"{folder / 'config.json'}: {name} is {value:,}, but the weights have only {tensors:,} tensors; "
                "download the model again"
            )


def _settings(folder: Path, root: Path) -> Iterator[str]:
    """Settings in `folder` that lead out of the model in `root`, or that belong to two kinds of models."""
    yield from settings_problems(folder, lambda path: _belongs(path, root))
    if all((folder / name).exists() for name in ("config.json", ADAPTER)):
        what_to_do = "keep the first for a model, the second for an adapter"
        yield f"{folder}: contains both config.json and {ADAPTER}; {what_to_do}"


def _read_from(folder: Path) -> Iterator[Path]:
    """Paths in a folder that libraries may read: files of certain types, also in subfolders, and links to folders."""
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _NOT_READ.fullmatch(name)]
        yield from (path for path in (Path(at, name) for name in sorted(folders)) if is_link(path))
        yield from (path for path in (Path(at, name) for name in sorted(files)) if path.suffix in _READ)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # reported when the folder is read
        return []


def _links_outside(paths: Iterator[Path], root: Path) -> list[str]:
    return [
        f"{path} leads to {os.path.realpath(path)}, outside the model's folder; replace it with a copy"
        for path in paths
        if not _belongs(path, root)
    ]


def _belongs(path: Path, root: Path) -> bool:
    """Whether a file belongs to the model in `root`: inside it, or in the hub cache's `blobs`, where snapshots link."""
    real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if real.is_relative_to(folder):
        return True
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(os.path.realpath(HF_HUB_CACHE))
    if real.is_relative_to(cache) and "blobs" in real.relative_to(cache).parts:
        return True
    repository = folder.parent.parent  # models--owner--name/snapshots/COMMIT, in whatever cache
    a_snapshot = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return a_snapshot and any(real.is_relative_to(at / "blobs") for at in (repository, repository.parent))


def _indexes(folder: Path, root: Path) -> Iterator[str]:
    """A line for each weight index in a folder that names anything but safetensors files of the model."""
    config = read_json(folder / "config.json")
    named = config.get("transformers_weights") if isinstance(config, dict) else None
    if named is not None and not (_is_safetensors(named, folder, root) or _is_index(named, folder, root)):
        yield f"{folder / 'config.json'}: transformers_weights is {named!r}, and {_CONVERT}"
        named = None
    indexes = {path.name for path in _entries(folder) if path.name.endswith(".safetensors.index.json")}
    for name in sorted(indexes | ({named} if _is_index(named, folder, root) else set())):
        index = read_json(folder / name)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict):
            yield f"{folder / name}: has no weight_map; download the model again"
            continue
        shards = list(dict.fromkeys(map(str, weight_map.values())))
        wrong = [shard for shard in shards if not _is_safetensors(shard, folder, root)]
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if wrong:
            what = "no safetensors file of this folder"
            yield f"{folder / name}: {wrong[0]!r} is {what}, and {_CONVERT}"
        elif missing or not shards:
            first = f"{missing[0]} is" if missing else "all weights are"
            yield f"{folder / name}: {first} missing ({len(missing)} of {len(shards)} files); download the model again"


def _is_safetensors(name: object, folder: Path, root: Path) -> TypeGuard[str]:
    return isinstance(name, str) and name.endswith(".safetensors") and _is_below(name, folder, root)


def _is_index(name: object, folder: Path, root: Path) -> TypeGuard[str]:
    return isinstance(name, str) and name.endswith(".safetensors.index.json") and _is_below(name, folder, root)


def _is_below(name: str, folder: Path, root: Path) -> bool:
    # Links in the folder itself are already reported.
    return Path(name).name == name or _belongs(folder / name, root)


def _no_adapter(folder: Path) -> list[str]:
    """A line if an adapter's weights are missing: PEFT would look for them on the hub, under the folder's name."""
    alone = (folder / ADAPTER).exists() and not (folder / "config.json").exists()
    there = any((folder / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin"))
    return [f"{folder}: contains no adapter_model.safetensors; is the adapter complete?"] if alone and not there else []


def _gguf(folder: Path, gguf_file: str) -> list[str]:
    return [] if _belongs(folder / gguf_file, folder) else [f"--gguf_file: {gguf_file} is not inside {folder}"]


def _base(folder: Path) -> list[Path]:
    """The base model's folder if `folder` contains only an adapter; libraries load the base model with it."""
    adapter = None if (folder / "config.json").exists() else read_json(folder / "adapter_config.json")
    name = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    return [Path(name)] if isinstance(name, str) and name and os.path.isdir(name) else []


def _base_outside(folder: Path, root: Path) -> Iterator[str]:
    """A line if an embedding model's adapter has its base model outside `root`: no flag can name another one."""
    adapter = read_json(folder / ADAPTER)
    name = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    if adapter is not None and not (isinstance(name, str) and os.path.isdir(name) and _belongs(Path(name), root)):
        yield f"{folder / ADAPTER}: its base model {ascii(name)} is outside the folder; merge the two into one model"


def _is_module(module: object) -> bool:
    return isinstance(module, dict) and all(isinstance(module.get(name), str) for name in ("type", "path"))


def _modules(root: Path) -> Iterator[str]:
    """A line for each module of an embedding model that is not a sentence-transformers class or lies outside `root`."""
    listed = read_json(root / "modules.json")
    modules = [module for module in listed if _is_module(module)] if isinstance(listed, list) else []
    if listed is not None and (not modules or len(modules) != len(listed)):
        why = "is not a list of modules, each with a type and a path"
        yield f"{root / 'modules.json'}: {why}; download the model again"
    types = [(root / "modules.json", module.get("type")) for module in modules]
    for folder in (Path(at) for at, _, _ in os.walk(root)):
        for path in (folder / "router_config.json", folder / "config.json"):  # the latter in older versions
            routes = read_json(path)
            routes = routes.get("types") if isinstance(routes, dict) else None
            types += [(path, value) for value in routes.values()] if isinstance(routes, dict) else []
    for path, value in types:
        if not isinstance(value, str) or not _MODULE.fullmatch(value):
            why = "not a sentence-transformers class, and its code is not run"
            yield f"{path}: {str(value)!r} is {why}; name another embedding model"
    for path in (module["path"] for module in modules):
        if not Path(os.path.realpath(root / path)).is_relative_to(os.path.realpath(root)):
            yield f"{root / 'modules.json'}: {path!r} is outside the model's folder; name another embedding model"
