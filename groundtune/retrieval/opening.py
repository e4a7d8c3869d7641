"""Arguments -> the retriever over all documents; the only place where retrievers are opened."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from groundtune.arguments import MAXSIM, DataArguments, RetrievalArguments
from groundtune.errors import DataError, ModelError
from groundtune.filters import kept, parsed
from groundtune.retrieval.embedder import AnyEmbedder, Embedder
from groundtune.retrieval.embedding_server import ServerEmbedder
from groundtune.retrieval.reranking import open_reranker, reranked
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, HybridRetriever, MixRetriever, Retriever
from groundtune.retrieval.stores.local import load_or_build_index
from groundtune.retrieval.stores.milvus import open_milvus
from groundtune.retrieval.stores.store import Store
from groundtune.schema import Document
from groundtune.system.model_folders import cannot_load
from groundtune.system.out_of_memory import is_out_of_memory
from groundtune.system.outputs import inside
from groundtune.system.servers import server_kind
from groundtune.system.text import hide_secrets, one_line

logger = logging.getLogger(__name__)

_ALIKE = 0.98  # cosine of two vectors of one text, in whatever batch and on whatever machine


def open_retriever(retrieval: RetrievalArguments, documents: Sequence[Document], index_folder: Path) -> Retriever:
    """The retriever that `--retriever` selects, with the embedding model for evaluation (`evaluation_model`).

    Raises `ModelError` if the embedding model cannot be loaded.
    """
    return open_retriever_with(evaluation_model(retrieval), retrieval, documents, index_folder)


def open_retriever_with(
    embedding_model: str, retrieval: RetrievalArguments, documents: Sequence[Document], index_folder: Path
) -> Retriever:
    """The retriever that `--retriever` selects, with this embedding model.

    Raises `ModelError` if the embedding model cannot be loaded.
    """
    allowed = _allowed(retrieval.filter, documents)
    bm25 = BM25Retriever(documents, index_folder, allowed)
    if retrieval.retriever == "bm25" and retrieval.reranker != MAXSIM:
        return reranked(bm25, retrieval, open_reranker(retrieval))
    embedder = open_embedder(embedding_model, retrieval)
    reranker = open_reranker(retrieval, embedder, documents)  # before the documents are embedded, which may take hours
    if retrieval.retriever == "bm25":
        return reranked(bm25, retrieval, reranker)
    dense = DenseRetriever(embedder, _open_store(retrieval, documents, embedder, index_folder, allowed))
    if isinstance(embedder, ServerEmbedder):
        _still_the_same(embedder, dense.index)
    first = dense if retrieval.retriever == "dense" else with_words(dense, bm25, retrieval)
    return reranked(first, retrieval, reranker)


def narrowed(retriever: Retriever, filter: str) -> Retriever:
    """The same retriever among the documents that one more filter leaves. Raises `DataError` if it leaves none."""
    if isinstance(retriever, MixRetriever):
        return replace(retriever, dense=_dense(retriever.dense, filter), bm25=_bm25(retriever.bm25, filter))
    if isinstance(retriever, HybridRetriever):
        return HybridRetriever([narrowed(one, filter) for one in retriever.retrievers])
    if isinstance(retriever, BM25Retriever):
        return _bm25(retriever, filter)
    if isinstance(retriever, DenseRetriever):
        return _dense(retriever, filter)
    around: Any = retriever  # one around another, such as a reranker
    return cast(Retriever, replace(around, retriever=narrowed(around.retriever, filter)))


def _dense(dense: DenseRetriever, filter: str) -> DenseRetriever:
    store = dense.index
    return replace(dense, index=store.narrowed(_both(store.allowed, filter, store.documents), parsed(filter)))


def _bm25(bm25: BM25Retriever, filter: str) -> BM25Retriever:
    made = replace(bm25, allowed=_both(bm25.allowed, filter, bm25.documents))
    made.__dict__["postings"] = bm25.postings  # which are those of all documents
    return made


def _both(allowed: np.ndarray | None, filter: str, documents: Sequence[Document]) -> np.ndarray:
    """Positions that are allowed and that the filter leaves; raises `DataError` if there are none."""
    left = np.array(kept(filter, documents), dtype=np.int64)
    if allowed is None:
        return left
    both = np.intersect1d(allowed, left)
    if not len(both):
        raise DataError([f"--filter: {one_line(filter, 200)} leaves none of the {len(allowed):,} passages"])
    return both


def open_embedder(embedding_model: str, retrieval: RetrievalArguments) -> AnyEmbedder:
    """The embedding model with its prompts. Raises `ModelError` if it cannot be loaded."""
    if server_kind(embedding_model):
        return ServerEmbedder(
            embedding_model,
            retrieval.embedding_server_model,
            retrieval.query_prompt,
            retrieval.document_prompt,
            retrieval.embedding_batch_size,
        )
    try:
        return Embedder(
            embedding_model,
            query_prompt=retrieval.query_prompt,
            document_prompt=retrieval.document_prompt,
            batch_size=retrieval.embedding_batch_size,
            dtype=retrieval.embedding_dtype,
        )
    except Exception as error:  # libraries do not validate a model's settings, so anything may be raised
        if is_out_of_memory(error):
            raise
        raise ModelError(f"--embedding_model: {cannot_load(embedding_model, error)}") from error


def with_words(dense: DenseRetriever, bm25: BM25Retriever, retrieval: RetrievalArguments) -> Retriever:
    """The retriever that combines both as `--retriever` says."""
    if retrieval.retriever == "hybrid":
        return HybridRetriever([dense, bm25])
    return MixRetriever(dense, bm25, retrieval.mix_weight)


def _open_store(
    retrieval: RetrievalArguments,
    documents: Sequence[Document],
    embedder: AnyEmbedder,
    index_folder: Path,
    allowed: np.ndarray | None,
) -> Store:
    if retrieval.store == "local":
        index = load_or_build_index(index_folder, documents, embedder, retrieval.vector_dtype)
        return replace(index, allowed=allowed)
    condition = parsed(retrieval.filter) if retrieval.filter else None
    return open_milvus(retrieval.store, documents, embedder, allowed, condition)


def _still_the_same(embedder: ServerEmbedder, store: Store) -> None:
    """Raise `DataError` if the server gives a document another vector than the stored one: under the same name, another
    model may be served now."""
    again = embedder.embed_documents([store.documents[0].text])
    alike = float(store.scores(again, np.array([0]))[0, 0]) if again.shape[1] == store.dimensions else 0.0
    if alike < _ALIKE:
        why = f"now gives a document another vector than the stored one (cosine {alike:.2f}); has its model changed?"
        way_out = "To embed everything again, name another --full_dataset_index_path or collection"
        raise DataError([f"--embedding_model: {hide_secrets(embedder.name)} {why} {way_out}"])


def _allowed(text: str, documents: Sequence[Document]) -> np.ndarray | None:
    """Positions of the documents that `--filter` leaves; None: all. Raises `DataError` if it leaves none."""
    positions = kept(text, documents)
    if positions is None:
        return None
    logger.info("--filter leaves %d of %d passages", len(positions), len(documents))
    return np.array(positions, dtype=np.int64)


def evaluation_model(retrieval: RetrievalArguments) -> str:
    """The embedding model used for evaluation."""
    return retrieval.eval_embedding_model or retrieval.embedding_model


def index_folder(data: DataArguments) -> Path:
    """The folder that caches the documents' vectors: the one given, else `index` next to the document database.

    Raises `DataError` if the latter is a link.
    """
    named = data.full_dataset_index_path
    return Path(named) if named else inside(Path(data.full_dataset_file_path).parent, "index")
