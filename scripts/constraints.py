"""Constraint files for pip's `-c`, on standard output, for the Makefile.

python scripts/constraints.py installed  every distribution that is installed here, as it is (make constraints)
python scripts/constraints.py oldest     the lowest versions that pyproject.toml allows (make test-oldest)
"""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
HEADER = f"""\
# For pip's -c: what `make test` passed with on Python {platform.python_version()}. `make constraints` writes it.
# Where a version needs a newer Python than the lowest that is supported, pip is free to choose on older ones."""
_NOT_PINNED = {"groundtune", "pip", "setuptools", "wheel"}
_LOWEST = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)")


def installed() -> list[str]:
    """`name==version` of every installed distribution except Groundtune; local parts such as "+cpu" are removed."""
    supported = _lowest_python(pyproject()["project"]["requires-python"])
    pins = set()
    for found in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        python = _lowest_python(found.metadata.get("Requires-Python") or "")
        newer = _numbers(python) > _numbers(supported)
        marker = f' ; python_full_version >= "{python}"' if newer else ""
        if name not in _NOT_PINNED:
            pins.add(f"{name}=={found.version.partition('+')[0]}{marker}")
    return sorted(pins)


def oldest() -> list[str]:
    """`name==version` for the lower bound of every requirement, including all extras."""
    project = pyproject()["project"]
    requirements = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    bounds = dict(found.groups() for found in map(_LOWEST.match, requirements) if found)
    # The Makefile chooses PyTorch: PyPI's wheels of other versions include gigabytes of CUDA.
    return sorted(f"{name}=={version}" for name, version in bounds.items() if name != "torch")


def pyproject() -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        from pip._vendor import tomli as tomllib
    return tomllib.loads(PYPROJECT.read_text("utf-8"))


def _lowest_python(specifier: str) -> str:
    """The lowest version, such as 3.11.5 in ">=3.11.5,<4"; "3" if there is no lower bound."""
    found = re.search(r">=?\s*([\d.]+)", specifier)
    return found[1] if found else "3"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.strip(".").split(".")))


if __name__ == "__main__":
    asked = sys.argv[1:]
    if asked not in (["installed"], ["oldest"]):
        sys.exit(__doc__)
    print(*([HEADER, *installed()] if asked == ["installed"] else oldest()), sep="\n")
