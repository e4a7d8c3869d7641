"""What the folder of a run remembers: the model, retriever and prompt that it was trained and measured with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groundtune.files import DataError, sha256_of

_PATHS = (
    "model_name_or_path",
    "embedding_model",
    "eval_embedding_model",
    "full_dataset_file_path",
    "full_dataset_index_path",
    "train_file",
    "eval_file",
    "test_file",
)


def remembered(folder: str) -> dict[str, Any]:
    """The arguments of the run that made `folder`, by name; empty if no run did.

    A relative path that leads nowhere from here is looked for where the run was started. Raises `DataError` if run.json
    is there and cannot be read.
    """
    path = Path(folder) / "run.json"
    if not folder or not os.path.isfile(path):
        return {}
    try:
        record = json.loads(path.read_text("utf-8"))
        groups = record["arguments"]
        values = {name: value for group in groups.values() if isinstance(group, dict) for name, value in group.items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        problem = f"{path}: not the record of a run ({error}); name another folder, or remove the file"
        raise DataError([problem]) from error
    values["method"] = groups.get("method", "")
    found = {name: _findable(values.get(name), Path(record.get("working_directory") or "")) for name in _PATHS}
    return {name: value for name, value in {**values, **found}.items() if value not in (None, "", "***")}


def changed_inputs(folder: str, paths: Mapping[str, str]) -> list[str]:
    """Which of the files, by the name of their argument, are not what the run of `folder` had read; in words."""
    path = Path(folder) / "run.json"
    then = json.loads(path.read_text("utf-8")).get("inputs", {}) if folder and os.path.isfile(path) else {}
    return [
        f"{paths[name]} has changed since the run of {folder}"
        for name in paths
        if name in then and sha256_of(paths[name]) != then[name]["sha256"]
    ]


def _findable(value: Any, working_directory: Path) -> Any:
    if not value or not isinstance(value, str) or os.path.exists(value):
        return value
    there = working_directory / value
    return str(there) if os.path.exists(there) else value
