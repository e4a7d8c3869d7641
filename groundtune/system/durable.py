"""Folders whose completeness can be checked: all files are synced to disk, then a manifest that lists them.

A manifest contains the size and SHA-256 of each file in its folder, and its own checksum. It is written last, so
reading it tells a complete folder from one that is half written or was damaged later.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from groundtune.system.outputs import in_place_of, is_link, no_follow
from groundtune.system.text import to_json

MANIFEST = "manifest.json"

_DISK = {errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EROFS, *filter(None, [getattr(errno, "EDQUOT", None)])}


class Damaged(Exception):
    """A folder does not match its manifest, or has none; the message says why."""


class DiskError(Exception):
    """The disk is full or fails; the message is one line with the bytes needed (if known) and the bytes free."""


def cache_folder() -> Path:
    """Folder for data that all runs share, such as unpacked models: $GROUNDTUNE_CACHE, else ~/.cache/groundtune."""
    return Path(os.environ.get("GROUNDTUNE_CACHE") or Path.home() / ".cache" / "groundtune")


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Sync every file of `folder` to disk, then write the manifest: `content` and each file's size and SHA-256.

    `content` is written as JSON; values of other types become text. Raises OSError.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {name: _synced(folder / name) for name in _files(folder)}
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync_folder(path)
    with in_place_of(folder / MANIFEST) as file:
        file.write(_sealed({**content, "files": files}).encode())
    sync_folder(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of the manifest, after checking every file of `folder` against it.

    Hidden files are ignored, and links are refused. Raises `Damaged` with what is wrong.
    """
    try:
        _refuse_links(folder)
        content = _unsealed((folder / MANIFEST).read_bytes())
        there, listed = set(_files(folder)), set(content["files"])
        if there != listed:
            missing, more = sorted(listed - there), sorted(there - listed)
            raise Damaged(f"{', '.join(missing)} missing" if missing else f"{', '.join(more)} not in {MANIFEST}")
        for name, expected in content["files"].items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                raise Damaged(f"{name} has {size:,} bytes instead of {expected['bytes']:,}")
        for name, expected in content["files"].items():
            if _read_through(folder / name) != expected:
                raise Damaged(f"{name} does not match its checksum")
    except FileNotFoundError as error:
        raise Damaged(f"has no {Path(error.filename).name}: never completed") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({' '.join(str(error).split())})") from error
    return content


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON with its own checksum, completely or not at all. Raises OSError."""
    with in_place_of(path) as file:
        file.write(_sealed(content).encode())


def read_sealed(path: Path, at_most: int) -> dict[str, Any]:
    """What `write_sealed` wrote. Raises `Damaged` for anything else: a link, other bytes, more than `at_most` bytes."""
    try:
        with open(path, "rb", opener=no_follow) as file:
            data = file.read(at_most + 1)
        if len(data) > at_most:
            raise ValueError(f"it has more than {at_most:,} bytes")
        return _unsealed(data)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"cannot be read ({' '.join(str(error).split())})") from error


def discard(folder: Path) -> None:
    """Remove a folder, the manifest first, so that a kill leaves no folder that looks complete.

    If `folder` is a link, only the link is removed. Raises OSError.
    """
    if is_link(folder):
        folder.unlink()
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def sync_folder(folder: Path) -> None:
    """Sync a folder's list of names to disk; Windows has no such operation."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(target: str | os.PathLike[str], needed: int | None = None, hint: str = "") -> Iterator[None]:
    """Turn errors of a full or failing disk inside into `DiskError`, even if a library wrapped them.

    `needed` is the number of bytes that writing `target` takes; if fewer are free, the error comes before any write.
    """
    if needed is not None and needed > _free(target):
        raise DiskError(_line(target, os.strerror(errno.ENOSPC), needed, hint))
    try:
        yield
    except DiskError:  # already reported by an inner block
        raise
    except Exception as error:
        number = _disk_error(error)
        if number is None:
            raise
        raise DiskError(_line(target, os.strerror(number), needed, hint)) from error


def _line(target: str | os.PathLike[str], why: str, needed: int | None, hint: str) -> str:
    bytes_needed = "" if needed is None else f"{needed:,} bytes are needed, "
    return f"{target}: {why}; {bytes_needed}{_free(target):,} bytes are free{hint}"


def _free(target: str | os.PathLike[str]) -> int:
    path = Path(target).absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def _disk_error(error: BaseException | None) -> int | None:
    """The error number if the disk caused `error`. Libraries written in Rust give it only in their message."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error.errno
        hidden = re.search(r"\(os error (\d+)\)", str(error))
        if hidden and int(hidden[1]) in _DISK:
            return int(hidden[1])
        error = error.__cause__ or error.__context__
    return None


def _files(folder: Path) -> list[str]:
    """Names of the files below a folder, except its manifest and hidden files."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST and not name.rpartition("/")[2].startswith("."))


def _refuse_links(folder: Path) -> None:
    """Raise `Damaged` for any link: its target may change later and may be anywhere."""
    for path in folder.rglob("*"):
        if is_link(path):
            raise Damaged(f"{path.relative_to(folder).as_posix()} is a link")


def _synced(path: Path) -> dict[str, Any]:
    with open(path, "r+b") as file:  # "r+": Windows syncs only files that are open for writing
        os.fsync(file.fileno())
    return _read_through(path)


def _read_through(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _sealed(content: Mapping[str, Any]) -> str:
    """JSON with its own checksum; equal contents give identical text."""
    plain = json.loads(to_json(content, default=str))
    seal = hashlib.sha256(_json(plain).encode()).hexdigest()
    return _json({**plain, "sha256": seal})


def _unsealed(data: bytes) -> dict[str, Any]:
    content = json.loads(data)
    seal = content.pop("sha256", None)
    if hashlib.sha256(_json(content).encode()).hexdigest() != seal or _sealed(content).encode() != data:
        raise ValueError("it does not match its own checksum")
    return content


def _json(content: Mapping[str, Any]) -> str:
    return to_json(content, ensure_ascii=True, indent=1, sort_keys=True) + "\n"
