"""What an export says about itself: export.json, written last, from which clients know how to ask it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from groundtune.data.files import in_folder, write_text
from groundtune.errors import DataError
from groundtune.system.inputs import read_text
from groundtune.system.outputs import inside
from groundtune.system.text import as_json, one_line

FILE = "export.json"
TARGETS = ("merged", "ollama", "gguf", "vllm")


@dataclass(frozen=True)
class About:
    """An export: the run it is of, for what it was made, and how it is asked.

    `style` is the run's prompt style: in the style `prefix`, instruction and passages are a system message, else the
    first user message begins with them. `context` is the most tokens of a prompt with its answer. `kept` is the share
    of the adapter's changes that the dtype of the weights keeps. `verified` is empty until it is verified.
    """

    run: str
    run_sha256: str
    to: str
    dtype: str
    style: str
    instruction: str
    context: int
    max_new_tokens: int
    stop_tokens: list[str]
    serve: str
    kept: float = 1.0
    complete: bool = False
    files: dict[str, str] = field(default_factory=dict)
    verified: dict[str, Any] = field(default_factory=dict)


def write_about(folder: Path, about: About) -> None:
    write_text(inside(folder, FILE), as_json(asdict(about)))


def read_about(folder: Path) -> About | None:
    """What the export in `folder` says; None if there is none. Raises `DataError` if it cannot be read."""
    path = in_folder(folder, FILE)
    if not path.is_file():
        return None
    try:
        content = json.loads(read_text(path))
        return About(**_checked(content))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = one_line(error, 200)
        raise DataError(
            [f"{path}: not written by `groundtune export` ({why}); export again into a new folder"]
        ) from error


def _checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `About`, each of its type. Raises `TypeError`."""
    kinds: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool}
    found: dict[str, Any] = {}
    for one in fields(About):
        if one.name not in content and (one.default is not MISSING or one.default_factory is not MISSING):
            continue
        value = content.get(one.name)
        kind = kinds.get(str(one.type), list if str(one.type).startswith("list") else dict)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{one.name} is {value!r:.60}")
        found[one.name] = value
    if not all(isinstance(token, str) for token in found["stop_tokens"]):
        raise TypeError("stop_tokens are not texts")
    return found
