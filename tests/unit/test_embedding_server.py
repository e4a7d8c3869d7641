"""Embedding models on a server: what is sent, and that no answer but vectors of the texts is taken for one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import FakeEmbedder, tiny_documents
from fake_server import FakeServer, Refusal

from groundtune.arguments import RetrievalArguments, check_retrieval
from groundtune.errors import DataError
from groundtune.model.endpoint import EndpointError
from groundtune.retrieval.embedding_server import ServerEmbedder
from groundtune.retrieval.opening import open_retriever_with
from groundtune.retrieval.reading_limit import reading_limit

pytest.importorskip("openai")


def vectors(body, turned: bool = True):
    """As a server answers: the vectors of the texts, in any order, not of unit length."""
    found = FakeEmbedder().embed_documents(body["input"]) * 3
    rows = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(found)]
    return as_json({"object": "list", "data": rows[::-1] if turned else rows})


def as_json(answer) -> bytes:
    return json.dumps(answer).encode()


def served(speak) -> FakeServer:
    return FakeServer(speak, content_type="application/json")


def embedder(server, **options) -> ServerEmbedder:
    return ServerEmbedder(f"openai:{server.url}", "e5-small", **options)


def test_texts_are_sent_in_batches_with_the_model_s_prompts_and_the_server_s_own_key(monkeypatch):
    monkeypatch.setenv("GROUNDTUNE_EMBEDDING_KEY", "key of embeddings")
    monkeypatch.setenv("OPENAI_API_KEY", "key of answers")
    texts, seen = [f"library book {i}" for i in range(70)], []
    with served(vectors) as server:
        model = embedder(server, batch_size=4)
        found = model.embed_documents(texts, lambda done, so_far: seen.append((len(done), so_far.shape)))
        questions = model.embed_questions(["a question", ""])
    expected = FakeEmbedder().embed_documents([f"passage: {text}" for text in texts])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(questions, FakeEmbedder().embed_documents(["query: a question", "query: "]), atol=1e-5)
    assert seen == [(32, (70, 32)), (64, (70, 32)), (70, (70, 32))]
    assert {len(body["input"]) for body in server.bodies} == {4, 2}
    assert {body["model"] for body in server.bodies} == {"e5-small"}
    assert {request["path"] for request in server.requests} == {"/v1/embeddings"}
    assert {request["headers"]["authorization"] for request in server.requests} == {"Bearer key of embeddings"}


def changed(change):
    def speak(body):
        answer = json.loads(vectors(body, turned=False))
        return as_json(change(answer["data"]) or answer)

    return speak


ANSWERS = {
    "not JSON": (lambda body: b"<html>", "not JSON"),
    "a list": (lambda body: as_json([1]), "no list of vectors"),
    "no data": (lambda body: as_json({"error": "x"}), "no list of vectors"),
    "texts": (lambda body: as_json({"data": ["x", "y"]}), "no list of vectors"),
    "one fewer": (changed(lambda data: data.pop() and None), "1 vectors for 2 texts"),
    "one more": (changed(lambda data: data.append(data[0])), "3 vectors for 2 texts"),
    "the same place twice": (changed(lambda data: data[0].update(index=1)), "index is not that of their texts"),
    "a place that is no number": (changed(lambda data: data[0].update(index="0")), "index is not that"),
    "NaN": (changed(lambda data: data[0].update(embedding=[float("nan")] * 32)), "no list of finite numbers"),
    "infinity": (changed(lambda data: data[0]["embedding"].__setitem__(3, float("inf"))), "no list of finite"),
    "too large": (changed(lambda data: data[0]["embedding"].__setitem__(3, 1e300)), "no list of finite numbers"),
    "null": (changed(lambda data: data[1].update(embedding=None)), "no list of finite numbers"),
    "empty": (changed(lambda data: data[1].update(embedding=[])), "no list of finite numbers"),
    "nested": (changed(lambda data: data[1].update(embedding=[[1.0]])), "no list of finite numbers"),
    "base64": (changed(lambda data: data[1].update(embedding="AAAA")), "no list of finite numbers"),
    "other lengths": (changed(lambda data: data[1]["embedding"].pop() and None), "vectors of 31 and of 32 dimensions"),
    "refused": (lambda body: Refusal(400, "this model writes"), "this model writes"),
    "no such model": (lambda body: Refusal(404, "nothing here"), "does the server have a model 'e5-small'"),
    "a wrong key": (lambda body: Refusal(401, "no key"), "GROUNDTUNE_EMBEDDING_KEY"),
    "a redirect": (lambda body: Refusal(307, "", {"location": "http://other.example/v1"}), "nothing was sent there"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_any_other_answer_is_one_line(name):
    speak, said = ANSWERS[name]
    with served(speak) as server, pytest.raises(EndpointError) as error:
        embedder(server).embed_documents(["one", "two"])
    (line,) = error.value.problems
    assert said in line and server.url in line and "\n" not in line and len(line) < 600


def test_a_request_that_fails_for_a_moment_is_repeated():
    answers = [Refusal(503, "starting"), Refusal(429, "slow down")]
    with served(lambda body: answers.pop() if answers else vectors(body)) as server:
        assert embedder(server).embed_questions(["one"]).shape == (1, 32)
    assert len(server.requests) == 3


def test_vectors_of_another_length_than_before_are_refused():
    with served(vectors) as server:
        model = embedder(server, batch_size=1)
        server.speak = lambda body: vectors(body) if "early" in body["input"][0] else as_json({"data": [
            {"embedding": [1.0, 2.0], "index": 0}
        ]})  # fmt: skip
        with pytest.raises(EndpointError, match="vectors of 2 dimensions, and earlier of 32"):
            model.embed_documents(["early"] * 8 + ["late"] * 8)


def opened(server, folder, **arguments):
    retrieval = RetrievalArguments(embedding_server_model="e5-small", retriever="mix", **arguments)
    return open_retriever_with(f"openai:{server.url}", retrieval, tiny_documents(), folder)


def test_a_search_embeds_documents_once_and_checks_that_the_model_is_the_same(tmp_path):
    with served(vectors) as server:
        (hits,) = opened(server, tmp_path).search(["dogs at the red door"], 2)
        assert hits[0].document.metadata["title"] == "Dogs"
        before = len(server.requests)
        again = opened(server, tmp_path)
        assert [len(body["input"]) for body in server.bodies[before:]] == [1]
        server.speak = lambda body: as_json({"data": [{"embedding": [1.0, 2.0], "index": 0}]})
        with pytest.raises(DataError, match="2 dimensions, and the index has 32; name the model that made"):
            again.search(["dogs"], 1)
        with pytest.raises(DataError, match=r"another vector than the stored one \(cosine 0.00\); has its model"):
            opened(server, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"served": "other"}, {"document_prompt": "x"}, {"name": "openai:http://127.0.0.1:1/v1"}]
)
def test_what_determines_a_vector_is_in_the_fingerprint(changes):
    given = {"name": "openai:http://me:secret@host/v1", "served": "m", "document_prompt": ""}
    settings = [ServerEmbedder(**{**given, **some}).settings for some in ({}, changes)]
    assert settings[0] != settings[1] and "secret" not in str(settings)


def test_the_address_and_the_name_of_the_model_are_checked_before_anything_is_sent():
    def said(**arguments):
        return check_retrieval(RetrievalArguments(**arguments), complete=False)

    assert said(embedding_model="openai:http://host/v1", embedding_server_model="m") == []
    assert said(embedding_model="openai:http://host/v1")[0].startswith("--embedding_server_model: missing")
    assert "has no address" in said(embedding_model="openai:host", embedding_server_model="m")[0]
    assert (
        "not a server that can do this" in said(eval_embedding_model="jina:http://host", embedding_server_model="m")[0]
    )
    assert "not a server that can do this" in said(embedding_model="http://host/v1")[0]
    assert reading_limit("openai:http://host/v1") is None


def test_what_reads_single_tokens_is_told_that_a_server_does_not_give_them():
    with pytest.raises(DataError, match="openai:http://host/v1 is a server, which gives no vectors"):
        _ = ServerEmbedder("openai:http://host/v1", "m").model
