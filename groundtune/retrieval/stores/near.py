"""Approximate search over many vectors: one FAISS index (inverted lists of 8-bit vectors), rebuilt and never edited.

It only proposes documents; `local.Index` computes their similarity from the vectors themselves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from groundtune.retrieval.stores.made import made_in
from groundtune.system.outputs import in_place_of
from groundtune.system.progress import bar, bars_shown

logger = logging.getLogger(__name__)

_FORMAT = 1
_FILE = "lists.faiss"
_BLOCK = 65_536  # vectors at a time
_TRAINED_ON = 40  # vectors per list; FAISS warns below 39
_SEARCHED = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)  # lists per query: the fewest that reach `_RECALL`
_RECALL = 0.99  # of the ten nearest, on `_TRIED` pairs of documents
_TRIED = 200


@dataclass(frozen=True)
class Near:
    """A FAISS index mapped from its file; `lists` of it are searched per query, as found when it was built."""

    index: Any
    lists: int

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Positions of about the k nearest vectors of each query, [queries, k], -1 where fewer were found."""
        faiss = _faiss()
        some = {} if allowed is None else {"sel": faiss.IDSelectorBitmap(_bits(allowed, self.index.ntotal))}
        found = self.index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=self.lists, **some))
        return found[1]


def near_in(folder: Path, vectors: np.ndarray, of: str, similarity: str) -> Near:
    """The index of the vectors (whose file has the SHA-256 `of`) in `folder`, which is built first if it is another."""
    faiss = _faiss()

    def make() -> dict[str, Any]:
        begin = time.perf_counter()
        index = _built(vectors, similarity)
        lists, recall = _tuned(index, vectors, similarity)
        with in_place_of(folder / _FILE) as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        logger.info(
            "built the approximate index in %.0f s: %d of %d lists are searched, with a recall@10 of %.3f on %d trials",
            time.perf_counter() - begin, lists, index.nlist, recall, _TRIED,
        )  # fmt: skip
        return {"lists": lists, "recall": recall}

    def read(manifest: Mapping[str, Any]) -> Near:
        return Near(faiss.read_index(str(folder / _FILE), faiss.IO_FLAG_MMAP), int(manifest["lists"]))

    return made_in(folder, {"format": _FORMAT, "of": of, "similarity": similarity}, make, read)


def _built(vectors: np.ndarray, similarity: str) -> Any:
    faiss = _faiss()
    n, dimensions = vectors.shape
    lists = 2 ** round(np.log2(max(1, min(2 * np.sqrt(n), n / _TRAINED_ON))))
    metric = faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
    logger.info(
        "building an approximate index of %d vectors, once; needs about %.1f GB of memory and %s",
        n,
        (n * (dimensions + 8) * 2 + lists * _TRAINED_ON * dimensions * 4) / 2**30,
        _time(n, lists, dimensions),
    )
    quantizer = faiss.IndexFlat(dimensions, metric)
    index = faiss.IndexIVFScalarQuantizer(quantizer, dimensions, lists, faiss.ScalarQuantizer.QT_8bit, metric)
    index.train(_rows(vectors, _drawn(n, lists * _TRAINED_ON)))
    with bar("approximate index", n, not bars_shown(), unit="passage") as progress:
        for start in range(0, n, _BLOCK):
            block = vectors[start : start + _BLOCK].astype(np.float32)
            index.add(block)
            progress.update(len(block))
    return index


def _time(n: int, lists: int, dimensions: int) -> str:
    """About how long building takes, from the time of a small product: ten rounds of k-means, then every vector."""
    size = 1024
    a = np.random.default_rng(0).random((size, dimensions), dtype=np.float32)
    begin = time.perf_counter()
    a @ a.T
    per_product = max(time.perf_counter() - begin, 1e-5) / size / size
    seconds = 2 * per_product * lists * (10 * lists * _TRAINED_ON + n)  # twice: besides the products
    return f"{max(1, round(seconds / 60))} min"


def _tuned(index: Any, vectors: np.ndarray, similarity: str) -> tuple[int, float]:
    """How many lists to search, and the recall@10 against exact search: of queries between two documents each, which
    are as far from any document as questions are."""
    faiss = _faiss()
    first, second = (_rows(vectors, _drawn(len(vectors), _TRIED, seed)) for seed in (1, 2))
    queries = (first + second) / 2
    right = exact(queries, vectors, 10, similarity)[1]
    recall = 0.0
    for lists in _SEARCHED:
        found = index.search(queries, 40, params=faiss.SearchParametersIVF(nprobe=min(lists, index.nlist)))[1]
        recall = float(np.mean([np.isin(a, b).mean() for a, b in zip(right, found)]))
        if recall >= _RECALL or lists >= index.nlist:
            break
    return min(lists, index.nlist), recall


def exact(
    queries: np.ndarray, vectors: np.ndarray, k: int, similarity: str, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest vectors of each query (of those at `rows`), scores and positions; a block in memory at a time."""
    n = len(vectors) if rows is None else len(rows)
    k = min(k, n)
    scores, positions = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    block = n if rows is None and vectors.dtype == np.float32 else _BLOCK
    for start in range(0, n, block):
        these = np.arange(start, min(start + block, n)) if rows is None else rows[start : start + block]
        some = vectors if len(these) == len(vectors) else vectors[these]
        found, at = knn(queries, some.astype(np.float32, copy=False), min(k, len(these)), similarity)
        scores, positions = np.hstack([scores, found]), np.hstack([positions, these[at]])
        if len(these) < n:
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, positions = np.take_along_axis(scores, best, axis=1), np.take_along_axis(positions, best, axis=1)
    return scores, positions


def knn(queries: np.ndarray, vectors: np.ndarray, k: int, similarity: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores and positions of the k nearest of these float32 vectors, without a copy of them."""
    faiss = _faiss()
    if similarity in ("cosine", "dot"):
        return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    metric = {"euclidean": faiss.METRIC_L2, "manhattan": faiss.METRIC_L1}[similarity]
    distances, positions = faiss.knn(queries, vectors, k, metric=metric)
    return -(np.sqrt(distances) if similarity == "euclidean" else distances), positions


def _faiss() -> Any:
    """The library, whose stated types lack what its C++ part has."""
    import faiss

    return faiss


def _drawn(n: int, many: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(n, min(n, many), replace=False))


def _rows(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors[rows], dtype=np.float32)


def _bits(allowed: np.ndarray, n: int) -> np.ndarray:
    chosen = np.zeros(n, dtype=bool)
    chosen[allowed] = True
    return np.packbits(chosen, bitorder="little")
