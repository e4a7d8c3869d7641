"""Questions -> ranked hits: dense, BM25, or both mixed. Training, evaluation and serving call the same functions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from groundtune.data.words import search_words
from groundtune.errors import DataError
from groundtune.retrieval.embedder import AnyEmbedder
from groundtune.retrieval.queries import Query, queries_of, texts_within, too_long_note
from groundtune.retrieval.reading_limit import ReadingLimit
from groundtune.retrieval.stores.postings import Postings, postings_in, postings_of
from groundtune.retrieval.stores.store import LARGE, Store
from groundtune.schema import Document, Example, Hit, nfc
from groundtune.system.text import hide_secrets

logger = logging.getLogger(__name__)

# Number of results per retriever that the hybrid fuses, and the constant of the fusion.
_FUSION_DEPTH = 100
_FUSION_K = 60
# Of many documents, the mix scores only so many of the best of each retriever.
_MIXED_DEPTH = 1000
# Queries that are mixed at once, and similarities that are held in memory for them.
_SEARCHED_AT_ONCE = 1024
_SCORES_AT_ONCE = 2**24


Rewrite = Callable[[Sequence[Example]], list[Query]]
Scored = tuple[np.ndarray, np.ndarray]  # the positions of documents, and their scores


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

    embedder: AnyEmbedder
    index: Store

    @property
    def limit(self) -> ReadingLimit | None:
        return self.embedder.limit

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        if not (asked := several(queries)):
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
        if vectors.shape[1] != self.index.dimensions:  # a server may serve another model under the same name
            told = f"{self.embedder.name} gives vectors of {vectors.shape[1]} dimensions, and the index has"
            way_out = "name the model that made the index, or another --full_dataset_index_path"
            raise DataError([f"--embedding_model: {hide_secrets(told)} {self.index.dimensions}; {way_out}"])
        ends = np.cumsum([len(query.parts) for query in queries])
        return np.split(vectors, ends[:-1])

    def _fused(self, vectors: np.ndarray, k: int) -> tuple[Hit, ...]:
        if self.index.whole:
            among = self.index.allowed
            scores = self.index.scores(vectors, among)
        else:
            found = self.candidates([vectors], max(k, _MIXED_DEPTH))[0]
            among = _positions(found)
            scores = self.among(vectors, among, found)
        scores = scores.mean(axis=0)
        best = _best(scores, k)
        return _hits(self.index.documents, best if among is None else among[best], scores[best])

    def candidates(self, vectors: Sequence[np.ndarray], k: int) -> list[list[Scored]]:
        """For each part of each query (`vectors`) the k best documents that a search in a large database finds."""
        scores, positions = self.index.search(np.concatenate(vectors), k)
        found = iter([(its[its >= 0], of_its[its >= 0]) for its, of_its in zip(positions, scores)])
        return [list(islice(found, len(these))) for these in vectors]

    def among(self, vectors: np.ndarray, among: np.ndarray, known: Sequence[Scored]) -> np.ndarray:
        """As `BM25Retriever.among`, by the vectors of a query's parts."""
        return _filled(among, known, lambda part, left: self.index.scores(vectors[part : part + 1], left)[0])


@dataclass(frozen=True)
class BM25Retriever:
    """Term matching by BM25 (`stores/postings.py`), among the documents at the positions `allowed`, or among all.

    The words of a query's history together count at most as much as those of its question: otherwise a long turn
    decides alone what is found (measured in docs/performance.md). A document that shares no word with the query is
    never found. The words of many documents are kept in `folder`, if there is one.
    """

    documents: Sequence[Document]
    folder: Path | None = None
    allowed: np.ndarray | None = None
    limit = None

    @cached_property
    def postings(self) -> Postings:
        if self.folder is not None and len(self.documents) > LARGE:
            return postings_in(self.folder, self.documents)
        return postings_of(self.documents)

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        return [self._found(query, k) for query in several(queries)]

    def _found(self, query: Query, k: int) -> tuple[Hit, ...]:
        among, large, several = self.allowed, len(self.documents) > LARGE, len(query.parts) > 1
        if large:
            found = self.candidates(query, max(k, _MIXED_DEPTH) if several else k)
            among = _positions(found)
            scores = self.among(query, among, found)
        else:
            scores = self.scores(query, among)
        if several and large:  # among all documents, the least score is 0
            scores = scaled(np.pad(scores, ((0, 0), (0, 1))))[:, :-1]
        elif several:
            scores = scaled(scores)
        total = scores.mean(axis=0)
        best = _best(total, k)
        best = best[total[best] > 0]
        return _hits(self.documents, best if among is None else among[best], total[best])

    def scores(self, query: Query, among: np.ndarray | None = None) -> np.ndarray:
        """The scores of the documents, or of those at the positions `among`, for each part of a query: float32 [parts,
        documents]."""
        weights = [_weights(part) for part in query.parts]
        if among is not None and len(among) < len(self.documents) / 20:
            return np.stack([self.postings.at(its, among) for its in weights])
        scores = np.stack([self.postings.scores(its) for its in weights])
        return scores if among is None else scores[:, among]

    def among(self, query: Query, among: np.ndarray, known: Sequence[Scored]) -> np.ndarray:
        """The scores of the documents at the positions `among` for each part of a query: float32 [parts, documents].
        Those that are `known` for a part are not computed again."""
        return _filled(among, known, lambda part, left: self.scores(query.parts[part], left)[0])

    def candidates(self, query: Query, k: int) -> list[Scored]:
        """The k best documents of each part of a query; fewer if fewer share a word with it."""
        of_parts = []
        for weights in map(_weights, query.parts):
            if self.allowed is None:
                positions, scores = self.postings.best(weights, k)
            else:
                positions, scores = self.allowed, self.postings.scores(weights)[self.allowed]
            best = _best(scores, k)
            best = best[scores[best] > 0]
            of_parts.append((positions[best], scores[best]))
        return of_parts


