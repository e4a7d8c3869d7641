"""Questions -> ranked hits: dense, BM25, or both fused. Training, evaluation and serving call the same functions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from groundtune.data.words import search_words
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.stores.local import Index
from groundtune.schema import USER, Document, Example, Hit, Turn, nfc

# Number of results per retriever that the hybrid fuses, and the constant of the fusion.
_FUSION_DEPTH = 100
_FUSION_K = 60


class Retriever(Protocol):
    """An object that ranks documents for many queries at once."""

    def search(self, queries: Sequence[str], k: int) -> list[tuple[Hit, ...]]:
        """The min(k, documents) best hits of each query, best first, in the order of the queries.

        Higher scores are better. Their meaning depends on the retriever: dense, the inner product of the two vectors,
        which is their cosine (-1 to 1) unless the model specifies otherwise; BM25, its sum over terms (0 or more);
        hybrid, the sum of 1 / (60 + rank). Raises `TypeError` for a text instead of a list of texts.
        """


@dataclass(frozen=True)
class DenseRetriever:
    """Nearest vectors of an embedding model; all queries are embedded in batches and searched in one call."""

    embedder: Embedder
    index: Index

    def search(self, queries: Sequence[str], k: int) -> list[tuple[Hit, ...]]:
        if not (queries := _several(queries)):
            return []
        scores, positions = self.index.search(self.embedder.embed_questions(queries), k)
        return _hits(self.index.documents, positions, scores)


@dataclass(frozen=True)
class BM25Retriever:
    """Term matching: BM25 (Robertson et al. 1994) as `bm25s` computes it, k1 = 1.5, b = 0.75, on `search_words`."""

    documents: Sequence[Document]

    @cached_property
    def _bm25(self) -> Any:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # importing bm25s sets DEBUG
        bm25 = bm25s.BM25(k1=1.5, b=0.75)
        ids: dict[str, int] = {}  # as ids, the terms of all passages need little memory
        terms = [[ids.setdefault(term, len(ids)) for term in search_words(d.text)] for d in self.documents]
        bm25.index((terms, ids), show_progress=False)
        return bm25

    def search(self, queries: Sequence[str], k: int) -> list[tuple[Hit, ...]]:
        if not _several(queries):
            return []
        tokens = [search_words(query) for query in queries]
        positions, scores = self._bm25.retrieve(tokens, k=min(k, len(self.documents)), show_progress=False)
        return _hits(self.documents, positions, scores)


@dataclass(frozen=True)
class HybridRetriever:
    """Reciprocal rank fusion (Cormack et al. 2009) of several retrievers: score = sum of 1 / (60 + rank).

    Hits with score 0 add nothing: BM25 returns documents without a matching term in arbitrary order.
    """

    retrievers: Sequence[Retriever]

    def search(self, queries: Sequence[str], k: int) -> list[tuple[Hit, ...]]:
        depth = max(k, _FUSION_DEPTH)
        return [self._fuse(rankings)[:k] for rankings in zip(*(r.search(queries, depth) for r in self.retrievers))]

    @staticmethod
    def _fuse(rankings: Sequence[Sequence[Hit]]) -> tuple[Hit, ...]:
        scores: dict[str, float] = {}
        documents: dict[str, Document] = {}
        for ranking in rankings:
            for rank, hit in enumerate(ranking, start=1):
                documents[hit.document.id] = hit.document
                gain = 1 / (_FUSION_K + rank) if hit.score else 0.0
                scores[hit.document.id] = scores.get(hit.document.id, 0.0) + gain
        best_first = sorted(scores, key=lambda id: -scores[id])
        return tuple(Hit(documents[id], scores[id]) for id in best_first)


def _hits(documents: Sequence[Document], positions: Any, scores: Any) -> list[tuple[Hit, ...]]:
    """The hits of each query, from positions and scores, both [queries, k]."""
    return [
        tuple(Hit(documents[p], float(s)) for p, s in zip(of_query, their_scores))
        for of_query, their_scores in zip(positions, scores)
    ]


def _several(queries: Sequence[str]) -> Sequence[str]:
    """The queries, in NFC. Refuses a text, which is a sequence too: each of its letters would be a query."""
    if isinstance(queries, str):
        raise TypeError("search: takes a list of questions, and not one text; write [question]")
    return [nfc(query) for query in queries]


def query_text(question: str, chat_history: Sequence[Turn], history: str) -> str:
    """The search query: the part of the chat history that `history` (`none`, `user`, `all`) selects, then the question.

    A follow-up such as "and how do I undo it?" finds nothing by itself; the user's earlier messages name its subject.
    """
    turns = {"none": [], "user": [t for t in chat_history if t.speaker == USER], "all": chat_history}[history]
    return "\n".join([*(turn.message for turn in turns), question])


def retrieve(retriever: Retriever, examples: Sequence[Example], k: int, history: str) -> list[tuple[Hit, ...]]:
    """The hits of each example's question, from a single search."""
    return retriever.search([query_text(e.question, e.chat_history, history) for e in examples], k)
