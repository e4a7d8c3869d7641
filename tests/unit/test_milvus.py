"""The store in Milvus: what it sends, what it makes of the answers, and the same in a real Milvus Lite file."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FakeEmbedder
from test_retrieval import random_documents, random_queries

from groundtune.arguments import RetrievalArguments, check_retrieval
from groundtune.errors import DataError
from groundtune.filters import kept, parsed
from groundtune.retrieval.opening import open_retriever_with
from groundtune.retrieval.retrievers import DenseRetriever
from groundtune.retrieval.stores import milvus
from groundtune.retrieval.stores.local import Index
from groundtune.retrieval.stores.milvus import open_milvus
from groundtune.schema import Document


def numbered(n: int = 60) -> list[Document]:
    return [Document(d.page_content, metadata={"number": i}) for i, d in enumerate(random_documents(n))]


class FakeClient:
    """What the store calls of `pymilvus.MilvusClient`, on a dictionary; filters are those of `passes`."""

    kept: dict[str, dict] = {}
    calls: list[tuple] = []
    passes = staticmethod(lambda row: True)

    def __init__(self, uri, token="", timeout=None):  # noqa: S107
        self.calls.append(("open", uri, token))

    def has_collection(self, name):
        return name in self.kept

    def create_schema(self, **options):
        return SimpleNamespace(add_field=lambda *args, **options: None)

    def prepare_index_params(self):
        return SimpleNamespace(add_index=lambda *args, **options: self.calls.append(("metric", options["metric_type"])))

    def create_collection(self, name, **options):
        self.kept[name] = {}

    def load_collection(self, name):
        pass

    def query_iterator(self, name, filter, output_fields, batch_size):
        rows = [{field: row[field] for field in output_fields} for row in self.kept[name].values()]
        batches = [rows[i : i + 7] for i in range(0, len(rows), 7)] + [[]]
        return SimpleNamespace(next=lambda: batches.pop(0), close=lambda: None)

    def upsert(self, name, data):
        self.calls.append(("upsert", len(data)))
        self.kept[name] |= {row["id"]: row for row in data}

    def delete(self, name, ids):
        self.calls.append(("delete", len(ids)))
        for id in ids:
            del self.kept[name][id]

    def get(self, name, ids, output_fields):
        return [self.kept[name][id] for id in ids if id in self.kept[name]]

    def search(self, name, data, limit, filter, search_params):
        self.calls.append(("search", len(data), limit, filter, search_params["metric_type"]))
        rows = [row for row in self.kept[name].values() if self.passes(row)]
        similar = np.array(data) @ np.array([row["vector"] for row in rows]).T
        best = np.argsort(-similar, axis=1)[:, :limit]
        return [[{"id": rows[i]["id"], "distance": float(s[i])} for i in b] for s, b in zip(similar, best)]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeClient, "kept", {})
    monkeypatch.setattr(FakeClient, "calls", [])
    types = SimpleNamespace(VARCHAR="text", FLOAT_VECTOR="vector", JSON="json")
    monkeypatch.setitem(sys.modules, "pymilvus", SimpleNamespace(MilvusClient=FakeClient, DataType=types))
    monkeypatch.setenv("GROUNDTUNE_MILVUS_TOKEN", "s3cret")
    return FakeClient


def lite(tmp_path) -> str:
    for package in ("pymilvus", "milvus_lite"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: the extra [milvus]")
    return f"milvus:{tmp_path}/vectors.db"


@pytest.fixture(params=["fake", "lite"])
def address(request, tmp_path):
    if request.param == "lite":
        return lite(tmp_path)
    request.getfixturevalue("fake")
    return "milvus:http://localhost:19530#handbook"


def test_a_search_finds_what_the_local_store_finds(address):
    documents, embedder = numbered(), FakeEmbedder()
    queries = embedder.embed_questions(random_queries())
    index = Index(documents, embedder.embed_documents([d.text for d in documents]))
    store = open_milvus(address, documents, embedder)
    expected, found = index.search(queries, 7), store.search(queries, 7)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    assert np.mean(found[1] == expected[1]) > 0.95  # equal scores come in any order
    among = np.array([3, 17, 40])
    np.testing.assert_allclose(store.scores(queries, among), index.scores(queries, among), atol=1e-5)
    assert store.search(queries, 500)[1].shape == (len(queries), 60)


def test_documents_are_inserted_replaced_and_deleted_as_they_change(address, monkeypatch):
    monkeypatch.setattr(milvus, "_INSERTED_AT_ONCE", 8)
    documents, embedder = numbered(), FakeEmbedder()
    open_milvus(address, documents, embedder)
    again = FakeEmbedder()
    open_milvus(address, documents[::-1], again)
    assert again.documents == []
    changed = [
        *documents[:50],
        Document("a new evening"),
        Document(documents[50].page_content, metadata={"number": -1}),
    ]
    monkeypatch.setattr(FakeClient, "passes", staticmethod(lambda row: row["metadata"].get("number") == -1))
    store = open_milvus(address, changed, again, condition=parsed("number == -1"), allowed=np.array([51]))
    assert again.documents == ["a new evening"]
    assert store.search(again.embed_questions(["library book"]), 5)[1].tolist()[0] == [51, -1, -1, -1, -1]
    monkeypatch.setattr(FakeClient, "passes", staticmethod(lambda row: True))
    store = open_milvus(address, changed, again)
    _, positions = store.search(again.embed_questions(["library book"]), 60)
    assert sorted(positions[0]) == list(range(52))


def test_vectors_of_another_model_are_another_collection(address):
    documents, other = numbered(5), FakeEmbedder(settings={"weights": "2"})
    for embedder in (FakeEmbedder(), other, FakeEmbedder()):
        open_milvus(address, documents, embedder)
    assert len(other.documents) == 5


FILTERS = [
    'lang == "en"', 'n < 5 and lang != "en"', "draft", "not draft", 'lang in ["en"]', 'lang not in ["en", "fr"]',
    '"a" in tags', '"a" not in tags and n < 10', 'source.name == "f7"', "not missing == 3",
    "n >= 2.5 and n < 4", "not (draft or n > 20)", "not source.none == 3", "not lang.x == 3", "`two words` == 1",
]  # fmt: skip


def test_filters_mean_the_same_in_milvus(tmp_path):
    """In one collection, each filter by itself, without what is known here of the documents."""
    address, embedder = lite(tmp_path), FakeEmbedder()
    some = [{"lang": "en" if i % 2 else "de", "n": i, "tags": ["a" if i < 5 else "b"]} for i in range(30)]
    more = [{"draft": True}, {"source": {"name": "f7"}}, {"two words": 1}, {}]
    documents = [Document(f"text {i}", metadata=about) for i, about in enumerate(some + more)]
    store = open_milvus(address, documents, embedder)
    for text in FILTERS:
        object.__setattr__(store, "condition", milvus.in_milvus(parsed(text), "metadata"))
        _, positions = store.search(embedder.embed_questions(["text"]), 34)
        assert sorted(positions[positions >= 0]) == kept(text, documents), text


def test_a_token_goes_to_the_server_and_into_no_message(fake, monkeypatch):
    open_milvus("milvus:http://host:1#a", numbered(3), FakeEmbedder())
    assert fake.calls[:2] == [("open", "http://host:1", "s3cret"), ("metric", "IP")]

    class MilvusException(Exception):
        __module__ = "pymilvus.exceptions"

    def fail(self, name):
        raise MilvusException("auth check failed\nfor s3cret at http://me:pass@host")

    monkeypatch.setattr(FakeClient, "has_collection", fail)
    with pytest.raises(DataError) as error:
        open_milvus("milvus:http://host:1#a", numbered(3), FakeEmbedder())
    (line,) = error.value.problems
    assert "auth check failed" in line and "s3cret" not in line and "pass" not in line.replace("passages", "")


def test_hits_that_are_in_no_document_or_left_out_by_the_filter_are_not_found(fake):
    documents, embedder = numbered(10), FakeEmbedder()
    store = open_milvus("milvus:http://host:1#a", documents, embedder, np.array([1, 2]), parsed("number in [1, 2]"))
    assert {p for row in store.search(embedder.embed_questions(["book"]), 10)[1] for p in row} == {1, 2, -1}
    with pytest.raises(DataError, match="1 documents have vanished"):
        del next(iter(fake.kept.values()))[documents[4].id]
        store.scores(embedder.embed_questions(["book"]), np.array([4, 5]))


@pytest.mark.parametrize("kind", ["dense", "mix", "hybrid"])
def test_retrievers_search_in_milvus_as_they_do_here(address, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("groundtune.retrieval.opening.Embedder", lambda *args, **options: FakeEmbedder())
    monkeypatch.setattr(FakeClient, "passes", staticmethod(lambda row: row["metadata"]["number"] < 40))
    found = []
    for store in ("local", address):
        retrieval = RetrievalArguments(retriever=kind, store=store, filter="number < 40")
        retriever = open_retriever_with("fake", retrieval, numbered(), tmp_path / "index")
        found.append(retriever.search(random_queries(10), 5))
    for here, there in zip(*found, strict=True):
        assert all(hit.document.metadata["number"] < 40 for hit in there)
        np.testing.assert_allclose([hit.score for hit in here], [hit.score for hit in there], atol=1e-4)
    assert isinstance(retriever, DenseRetriever) == (kind == "dense")


@pytest.mark.parametrize(
    "store, said",
    [
        ("sqlite:x", "'sqlite:x' is unknown; use local or milvus:"),
        ("milvus:http://me:secret@host:19530", "name a collection after a #"),
        ("milvus:x.sqlite", "is neither a file *.db nor a server"),
        ("milvus:no/such/folder/x.db", "there is no folder"),
        ("milvus:x.db#two words", "'two words' cannot be the name of a collection"),
    ],
)
def test_an_address_that_cannot_be_one_is_one_line(monkeypatch, store, said):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    (line,) = check_retrieval(RetrievalArguments(store=store), complete=False)
    assert said in line and line.startswith("--store: ") and "secret" not in line


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (line,) = check_retrieval(RetrievalArguments(store="milvus:x.db"), complete=False)
    assert line.startswith("--store: Milvus needs the package pymilvus; pip install ")


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    lite(tmp_path)
    with pytest.raises(DataError, match="^--store: Milvus at http://127.0.0.1:9: .*is the server running"):
        open_milvus("milvus:http://127.0.0.1:9#a", numbered(3), FakeEmbedder())
