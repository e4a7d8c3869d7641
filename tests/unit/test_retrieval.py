"""Rankings equal those of the plain computation, in training, evaluation and serving."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import CORPUS, FakeEmbedder, tiny_documents, tiny_examples

from groundtune.retrieval.queries import queries_of
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, HybridRetriever, retrieve
from groundtune.retrieval.stores.local import Index
from groundtune.schema import Document, Hit

WORDS = sorted({word.strip(".,;?:[]").lower() for text in CORPUS for word in text.split()})


def random_documents(n: int = 60) -> list[Document]:
    rng = random.Random(0)
    return [Document(" ".join(rng.choices(WORDS, k=rng.randint(4, 15))) + f" number{i}") for i in range(n)]


def random_queries(n: int = 20) -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=4)) for _ in range(n)]


def dense(documents) -> DenseRetriever:
    embedder = FakeEmbedder()
    return DenseRetriever(embedder, Index(documents, embedder.embed_documents([d.text for d in documents])))


def test_dense_hits_are_those_of_brute_force():
    documents, queries = random_documents(), random_queries()
    found = dense(documents).search(queries, 7)
    similarities = (
        FakeEmbedder().embed_questions(queries) @ FakeEmbedder().embed_documents([d.text for d in documents]).T
    )
    for hits, row in zip(found, similarities, strict=True):
        expected = np.argsort(-row, kind="stable")[:7]
        assert [hit.document for hit in hits] == [documents[i] for i in expected]
        np.testing.assert_allclose([hit.score for hit in hits], row[expected], atol=1e-6)


def test_questions_and_documents_are_embedded_as_what_they_are():
    retriever = dense(random_documents(3))
    retriever.search(["one", "two"], 2)
    assert retriever.embedder.questions == ["one", "two"] and len(retriever.embedder.documents) == 3


def bm25_scores(documents: list[Document], query: str) -> np.ndarray:
    """Lucene's BM25 by its formula; the words here include no English stop words."""
    texts = [d.text.lower().split() for d in documents]
    mean, scores = np.mean([len(t) for t in texts]), np.zeros(len(texts))
    for word in query.lower().split():
        having = sum(word in t for t in texts)
        idf = np.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for i, text in enumerate(texts):
            n = text.count(word)
            scores[i] += idf * n / (n + 1.5 * (1 - 0.75 + 0.75 * len(text) / mean))
    return scores


def test_bm25_ranks_as_its_formula_says():
    words = ["library", "book", "question", "desk", "evening", "morning", "passage", "information"]
    rng = random.Random(0)
    documents = [Document(" ".join(rng.choices(words, k=rng.randint(3, 12))) + f" number{i}") for i in range(40)]
    queries = [" ".join(rng.sample(words, 3)) for _ in range(10)]
    for query, hits in zip(queries, BM25Retriever(documents).search(queries, 6), strict=True):
        expected = bm25_scores(documents, query)
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][:6], rtol=1e-4)
        for hit in hits:
            assert hit.score == pytest.approx(expected[documents.index(hit.document)], rel=1e-4)


@pytest.mark.parametrize("query", ["", "zebra quagga", "what is it?", "日本"])
def test_bm25_answers_queries_that_match_nothing(query):
    (nothing, something) = BM25Retriever(tiny_documents()).search([query, "dogs at the red door"], 2)
    assert len(nothing) == 2 and all(hit.score == 0 for hit in nothing)
    assert something[0].document.metadata["title"] == "Dogs"


class Fixed:
    """Ranks the given documents in the given order for every query."""

    def __init__(self, documents, order):
        self.hits = tuple(Hit(documents[i], float(i + 1)) for i in order)

    def search(self, queries, k):
        return [self.hits[:k] for _ in queries]


def test_the_hybrid_fuses_reciprocal_ranks():
    documents, rng = random_documents(30), random.Random(0)
    orders = [rng.sample(range(30), 30) for _ in range(2)]
    (hits,) = HybridRetriever([Fixed(documents, order) for order in orders]).search(["any"], 30)
    expected = {i: sum(1 / (60 + order.index(i) + 1) for order in orders) for i in range(30)}
    assert {documents.index(hit.document): pytest.approx(hit.score) for hit in hits} == expected
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_hybrid_looks_deeper_than_k():
    """Second in both rankings beats first in one and absent from the other."""
    documents = random_documents(8)
    one = Fixed(documents, [0, 1, 2, 3])
    other = Fixed(documents, [4, 1, 5, 6])
    (hits,) = HybridRetriever([one, other]).search(["any"], 1)
    assert [hit.document for hit in hits] == [documents[1]]


def test_words_that_stand_nowhere_leave_the_hybrid_to_the_embedding_model():
    """BM25 then gives every document a score of 0, and their order is arbitrary."""
    documents = random_documents(40)
    (expected,) = dense(documents).search(["zebra quagga"], 40)
    (hits,) = HybridRetriever([dense(documents), BM25Retriever(documents)]).search(["zebra quagga"], 40)
    assert [hit.document for hit in hits] == [hit.document for hit in expected]


def retrievers(documents):
    return {
        "dense": dense(documents),
        "bm25": BM25Retriever(documents),
        "hybrid": HybridRetriever([dense(documents), BM25Retriever(documents)]),
    }


@pytest.mark.parametrize("kind", ["dense", "bm25", "hybrid"])
def test_every_retriever_gives_min_of_k_and_documents_best_first_each_once(kind):
    retriever = retrievers(tiny_documents())[kind]
    assert retriever.search([], 3) == []
    for k, expected in ((1, 1), (6, 6), (50, 6)):
        for hits in retriever.search(random_queries(5), k):
            assert len({hit.document.id for hit in hits}) == len(hits) == expected
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("kind", ["dense", "bm25", "hybrid"])
def test_a_query_finds_the_same_alone_and_among_others(kind):
    retriever, queries = retrievers(random_documents())[kind], random_queries()
    together = retriever.search(queries, 5)
    assert together == retriever.search(queries, 5)
    for query, hits in zip(queries, together, strict=True):
        (alone,) = retriever.search([query], 5)
        assert [hit.document for hit in alone] == [hit.document for hit in hits]


def test_examples_are_searched_by_the_policy_and_all_at_once():
    calls = []

    class Noting:
        def search(self, queries, k):
            calls.append((list(queries), k))
            return [()] * len(queries)

    examples = tiny_examples()
    assert retrieve(Noting(), examples, 3, "all") == [()] * len(examples)
    ((queries, k),) = calls
    assert k == 3 and queries == queries_of(examples, "all")
    assert queries[2].text == "Hello there.\nGood day, how can I help?\nWhat does a card cost?"
