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

from groundtune.retrieval.embedder import Embedder
from groundtune.schema import Document
from groundtune.system.durable import MANIFEST, Damaged, disk_errors, read_manifest, write_manifest
from groundtune.system.locks import held
from groundtune.system.outputs import in_place_of, inside, refuse_links

logger = logging.getLogger(__name__)

_FORMAT = 2
_WRITTEN_EVERY = 16_384  # documents: some minutes of work on a CPU, a second of writing


@dataclass(frozen=True)
class Index:
    """Documents and their vectors (float32 [documents, dimensions]), searched exactly."""

    documents: Sequence[Document]
    vectors: np.ndarray

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest documents of each query: scores and positions, both [queries, min(k, documents)]."""
        import faiss

        if sys.platform == "darwin":
            # PyTorch brings an OpenMP and FAISS another one, which crashes there as soon as it has threads.
            faiss.omp_set_num_threads(1)
        # On the vectors as they are: an index of FAISS would hold a copy, and one that is read from a file has no
        # checksum, and a hostile one corrupts memory.
        k = min(k, len(self.documents))
        return faiss.knn(queries, self.vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


def load_or_build_index(folder: str | Path, documents: Sequence[Document], embedder: Embedder) -> Index:
    """The documents' vectors, from the cache in `folder` where it matches, embedding only what is missing.

    Each fingerprint of the embedding model has a subfolder of its own, so that models do not evict each other. A file
    that is damaged or does not match is a warning and is embedded anew, never searched. Of two runs that want the same
    index at the same time, one embeds and the other waits. Raises `DiskError`, and `DataError` for a folder that cannot
    be written to.
    """
    store = Path(folder) / _fingerprint(embedder.settings)
    ids = [document.id for document in documents]
    known, vectors = _read(store, embedder.settings, tell=False)
    if known.keys() != set(ids):
        with disk_errors(store), _held(store):
            known, vectors = _completed(store, documents, embedder)
    return Index(documents, vectors if ids == list(known) else vectors[[known[id] for id in ids]])


def _completed(store: Path, documents: Sequence[Document], embedder: Embedder) -> tuple[dict[str, int], np.ndarray]:
    """Row by document id and the vectors in their rows, those that were missing embedded, and all of them written.

    What is embedded is written now and then: a process that is killed loses the last part of its work and not all.
    """
    known, cached = _read(store, embedder.settings)  # again: another run may have written it meanwhile
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
    """Without a copy where the first is empty."""
    return np.concatenate([first, second]) if len(first) else second


@contextmanager
def _held(store: Path) -> Iterator[None]:
    """The folder for one process: two would write into the same files, and a manifest would vouch for the mixture.

    What an earlier process, killed, had begun to write is removed.
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
    """Row by document id, and the vectors in their rows; none where there is no complete and undamaged cache, which it
    can `tell`."""
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
        return {id: row for row, id in enumerate(manifest["ids"])}, vectors
    except (Damaged, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        if tell:
            logger.warning("the index in %s is damaged (%s); embedding all documents again", store, error)
        return nothing


def _plain(settings: dict[str, Any]) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(settings, default=str))


def _sha256_of_json(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _write(store: Path, ids: list[str], vectors: np.ndarray, embedder: Embedder) -> None:
    """Vectors first, then the manifest that vouches for them: a run killed in between leaves no believable index."""
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
