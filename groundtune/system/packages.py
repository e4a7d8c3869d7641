"""The pip command that installs what an optional part needs."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires


def pip_install(extra: str) -> str:
    """`pip install` with the packages of an extra of pyproject.toml, such as `parquet`.

    It names the packages and not `groundtune[parquet]`: this project is on no package index, so whatever is found
    there under its name is a stranger's.
    """
    try:
        stated = [line.partition(";") for line in requires("groundtune") or ()]
    except PackageNotFoundError:  # run from a checkout that is not installed
        stated = []
    needed = [name.strip() for name, _, marker in stated if f"extra == '{extra}'" in marker.replace('"', "'")]
    names = needed or ["-e", f".[{extra}]"]
    return " ".join(["pip install", *(name if re.fullmatch(r"[\w.=-]+", name) else f'"{name}"' for name in names)])
