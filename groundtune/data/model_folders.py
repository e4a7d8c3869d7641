"""What a model's folder says of itself, read without a library."""

from __future__ import annotations

import json
import os
from pathlib import Path

from groundtune.errors import DataError

_CONFIG = "adapter_config.json"


def adapter_base_of(folder: Path) -> str:
    """The base model that a local adapter names; empty if the folder holds no adapter. Raises `DataError`."""
    if os.path.isfile(folder / "config.json") or not os.path.isfile(folder / _CONFIG):
        return ""
    return base_named_in(folder / _CONFIG)


def base_named_in(path: Path) -> str:
    """`base_model_name_or_path` of an adapter_config.json; raises `DataError`."""
    try:
        name = json.loads(path.read_text("utf-8"))["base_model_name_or_path"]
        if not isinstance(name, str) or not name:
            raise TypeError
    except (KeyError, TypeError) as error:
        raise DataError([f"{path}: names no base_model_name_or_path; add it"]) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError([f"{path}: cannot be read ({reason}); is the adapter complete?"]) from error
    return name
