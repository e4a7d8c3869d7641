"""The first hits of a search in a better order: by tiny cross-encoders, vectors of tokens, and fake servers."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from conftest import FakeEmbedder, save_cross_encoder, tiny_documents
from fake_server import FakeServer, Raw, Refusal, endless_body

from groundtune.arguments import RetrievalArguments, check_retrieval
from groundtune.cli import main
from groundtune.errors import DataError, ModelError
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.opening import open_retriever
from groundtune.retrieval.queries import Query
from groundtune.retrieval.reranking import (
    CrossEncoderReranker,
    MaxSim,
    RerankedRetriever,
    ServerReranker,
    open_reranker,
)
from groundtune.retrieval.retrievers import BM25Retriever
from groundtune.schema import Document, Hit

DOCUMENTS = [Document(f"passage {i}") for i in range(8)]
KEY = "rk-SECRET-0123456789"


class First:
    """Finds the documents in their order, with the scores 8, 7, 6 ..."""

    limit = None

    def __init__(self, documents=DOCUMENTS):
        self.documents = documents

    def search(self, queries, k):
        return [tuple(Hit(d, 8.0 - i) for i, d in enumerate(self.documents[:k])) for _ in queries]


class Fixed:
    """Scores passages by a dictionary, and remembers what it was asked."""

    limit = None

    def __init__(self, scores):
        self.by_text, self.asked = scores, []

    def scores(self, asked):
        self.asked += [(text, [d.text for d in documents]) for text, documents in asked]
        for text, documents in asked:
            yield np.array([self.by_text.get((text, d.text), self.by_text.get(d.text, 0.0)) for d in documents])


def texts(hits):
    return [hit.document.text for hit in hits]


# The order


def test_the_first_hits_are_ordered_by_the_reranker_and_the_others_stay_behind_them():
    reranker = Fixed({"passage 2": 3.0, "passage 0": 1.0, "passage 1": 2.0, "passage 7": 99.0})
    (hits,) = RerankedRetriever(First(), reranker, depth=3).search(["?"], 8)
    assert texts(hits) == [f"passage {i}" for i in (2, 1, 0, 3, 4, 5, 6, 7)]
    assert reranker.asked == [("?", ["passage 0", "passage 1", "passage 2"])]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.score for hit in hits[:3]] == [1.0, 0.5, 0.0]


def test_more_are_reranked_than_are_found():
    (hits,) = RerankedRetriever(First(), Fixed({"passage 5": 1.0}), depth=6).search(["?"], 2)
    assert texts(hits) == ["passage 5", "passage 0"]


def test_the_weight_mixes_both_scores_each_scaled_over_the_reranked():
    scores = {"passage 0": 0.0, "passage 1": 5.0, "passage 2": 10.0}
    (hits,) = RerankedRetriever(First(), Fixed(scores), depth=3, weight=0.25).search(["?"], 4)
    expected = {"passage 0": 0.75, "passage 1": 0.5, "passage 2": 0.25, "passage 3": 0.75 * -0.5}
    assert {hit.document.text: hit.score for hit in hits} == pytest.approx(expected)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_equal_scores_keep_the_order_of_the_search(weight):
    (hits,) = RerankedRetriever(First(), Fixed({}), depth=5, weight=weight).search(["?"], 8)
    assert texts(hits) == texts(First().search(["?"], 8)[0])


def test_the_scores_of_the_parts_of_a_fused_query_count_the_same():
    scores = {("why?", "passage 0"): 4.0, ("lamps\nwhy?", "passage 1"): 6.0, ("why?", "passage 2"): 1.0}
    retriever = RerankedRetriever(First(), Fixed(scores), depth=3)
    (hits,) = retriever.search([Query("why?", "lamps", also=("",))], 3)
    assert texts(hits) == ["passage 1", "passage 0", "passage 2"]


def test_a_query_without_hits_is_not_scored_and_a_query_finds_the_same_alone_and_among_others():
    reranker = Fixed({d.text: len(d.text) for d in tiny_documents()})
    retriever = RerankedRetriever(BM25Retriever(tiny_documents()), reranker)
    asked = ["zebra quagga", "dogs at the red door", "what does a card cost?", ""]
    together = retriever.search(asked, 4)
    assert together[0] == together[3] == () and together[1] and together[2]
    assert [retriever.search([query], 4)[0] for query in asked] == together
    assert {text for text, _ in reranker.asked} == set(asked[1:3])
    assert retriever.search([], 3) == []


# Vectors of tokens


def test_maxsim_is_the_mean_over_the_query_s_tokens_of_the_most_similar_token(bert_embedding_folder):
    embedder = Embedder(str(bert_embedding_folder), batch_size=2)
    documents = [Document("the library"), Document("a book"), Document("a " * 100), Document("?")]
    asked = [("library book", documents), ("a", documents[1:3])]
    found = list(MaxSim(embedder).scores(asked))

    def vectors(text):
        (tokens,) = embedder.model.encode([text], output_value="token_embeddings")
        return (tokens / tokens.norm(dim=1, keepdim=True)).numpy()

    for (query, passages), scores in zip(asked, found, strict=True):
        expected = [(vectors(query) @ vectors(d.text).T).max(axis=1).mean() for d in passages]
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_token_of_the_query_counts_by_its_rarity_in_the_documents(bert_embedding_folder):
    embedder = Embedder(str(bert_embedding_folder))
    documents = [Document("the library"), Document("a book"), Document("the library book"), Document("library")]
    tokenizer = embedder.limit.tokenizer
    tokens = [set(tokenizer(d.text)["input_ids"]) for d in documents]
    ids = tokenizer("zoo library book")["input_ids"]
    rarity = np.log([(len(tokens) + 1) / (sum(id in these for these in tokens) + 1) for id in ids])
    assert rarity[0] == rarity[-1] == 0  # special tokens stand in every document
    (found,) = MaxSim(embedder, documents).scores([("zoo library book", documents)])

    def vectors(text):
        (read,) = embedder.model.encode([text], output_value="token_embeddings")
        return (read / read.norm(dim=1, keepdim=True)).numpy()

    for document, score in zip(documents, found, strict=True):
        similarities = (vectors("zoo library book") @ vectors(document.text).T).max(axis=1)
        assert score == pytest.approx((rarity * similarities).sum() / rarity.sum(), abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_maxsim_does_not_take_padding_for_a_token(bert_embedding_folder, side):
    embedder = Embedder(str(bert_embedding_folder))
    embedder.model.tokenizer.padding_side = side
    read = MaxSim(embedder)._vectors(["a b", "library " * 12], "")
    assert [len(vectors) for vectors in read] == [4, 14]


def test_maxsim_reads_a_passage_once_however_many_questions_find_it(bert_embedding_folder, monkeypatch):
    embedder, read = Embedder(str(bert_embedding_folder)), []
    encode = embedder.model.encode
    monkeypatch.setattr(embedder.model, "encode", lambda texts, **how: read.extend(texts) or encode(texts, **how))
    list(MaxSim(embedder).scores([("one", DOCUMENTS[:5]), ("two", DOCUMENTS[2:])]))
    assert sorted(read) == sorted(["one", "two", *(d.text for d in DOCUMENTS)])


def test_maxsim_puts_the_embedding_model_s_prompts_in_front(bert_embedding_folder, monkeypatch):
    embedder, prompts = Embedder(str(bert_embedding_folder), query_prompt="q: ", document_prompt="d: "), []
    encode = embedder.model.encode
    monkeypatch.setattr(
        embedder.model, "encode", lambda texts, **how: prompts.append(how["prompt"]) or encode(texts, **how)
    )
    list(MaxSim(embedder).scores([("one", DOCUMENTS[:2])]))
    assert prompts == ["q: ", "d: "]


def test_maxsim_is_refused_where_there_are_no_vectors_of_tokens(static_embedding_folder):
    embedder = Embedder(str(static_embedding_folder))
    for one in (embedder, FakeEmbedder(), None):
        with pytest.raises(ModelError, match="gives no vectors of tokens; name an embedding model with a transformer"):
            open_reranker(RetrievalArguments(reranker="maxsim"), one)


# Cross-encoders


@pytest.mark.parametrize("saved_by", ["transformers", "sentence-transformers"])
def test_a_cross_encoder_rates_as_the_library_does(cross_encoder_folder, tmp_path, saved_by):
    from sentence_transformers import CrossEncoder

    folder = cross_encoder_folder
    if saved_by == "sentence-transformers":
        CrossEncoder(str(folder)).save_pretrained(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    expected = CrossEncoder(str(folder)).predict([("a book", d.text) for d in DOCUMENTS])
    (found,) = CrossEncoderReranker(str(folder)).scores([("a book", DOCUMENTS)])
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), expected, atol=1e-5)


def test_a_long_query_leaves_half_of_what_a_cross_encoder_reads_to_the_passage(cross_encoder_folder, caplog):
    reranker = CrossEncoderReranker(str(cross_encoder_folder))
    assert reranker.limit.max_tokens == 12
    asked = []
    reranker.scores = lambda pairs: iter([asked.append(text) or np.zeros(len(found)) for text, found in pairs])
    history = "library " * 40
    RerankedRetriever(First(), reranker).search([Query("a book?", history)], 2)
    assert asked[0].endswith("a book?") and reranker.limit.length_of_query(asked[0]) <= 12
    assert "1 of 1 search queries are longer than the 12 tokens" in caplog.text


def test_what_is_no_reranker_is_one_line(tmp_path, bert_embedding_folder, families, cross_encoder_folder):
    three = save_cross_encoder(tmp_path / "three", labels=3)
    pickle = tmp_path / "pickle"
    shutil.copytree(cross_encoder_folder, pickle)
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    broken = tmp_path / "broken"
    shutil.copytree(cross_encoder_folder, broken)
    (broken / "model.safetensors").write_bytes(b"0" * 100)
    wanted = {
        bert_embedding_folder: "weights are missing and would be random: classifier",
        families["llama"].folder: "holds a LlamaForCausalLM, which writes text; is this a reranker?",
        three: "gives 3 scores, and a reranker gives one",
        pickle: "is a pickle",
        broken: "broken",
        tmp_path / "nowhere": "nowhere",
    }
    for folder, said in wanted.items():
        with pytest.raises(ModelError, match=re.escape(said)) as error:
            open_reranker(RetrievalArguments(reranker=str(folder)))
        assert "--reranker" in str(error.value) and "\n" not in str(error.value)


def test_a_cross_encoder_cannot_name_what_is_imported(cross_encoder_folder, tmp_path, monkeypatch):
    import torch.nn

    folder = tmp_path / "model"
    shutil.copytree(cross_encoder_folder, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["sentence_transformers"] = {"activation_fn": "torch.nn.Tripwire"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    monkeypatch.setattr(torch.nn, "Tripwire", lambda: pytest.fail("imported"), raising=False)
    CrossEncoderReranker(str(folder))


def test_a_classifier_without_its_pooler_is_refused(cross_encoder_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(cross_encoder_folder, folder)
    weights = load_file(folder / "model.safetensors")
    without = {name: weight for name, weight in weights.items() if "pooler" not in name}
    save_file(without, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="weights are missing and would be random"):
        open_reranker(RetrievalArguments(reranker=str(folder)))


# Servers


def rated(body: dict) -> bytes:
    """What a server of either kind says: the score of a passage is its last number, the best first."""
    found = [(i, float(text.split()[-1])) for i, text in enumerate(body.get("documents") or body["texts"])]
    found.sort(key=lambda pair: -pair[1])
    if "texts" in body:
        return json.dumps([{"index": i, "score": score} for i, score in found]).encode()
    return json.dumps({"results": [{"index": i, "relevance_score": score} for i, score in found]}).encode()


def asks(url: str, kind: str, **more) -> ServerReranker:
    return open_reranker(RetrievalArguments(reranker=f"{kind}:{url}", reranker_model="m", **more))


@pytest.fixture
def numbers(monkeypatch):
    """The trial text ends in a number too."""
    monkeypatch.setattr("groundtune.retrieval.reranking.TRIAL", "try 1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another")
    monkeypatch.setenv("GROUNDTUNE_RERANKER_KEY", KEY)


@pytest.mark.parametrize("kind, path", [("jina", "/v1"), ("jina", "/v1/rerank"), ("tei", "/v1"), ("tei", "/v1/")])
def test_a_server_rates_passages_and_is_told_its_own_key_only(numbers, kind, path):
    with FakeServer(rated, content_type="application/json") as server:
        reranker = asks(server.url.replace("/v1", path), kind)
        found = list(reranker.scores([("one?", DOCUMENTS), ("two?", DOCUMENTS[3:5])]))
    assert [list(scores) for scores in found] == [list(range(8)), [3, 4]]
    assert {request["path"] for request in server.requests} == {"/v1/rerank"}
    assert {request["headers"]["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    last = server.bodies[-1]
    assert last["query"] == "two?" and (last.get("model") == "m") == (kind == "jina")


def test_many_passages_go_to_a_tei_server_in_parts(numbers):
    many = [Document(f"passage {i}") for i in range(70)]
    with FakeServer(rated, content_type="application/json") as server:
        (scores,) = asks(server.url, "tei").scores([("?", many)])
    assert list(scores) == list(range(70))
    assert sorted(len(body["texts"]) for body in server.bodies) == [1, 6, 32, 32]


def replies(results: object) -> bytes:
    return json.dumps(results).encode()


def one(index: object, score: object) -> dict:
    return {"index": index, "relevance_score": score}


@pytest.mark.parametrize(
    "reply, said",
    [
        (replies({"results": []}), "scores of the passages [], not of all 1"),
        (replies({"results": [one(0, 1.0), one(0, 2.0)]}), "scores of the passages [0, 0], not of all 1"),
        (replies({"results": [one(1, 1.0)]}), "scores of the passages [1], not of all 1"),
        (replies({"results": [one(0, "high")]}), "score 'high'"),
        (replies({"results": [one(0, True)]}), "score True"),
        (replies({"results": [one("0", 1.0)]}), "index '0'"),
        (b'{"results": [{"index": 0, "relevance_score": NaN}]}', "score nan"),
        (b'{"results": [{"index": 0, "relevance_score": 1e999}]}', "score inf"),
        (replies([0.5]), "not the reply of a jina reranker"),
        (replies({"data": []}), "KeyError: 'results'"),
        (replies(None), "not the reply of a jina reranker"),
        (b"<html>", "not JSON"),
        (Refusal(404), "does the address end in /v1"),
        (Refusal(401), "GROUNDTUNE_RERANKER_KEY"),
        (Refusal(302, headers={"location": "http://elsewhere.test/"}), "the server redirects (302)"),
        (Refusal(400, f"no {KEY}"), "no ***"),
    ],
)
def test_a_broken_answer_of_a_server_is_one_line_when_it_is_opened(numbers, reply, said):
    with FakeServer(lambda body: reply, content_type="application/json") as server, pytest.raises(DataError) as error:
        asks(server.url, "jina")
    (problem,) = error.value.problems
    assert said in problem and "\n" not in problem and KEY not in problem
    assert len(server.requests) == 1


def test_what_fails_for_a_moment_is_asked_again(numbers):
    seen = []

    def speak(body):
        seen.append(body)
        return Refusal(503) if len(seen) == 1 else rated(body)

    with FakeServer(speak, content_type="application/json") as server:
        (scores,) = asks(server.url, "jina").scores([("?", DOCUMENTS)])
    assert list(scores) == list(range(8)) and len(seen) == 3


def test_an_endless_answer_comes_to_an_end(numbers, monkeypatch):
    monkeypatch.setattr("groundtune.model.endpoint.MOST_BYTES", 2**20)
    with Raw(endless_body) as server, pytest.raises(DataError, match="longer than 1 MB"):
        ServerReranker(open_endpoint(server.url), "jina").scores([("?", DOCUMENTS)]).__next__()


def open_endpoint(url: str):
    from groundtune.model.endpoint import Endpoint

    return Endpoint(url, "m", retries=0, timeout=20)


# Through the one door, and the flags


@pytest.mark.parametrize("kind", ["dense", "bm25", "mix", "hybrid"])
def test_every_retriever_can_be_reranked(kind, bert_embedding_folder, cross_encoder_folder, tmp_path):
    documents = tiny_documents()
    for name in ("maxsim", str(cross_encoder_folder)):
        retrieval = RetrievalArguments(
            retriever=kind, embedding_model=str(bert_embedding_folder), reranker=name, rerank_depth=4
        )
        retriever = open_retriever(retrieval, documents, tmp_path / "index")
        (hits,) = retriever.search(["a book card"], 3)
        assert 0 < len(hits) <= 3 and len({hit.document.id for hit in hits}) == len(hits)
        assert isinstance(retriever, RerankedRetriever) and retriever.weight == (0.5 if name == "maxsim" else 1.0)


def test_a_wrong_reranker_is_found_before_the_documents_are_embedded(bert_embedding_folder, families, tmp_path):
    retrieval = RetrievalArguments(embedding_model=str(bert_embedding_folder), reranker=str(families["llama"].folder))
    with pytest.raises(ModelError, match="is this a reranker"):
        open_retriever(retrieval, tiny_documents(), tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"reranker": "openai:http://a/v1"}, "not a server that can do this; write jina:URL, tei:URL"),
        ({"reranker": "http://a/v1"}, "not a server that can do this; write jina:URL, tei:URL"),
        ({"reranker": "jina:a", "reranker_model": "m"}, "has no address; write one such as jina:http://"),
        ({"reranker": "jina:http://a/v1"}, "--reranker_model: missing"),
        ({"reranker": "./nowhere"}, "--reranker: no such folder: ./nowhere"),
        ({"rerank_depth": 0}, "--rerank_depth: 0 is too small"),
        ({"rerank_weight": 1.5}, "--rerank_weight: 1.5; give a number from 0 to 1"),
        ({"rerank_weight": float("nan")}, "--rerank_weight: nan; give a number from 0 to 1"),
        ({"retriever": "bm25", "reranker": "maxsim"}, "--embedding_model: missing"),
    ],
)
def test_arguments_that_cannot_work_are_one_line_before_anything_is_loaded(flags, said):
    arguments = RetrievalArguments(**{"embedding_model": "" if "retriever" in flags else "a/b", **flags})
    (problem,) = check_retrieval(arguments)
    assert said in problem


@pytest.mark.parametrize(
    "flags", [{"reranker": "none"}, {"reranker": "tei:http://a"}, {"reranker": "owner/model"}, {"reranker": "maxsim"}]
)
def test_arguments_that_can_work_are_no_problem(flags):
    assert check_retrieval(RetrievalArguments(embedding_model="a/b", **flags)) == []


def test_the_help_of_every_command_that_searches_names_the_reranker(capsys):
    for command in ("index", "evaluate", "ask", "sft", "swr"):
        with pytest.raises(SystemExit) if command in ("index", "evaluate", "ask") else pytest.MonkeyPatch.context():
            main([command, "-h"])
        assert "--reranker" in capsys.readouterr().out