def _weights(query: Query) -> dict[str, float]:
    """How often each word of a query counts."""
    question, history = search_words(query.question), search_words(query.history)
    each = min(1.0, len(question) / len(history)) if question and history else 1.0
    weights: dict[str, float] = dict(Counter(question))
    for word in history:
        weights[word] = weights.get(word, 0.0) + each
    return weights


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
        asked, found = several(queries), []
        index, at_once = self.dense.index, _SEARCHED_AT_ONCE
        if index.whole:
            at_once = max(1, min(at_once, _SCORES_AT_ONCE // max(1, len(index.documents))))
        for start in range(0, len(asked), at_once):
            some = asked[start : start + at_once]
            scored = self._of_all(some) if index.whole else self._of_best(some)
            found += [self._found(*both, k) for both in scored]
        return found

    def _found(self, among: np.ndarray | None, similar: np.ndarray, words: np.ndarray, k: int) -> tuple[Hit, ...]:
        """The best of the documents at the positions `among` (None: all), by both scores of each part of a query."""
        mixed = (self.weight * scaled(similar) + (1 - self.weight) * scaled(words)).mean(axis=0)
        best = _best(mixed, k, similar.mean(axis=0))
        return _hits(self.dense.index.documents, best if among is None else among[best], mixed[best])

    def _of_all(self, queries: Sequence[Query]) -> Iterator[tuple[np.ndarray | None, np.ndarray, np.ndarray]]:
        """For each query all documents that a filter leaves, with both scores; the similarities by one product."""
        vectors, index = self.dense.vectors(queries), self.dense.index
        scores = index.scores(np.concatenate(vectors), index.allowed)
        ends = np.cumsum([len(these) for these in vectors])
        for query, similar in zip(queries, np.split(scores, ends[:-1])):
            yield index.allowed, similar, self.bm25.scores(query, index.allowed)

    def _of_best(self, queries: Sequence[Query]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each query the best documents by either, in order, with both scores."""
        vectors = self.dense.vectors(queries)
        with ThreadPoolExecutor(1) as other:  # both searches at the same time
            searched = other.submit(self.dense.candidates, vectors, _MIXED_DEPTH)
            of_words = [self.bm25.candidates(query, _MIXED_DEPTH) for query in queries]
        for query, these, by_vectors, by_words in zip(queries, vectors, searched.result(), of_words):
            among = _positions([*by_vectors, *by_words])
            yield among, self.dense.among(these, among, by_vectors), self.bm25.among(query, among, by_words)


@dataclass(frozen=True)
class HybridRetriever:
    """Reciprocal rank fusion (Cormack et al. 2009) of several retrievers: score = sum of 1 / (60 + rank)."""

    retrievers: Sequence[Retriever]

    @property
    def limit(self) -> ReadingLimit | None:
        return next((limit for retriever in self.retrievers if (limit := retriever.limit)), None)

    def search(self, queries: Sequence[str | Query], k: int) -> list[tuple[Hit, ...]]:
        asked = several(queries)
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


def _positions(found: Sequence[Scored]) -> np.ndarray:
    """The positions of all documents that were found, each once, in order."""
    return np.unique(np.concatenate([positions for positions, _ in found]))


def _filled(among: np.ndarray, known: Sequence[Scored], scores: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """The scores of the documents at the positions `among`, which hold those of the `known`, for each part of a query:
    float32 [parts, documents]. `scores` gives those that are not known for a part."""
    filled = np.empty((len(known), len(among)), dtype=np.float32)
    for part, (positions, its) in enumerate(known):
        places, left = np.searchsorted(among, positions), np.ones(len(among), dtype=bool)
        filled[part, places], left[places] = its, False
        if left.any():
            filled[part, left] = scores(part, among[left])
    return filled


def scaled(scores: np.ndarray) -> np.ndarray:
    """Each row scaled to 0..1; a row of equal scores says nothing and becomes 0."""
    least, most = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return (scores - least) / np.where(most > least, most - least, 1)


def _best(scores: np.ndarray, k: int, then: np.ndarray | None = None) -> np.ndarray:
    """Positions of the k highest scores, highest first; equal ones by `then`, else in the order of the documents."""
    k = min(k, len(scores))
    if not k:
        return np.zeros(0, dtype=np.int64)
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= least)
    keys = [-scores[candidates]] if then is None else [-then[candidates], -scores[candidates]]
    return candidates[np.lexsort(keys)][:k]


def _hits(documents: Sequence[Document], positions: Any, scores: Any) -> tuple[Hit, ...]:
    """The hits of one query."""
    return tuple(Hit(documents[int(p)], float(s)) for p, s in zip(positions, scores) if p >= 0)


def several(queries: Sequence[str | Query]) -> list[Query]:
    """The queries. Refuses a text, which is a sequence too: each of its letters would be a query."""
    if isinstance(queries, str):
        raise TypeError("search: takes a list of questions, and not one text; write [question]")
    return [query if isinstance(query, Query) else Query(nfc(query)) for query in queries]


def retrieve(
    retriever: Retriever, examples: Sequence[Example], k: int, history: str, rewrite: Rewrite | None = None
) -> list[tuple[Hit, ...]]:
    """The hits of each example's question, from a single search; `rewrite` makes the queries if it is given."""
    return retriever.search(rewrite(examples) if rewrite else queries_of(examples, history), k)
