"""Questions -> ranked hits: dense, BM25, or both mixed. Training, evaluation and serving call the same functions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from groundtune.data.words import search_words
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.queries import Query, queries_of, texts_within, too_long_note
from groundtune.retrieval.reading_limit import ReadingLimit
from groundtune.retrieval.stores.local import Index
from groundtune.schema import Document, Example, Hit, nfc

logger = logging.getLogger(__name__)

# Number of results per retriever that the hybrid fuses, and the constant of the fusion.
_FUSION_DEPTH = 100
_FUSION_K = 60
# Above this number of documents, the mix scores only the best documents of each retriever, and how many of them.
_MIXED_WHOLE = 100_000
_MIXED_DEPTH = 1000


Rewrite = Callable[[Sequence[Example]], list[Query]]


class Retriever(Protocol):
    """An object that ranks documents for many queries at once; `limit` is how much of a query it reads."""

    @property
    def limit(self) -> ReadingLimit | None: ...

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        """The min(k, documents) best hits of each query, best first, in the order of the queries; BM25 alone finds
        fewer if fewer documents share a word with the query.

        A query is a text, or a question with its history, which must not drown the question (`queries.py`).
        Higher scores are better. Their meaning depends on the retriever: dense, the similarity of the two vectors
        that the model specifies: the cosine (-1 to 1), an inner product, or a distance with a minus sign; BM25, its sum
        over terms; mix, the combination of both (0 to 1); hybrid, the sum of 1 / (60 + rank). Raises `TypeError` for a
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
        vectors = self.vectors(asked)
        if any(len(these) > 1 for these in vectors):
            return [self._fused(these, k) for these in vectors]
        scores, positions = self.index.search(np.concatenate(vectors), k)
        return [_hits(self.index.documents, *these) for these in zip(positions, scores)]

    def vectors(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """The vectors of each query's parts, [parts, dimensions]; a line counts the queries that were shortened."""
        for line in too_long_note(queries, self.limit):
            logger.warning(line)
        parts = [part for query in queries for part in query.parts]
        vectors = self.embedder.embed_questions(texts_within(parts, self.limit))
        ends = np.cumsum([len(query.parts) for query in queries])
        return np.split(vectors, ends[:-1])

    def _fused(self, vectors: np.ndarray, k: int) -> tuple[Hit, ...]:
        scores = self.index.scores(vectors).mean(axis=0)
        best = _best(scores, k)
        return _hits(self.index.documents, best, scores[best])


@dataclass(frozen=True)
class BM25Retriever:
    """Term matching: BM25 (Robertson et al. 1994) as `bm25s` computes it, k1 = 1.5, b = 0.75, on `search_words`.

    The words of a query's history together count at most as much as those of its question: otherwise a long turn
    decides alone what is found (measured in docs/performance.md). A document that shares no word with the query is
    never found.
    """

    documents: Sequence[Document]
    limit = None

    @cached_property
    def _bm25(self) -> Any:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # importing bm25s sets DEBUG
        bm25 = bm25s.BM25(k1=1.5, b=0.75)
        ids: dict[str, int] = {}  # as ids, the terms of all passages need little memory
        terms = [[ids.setdefault(term, len(ids)) for term in search_words(d.text)] for d in self.documents]
        bm25.index((terms, ids), show_progress=False)
        return bm25

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        found = []
        for query in _several(queries):
            parts = self.scores(query)
            scores = (parts if len(parts) == 1 else _scaled(parts)).mean(axis=0)
            best = _best(scores, k)
            best = best[scores[best] > 0]
            found.append(_hits(self.documents, best, scores[best]))
        return found

    def scores(self, query: Query) -> np.ndarray:
        """The scores of the documents for each part of a query, float32 [parts, documents]."""
        return np.stack([self._of_part(part) for part in query.parts])

    def _of_part(self, query: Query) -> np.ndarray:
        question, history = search_words(query.question), search_words(query.history)
        scores = self._sums(question)
        if question and history:
            return scores + min(1.0, len(question) / len(history)) * self._sums(history)
        return scores if question else self._sums(history)

    def _sums(self, words: list[str]) -> np.ndarray:
        if not words:
            return np.zeros(len(self.documents), dtype=np.float32)
        return self._bm25.get_scores(words)


@dataclass(frozen=True)
class MixRetriever:
    """A convex combination of the scores of vectors and words, each scaled to 0..1 over all documents per query.

    Equal scores are ordered by the vectors. In a large database, the two scores are compared among the best documents
    of either only.
    """

    dense: DenseRetriever
    bm25: BM25Retriever
    weight: float = 0.6  # of the vectors; recall is flat from 0.4 to 0.7

    @property
    def limit(self) -> ReadingLimit | None:
        return self.dense.limit

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        if not (asked := _several(queries)):
            return []
        return [self._found(query, vectors, k) for query, vectors in zip(asked, self.dense.vectors(asked))]

    def _found(self, query: Query, vectors: np.ndarray, k: int) -> tuple[Hit, ...]:
        words = self.bm25.scores(query)
        among = self._candidates(vectors, words)
        similarities = self.dense.index.scores(vectors, among)
        mixed = (self.weight * _scaled(similarities) + (1 - self.weight) * _scaled(words[:, among])).mean(axis=0)
        best = _best(mixed, k, similarities.mean(axis=0))
        return _hits(self.dense.index.documents, among[best], mixed[best])

    def _candidates(self, vectors: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Positions of the documents whose scores are mixed, in order."""
        documents = words.shape[1]
        if documents <= _MIXED_WHOLE:
            return np.arange(documents)
        by_words = [_best(scores, _MIXED_DEPTH) for scores in words]
        by_words = [best[scores[best] > 0] for best, scores in zip(by_words, words)]
        return np.unique(np.concatenate([*self.dense.index.search(vectors, _MIXED_DEPTH)[1], *by_words]))


@dataclass(frozen=True)
class HybridRetriever:
    """Reciprocal rank fusion (Cormack et al. 2009) of several retrievers: score = sum of 1 / (60 + rank)."""

    retrievers: Sequence[Retriever]

    @property
    def limit(self) -> ReadingLimit | None:
        return next((limit for retriever in self.retrievers if (limit := retriever.limit)), None)

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        asked = _several(queries)
        parts = [part for query in asked for part in query.parts]
        rankings = list(zip(*(r.search(parts, max(k, _FUSION_DEPTH)) for r in self.retrievers)))
        found = []
        for query in asked:
            its, rankings = rankings[: len(query.parts)], rankings[len(query.parts) :]
            found.append(self._fuse([ranking for of_part in its for ranking in of_part])[:k])
        return found

    @staticmethod
    def _fuse(rankings: Sequence[Sequence[Hit]]) -> tuple[Hit, ...]:
        scores: dict[str, float] = {}
        documents: dict[str, Document] = {}
        for ranking in rankings:
            for rank, hit in enumerate(ranking, start=1):
                documents[hit.document.id] = hit.document
                scores[hit.document.id] = scores.get(hit.document.id, 0.0) + 1 / (_FUSION_K + rank)
        best_first = sorted(scores, key=lambda id: -scores[id])
        return tuple(Hit(documents[id], scores[id]) for id in best_first)


def _scaled(scores: np.ndarray) -> np.ndarray:
    """Each row scaled to 0..1; a row of equal scores says nothing and becomes 0."""
    least, most = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return (scores - least) / np.where(most > least, most - least, 1)


def _best(scores: np.ndarray, k: int, then: np.ndarray | None = None) -> np.ndarray:
    """Positions of the k highest scores, highest first; equal ones by `then`, else in the order of the documents."""
    k = min(k, len(scores))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= least)
    keys = [-scores[candidates]] if then is None else [-then[candidates], -scores[candidates]]
    return candidates[np.lexsort(keys)][:k]


def _hits(documents: Sequence[Document], positions: Any, scores: Any) -> tuple[Hit, ...]:
    """The hits of one query."""
    return tuple(Hit(documents[p], float(s)) for p, s in zip(positions, scores))


def _several(queries: Sequence[str | Query]) -> list[Query]:
    """The queries. Refuses a text, which is a sequence too: each of its letters would be a query."""
    if isinstance(queries, str):
        raise TypeError("search: takes a list of questions, and not one text; write [question]")
    return [query if isinstance(query, Query) else Query(nfc(query)) for query in queries]


def retrieve(
    retriever: Retriever, examples: Sequence[Example], k: int, history: str, rewrite: Rewrite | None = None
) -> list[tuple[Hit, ...]]:
    """The hits of each example's question, from a single search; `rewrite` makes the queries if it is given."""
    return retriever.search(rewrite(examples) if rewrite else queries_of(examples, history), k)
