"""Weights and optimizer state of a model that FSDP splits over processes, gathered into the files of a single process.

Every function is called by all processes at once: a parameter is put together from what each holds. The first process
reads and writes; a checkpoint is then the same whatever the number of processes, and holds no pickle.

A forward pass without a backward one, as in an evaluation, leaves some parameters whole. Those are copies, in which an
optimizer's state is not found and into which nothing must be loaded, so they are given up first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import safe_open
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from groundtune.runs.checkpoints import load_state, save_state
from groundtune.system.durable import Damaged
from groundtune.system.processes import is_main

RENAMED = "renamed_weights"

_GATHER: dict[str, Any] = {"full_state_dict": True, "cpu_offload": True}
_SCATTER = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights by name, whole and on the CPU; of an adapter's model only its own. Empty but in the first process."""
    _give_up_copies(model)
    options = StateDictOptions(**_GATHER, ignore_frozen_params=isinstance(model, PeftModel))
    return cast("dict[str, torch.Tensor]", get_model_state_dict(model, options=options))


def save_renamed(model: torch.nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Save under their own names the trained weights that transformers saved in `folder` under others."""
    there = _names(folder)
    if renamed := {name: weights[name] for name in _trained(model) if _saved_name(model, name) not in there}:
        save_state(folder, RENAMED, renamed)


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Load the trained weights that `whole_weights` gave and a checkpoint in `folder` holds.

    Raises `Damaged` in the first process if one is missing.
    """
    _give_up_copies(model)
    weights: dict[str, torch.Tensor] = {}
    if is_main():
        there = _names(folder)
        weights = load_state(folder, RENAMED) if (folder / f"{RENAMED}.json").exists() else {}
        for name in _trained(model):
            if name not in weights:
                if (saved := _saved_name(model, name)) not in there:
                    raise Damaged(f"{folder}: has no weight {saved}")
                with safe_open(there[saved], "pt") as file:
                    weights[name] = file.get_tensor(saved)
    set_model_state_dict(model, cast(Any, weights), options=_SCATTER)


def whole_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by the names of parameters, whole and on the CPU; empty but in the first process."""
    _give_up_copies(model)
    return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**_GATHER))


def load_state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Load the optimizer's state that `whole_state` gave, and `save_state` saved in `folder` as "optimizer"."""
    _give_up_copies(model)
    state = load_state(folder, "optimizer") if is_main() else {}
    set_optimizer_state_dict(model, optimizer, state, options=_SCATTER)


def _give_up_copies(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _trained(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _saved_name(model: torch.nn.Module, name: str) -> str:
    """The name of a weight in a saved model; PEFT leaves out the name of the adapter."""
    if isinstance(model, PeftModel):
        return name.replace(f".{model.active_adapters[0]}.", ".")
    return name


def _names(folder: Path) -> dict[str, Path]:
    """The weights in a folder, with the file that holds each."""
    found: dict[str, Path] = {}
    for path in (*folder.glob("model*.safetensors"), *folder.glob("adapter_model*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found
