"""Documents that stay in their file: each is read by its place when it is asked for, so a million need little memory.

The places are found by one pass that checks every line, and are kept in the user's cache under the file's checksum.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from groundtune.data.entries import Record, document_of, json_object
from groundtune.errors import DataError
from groundtune.schema import Document
from groundtune.system.durable import MANIFEST, Damaged, DiskError, cache_folder, read_manifest, write_manifest
from groundtune.system.inputs import open_file
from groundtune.system.outputs import in_place_of

logger = logging.getLogger(__name__)

_FORMAT = 1


class MappedDocuments(Sequence[Document]):
    """The documents at `places` (bytes from the beginning) of a JSONL file; `ids` are their ids as numbers.

    A document is checked against its id when it is read: the file may be written to meanwhile.
    """

    def __init__(self, path: str | os.PathLike[str], places: np.ndarray, ids: np.ndarray) -> None:
        self.path, self.places, self.ids = path, places, ids

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> Document: ...

    @overload
    def __getitem__(self, at: slice) -> list[Document]: ...

    def __getitem__(self, at: int | slice) -> Document | list[Document]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        start = int(self.places[at])
        end = self._bytes.find(b"\n", start)
        return self._document(self._bytes[start : len(self._bytes) if end < 0 else end], at)

    def __iter__(self) -> Iterator[Document]:
        return (self[i] for i in range(len(self)))

    @cached_property
    def _bytes(self) -> Any:
        with open_file(self.path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _document(self, line: bytes, at: int) -> Document:
        try:
            document = document_of(Record(f"{self.path}", json_object(line.removeprefix(_BOM)), [], []))
        except ValueError:
            document = Document("")
        if id_number(document.id) != int(self.ids[at]):
            raise DataError([f"{self.path}: was changed while it was read; start the command again"])
        return document


_BOM = b"\xef\xbb\xbf"


def id_number(id: str) -> int:
    """A document's id as the number that its sixteen hex digits are."""
    return int(id, 16)


def ids_of(documents: Sequence[Document]) -> np.ndarray:
    """The ids of documents as numbers (uint64), without reading those that stay in their file."""
    if isinstance(documents, MappedDocuments):
        return documents.ids
    return np.array([id_number(document.id) for document in documents], dtype=np.uint64)


def known_places(checksum: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The places and ids that an earlier pass over the file with this SHA-256 has found."""
    folder = _kept_in(checksum)
    try:
        if not (folder / MANIFEST).exists() or read_manifest(folder).get("file") != checksum:
            return None
        places, ids = (np.load(folder / name, allow_pickle=False) for name in ("places.npy", "ids.npy"))
    except (Damaged, OSError, ValueError) as error:
        logger.info("the places of documents in %s cannot be used (%s); finding them again", folder, error)
        return None
    right = places.shape == ids.shape and places.dtype == np.int64 and ids.dtype == np.uint64
    return (places, ids) if right else None


def kept_places(checksum: str, found: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The places and ids that a pass over a file has found, by id; remembered for the next run, if there is a cache."""
    places, ids = np.fromiter(found.values(), np.int64, len(found)), np.fromiter(found, np.uint64, len(found))
    folder = _kept_in(checksum)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, array in (("places.npy", places), ("ids.npy", ids)):
            with in_place_of(folder / name) as file:
                np.save(file, array, allow_pickle=False)
        write_manifest(folder, {"file": checksum})
    except (OSError, DiskError, DataError) as error:
        logger.info("the places of the documents cannot be kept in %s (%s)", folder, error)
    return places, ids


def _kept_in(checksum: str) -> Path:
    return cache_folder() / "documents" / f"{_FORMAT}-{checksum[:32]}"
