"""A sweep as data: cells, each one run folder trained by one command and evaluated by others, and what makes two alike.

A cell is known by what it computes, not by where it ran: the contents of files and weights, and every setting that
changes a number. So another machine or another person may have measured it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundtune.arguments import Arguments
from groundtune.runs.resume import identity, model_identity

if TYPE_CHECKING:
    from transformers import TrainingArguments

_NOT_OF_A_CELL = ("versions", "number of processes", "--use_cpu")  # of `identity`: where a run ran
_FOR_SELECTION = ("--eval_file", "--test_file")  # and what changes no weight unless it chooses the checkpoint
# Not the files beside them: a library writes its own version there when it saves a model.
_WEIGHTS = {".safetensors", ".bin", ".gguf"}


@dataclass(frozen=True)
class Asked:
    """One evaluation of a cell: the words of `groundtune evaluate` after its model, and the values that they determine,
    which are known once its files are read."""

    name: str
    words: tuple[str, ...]
    contexts: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One training run and its evaluations.

    `method` is empty for the base model, which is not trained: then `words` name the model. Else they are the words of
    the training command after the method. `by_machine`: flags whose value the machine decides, so that they do not tell
    cells apart.
    """

    name: str
    method: str
    seed: int | None
    words: tuple[str, ...]
    evaluations: tuple[Asked, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_machine: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name with the seed: also that of its folder and of its file of results."""
        return self.name if self.seed is None else f"{self.name}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What a sweep measures. Cells with the same name differ in their seed only."""

    file: Path
    output_dir: Path
    results: Path  # folder with a small file for each finished cell
    report: Path
    metric: str
    also: tuple[str, ...]  # further metrics of the first evaluation that the table shows
    baseline: str
    cells: tuple[Cell, ...]

    @property
    def names(self) -> list[str]:
        """The cells' names, in order."""
        return list(dict.fromkeys(cell.name for cell in self.cells))

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.output_dir / cell.label

    def results_file(self, cell: Cell) -> Path:
        """The file of a finished cell."""
        return self.results / f"{cell.label}.json"


def settings_of(arguments: Arguments[TrainingArguments]) -> dict[str, Any]:
    """What determines the weights of a cell, whatever machine trains it. Raises `DataError` as `identity` does."""
    selects = arguments.training.load_best_model_at_end
    without = _NOT_OF_A_CELL if selects else (*_NOT_OF_A_CELL, *_FOR_SELECTION)
    found = {name: value for name, value in identity(arguments).items() if name not in without}
    return found | {"--model_name_or_path": weights_of(arguments.model.model_name_or_path)}


def weights_of(model: str) -> str:
    """What tells a model from another: the contents of the weights in a folder, or a name on the hub."""
    return model_identity(model, _WEIGHTS)


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each setting that two cells both have with different values. What only one of them has comes from
    another version, whose default was what the other does."""
    return [f"{name}: {before[name]} there, {now[name]} here" for name in now
            if name in before and before[name] != now[name]]  # fmt: skip


def chosen(plan: Plan, only: Sequence[str]) -> list[Cell]:
    """The cells that are named, with or without their seed; all if none is."""
    return [cell for cell in plan.cells if not only or cell.name in only or cell.label in only]
