"""Arguments -> the retriever over all documents; the only place where retrievers are opened."""

from __future__ import annotations

from pathlib import Path

from groundtune.arguments import MAXSIM, DataArguments, RetrievalArguments
from groundtune.errors import ModelError
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.reranking import open_reranker, reranked
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, HybridRetriever, MixRetriever, Retriever
from groundtune.retrieval.stores.local import load_or_build_index
from groundtune.schema import Document
from groundtune.system.model_folders import cannot_load
from groundtune.system.out_of_memory import is_out_of_memory
from groundtune.system.outputs import inside


def open_retriever(retrieval: RetrievalArguments, documents: list[Document], index_folder: Path) -> Retriever:
    """The retriever that `--retriever` selects, with the embedding model for evaluation (`evaluation_model`).

    Raises `ModelError` if the embedding model cannot be loaded.
    """
    return open_retriever_with(evaluation_model(retrieval), retrieval, documents, index_folder)


def open_retriever_with(
    embedding_model: str, retrieval: RetrievalArguments, documents: list[Document], index_folder: Path
) -> Retriever:
    """The retriever that `--retriever` selects, with this embedding model.

    Raises `ModelError` if the embedding model cannot be loaded.
    """
    if retrieval.retriever == "bm25" and retrieval.reranker != MAXSIM:
        reranker = open_reranker(retrieval)
        return reranked(BM25Retriever(documents), retrieval, reranker)
    embedder = open_embedder(embedding_model, retrieval)
    reranker = open_reranker(retrieval, embedder)  # before the documents are embedded, which may take hours
    if retrieval.retriever == "bm25":
        return reranked(BM25Retriever(documents), retrieval, reranker)
    dense = DenseRetriever(embedder, load_or_build_index(index_folder, documents, embedder))
    first = dense if retrieval.retriever == "dense" else with_words(dense, BM25Retriever(documents), retrieval)
    return reranked(first, retrieval, reranker)


def open_embedder(embedding_model: str, retrieval: RetrievalArguments) -> Embedder:
    """The embedding model with its prompts. Raises `ModelError` if it cannot be loaded."""
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


def evaluation_model(retrieval: RetrievalArguments) -> str:
    """The embedding model used for evaluation."""
    return retrieval.eval_embedding_model or retrieval.embedding_model


def index_folder(data: DataArguments) -> Path:
    """The folder that caches the documents' vectors: the one given, else `index` next to the document database.

    Raises `DataError` if the latter is a link.
    """
    named = data.full_dataset_index_path
    return Path(named) if named else inside(Path(data.full_dataset_file_path).parent, "index")
