"""The documents' vectors in Milvus, a database for more of them than one machine holds: a file (Milvus Lite) or a
server, reached by the same client.

A collection holds the vectors of one embedding model, each under the id of its document, with the metadata. New
documents are embedded and inserted, changed metadata is replaced, and what is in no document any more is deleted.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from groundtune.data.mapped import ids_of
from groundtune.errors import DataError
from groundtune.filters import Condition, in_milvus
from groundtune.retrieval.embedder import AnyEmbedder
from groundtune.retrieval.stores.local import fingerprint
from groundtune.schema import Document
from groundtune.system.servers import milvus_address
from groundtune.system.text import hide_secrets, one_line, to_json

logger = logging.getLogger(__name__)

_TOKEN = "GROUNDTUNE_MILVUS_TOKEN"  # noqa: S105
_METRICS = {"cosine": "IP", "dot": "IP", "euclidean": "L2"}
_INSERTED_AT_ONCE = 1000  # rows of a request
_EMBEDDED_AT_ONCE = 16_384  # documents between two insertions
_ASKED_AT_ONCE = 100  # queries of a request
_MOST = 16_384  # results of a query: Milvus's limit


@dataclass(frozen=True)
class MilvusStore:
    """The documents and their vectors in a collection; `condition` is the filter, and `allowed` what it leaves."""

    documents: Sequence[Document]
    client: Any
    collection: str
    dimensions: int
    similarity: str
    allowed: np.ndarray | None = None
    condition: str = ""
    whole = False

    def narrowed(self, allowed: np.ndarray, condition: Condition) -> MilvusStore:
        """The same store, with one more condition, which leaves the documents `allowed`."""
        more = in_milvus(condition, "metadata")
        return replace(self, allowed=allowed, condition=f"{self.condition} and {more}" if self.condition else more)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest documents of each query: scores and positions, both [queries, min(k, documents)]."""
        k = min(k, _MOST, len(self.documents))
        scores, positions = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        for start in range(0, len(queries), _ASKED_AT_ONCE):
            with _told(self.collection):
                found = self.client.search(
                    self.collection,
                    data=queries[start : start + _ASKED_AT_ONCE].tolist(),
                    limit=k,
                    filter=self.condition,
                    search_params={"metric_type": _METRICS[self.similarity]},
                )
            for row, hits in enumerate(found, start):
                at, distances = self._positions([hit["id"] for hit in hits]), [hit["distance"] for hit in hits]
                positions[row, : len(hits)] = at
                scores[row, : len(hits)] = distances if self.similarity != "euclidean" else -np.sqrt(distances)
        return scores, positions

    def scores(self, queries: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        """The similarity of each query to each document, or to those at the positions `among`: [queries, documents]."""
        ids = ids_of(self.documents)
        vectors = self._vectors([_hex(id) for id in (ids if among is None else ids[among])])
        if self.similarity != "euclidean":
            return queries @ vectors.T
        return -np.stack([np.linalg.norm(vectors - query, axis=1) for query in queries])

    def _vectors(self, ids: Sequence[str]) -> np.ndarray:
        found: dict[str, Any] = {}
        for start in range(0, len(ids), _INSERTED_AT_ONCE):
            with _told(self.collection):
                rows = self.client.get(
                    self.collection, ids=ids[start : start + _INSERTED_AT_ONCE], output_fields=["id", "vector"]
                )
            found |= {row["id"]: row["vector"] for row in rows}
        if missing := [id for id in ids if id not in found]:
            raise DataError([f"--store: {len(missing)} documents have vanished from {self.collection} since the start; "
                             "is another run writing other documents to it? Name another collection"])  # fmt: skip
        return np.array([found[id] for id in ids], dtype=np.float32).reshape(len(ids), self.dimensions)

    @cached_property
    def _in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions of the documents by their ids, and these ids."""
        ids = ids_of(self.documents)
        order = np.argsort(ids, kind="stable")
        return order, ids[order]

    def _positions(self, ids: Sequence[str]) -> np.ndarray:
        """The positions of these ids; -1 for one that is in no document, or that the filter leaves out."""
        order, known = self._in_order
        asked = np.array([int(id, 16) for id in ids], dtype=np.uint64)
        place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        at, right = order[place], known[place] == asked
        if self.allowed is not None:  # where texts meet numbers, Milvus's comparisons differ a little
            right &= np.isin(at, self.allowed)
        return np.where(right, at, -1)


def open_milvus(
    store: str,
    documents: Sequence[Document],
    embedder: AnyEmbedder,
    allowed: np.ndarray | None = None,
    condition: Condition | None = None,
) -> MilvusStore:
    """The store at `--store milvus:ADDRESS#NAME`, after its collection was made to hold these documents.

    Raises `DataError` if there is no such server, or if it does not do what it is asked.
    """
    address, name = milvus_address(store)
    if embedder.similarity not in _METRICS:
        raise DataError([f"--store: Milvus has no similarity {embedder.similarity}, which {embedder.name} needs; "
                         "use --store local"])  # fmt: skip
    collection = f"{name or 'documents'}_{fingerprint(embedder.settings)}"
    with _told(address):
        client = _client(address)
        if not client.has_collection(collection):
            _create(client, collection, embedder)
        _bring_up_to_date(client, collection, documents, embedder)
    expression = "" if condition is None else in_milvus(condition, "metadata")
    return MilvusStore(
        documents, client, collection, embedder.dimensions, embedder.similarity, allowed, expression
    )  # fmt: skip


def _client(address: str) -> Any:
    from pymilvus import MilvusClient

    for name in ("pymilvus", "milvus_lite", "grpc"):  # they print tracebacks of what is raised anyway
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MilvusClient(address, token=os.environ.get(_TOKEN, ""), timeout=60)


def _create(client: Any, collection: str, embedder: AnyEmbedder) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=16)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=embedder.dimensions)
    schema.add_field("metadata", DataType.JSON)
    schema.add_field("about", DataType.VARCHAR, max_length=16)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="AUTOINDEX", metric_type=_METRICS[embedder.similarity])
    client.create_collection(collection, schema=schema, index_params=index, consistency_level="Strong")


def _bring_up_to_date(client: Any, collection: str, documents: Sequence[Document], embedder: AnyEmbedder) -> None:
    """Insert what is new, replace what has other metadata, delete what is in no document."""
    client.load_collection(collection)
    there = dict(_rows(client, collection))
    ids = [_hex(id) for id in ids_of(documents)]
    gone = sorted(there.keys() - set(ids))
    new = [i for i, id in enumerate(ids) if id not in there]
    changed = [i for i, id in enumerate(ids) if id in there and there[id] != _about(documents[i])]
    if new or changed or gone:
        logger.info(
            "%s: %d documents to insert, %d with other metadata, %d to delete",
            collection, len(new), len(changed), len(gone),
        )  # fmt: skip
    for start in range(0, len(new), _EMBEDDED_AT_ONCE):
        some = new[start : start + _EMBEDDED_AT_ONCE]
        vectors = embedder.embed_documents([documents[i].text for i in some])
        _upsert(client, collection, [documents[i] for i in some], vectors)
    for start in range(0, len(changed), _INSERTED_AT_ONCE):
        some = changed[start : start + _INSERTED_AT_ONCE]
        rows = client.get(collection, ids=[ids[i] for i in some], output_fields=["id", "vector"])
        kept = {row["id"]: row["vector"] for row in rows}
        _upsert(client, collection, [documents[i] for i in some], [kept[ids[i]] for i in some])
    for start in range(0, len(gone), _INSERTED_AT_ONCE):
        client.delete(collection, ids=gone[start : start + _INSERTED_AT_ONCE])


def _rows(client: Any, collection: str) -> Iterator[tuple[str, str]]:
    """Id and `about` of every row."""
    rows = client.query_iterator(
        collection, filter='id != ""', output_fields=["id", "about"], batch_size=_INSERTED_AT_ONCE
    )
    while batch := rows.next():
        yield from ((row["id"], row["about"]) for row in batch)
    rows.close()


def _upsert(client: Any, collection: str, documents: Sequence[Document], vectors: Any) -> None:
    rows = [
        {"id": d.id, "vector": [float(x) for x in v], "metadata": d.metadata, "about": _about(d)}
        for d, v in zip(documents, vectors, strict=True)
    ]
    for start in range(0, len(rows), _INSERTED_AT_ONCE):
        client.upsert(collection, data=rows[start : start + _INSERTED_AT_ONCE])


def _about(document: Document) -> str:
    """A hash of the metadata, by which changes are seen."""
    text = to_json(document.metadata, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _hex(id: Any) -> str:
    return f"{int(id):016x}"


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn Milvus's errors inside into one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # its own, gRPC's, and those of Milvus Lite
        if not type(error).__module__.startswith(("pymilvus", "milvus", "grpc")):
            raise
        text = one_line(getattr(error, "message", "") or error, 300)
        token = os.environ.get(_TOKEN)
        text = text.replace(token, "***") if token else text
        raise DataError([f"--store: Milvus at {hide_secrets(where)}: {hide_secrets(text)}; is the server running, and "
                         f"is {_TOKEN} set if it needs a token?"]) from error  # fmt: skip
