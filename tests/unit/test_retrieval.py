"""Rankings equal those of the plain computation, in training, evaluation and serving."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import CORPUS, FakeEmbedder, tiny_documents, tiny_examples

from groundtune.retrieval.queries import Query, queries_of
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, HybridRetriever, MixRetriever, retrieve
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
def test_bm25_finds_no_document_that_shares_no_word_with_the_query(query):
    (nothing, something) = BM25Retriever(tiny_documents()).search([query, "dogs at the red door"], 6)
    assert nothing == () and something[0].document.metadata["title"] == "Dogs"
    assert 0 < len(something) < 6 and all(hit.score > 0 for hit in something)


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


# The mix


def scaled(values: np.ndarray) -> np.ndarray:
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread else 0 * values


def mixed_by_hand(documents: list[Document], query: Query, weight: float = 0.6) -> np.ndarray:
    """The mixed scores of all documents."""
    embedder = FakeEmbedder()
    vectors = embedder.embed_documents([d.text for d in documents]) @ embedder.embed_questions([query.text])[0]
    hits = BM25Retriever(documents).search([query], len(documents))[0]
    found = {hit.document.id: hit.score for hit in hits}
    words = np.array([found.get(document.id, 0.0) for document in documents])
    return weight * scaled(vectors) + (1 - weight) * scaled(words)


def test_the_mix_adds_both_scores_each_scaled_over_all_documents():
    documents = random_documents()
    retriever = retrievers(documents)["mix"]
    for query in [*random_queries(), "zebra quagga", ""]:
        (hits,) = retriever.search([query], 60)
        expected = mixed_by_hand(documents, Query(query))
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1], atol=1e-5)
        np.testing.assert_allclose(
            [expected[documents.index(h.document)] for h in hits], [h.score for h in hits], atol=1e-5
        )


def test_words_that_stand_nowhere_leave_the_mix_to_the_embedding_model():
    documents = random_documents(40)
    (expected,) = dense(documents).search(["zebra quagga"], 40)
    (hits,) = retrievers(documents)["mix"].search(["zebra quagga"], 40)
    assert [hit.document for hit in hits] == [hit.document for hit in expected]


def test_equal_scores_of_the_mix_are_ordered_by_the_vectors():
    """Without weight for the vectors, documents that share no word with the query all have the score 0."""
    documents = random_documents(40)
    retriever = MixRetriever(dense(documents), BM25Retriever(documents), weight=0.0)
    (expected,) = dense(documents).search(["zebra quagga"], 40)
    (hits,) = retriever.search(["zebra quagga"], 40)
    assert [hit.document for hit in hits] == [hit.document for hit in expected]


# Fused queries


@pytest.mark.parametrize("kind", ["mix", "dense", "bm25", "hybrid"])
def test_a_fused_query_without_history_finds_what_the_question_alone_finds(kind):
    retriever, queries = retrievers(random_documents())[kind], random_queries()
    fused = retriever.search([Query(query, also=("",)) for query in queries], 5)
    assert fused == retriever.search(queries, 5)


def test_a_fused_query_of_the_mix_is_the_mean_of_the_mixes_of_its_parts():
    documents = random_documents()
    for question, last, every in zip(random_queries(), random_queries()[1:], random_queries()[2:]):
        (hits,) = retrievers(documents)["mix"].search([Query(question, every, also=("", last))], 60)
        parts = (Query(question), Query(question, last), Query(question, every))
        expected = sum(mixed_by_hand(documents, part) for part in parts) / 3
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1], atol=1e-5)


@pytest.mark.parametrize("kind", ["mix", "dense", "bm25", "hybrid"])
def test_fused_and_plain_queries_may_be_searched_together(kind):
    retriever = retrievers(random_documents())[kind]
    queries = [Query("library book"), Query("a question", "the evening", also=("", "evening")), Query("desk", "nine")]
    together = retriever.search(queries, 5)
    for query, hits in zip(queries, together, strict=True):
        (alone,) = retriever.search([query], 5)
        assert [hit.document for hit in hits] == [hit.document for hit in alone]


def retrievers(documents):
    return {
        "dense": dense(documents),
        "bm25": BM25Retriever(documents),
        "mix": MixRetriever(dense(documents), BM25Retriever(documents)),
        "hybrid": HybridRetriever([dense(documents), BM25Retriever(documents)]),
    }


@pytest.mark.parametrize("kind", ["mix", "dense", "bm25", "hybrid"])
def test_every_retriever_gives_min_of_k_and_documents_best_first_each_once(kind):
    retriever = retrievers(tiny_documents())[kind]
    assert retriever.search([], 3) == []
    for k, expected in ((1, 1), (6, 6), (50, 6)):
        for hits in retriever.search(random_queries(5), k):
            assert len({hit.document.id for hit in hits}) == len(hits)
            assert len(hits) == expected or (kind == "bm25" and len(hits) < expected)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("kind", ["mix", "dense", "bm25", "hybrid"])
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
