"""Checkpoints on disk: written to a temporary folder, verified by a manifest, used only if complete, free of pickle.

`checkpoint-12/` holds the model or adapter as transformers and PEFT save it, `trainer_state.json`, and other states as
NAME.json with their tensors in NAME.safetensors. See `durable.py` for the manifest.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from groundtune.system.durable import (
    MANIFEST,
    Damaged,
    discard,
    disk_errors,
    read_manifest,
    sync_folder,
    write_manifest,
)
from groundtune.system.model_folders import pickles
from groundtune.system.outputs import is_link, usual_modes
from groundtune.system.text import one_line, to_json
from groundtune.system.weights import file_problem

logger = logging.getLogger(__name__)

_UNDER_WAY = ".writing-"  # a name that nothing mistakes for a checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte is as it was written; `about` comes from its manifest."""

    folder: Path
    step: int
    about: dict[str, Any]


def read_checkpoint(folder: Path, to_resume: bool = True) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises `Damaged` if it is incomplete or damaged, has weights in a pickle, or (if `to_resume`) cannot be resumed.
    """
    about = read_manifest(folder)
    name = f"checkpoint-{about.get('step')}"
    if folder.name != name:
        raise Damaged(f"was written as {name}")
    if to_resume and about.get("resumable") is not True:
        raise Damaged("contains a model but no training state (--save_only_model, or DeepSpeed)")
    for path in (folder, *folder.iterdir()):  # PEFT also keeps adapters in subfolders
        if found := pickles(path):
            raise Damaged(f"was not read: {found[0]}")
    if problem := _unreadable(folder):
        raise Damaged(f"was not read: {problem}")
    return Checkpoint(folder, about["step"], about)


def _unreadable(folder: Path) -> str:
    """Why a file is no tensors or JSON, though its checksum is right: a stranger can write a manifest too."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors" and (problem := file_problem(path)):
            return problem
        try:
            content = json.loads(path.read_bytes()) if path.suffix == ".json" else {}
        except (ValueError, RecursionError) as error:
            return f"{path}: {one_line(error)}"
        if path.name == "trainer_state.json" and not isinstance(content, dict):
            return f"{path}: is not a JSON object"
    return ""


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """The `checkpoint-N` folders of a run, earliest first, complete or not."""
    found = [path for path in output_dir.glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step in the name of a `checkpoint-N`."""
    return int(folder.name.removeprefix("checkpoint-"))


def newest_checkpoint(output_dir: Path) -> Checkpoint | None:
    """The latest checkpoint that can be resumed, None if there is none; warns about each one that cannot be."""
    _finish_interrupted(output_dir)
    for folder in reversed(checkpoint_folders(output_dir)):
        try:
            return read_checkpoint(folder)
        except Damaged as damage:
            logger.warning("cannot resume from %s: %s", folder, damage)
    return None


@contextmanager
def writing(
    target: Path, about: Mapping[str, Any], *, needed: int, writes: bool = True, wait: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """A folder to fill, which replaces `target` in one step when the block ends; `about` goes into its manifest.

    Every process of a run enters. After `wait`, those with `writes` (one per disk) write the manifest for all files.
    If the run is killed at any time, either `target` is unchanged, or the new folder is complete and
    `newest_checkpoint` finishes the replacement. Raises `DiskError` when the disk is full or fails; `needed` is the
    approximate size in bytes.
    """
    folder = target.with_name(_UNDER_WAY + target.name)
    last = next((path for path in reversed(checkpoint_folders(target.parent)) if path != target), None)
    hint = f"; {last} is intact: free some space and run the same command again" if last else ""
    with disk_errors(target, needed, hint):
        try:
            if writes:
                discard(folder)
                folder.mkdir(parents=True)
            wait()
            yield folder
            wait()
            if writes:
                write_manifest(folder, about)
                _publish(folder, target)
            wait()
        except Exception:
            # Free the space. A complete folder stays: the one that it was to replace may be gone already.
            if writes and not (folder / MANIFEST).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def remove_old(output_dir: Path, *, limit: int | None, keep: set[Path]) -> None:
    """Keep the latest checkpoints, `limit` in all including those in `keep`; all of them if `limit` is None or 0.

    `keep` includes the one just written, so a checkpoint of a later step is damaged or was abandoned by resuming from
    an earlier one: it is removed first.
    """
    if not limit or limit < 0:
        return
    newest = max(step_of(folder) for folder in keep)
    ahead = [folder for folder in checkpoint_folders(output_dir) if step_of(folder) > newest]
    others = [folder for folder in checkpoint_folders(output_dir) if folder not in keep and folder not in ahead]
    too_many = max(len(others) + len(keep) - limit, 0)
    for folder in ahead + others[:too_many]:
        try:
            discard(folder)
        except OSError as error:  # in use by another program, say; the next save tries again
            logger.warning("%s could not be removed: %s", folder, error)


def _publish(folder: Path, target: Path) -> None:
    discard(target)
    os.rename(folder, target)
    sync_folder(target.parent)


def _finish_interrupted(output_dir: Path) -> None:
    """Rename complete checkpoints of a run that was killed just before doing so, and remove incomplete ones."""
    for folder in output_dir.glob(f"{_UNDER_WAY}*"):
        try:
            if is_link(folder):
                raise Damaged("is a link")
            read_manifest(folder)
        except Damaged:
            discard(folder)
        else:
            _publish(folder, folder.with_name(folder.name.removeprefix(_UNDER_WAY)))


# States as JSON and safetensors


def save_state(folder: Path, name: str, state: Any) -> None:
    """Write dictionaries, lists, tuples, numbers, text and tensors, however nested, as `name`.json and .safetensors.

    Raises TypeError for anything else, which could be restored only by executing code.
    """
    tensors: dict[str, torch.Tensor] = {}
    described = _describe(state, name, tensors)
    memories: set[int] = set()
    for path, tensor in tensors.items():
        memory = tensor.untyped_storage()
        if memory.data_ptr() in memories or memory.nbytes() != tensor.nbytes:
            tensors[path] = tensor.clone()  # safetensors allows no shared memory
        memories.add(memory.data_ptr())
    if tensors:
        with usual_modes(folder):
            save_file(tensors, folder / f"{name}.safetensors")
    with open(folder / f"{name}.json", "w", encoding="utf-8") as file:
        file.write(to_json(described))


def load_state(folder: Path, name: str) -> Any:
    """What `save_state` wrote, tensors on the CPU."""
    described = json.loads((folder / f"{name}.json").read_text("utf-8"))
    file = folder / f"{name}.safetensors"
    # Copies: loaded tensors are memory-mapped, and the file may be removed while training continues.
    tensors = {path: tensor.clone() for path, tensor in load_file(file).items()} if file.exists() else {}
    return _restore(described, tensors)


def _describe(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors`. Types unknown to JSON become an object with one "$" key."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {"$tensor": path}
    if isinstance(value, Mapping):
        items = [[key, _describe(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        plain_keys = all(isinstance(key, str) and not key.startswith("$") for key, _ in items)
        return dict(items) if plain_keys else {"$items": items}
    if isinstance(value, (list, tuple)):
        items = [_describe(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, float) and not math.isfinite(value):  # such as the best loss of a schedule that has none yet
        return {"$float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path} is {type(value).__name__}, which cannot be saved without pickle")


def _restore(described: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(described, list):
        return [_restore(item, tensors) for item in described]
    if not isinstance(described, dict):
        return described
    if "$tensor" in described:
        return tensors[described["$tensor"]]
    if "$float" in described:
        return float(described["$float"])
    if "$items" in described:
        return {key: _restore(item, tensors) for key, item in described["$items"]}
    if "$tuple" in described:
        return tuple(_restore(item, tensors) for item in described["$tuple"])
    return {key: _restore(item, tensors) for key, item in described.items()}


# Randomness


def randomness() -> dict[str, Any]:
    """The state of every random generator that training uses: Python's, NumPy's, PyTorch's on each device."""
    of_numpy: Any = np.random.get_state()  # a tuple, as long as nobody asks for a dictionary
    kind, keys, *rest = of_numpy
    state = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = [torch.cuda.get_rng_state(device) for device in _cuda_devices()]
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_randomness(state: Mapping[str, Any]) -> None:
    """Restore every generator to the state that `randomness` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available():
        for device, generator in zip(_cuda_devices(), state.get("cuda", ())):
            torch.cuda.set_rng_state(generator, device)
    if torch.backends.mps.is_available() and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def _cuda_devices() -> list[int]:
    """The CUDA devices that this process computes on; querying the others would allocate memory on each."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return [torch.cuda.current_device()]
    return list(range(torch.cuda.device_count()))


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Restore the random state at the end of the block, so that draws inside it do not affect training."""
    state = randomness()
    try:
        yield
    finally:
        restore_randomness(state)
