"""Folders of files that are made from others and can be made again: believed only if complete, and made here.

A file for FAISS has no checksum of its own, and a hostile one corrupts memory; a checksum beside it is as hostile as
the file. So the user's cache, where no other folder can write, has the checksum of every manifest that was written
here. What comes from elsewhere is made again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from groundtune.system.durable import MANIFEST, Damaged, cache_folder, disk_errors, read_manifest, write_manifest
from groundtune.system.locks import held
from groundtune.system.outputs import inside, refuse_links

logger = logging.getLogger(__name__)
T = TypeVar("T")


def made_in(
    folder: Path,
    identity: Mapping[str, Any],
    make: Callable[[], Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], T],
) -> T:
    """What `read` finds in `folder`, which `make` fills first if it does not hold what `identity` says.

    `make` returns what the manifest holds besides; `read` gets the manifest. If two runs make the same, one waits.
    """
    manifest = _believed(folder, identity)
    if manifest is None:
        refuse_links(inside(folder.parent, folder.name))
        with disk_errors(folder), held(folder, ".lock", "full_dataset_index_path", 0, lambda: _waits(folder)):
            manifest = _believed(folder, identity)
            if manifest is None:
                manifest = _made(folder, identity, make)
    return read(manifest)


def _made(folder: Path, identity: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.name != ".lock":
            path.unlink()
    write_manifest(folder, {**identity, **make()})
    ours = _record(folder)
    ours.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours.touch()
    return read_manifest(folder)


def _believed(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of a folder that was made here, is complete, and holds what `identity` says; else None."""
    try:
        if not (folder / MANIFEST).exists() or not _record(folder).exists():
            return None
        manifest = read_manifest(folder)
        return manifest if all(manifest.get(name) == value for name, value in identity.items()) else None
    except (Damaged, OSError) as error:
        logger.warning("%s is damaged (%s); it is made again", folder, error)
        return None


def _record(folder: Path) -> Path:
    """The file in the user's cache that says that this machine wrote this manifest."""
    return cache_folder() / "made" / hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _waits(folder: Path) -> None:
    logger.info("another process is writing %s; waiting for it", folder)
