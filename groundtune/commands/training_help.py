"""The help of `groundtune sft` and `swr`, at once.

Most of it is transformers' own, and listing the fields of `TrainingArguments` takes seconds, for that imports torch. So
the text is generated once for each version. `training_help.txt`, beside this file, comes with the package and is kept
true by a test; for another version of transformers it is generated on the first `-h` and kept in the cache folder.
The first line of either says what it was made from, and a text that was made from something else is never shown.
`python -m groundtune.commands.training_help` writes the file of the package.
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
        # A folder that cannot be written costs time at the next -h, and nothing else.
        with suppress(OSError, DataError):
            _write(cached, key, arguments)
    usage, example = TRAINING_USAGE.format(method=method), TRAINING_EXAMPLE.format(method=method)
    return f"usage: {usage}\n\n{example}\n\n{arguments}"


def generated() -> str:
    """Every argument, as HfArgumentParser lists them; both methods have the same."""
    parser = training_parser(next(iter(METHODS)))
    parser.usage = argparse.SUPPRESS
    return parser.format_help().strip()


def made_from() -> str:
    """What decides the text: the version of transformers, and our own arguments."""
    sources = "".join((PACKAGE / name).read_text("utf-8") for name in ("arguments.py", "training/arguments.py"))
    digest = hashlib.sha256(sources.encode()).hexdigest()
    return f"transformers {metadata.version('transformers')}, arguments {digest[:12]}"


def _read(path: Path, key: str) -> str:
    """The text in `path` if it was made from `key`, else nothing."""
    if not path.is_file():
        return ""
    first, _, text = path.read_text("utf-8").partition("\n")
    return text.strip() if first == key else ""


def _write(path: Path, key: str, text: str) -> None:
    write_text(path, f"{key}\n{text}\n")


if __name__ == "__main__":
    _write(SHIPPED, made_from(), generated())
