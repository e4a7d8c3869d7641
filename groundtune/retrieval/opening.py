"""Arguments -> the retriever over all documents; the only place where retrievers are opened."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from groundtune.arguments import DataArguments, RetrievalArguments
from groundtune.errors import ModelError
from groundtune.filters import kept, parsed
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, HybridRetriever, MixRetriever, Retriever
from groundtune.retrieval.stores.local import load_or_build_index
from groundtune.retrieval.stores.milvus import open_milvus
from groundtune.retrieval.stores.store import Store
from groundtune.schema import Document
from groundtune.system.model_folders import cannot_load
from groundtune.system.out_of_memory import is_out_of_memory
from groundtune.system.outputs import inside

logger = logging.getLogger(__name__)


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
    if retrieval.retriever == "bm25":
        return bm25
    try:
        embedder = Embedder(
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
    dense = DenseRetriever(embedder, _open_store(retrieval, documents, embedder, index_folder, allowed))
    if retrieval.retriever == "dense":
        return dense
    return (
        MixRetriever(dense, bm25, retrieval.mix_weight)
        if retrieval.retriever == "mix"
        else HybridRetriever([dense, bm25])
    )


def _open_store(
    retrieval: RetrievalArguments,
    documents: Sequence[Document],
    embedder: Embedder,
    index_folder: Path,
    allowed: np.ndarray | None,
) -> Store:
    if retrieval.store == "local":
        index = load_or_build_index(index_folder, documents, embedder, retrieval.vector_dtype)
        return replace(index, allowed=allowed)
    condition = parsed(retrieval.filter) if retrieval.filter else None
    return open_milvus(retrieval.store, documents, embedder, allowed, condition)


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
