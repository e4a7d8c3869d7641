"""The documents' vectors on disk, with a fingerprint, and their search: exact, or approximate if they are many."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from groundtune.data.mapped import id_number, ids_of
from groundtune.retrieval.embedder import AnyEmbedder, off_length
from groundtune.retrieval.stores.near import Near, exact, near_in
from groundtune.retrieval.stores.store import LARGE
from groundtune.schema import Document
from groundtune.system.durable import MANIFEST, Damaged, discard, disk_errors, read_manifest, write_manifest
from groundtune.system.locks import held
from groundtune.system.outputs import in_place_of, inside, refuse_links
from groundtune.system.text import to_json

logger = logging.getLogger(__name__)

_FORMAT = 2
_VECTORS, _IDS = "vectors.npy", "ids.npy"
_CHECKED_AT_ONCE = 4096  # vectors
_MORE_PROPOSED = 30  # vectors of 8 bits are ordered a little otherwise than those that they stand for
_WRITTEN_EVERY = 16_384  # documents: some minutes of work on a CPU, a second of writing


@dataclass(frozen=True)
class Index:
    """Documents and their vectors ([documents, dimensions]), searched by the model's `similarity`: exactly, or among
    what `near` proposes, an approximate index of the same vectors.

    As in sentence-transformers, a similarity is an inner product (of unit vectors, if it is the cosine), or a distance
    with a minus sign. `allowed` are the positions that a filter leaves; None: all.
    """

    documents: Sequence[Document]
    vectors: np.ndarray
    similarity: str = "cosine"
    near: Near | None = None
    allowed: np.ndarray | None = None

    @property
    def dimensions(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def whole(self) -> bool:
        return len(self.documents) <= LARGE

    def narrowed(self, allowed: np.ndarray, condition: object) -> Index:
        """The same vectors, searched among the documents `allowed`."""
        return replace(self, allowed=allowed)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest documents of each query: scores and positions, both [queries, min(k, documents)]."""
        import faiss

        if sys.platform == "darwin":
            # PyTorch and FAISS each bring their own OpenMP; on macOS that crashes as soon as FAISS uses threads.
            faiss.omp_set_num_threads(1)
        if self.near is None or (self.allowed is not None and len(self.allowed) <= LARGE):
            return exact(queries, self.vectors, k, self.similarity, self.allowed)
        k = min(k, len(self.documents))
        proposed = self.near.search(queries, k + _MORE_PROPOSED, self.allowed)
        scores, positions = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        for row, (query, these) in enumerate(zip(queries, proposed)):
            these = these[these >= 0]
            found = self.scores(query[None], these)[0]
            best = np.argsort(-found, kind="stable")[:k]
            scores[row, : len(best)], positions[row, : len(best)] = found[best], these[best]
        return scores, positions

    def scores(self, queries: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        """The similarity of each query to each document, or to those at the positions `among`: [queries, documents]."""
        vectors = self.vectors if among is None else self.vectors[among]
        vectors = vectors.astype(np.float32, copy=False)
        if self.similarity in ("cosine", "dot") and among is not None and not self.whole:
            # One by one: a matrix product rounds equal vectors differently in different rows.
            return np.einsum("qd,nd->qn", queries, vectors)
        if self.similarity in ("cosine", "dot"):
            return queries @ vectors.T
        order = 2 if self.similarity == "euclidean" else 1
        return -np.stack([np.linalg.norm(vectors - query, ord=order, axis=1) for query in queries])


@dataclass(frozen=True)
class _Cached:
    """Vectors on disk, and the ids of their documents as numbers, row by row."""

    ids: np.ndarray
    vectors: np.ndarray
    checksum: str = ""  # of the file of vectors


_NOTHING = _Cached(np.empty(0, np.uint64), np.empty((0, 0), np.float32))


def load_or_build_index(
    folder: str | Path, documents: Sequence[Document], embedder: AnyEmbedder, dtype: str = "float32"
) -> Index:
    """The index of the documents, from the cache in `folder` if it matches; only missing documents are embedded.

    Each fingerprint of an embedding model has its own subfolder, so that models do not evict each other. A damaged or
    mismatched cache gives a warning and is rebuilt, never searched. If two runs need the same index at the same time,
    one embeds and the other waits. The vectors of many documents are mapped, and proposed by an approximate index.
    Raises `DiskError`, and `DataError` for a folder that cannot be written to.
    """
    settings = _settings(embedder, dtype)
    store, ids = Path(folder) / fingerprint(settings), ids_of(documents)
    cached = _read(store, settings, tell=False)
    if not _fits(cached.ids, ids):
        with disk_errors(store), _held(store):
            cached = _completed(store, settings, documents, ids, embedder, dtype)
    vectors = cached.vectors if np.array_equal(ids, cached.ids) else cached.vectors[_rows(cached.ids, ids)]
    near = None
    if len(documents) > LARGE and embedder.similarity != "manhattan":
        near = near_in(store.with_name(f"{store.name}-near"), vectors, cached.checksum, embedder.similarity)
    return Index(documents, vectors, embedder.similarity, near)


@dataclass(frozen=True)
class Shard:
    """Every `of`-th document from the `number`-th on, for one of several processes that embed a corpus together."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}of{self.of}"


def embed_shard(
    folder: str | Path, documents: Sequence[Document], embedder: AnyEmbedder, dtype: str, shard: Shard
) -> tuple[int, int]:
    """Embed the documents of `shard` whose vectors are not in `folder` yet; how many it has, and how many were missing.

    The vectors wait beside the index, where `load_or_build_index` finds them; each process writes files of its own.
    """
    settings = _settings(embedder, dtype)
    store, ids = Path(folder) / fingerprint(settings), ids_of(documents)
    with disk_errors(store), _held(store, shard):
        known = np.concatenate([piece.ids for piece in _pieces(store, settings)])
        mine = _first(ids)[shard.number - 1 :: shard.of]
        missing = mine[~np.isin(ids[mine], known)]
        if len(missing):
            logger.info("embedding %d of the %d documents of this shard", len(missing), len(mine))
            _embedded(store, settings, documents, ids, missing, embedder, dtype, shard)
    return len(mine), len(missing)


def _settings(embedder: AnyEmbedder, dtype: str) -> dict[str, Any]:
    return embedder.settings if dtype == "float32" else {**embedder.settings, "stored": dtype}


def _first(ids: np.ndarray) -> np.ndarray:
    """The position of the first document with each id, in order."""
    return np.sort(np.unique(ids, return_index=True)[1])


def _pieces(store: Path, settings: dict[str, Any]) -> list[_Cached]:
    """The vectors of the index, and those that wait beside it."""
    return [_read(store, settings), *(_read(path, settings, tell=False) for path in _parts_of(store))]


def _fits(known: np.ndarray, ids: np.ndarray) -> bool:
    """Whether the cache holds these documents and no others; if they are many, in the same order."""
    if len(ids) > LARGE:
        return np.array_equal(known, ids)
    return set(known.tolist()) == set(ids.tolist())


def _rows(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The row of each id among the known ones, which hold it."""
    order = np.argsort(known, kind="stable")
    return order[np.searchsorted(known[order], ids)]


def _completed(
    store: Path,
    settings: dict[str, Any],
    documents: Sequence[Document],
    ids: np.ndarray,
    embedder: AnyEmbedder,
    dtype: str,
) -> _Cached:
    """Embed missing documents and write the index."""
    cached, *parts = _pieces(store, settings)  # again, because another run may have written it
    if _fits(cached.ids, ids):
        return cached
    first, pieces = _first(ids), [piece for piece in (cached, *parts) if len(piece.ids)]
    known = np.concatenate([_NOTHING.ids, *(piece.ids for piece in pieces)])
    missing = first[~np.isin(ids[first], known)]
    if len(missing):
        logger.info("embedding %d of %d documents with %s%s", len(missing), len(documents), embedder.name,
                    _needed(len(documents), embedder))  # fmt: skip
        vectors = _embedded(store, settings, documents, ids, missing, embedder, dtype)
        pieces.append(_Cached(ids[missing], vectors))
    vectors = _gathered(pieces, ids[first])
    _write(store, settings, ids[first], vectors, embedder, dtype)
    for path in _parts_of(store):
        discard(path)
    if len(ids) > LARGE:
        return _read(store, settings)  # mapped, where it was in memory
    return _Cached(ids[first], vectors)


def _embedded(
    store: Path, settings: dict[str, Any], documents: Sequence[Document], ids: np.ndarray, missing: np.ndarray,
    embedder: AnyEmbedder, dtype: str, shard: Shard | None = None,
) -> np.ndarray:  # fmt: skip
    """The vectors of the documents at the positions `missing`, also written at intervals: a killed process loses only
    its most recent work. Those of a shard are all written."""
    written: list[int] = []
    name = f"{store.name}.part-{f'{shard}-' if shard else ''}"

    def write(these: Sequence[int], vectors: np.ndarray) -> None:
        path = inside(store.parent, f"{name}{len(list(store.parent.glob(f'{name}*'))):05}")
        at = np.array(these)
        _write(path, settings, ids[missing[at]], vectors[at], embedder, dtype)
        written.extend(these)

    def so_far(done: Sequence[int], vectors: np.ndarray) -> None:
        if len(done) - len(written) >= _WRITTEN_EVERY and len(done) < len(missing):
            write(done[len(written) :], vectors)

    vectors = embedder.embed_documents([documents[int(i)].text for i in missing], so_far)
    if shard:
        write(sorted(set(range(len(missing))) - set(written)), vectors)
    return vectors


def _needed(documents: int, embedder: AnyEmbedder) -> str:
    """What many vectors take, said before they are made."""
    dimensions = embedder.dimensions if documents > LARGE else 0
    size = documents * dimensions * 4 / 2**30
    return f"; {size:.1f} GB on disk, and about {2 * size + documents * 2**10 / 2**30:.1f} GB of memory" if size else ""


def _gathered(pieces: Sequence[_Cached], ids: np.ndarray) -> np.ndarray:
    """The vectors of these ids from all pieces; without a copy if a piece is exactly that."""
    for piece in pieces:
        if np.array_equal(piece.ids, ids):
            return piece.vectors
    known, vectors = np.concatenate([piece.ids for piece in pieces]), np.concatenate([p.vectors for p in pieces])
    return vectors[_rows(known, ids)]


def _parts_of(store: Path) -> list[Path]:
    return sorted(store.parent.glob(f"{store.name}.part-*"))


@contextmanager
def _held(store: Path, shard: Shard | None = None) -> Iterator[None]:
    """Lock the folder, or a shard: two processes would write the same files, and a manifest would certify the mixture.

    Unfinished files of an earlier, killed process are removed.
    """
    refuse_links(inside(store.parent, store.name))

    def waiting() -> None:
        logger.info("another process is writing the index in %s; waiting for it", store)

    with held(store, f".lock-{shard}" if shard else ".lock", "full_dataset_index_path", 0, waiting) as is_held:
        for begun in store.glob(".*.tmp") if is_held and not shard else ():
            begun.unlink(missing_ok=True)
        yield


def fingerprint(settings: dict[str, Any]) -> str:
    return _sha256_of_json({"format": _FORMAT, **settings})[:16]


def _read(store: Path, settings: dict[str, Any], tell: bool = True) -> _Cached:
    """The cached vectors; none unless they are complete and intact. `tell` warns if they are damaged."""
    if not (store / MANIFEST).exists():
        return _NOTHING
    try:
        manifest = read_manifest(store)
        if manifest["fingerprint"] != store.name.partition(".")[0]:
            raise ValueError("manifest.json belongs to another embedding model")
        if manifest["settings"] != _plain(settings):
            raise ValueError("its vectors were made with other settings, under the same fingerprint")
        ids, vectors = (
            _ids(store, manifest),
            _vectors(store, settings.get("stored", "float32"), settings.get("similarity") == "cosine"),
        )
        if vectors.shape != (len(ids), manifest["dimensions"]) or len(np.unique(ids)) < len(ids):
            raise ValueError(f"vectors.npy is {vectors.dtype} {vectors.shape}, unlike the manifest")
        return _Cached(ids, vectors, manifest["files"][_VECTORS]["sha256"])
    except (Damaged, OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        if tell:
            logger.warning("the index in %s is damaged (%s); embedding all documents again", store, error)
        return _NOTHING


def _ids(store: Path, manifest: dict[str, Any]) -> np.ndarray:
    """The ids of the documents: in the manifest, or in a file of their own if they are many."""
    if manifest["ids"] is not None:
        return np.array([id_number(id) for id in manifest["ids"]], dtype=np.uint64)
    with open(store / _IDS, "rb") as file:
        ids = np.load(file, allow_pickle=False)
    if ids.dtype != np.uint64 or ids.ndim != 1:
        raise ValueError(f"ids.npy is {ids.dtype} {ids.shape}")
    return ids


def _vectors(store: Path, dtype: str, cosine: bool) -> np.ndarray:
    """The vectors, checked: float32 in memory, or mapped as they were written if they are many."""
    with open(store / _VECTORS, "rb") as file:
        shape, by_column, written = _header(file)
        if written != np.dtype(dtype) or by_column or len(shape) != 2:
            raise ValueError(f"vectors.npy is {written} {shape}, unlike the manifest")
        stated, there = shape[0] * shape[1] * written.itemsize, (store / _VECTORS).stat().st_size - file.tell()
        if stated != there:  # before memory or time is spent on what is only claimed
            raise ValueError(f"vectors.npy states {stated:,} bytes of vectors, and holds {there:,}")
        if shape[0] <= LARGE:
            file.seek(0)
            vectors = np.load(file, allow_pickle=False).astype(np.float32, copy=False)
            _check_values(vectors, cosine)
            return vectors
        for _ in range(0, shape[0], _CHECKED_AT_ONCE):  # read, not mapped: what is mapped counts as memory
            block = np.fromfile(file, written, _CHECKED_AT_ONCE * shape[1]).reshape(-1, shape[1])
            _check_values(block.astype(np.float32), cosine)
    return np.load(store / _VECTORS, mmap_mode="r", allow_pickle=False)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type that a file of NumPy states."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    return read(file)


def _check_values(vectors: np.ndarray, cosine: bool) -> None:
    """Raise `ValueError` for vectors that no embedding model gives: a search would find them first, or never."""
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(lengths).all():
        raise ValueError("a vector is NaN or infinite")
    if cosine and off_length(lengths).any():
        raise ValueError("a vector does not have length 1")


def _plain(settings: dict[str, Any]) -> Any:
    """`settings` after a round trip through JSON, to compare with the manifest."""
    return json.loads(to_json(settings, default=str))


def _sha256_of_json(content: object) -> str:
    return hashlib.sha256(to_json(content, ensure_ascii=True, sort_keys=True, default=str).encode()).hexdigest()


def _write(
    store: Path, settings: dict[str, Any], ids: np.ndarray, vectors: np.ndarray, embedder: AnyEmbedder, dtype: str
) -> None:
    """Write vectors first, then the manifest, so that a run killed in between leaves no index that looks complete."""
    with disk_errors(store, needed=vectors.size * np.dtype(dtype).itemsize):
        store.mkdir(parents=True, exist_ok=True)
        (store / MANIFEST).unlink(missing_ok=True)
        with in_place_of(store / _VECTORS) as file:
            np.save(file, vectors.astype(dtype, copy=False), allow_pickle=False)
        (store / _IDS).unlink(missing_ok=True)
        if many := len(ids) > LARGE:
            with in_place_of(store / _IDS) as file:
                np.save(file, ids, allow_pickle=False)
        about = {
            "fingerprint": store.name.partition(".")[0],
            "embedding_model": embedder.name,
            "settings": settings,
            "dimensions": int(vectors.shape[1]),
            "ids": None if many else [f"{int(id):016x}" for id in ids],
        }
        write_manifest(store, about)
