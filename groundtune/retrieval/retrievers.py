"""Questions -> ranked hits: dense, BM25, or both fused. Training, evaluation and serving call the same functions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.queries import Query, queries_of, texts_within, too_long_note
from groundtune.retrieval.reading_limit import ReadingLimit
from groundtune.retrieval.stores.local import Index
from groundtune.schema import Document, Example, Hit

logger = logging.getLogger(__name__)

# Number of results per retriever that the hybrid fuses, and the constant of the fusion.
_FUSION_DEPTH = 100
_FUSION_K = 60


class Retriever(Protocol):
    """An object that ranks documents for many queries at once; `limit` is how much of a query it reads."""

    @property
    def limit(self) -> ReadingLimit | None: ...

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        """The min(k, documents) best hits of each query, best first, in the order of the queries.

        A query is a text, or a question with its history, which must not drown the question (`queries.py`).
        Higher scores are better. Their meaning depends on the retriever: dense, the similarity of the two vectors
        that the model specifies: the cosine (-1 to 1), an inner product, or a distance with a minus sign; BM25, its sum
        over terms (0 or more); hybrid, the sum of 1 / (60 + rank). Raises `TypeError` for a
        text instead of a list of texts.
        """


@dataclass(frozen=True)
class DenseRetriever:
    """Nearest vectors of an embedding model; all queries are embedded in batches and searched in one call."""

    embedder: Embedder
    index: Index

    @property
    def limit(self) -> ReadingLimit | None:
        return self.embedder.limit

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        if not (asked := _several(queries)):
            return []
        for line in too_long_note(asked, self.limit):
            logger.warning(line)
        scores, positions = self.index.search(self.embedder.embed_questions(texts_within(asked, self.limit)), k)
        return [_hits(self.index.documents, *these) for these in zip(positions, scores)]


@dataclass(frozen=True)
class BM25Retriever:
    """Term matching: BM25 (Robertson et al. 1994) as `bm25s` computes it, k1 = 1.5, b = 0.75.

    The words of a query's history together count at most as much as those of its question: otherwise a long turn
    decides alone what is found (measured in docs/performance.md).
    """

    documents: Sequence[Document]
    limit = None

    @cached_property
    def _bm25(self) -> Any:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # importing bm25s sets DEBUG
        bm25 = bm25s.BM25(k1=1.5, b=0.75)
        bm25.index(_words([document.text for document in self.documents]), show_progress=False)
        return bm25

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        found = []
        for query in _several(queries):
            scores = self.scores(query)
            best = _best(scores, k)
            found.append(_hits(self.documents, best, scores[best]))
        return found

    def scores(self, query: Query) -> np.ndarray:
        """The score of each document, float32."""
        question, history = _words([query.question, query.history])
        scores = self._sums(question)
        if question and history:
            return scores + min(1.0, len(question) / len(history)) * self._sums(history)
        return scores if question else self._sums(history)

    def _sums(self, words: list[str]) -> np.ndarray:
        if not words:
            return np.zeros(len(self.documents), dtype=np.float32)
        return self._bm25.get_scores(words)


@dataclass(frozen=True)
class HybridRetriever:
    """Reciprocal rank fusion (Cormack et al. 2009) of several retrievers: score = sum of 1 / (60 + rank).

    Hits with score 0 add nothing: BM25 returns documents without a matching term in arbitrary order.
    """

    retrievers: Sequence[Retriever]

    @property
    def limit(self) -> ReadingLimit | None:
        return next((limit for retriever in self.retrievers if (limit := retriever.limit)), None)

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
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


def _words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text as BM25 compares them; the only place that decides what a word is."""
    import bm25s

    return bm25s.tokenize(list(texts), show_progress=False, return_ids=False)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest scores, highest first, equal ones in the order of the documents."""
    k = min(k, len(scores))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def _hits(documents: Sequence[Document], positions: Any, scores: Any) -> tuple[Hit, ...]:
    """The hits of one query."""
    return tuple(Hit(documents[p], float(s)) for p, s in zip(positions, scores))


def _several(queries: Sequence[str | Query]) -> list[Query]:
    """The queries. Refuses a text, which is a sequence too: each of its letters would be a query."""
    if isinstance(queries, str):
        raise TypeError("search: takes a list of questions, and not one text; write [question]")
    return [query if isinstance(query, Query) else Query(query) for query in queries]


def retrieve(retriever: Retriever, examples: Sequence[Example], k: int, history: str) -> list[tuple[Hit, ...]]:
    """The hits of each example's question, from a single search."""
    return retriever.search(queries_of(examples, history), k)
