"""What changes with the size of a database: files are mapped, a search proposes, and all of it finds the same."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from conftest import FakeEmbedder
from test_retrieval import WORDS, random_documents, random_queries

import groundtune.data.files as files
import groundtune.retrieval.retrievers as retrievers
import groundtune.retrieval.stores.local as local
import groundtune.retrieval.stores.near as near
import groundtune.retrieval.stores.postings as postings
from groundtune.arguments import RetrievalArguments
from groundtune.data.files import read_documents, write_documents, write_jsonl
from groundtune.data.mapped import MappedDocuments, ids_of
from groundtune.errors import DataError
from groundtune.retrieval.opening import open_retriever_with
from groundtune.retrieval.queries import Query
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, MixRetriever
from groundtune.retrieval.stores.local import load_or_build_index
from groundtune.schema import Document


@pytest.fixture
def few_are_many(monkeypatch, tmp_path):
    """From 50 documents on, and from the first byte of a file on, everything is done as for a million."""
    monkeypatch.setenv("GROUNDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_IN_MEMORY", 0)
    monkeypatch.setattr(near, "_BLOCK", 64)
    for module in (local, retrievers):
        monkeypatch.setattr(module, "LARGE", 50)


def of_copies(n: int = 400) -> list[Document]:
    documents = random_documents(n)
    return [Document(d.page_content, metadata={"number": i, "even": i % 2 == 0}) for i, d in enumerate(documents)]


# Documents


def test_documents_that_stay_in_their_file_are_those_that_are_read(few_are_many, tmp_path):
    documents = [*of_copies(60), Document("Ein Öl", "Title: Ü\nEin Öl", {"a": [1]}), *of_copies(3)]
    write_documents(tmp_path / "d.jsonl", documents)
    found = read_documents(tmp_path / "d.jsonl")
    assert isinstance(found, MappedDocuments)
    assert list(found) == documents[:61] and found[-1] == documents[60] and found[1:3] == documents[1:3]
    assert found[60].metadata == {"a": [1]} and len(found) == 61
    np.testing.assert_array_equal(ids_of(found), ids_of(documents[:61]))
    with pytest.raises(IndexError):
        found[61]


def test_a_file_that_was_read_once_is_not_passed_over_again(few_are_many, tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    write_documents(path, of_copies(60))
    first = list(read_documents(path))
    monkeypatch.setattr(files, "_placed_rows", lambda *args: pytest.fail("passed over again"))
    assert list(read_documents(path)) == first
    monkeypatch.undo()
    for kept in (tmp_path / "cache").rglob("places.npy"):
        kept.write_bytes(kept.read_bytes()[:-3])
    assert list(read_documents(path)) == first


def test_a_large_file_gets_the_checks_of_every_file(few_are_many, tmp_path):
    write_jsonl(tmp_path / "d.jsonl", [{"page_content": "x"}, {"page_content": 3}, {}])
    with pytest.raises(DataError) as error:
        read_documents(tmp_path / "d.jsonl")
    assert [line.split(": ")[0].rpartition(":")[2] for line in error.value.problems] == ["2", "3"]


def test_a_document_that_changed_since_the_file_was_read_is_not_taken_for_another(few_are_many, tmp_path):
    path = tmp_path / "d.jsonl"
    write_documents(path, of_copies(60))
    documents = read_documents(path)
    path.write_bytes(path.read_bytes().replace(b"number7", b"numberX"))
    with pytest.raises(DataError, match="was changed while it was read"):
        list(documents)


# Vectors


def built(tmp_path, documents, dtype="float32"):
    return load_or_build_index(tmp_path / "index", documents, FakeEmbedder(), dtype)


def exact_by_hand(documents, queries, k):
    similar = FakeEmbedder().embed_questions(queries) @ FakeEmbedder().embed_documents([d.text for d in documents]).T
    return np.argsort(-similar, axis=1, kind="stable")[:, :k], similar


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-6), ("float16", 2e-3)])
def test_many_vectors_are_mapped_and_found_as_by_exact_search(few_are_many, tmp_path, dtype, atol):
    documents, queries = of_copies(), random_queries(40)
    index = built(tmp_path, documents, dtype)
    index = built(tmp_path, documents, dtype)
    assert isinstance(index.vectors, np.memmap) and index.vectors.dtype == dtype and index.near is not None
    scores, positions = index.search(FakeEmbedder().embed_questions(queries), 10)
    right, similar = exact_by_hand(documents, queries, 10)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(right, positions)]) > 0.95
    np.testing.assert_allclose(scores, np.take_along_axis(similar, positions, axis=1), atol=atol)


def test_vectors_of_other_types_are_kept_apart(few_are_many, tmp_path):
    for dtype in ("float32", "float16", "float32"):
        assert built(tmp_path, of_copies(60), dtype).vectors.dtype == dtype
    assert len(list((tmp_path / "index").glob("*/vectors.npy"))) == 2


def test_a_new_order_of_many_documents_embeds_nothing(few_are_many, tmp_path):
    documents = of_copies(60)
    built(tmp_path, documents)
    embedder = FakeEmbedder()
    index = load_or_build_index(tmp_path / "index", documents[::-1], embedder)
    assert embedder.documents == [] and isinstance(index.vectors, np.memmap)
    np.testing.assert_array_equal(index.vectors, FakeEmbedder().embed_documents([d.text for d in documents[::-1]]))


def test_a_changed_document_is_embedded_alone_and_the_approximate_index_built_again(few_are_many, tmp_path):
    documents = of_copies(60)
    built(tmp_path, documents)
    documents[7] = Document("the evening of a changed document")
    embedder = FakeEmbedder()
    index = load_or_build_index(tmp_path / "index", documents, embedder)
    assert embedder.documents == [documents[7].text]
    assert index.search(embedder.embed_questions([documents[7].text]), 1)[1].tolist() == [[7]]


@pytest.mark.parametrize("what", ["damaged", "of another machine", "linked"])
def test_an_approximate_index_that_is_damaged_or_not_made_here_is_built_again(
    few_are_many, tmp_path, monkeypatch, what, caplog
):
    import faiss

    documents = of_copies(60)
    built(tmp_path, documents)
    (path,) = (tmp_path / "index").glob("*-near/lists.faiss")
    before, read = path.read_bytes(), []
    if what == "damaged":
        path.write_bytes(before[:-9] + b"123456789")
    elif what == "linked":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setenv("GROUNDTUNE_CACHE", str(tmp_path / "other cache"))
    parse = faiss.read_index
    monkeypatch.setattr(faiss, "read_index", lambda name, flags: read.append(path.read_bytes()) or parse(name, flags))
    if what == "linked":
        with pytest.raises(DataError, match="is a link"):
            built(tmp_path, documents)
        assert read == []
        return
    index = built(tmp_path, documents)
    assert len(read) == 1 and read[0][-9:] != b"123456789"
    assert index.search(index.vectors[:1], 1)[1].tolist() == [[0]]


def test_memory_and_time_of_large_builds_are_said_first(few_are_many, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "groundtune"):
        index = built(tmp_path, of_copies(60))
        _ = BM25Retriever(index.documents, tmp_path / "index").postings
        monkey = postings.postings_in(tmp_path / "index", index.documents)
    assert monkey.documents == 60
    said = [line for line in caplog.messages if "GB of memory" in line]
    assert [line.split()[0] for line in said] == ["embedding", "building", "indexing"]


# Words


def test_the_best_by_common_and_rare_words_are_those_of_all_words(few_are_many, monkeypatch):
    documents = [*of_copies(300), *(Document(f"the a of {word} {i}") for i in range(300) for word in WORDS[:2])]
    kept = postings.postings_of(documents)
    rng = np.random.default_rng(0)
    for _ in range(60):
        words = [*rng.choice(WORDS, 3), *rng.choice(["the", "of", "number3", "number17", "zebra"], 3)]
        weights = {str(word): float(rng.choice([1, 2, 0.5])) for word in words}
        whole = kept.scores(weights)
        for depth in (1, 5, 1000):
            positions, scores = kept.best(weights, depth)
            np.testing.assert_allclose(scores, whole[positions], rtol=1e-5)
            best = np.sort(scores)[::-1][:depth]
            np.testing.assert_allclose(best, np.sort(whole[whole > 0])[::-1][:depth], rtol=1e-5)
        some = np.sort(rng.choice(len(documents), 40, replace=False))
        np.testing.assert_allclose(kept.at(weights, some), whole[some], rtol=1e-5)


def test_a_vocabulary_of_arrays_is_the_dictionary_it_was_made_of():
    words = {"zebra": 0, "Äpfel": 3, "": 7, "a": 1, "ab": 2, "\ud800": 5, "日本": 4}
    made = postings.Vocabulary.of(words)
    assert dict(made) == words and {word: made[word] for word in words} == words
    assert [word in made for word in ("b", "zebr", "zebras", "aa", "日")] == [False] * 5
    assert dict(postings.Vocabulary.of({})) == {} and "a" not in postings.Vocabulary.of({})


def test_words_in_files_are_those_in_memory_and_made_once(few_are_many, tmp_path, monkeypatch):
    documents, query = of_copies(), {"library": 1.0, "number3": 1.0}
    expected = postings.postings_of(documents).scores(query)
    np.testing.assert_array_equal(postings.postings_in(tmp_path, documents).scores(query), expected)
    monkeypatch.setattr(postings, "postings_of", lambda documents: pytest.fail("made again"))
    mapped = postings.postings_in(tmp_path, documents)
    assert isinstance(mapped.indices.base, np.memmap)
    np.testing.assert_array_equal(mapped.scores(query), expected)
    monkeypatch.undo()
    other = postings.postings_in(tmp_path, documents[::-1])
    np.testing.assert_array_equal(other.scores(query), expected[::-1])


# Retrievers


def of_all_kinds(tmp_path, documents, **arguments):
    found = {}
    for kind in ("dense", "bm25", "mix", "hybrid"):
        retrieval = RetrievalArguments(retriever=kind, **arguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("groundtune.retrieval.opening.Embedder", lambda *args, **options: FakeEmbedder())
            found[kind] = open_retriever_with("fake", retrieval, documents, tmp_path / "index")
    return found


@pytest.mark.parametrize("kind", ["dense", "bm25", "mix", "hybrid"])
def test_every_retriever_finds_in_many_documents_what_it_finds_in_few(few_are_many, tmp_path, monkeypatch, kind):
    documents = of_copies()
    queries = [*random_queries(10), Query("library book", "evening desk", also=("", "desk")), Query("x", "zebra")]
    monkeypatch.setattr(near, "_RECALL", 1.1)  # search all lists
    many = of_all_kinds(tmp_path, documents)[kind].search(queries, 8)
    for module in (local, retrievers):
        monkeypatch.setattr(module, "LARGE", 1000)
    few = of_all_kinds(tmp_path / "other", documents)[kind].search(queries, 8)
    for a, b in zip(many, few, strict=True):
        np.testing.assert_allclose([hit.score for hit in a], [hit.score for hit in b], atol=1e-5)


@pytest.mark.parametrize("size", ["few", "many"])
@pytest.mark.parametrize("kind", ["dense", "bm25", "mix", "hybrid"])
@pytest.mark.parametrize("text, left", [("number < 30", 30), ("even and number > 100", 149)])
def test_a_filter_holds_in_every_retriever(few_are_many, tmp_path, monkeypatch, kind, size, text, left):
    documents = of_copies()
    if size == "few":
        for module in (local, retrievers):
            monkeypatch.setattr(module, "LARGE", 1000)
    monkeypatch.setattr(near, "_RECALL", 1.1)
    whole = of_all_kinds(tmp_path, documents)[kind]
    some = of_all_kinds(tmp_path, documents, filter=text)[kind]
    queries = [*random_queries(6), Query("library book", "evening desk", also=("", "desk"))]
    for query, hits, every in zip(queries, some.search(queries, 5), whole.search(queries, 400), strict=True):
        assert hits and all((h.document.metadata["number"] < 30) == (left == 30) for h in hits)
        assert all(h.document.metadata["even"] for h in hits) or left == 30
        if kind in ("dense", "bm25") and not isinstance(query, Query):
            expected = [
                h for h in every if h.document.metadata["number"] in {x.document.metadata["number"] for x in hits}
            ]
            assert [h.document for h in hits] == [h.document for h in expected]
            np.testing.assert_allclose([h.score for h in hits], [h.score for h in expected], rtol=1e-5)
    if kind != "bm25":
        assert len(some.search(["library"], 400)[0]) <= left


def test_a_mix_of_many_documents_looks_at_the_best_of_either(few_are_many, tmp_path, monkeypatch):
    documents = of_copies()
    monkeypatch.setattr(retrievers, "_MIXED_DEPTH", 5)
    index = built(tmp_path, documents)
    dense, bm25 = DenseRetriever(FakeEmbedder(), index), BM25Retriever(documents, tmp_path / "index")
    for query, hits in zip(random_queries(), MixRetriever(dense, bm25).search(random_queries(), 60), strict=True):
        either = {h.document.id for kind in (dense, bm25) for h in kind.search([query], 5)[0]}
        assert {hit.document.id for hit in hits} == either


def in_plain_words(documents, queries, k, weight=0.6):
    """The ranking of a mix by its definition: all scores of all documents, sorted; equal ones by their vectors, then in
    the order of the documents."""
    embedder, bm25 = FakeEmbedder(), BM25Retriever(documents)
    vectors = embedder.embed_documents([d.text for d in documents])
    for query in queries:
        parts = query.parts
        similar = np.stack([[float(v @ q) for v in vectors] for q in embedder.embed_questions([p.text for p in parts])])
        similar, words = similar.astype(np.float32), bm25.scores(query)
        mixed = (weight * retrievers.scaled(similar) + (1 - weight) * retrievers.scaled(words)).mean(axis=0)
        order = sorted(range(len(documents)), key=lambda i: (-mixed[i], -similar.mean(axis=0)[i], i))
        yield [(documents[i].id, mixed[i]) for i in order[:k]]


def test_a_mix_of_many_documents_ranks_them_by_its_definition_and_copies_in_their_order(
    few_are_many, tmp_path, monkeypatch
):
    monkeypatch.setattr(near, "_RECALL", 1.1)
    monkeypatch.setattr(postings, "_COMMON", 400)  # words are looked up as in a million
    monkeypatch.setattr(postings, "_LOOKED_UP", 0)
    texts = [d.page_content for d in random_documents(200)]
    documents = [Document(mixed, f"{mixed}{' ' * copy}") for mixed in texts for copy in range(3)]  # of equal scores
    documents = [documents[i] for i in np.random.default_rng(1).permutation(len(documents))]
    queries = [Query(q) for q in random_queries(30)] + [Query("library book", "evening desk", also=("", "desk"))]
    mix = of_all_kinds(tmp_path, documents)["mix"]
    for hits, right in zip(mix.search(queries, 20), in_plain_words(documents, queries, 20), strict=True):
        np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in right], atol=1e-5)
        assert [hit.document.id for hit in hits] == [id for id, _ in right]
