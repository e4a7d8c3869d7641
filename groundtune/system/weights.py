"""Whether the files of a model can be read at all: ordinary files, complete safetensors, no Git LFS pointers.

Only headers are read, so this takes milliseconds; libraries would stop with an error that names no file, wait for a
pipe for ever, or take a cut file for one in another format.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

_POINTER = b"version https://git-lfs"
_LONGEST_HEADER = 100_000_000  # bytes, as in safetensors itself
_AGAIN = "download it again"


def file_problem(path: Path) -> str:
    """Why a file of a model cannot be read, on one line; empty if it can."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # first, because opening a pipe waits for a writer
            return f"{path}: is not an ordinary file; replace it with one"
        with open(path, "rb") as file:
            begin = file.read(len(_POINTER))
    except OSError as error:
        way_out = "make it readable" if isinstance(error, PermissionError) else _AGAIN
        return f"{path}: cannot be read ({(error.strerror or str(error)).lower()}); {way_out}"
    if begin == _POINTER:
        return f"{path}: is a Git LFS pointer in place of the file; run `git lfs pull` in its folder"
    if not begin:
        return f"{path}: is empty; {_AGAIN}"
    if path.suffix == ".safetensors":
        try:
            tensors_in(path)
        except ValueError as error:
            return f"{path}: {error}; {_AGAIN}"
    return ""


def tensors_in(path: Path) -> dict[str, list[int]]:
    """Name and shape of each tensor in a safetensors file, from its header. Raises `ValueError` if it is damaged."""
    with open(path, "rb") as file:
        size, begin = os.fstat(file.fileno()).st_size, file.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else size
        if length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"is not safetensors, or is cut after {size:,} bytes")
        header = _header(file.read(length))
    end = max([0, *(tensor["data_offsets"][1] for tensor in header.values())])
    if end != size - 8 - length:
        raise ValueError(f"has {size:,} bytes in place of {8 + length + end:,}")
    return {name: tensor["shape"] for name, tensor in header.items()}


def _header(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
        header.pop("__metadata__", None)
        for tensor in header.values():
            begin, end = tensor["data_offsets"]
            numbers = [begin, end, *tensor["shape"]]
            if any(type(number) is not int or number < 0 for number in numbers) or begin > end:
                raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("is not safetensors: its header is damaged") from error
    return header
