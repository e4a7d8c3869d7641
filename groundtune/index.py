"""The documents' vectors on disk, with a fingerprint, and exact search over them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from groundtune.embedding import Embedder
from groundtune.files import sha256_of
from groundtune.schema import Document

logger = logging.getLogger(__name__)

_FORMAT = 2


@dataclass(frozen=True)
class Index:
    """Documents and their vectors (float32 [documents, dimensions]), searched exactly."""

    documents: Sequence[Document]
    vectors: np.ndarray

    @cached_property
    def _faiss(self) -> Any:
        import faiss

        # Rebuilt from the vectors and never read from a file: FAISS files carry no checksum, and a hostile one
        # corrupts memory.
        index = faiss.IndexFlatIP(self.vectors.shape[1])
        index.add(self.vectors)
        return index

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest documents of each query: scores and positions, both [queries, min(k, documents)]."""
        return self._faiss.search(queries, min(k, len(self.documents)))


def load_or_build_index(folder: str | Path, documents: Sequence[Document], embedder: Embedder) -> Index:
    """The documents' vectors, from the cache in `folder` where it matches, embedding only what is missing.

    Each fingerprint of the embedding model has a subfolder of its own, so that models do not evict each other. A file
    that is damaged or does not match is a warning and is embedded anew, never searched.
    """
    store = Path(folder) / _fingerprint(embedder.settings)
    known = _read(store)
    missing = [document for document in documents if document.id not in known]
    if missing:
        logger.info("embedding %d of %d documents with %s", len(missing), len(documents), embedder.name)
        known.update(zip((d.id for d in missing), embedder.embed_documents([d.text for d in missing])))
    ids = [document.id for document in documents]
    vectors = np.stack([known[id] for id in ids])
    if missing or len(known) != len(ids):
        _write(store, ids, vectors, embedder)
    return Index(documents, vectors)


def _fingerprint(settings: dict[str, Any]) -> str:
    return _sha256_of_json({"format": _FORMAT, **settings})[:16]


def _read(store: Path) -> dict[str, np.ndarray]:
    """Vector by document id; empty where there is no complete and undamaged cache."""
    manifest_path, vectors_path = store / "manifest.json", store / "vectors.npy"
    if not manifest_path.exists():
        return {}
    try:
        manifest = json.loads(manifest_path.read_text("utf-8"))
        if manifest.pop("sha256") != _sha256_of_json(manifest):
            raise ValueError("manifest.json does not match its checksum")
        if manifest["fingerprint"] != store.name:
            raise ValueError("manifest.json is that of another embedding model")
        vectors = _verified_vectors(vectors_path, manifest["vectors_sha256"])
        if vectors.dtype != np.float32 or vectors.shape != (len(manifest["ids"]), manifest["dimensions"]):
            raise ValueError(f"vectors.npy is {vectors.dtype} {vectors.shape}, the manifest says otherwise")
        return dict(zip(manifest["ids"], vectors))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("the index in %s is damaged (%s); embedding all documents anew", store, error)
        return {}


def _verified_vectors(path: Path, sha256: str) -> np.ndarray:
    """Nothing is parsed before its bytes are known to be those that were written."""
    with open(path, "rb") as file:  # opened once, so that what was verified is what is read
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        if digest.hexdigest() != sha256:
            raise ValueError(f"{path.name} does not match its checksum")
        file.seek(0)
        return np.load(file, allow_pickle=False)


def _sha256_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _write(store: Path, ids: list[str], vectors: np.ndarray, embedder: Embedder) -> None:
    """Vectors first, then the manifest that vouches for them: a run killed in between leaves no believable index."""
    store.mkdir(parents=True, exist_ok=True)
    (store / "manifest.json").unlink(missing_ok=True)
    with open(store / "vectors.npy.tmp", "wb") as file:
        np.save(file, vectors, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(store / "vectors.npy.tmp", store / "vectors.npy")
    manifest = {
        "fingerprint": store.name,
        "embedding_model": embedder.name,
        "settings": embedder.settings,
        "dimensions": int(vectors.shape[1]),
        "vectors_sha256": sha256_of(store / "vectors.npy"),
        "ids": ids,
    }
    with open(store / "manifest.json.tmp", "w", encoding="utf-8") as file:
        json.dump({"sha256": _sha256_of_json(manifest), **manifest}, file, default=str)
        file.flush()
        os.fsync(file.fileno())
    os.replace(store / "manifest.json.tmp", store / "manifest.json")
