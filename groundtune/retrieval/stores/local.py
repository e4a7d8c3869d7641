"""The documents' vectors on disk, with a fingerprint, and exact search over them."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from groundtune.retrieval.embedder import Embedder, off_length
from groundtune.schema import Document
from groundtune.system.durable import MANIFEST, Damaged, disk_errors, read_manifest, write_manifest
from groundtune.system.locks import held
from groundtune.system.outputs import in_place_of, inside, refuse_links
from groundtune.system.text import to_json

logger = logging.getLogger(__name__)

_FORMAT = 2
_WRITTEN_EVERY = 16_384  # documents: some minutes of work on a CPU, a second of writing


@dataclass(frozen=True)
class Index:
    """Documents and their vectors (float32 [documents, dimensions]), searched exactly by the model's `similarity`.

    As in sentence-transformers, a similarity is an inner product (of unit vectors, if it is the cosine), or a distance
    with a minus sign.
    """

    documents: Sequence[Document]
    vectors: np.ndarray
    similarity: str = "cosine"

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest documents of each query: scores and positions, both [queries, min(k, documents)]."""
        import faiss

        if sys.platform == "darwin":
            # PyTorch and FAISS each bring their own OpenMP; on macOS that crashes as soon as FAISS uses threads.
            faiss.omp_set_num_threads(1)
        # Searches the array directly: a FAISS index would hold a copy, and an index file has no checksum and, if
        # hostile, corrupts memory.
        k = min(k, len(self.documents))
        if self.similarity in ("cosine", "dot"):
            return faiss.knn(queries, self.vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
        metric = {"euclidean": faiss.METRIC_L2, "manhattan": faiss.METRIC_L1}[self.similarity]
        distances, positions = faiss.knn(queries, self.vectors, k, metric=metric)
        return -(np.sqrt(distances) if self.similarity == "euclidean" else distances), positions

    def scores(self, queries: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        """The similarity of each query to each document, or to those at the positions `among`: [queries, documents]."""
        vectors = self.vectors if among is None or len(among) == len(self.vectors) else self.vectors[among]
        if self.similarity in ("cosine", "dot"):
            return queries @ vectors.T
        order = 2 if self.similarity == "euclidean" else 1
        return -np.stack([np.linalg.norm(vectors - query, ord=order, axis=1) for query in queries])


def load_or_build_index(folder: str | Path, documents: Sequence[Document], embedder: Embedder) -> Index:
    """The index of the documents, from the cache in `folder` if it matches; only missing documents are embedded.

    Each fingerprint of an embedding model has its own subfolder, so that models do not evict each other. A damaged or
    mismatched cache gives a warning and is rebuilt, never searched. If two runs need the same index at the same time,
    one embeds and the other waits. Raises `DiskError`, and `DataError` for a folder that cannot be written to.
    """
    store = Path(folder) / _fingerprint(embedder.settings)
    ids = [document.id for document in documents]
    known, vectors = _read(store, embedder.settings, tell=False)
    if known.keys() != set(ids):
        with disk_errors(store), _held(store):
            known, vectors = _completed(store, documents, embedder)
    ordered = vectors if ids == list(known) else vectors[[known[id] for id in ids]]
    return Index(documents, ordered, embedder.similarity)


def _completed(store: Path, documents: Sequence[Document], embedder: Embedder) -> tuple[dict[str, int], np.ndarray]:
    """Embed missing documents and write the index; returns the row of each document id, and the vectors.

    Vectors are also written at intervals, so that a killed process loses only its most recent work.
    """
    known, cached = _read(store, embedder.settings)  # again, because another run may have written it
    texts = {document.id: document.text for document in documents}
    if known.keys() == texts.keys():
        return known, cached
    kept, missing = [id for id in texts if id in known], [id for id in texts if id not in known]
    cached, written = cached[[known[id] for id in kept]], 0

    def write(ids: list[str], vectors: np.ndarray) -> None:
        with disk_errors(store, needed=vectors.nbytes):
            _write(store, ids, vectors, embedder)

    def so_far(done: Sequence[int], vectors: np.ndarray) -> None:
        nonlocal written
        if len(done) - written >= _WRITTEN_EVERY and len(done) < len(missing):
            written = len(done)
            write([*kept, *(missing[i] for i in done)], _joined(cached, vectors[done]))

    if missing:
        logger.info("embedding %d of %d documents with %s", len(missing), len(documents), embedder.name)
        cached = _joined(cached, embedder.embed_documents([texts[id] for id in missing], so_far))
    write([*kept, *missing], cached)
    return {id: row for row, id in enumerate([*kept, *missing])}, cached


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The concatenated arrays, without a copy if the first is empty."""
    return np.concatenate([first, second]) if len(first) else second


@contextmanager
def _held(store: Path) -> Iterator[None]:
    """Lock the folder: two processes would write the same files, and a manifest would certify the mixture.

    Unfinished files of an earlier, killed process are removed.
    """
    refuse_links(inside(store.parent, store.name))

    def waiting() -> None:
        logger.info("another process is writing the index in %s; waiting for it", store)

    with held(store, ".lock", "full_dataset_index_path", 0, waiting) as is_held:
        for begun in store.glob(".*.tmp") if is_held else ():
            begun.unlink(missing_ok=True)
        yield


def _fingerprint(settings: dict[str, Any]) -> str:
    return _sha256_of_json({"format": _FORMAT, **settings})[:16]


def _read(store: Path, settings: dict[str, Any], tell: bool = True) -> tuple[dict[str, int], np.ndarray]:
    """The row of each document id, and the vectors; both empty unless the cache is complete and intact. `tell` warns
    if it is damaged."""
    nothing: tuple[dict[str, int], np.ndarray] = {}, np.empty((0, 0), dtype=np.float32)
    if not (store / MANIFEST).exists():
        return nothing
    try:
        manifest = read_manifest(store)
        if manifest["fingerprint"] != store.name:
            raise ValueError("manifest.json belongs to another embedding model")
        if manifest["settings"] != _plain(settings):
            raise ValueError("its vectors were made with other settings, under the same fingerprint")
        with open(store / "vectors.npy", "rb") as file:
            vectors = np.load(file, allow_pickle=False)
        if vectors.dtype != np.float32 or vectors.shape != (len(manifest["ids"]), manifest["dimensions"]):
            raise ValueError(f"vectors.npy is {vectors.dtype} {vectors.shape}, unlike the manifest")
        _check_values(vectors, settings)
        return {id: row for row, id in enumerate(manifest["ids"])}, vectors
    except (Damaged, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        if tell:
            logger.warning("the index in %s is damaged (%s); embedding all documents again", store, error)
        return nothing


def _check_values(vectors: np.ndarray, settings: dict[str, Any]) -> None:
    """Raise `ValueError` for vectors that no embedding model gives: a search would find them first, or never."""
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(lengths).all():
        raise ValueError("a vector is NaN or infinite")
    if settings.get("similarity") == "cosine" and off_length(lengths).any():
        raise ValueError("a vector does not have length 1")


def _plain(settings: dict[str, Any]) -> Any:
    """`settings` after a round trip through JSON, to compare with the manifest."""
    return json.loads(to_json(settings, default=str))


def _sha256_of_json(content: object) -> str:
    return hashlib.sha256(to_json(content, ensure_ascii=True, sort_keys=True, default=str).encode()).hexdigest()


def _write(store: Path, ids: list[str], vectors: np.ndarray, embedder: Embedder) -> None:
    """Write vectors first, then the manifest, so that a run killed in between leaves no index that looks complete."""
    store.mkdir(parents=True, exist_ok=True)
    (store / MANIFEST).unlink(missing_ok=True)
    with in_place_of(store / "vectors.npy") as file:
        np.save(file, vectors, allow_pickle=False)
    write_manifest(
        store,
        {
            "fingerprint": store.name,
            "embedding_model": embedder.name,
            "settings": embedder.settings,
            "dimensions": int(vectors.shape[1]),
            "ids": ids,
        },
    )
