"""The help of `groundtune sft` and `swr`, shown without delay.

Most of it describes `TrainingArguments`, whose import takes seconds because it imports torch. So the text is generated
once per version of transformers. `training_help.txt`, next to this file, ships with the package, and a test keeps it up
to date; for another version of transformers, the first `-h` generates the text and caches it. The first line of either
file identifies its sources, and a text made from other sources is never shown.
`python -m groundtune.commands.training_help` writes the package's file.
"""

from __future__ import annotations

import argparse
import hashlib
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from groundtune.commands.parsing import TRAINING_EXAMPLE, TRAINING_USAGE, training_parser
from groundtune.data.files import write_text
from groundtune.errors import DataError
from groundtune.methods import METHODS
from groundtune.system.durable import cache_folder

PACKAGE = Path(__file__).parents[1]
SHIPPED = Path(__file__).with_suffix(".txt")


def training_help(method: str) -> str:
    """Every argument of `sft` or `swr`, in groups."""
    key, cached = made_from(), cache_folder() / SHIPPED.name
    arguments = _read(SHIPPED, key) or _read(cached, key)
    if not arguments:
        arguments = generated()
        # If the cache folder cannot be written, only the next -h takes longer.
        with suppress(OSError, DataError):
            _write(cached, key, arguments)
    usage, example = TRAINING_USAGE.format(method=method), TRAINING_EXAMPLE.format(method=method)
    return f"usage: {usage}\n\n{example}\n\n{arguments}"


def generated() -> str:
    """Every argument, as HfArgumentParser lists them; the same for all methods."""
    parser = training_parser(next(iter(METHODS)))
    parser.usage = argparse.SUPPRESS
    return parser.format_help().strip()


def made_from() -> str:
    """Key of the text's sources: the version of transformers, and our own arguments."""
    sources = "".join((PACKAGE / name).read_text("utf-8") for name in ("arguments.py", "training/arguments.py"))
    digest = hashlib.sha256(sources.encode()).hexdigest()
    return f"transformers {metadata.version('transformers')}, arguments {digest[:12]}"


def _read(path: Path, key: str) -> str:
    """The text in `path` if it was made from `key`, else ""."""
    if not path.is_file():
        return ""
    first, _, text = path.read_text("utf-8").partition("\n")
    return text.strip() if first == key else ""


def _write(path: Path, key: str, text: str) -> None:
    write_text(path, f"{key}\n{text}\n")


if __name__ == "__main__":
    _write(SHIPPED, made_from(), generated())
