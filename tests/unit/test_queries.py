"""The question is always part of its search query, however long the chat history is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import FakeEmbedder, write_data
from fake_server import FakeServer

import groundtune
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.queries import Query, query_of, texts_within, too_long, too_long_note
from groundtune.retrieval.reading_limit import reading_limit
from groundtune.retrieval.retrievers import BM25Retriever, DenseRetriever, HybridRetriever
from groundtune.retrieval.stores.local import Index
from groundtune.schema import ASSISTANT, USER, Document, Turn

QUESTION = "library 12 zq"  # each is one token, or one token a character: 5
TOPICS = ["returns sixty days box", "shop opens nine morning", "warranty twenty four months", "parking two hours free"]
LONG_TURN = "We walked along the beach and ate fish every evening with our friends from the village. " * 40


@pytest.fixture(scope="module")
def embedder(bert_embedding_folder) -> Embedder:
    return Embedder(str(bert_embedding_folder))


def length(embedder: Embedder, text: str) -> int:
    return len(embedder.model.tokenizer((embedder.query_prompt or "") + text)["input_ids"])


@pytest.mark.parametrize("prompt", ["", "q: "])
@pytest.mark.parametrize("history", ["book " * 300, "x" * 900, "本" * 900, "book\n\tlibrary, ab.c;" * 70, " " * 40])
def test_a_long_history_loses_its_beginning_and_the_whole_question_remains(bert_embedding_folder, history, prompt):
    embedder = Embedder(str(bert_embedding_folder), query_prompt=prompt)
    (text,) = texts_within([Query(QUESTION, history)], embedder.limit)
    assert text.endswith(f"\n{QUESTION}") or text == QUESTION
    assert history.endswith(text.removesuffix(QUESTION).removesuffix("\n"))
    assert length(embedder, text) <= 24


def test_a_shortened_query_is_as_long_as_the_model_reads(embedder):
    (text,) = texts_within([Query(QUESTION, "book " * 300)], embedder.limit)
    assert length(embedder, text) == 24  # with the two special tokens


def test_a_query_that_fits_is_not_changed(embedder):
    queries = [Query(QUESTION), Query(QUESTION, "book \n library  book "), Query("")]
    assert texts_within(queries, embedder.limit) == [query.text for query in queries]
    assert too_long(queries, embedder.limit) == {} and too_long_note(queries, embedder.limit) == []


def test_a_question_that_is_too_long_alone_keeps_its_beginning_and_end_and_is_counted(embedder):
    question = "library " + "book " * 200 + "zq"
    (text,) = texts_within([Query(question, "book " * 50)], embedder.limit)
    assert text.startswith("library ") and text.endswith("zq") and length(embedder, text) <= 24
    (line,) = too_long_note([Query(question), Query(QUESTION)], embedder.limit)
    assert line.startswith("1 of 2 search queries are longer than the 24 tokens that ")


def test_the_limit_is_the_same_with_and_without_the_weights(bert_embedding_folder):
    settings = {"query_prompt": "q: ", "document_prompt": "d: "}
    ours, theirs = (
        Embedder(str(bert_embedding_folder), **settings).limit,
        reading_limit(str(bert_embedding_folder), **settings),
    )
    queries = [Query(QUESTION, "book " * n) for n in range(40)]
    assert texts_within(queries, ours) == texts_within(queries, theirs)
    assert too_long(queries, ours) == too_long(queries, theirs) != {}


def test_models_with_static_vectors_read_whole_queries(static_embedding_folder):
    embedder = Embedder(str(static_embedding_folder))
    assert embedder.limit is None and reading_limit(str(static_embedding_folder)) is None
    assert texts_within([Query("a", "b " * 999)], embedder.limit) == ["b " * 999 + "\na"]


def test_questions_with_the_same_long_history_have_different_vectors_and_a_line_counts_them(embedder, caplog):
    queries = [Query(question, "book " * 99) for question in ("zq", "12")]
    one, two = embedder.embed_questions(texts_within(queries, embedder.limit))
    assert np.abs(one - two).max() > 1e-3
    documents = [Document("library"), Document("book")]
    DenseRetriever(embedder, Index(documents, np.eye(2, 16, dtype=np.float32))).search(queries, 1)
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("groundtune")]
    assert line.startswith("2 of 2 search queries are longer")


HISTORY = (Turn(USER, "first"), Turn(ASSISTANT, "reply"), Turn(USER, "second"))


@pytest.mark.parametrize(
    "policy, expected",
    [
        ("none", "and now?"),
        ("last", "second\nand now?"),
        ("user", "first\nsecond\nand now?"),
        ("all", "first\nreply\nsecond\nand now?"),
    ],
)
def test_the_query_holds_what_its_policy_takes_of_the_history(policy, expected):
    assert query_of("and now?", HISTORY, policy).text == expected
    assert query_of("and now?", (), policy).text == "and now?"


def test_a_fused_query_is_searched_alone_with_the_last_message_and_with_all_each_once():
    parts = query_of("and now?", HISTORY, "fused").parts
    assert [part.text for part in parts] == [
        query_of("and now?", HISTORY, name).text for name in ("none", "last", "all")
    ]
    assert [part.text for part in query_of("and now?", (), "fused").parts] == ["and now?"]
    assert [part.text for part in query_of("and now?", HISTORY[:1], "fused").parts] == ["and now?", "first\nand now?"]
    assert query_of("and now?", HISTORY, "user").parts == (query_of("and now?", HISTORY, "user"),)


def test_a_fused_query_counts_as_too_long_only_if_its_question_is(embedder):
    said = (Turn(USER, "first " * 99), Turn(ASSISTANT, "reply " * 99))
    fused = [query_of(question, said, "fused") for question in ("and now?", "book " * 99)]
    assert list(too_long(fused, embedder.limit)) == [1]
    assert all(
        embedder.limit.length_of_query(text) <= embedder.limit.max_tokens
        for query in fused
        for text in texts_within(query.parts, embedder.limit)
    )


# BM25


def bm25() -> BM25Retriever:
    story = Document("the beach and the fish, evening friends of the village: we walked and ate")
    return BM25Retriever([*map(Document, TOPICS), story])


@pytest.mark.parametrize("topic", TOPICS)
def test_the_words_of_a_long_turn_do_not_outweigh_those_of_the_question(topic):
    question = " ".join(topic.split()[:3])
    (hits,) = bm25().search([Query(question, LONG_TURN)], 1)
    assert hits[0].document.text == topic


def test_a_short_history_counts_as_much_as_it_did():
    query = Query("how many months", "warranty")
    (apart,), (together,) = bm25().search([query], 5), bm25().search([query.text], 5)
    assert [(hit.document, pytest.approx(hit.score)) for hit in apart] == [(h.document, h.score) for h in together]


def test_a_question_of_stop_words_alone_is_searched_by_its_history():
    (hits,) = bm25().search([Query("and what is it?", "warranty of twenty months")], 1)
    assert hits[0].document.text == TOPICS[2]


def test_the_hybrid_passes_the_history_on():
    embedder = FakeEmbedder()
    documents = bm25().documents
    dense = DenseRetriever(embedder, Index(documents, embedder.embed_documents([d.text for d in documents])))
    (hits,) = HybridRetriever([dense, bm25()]).search([Query("returns sixty days", LONG_TURN)], 5)
    assert len(hits) == 5 and embedder.questions == [Query("returns sixty days", LONG_TURN).text]


# The doors


def test_evaluation_reports_the_shortened_queries(bert_embedding_folder, tmp_path):
    write_data(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        row["question"], row["chat_history"] = QUESTION, [{"speaker": "user", "message": "book " * 99}] * 2
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with FakeServer(lambda body: "nine") as server:
        found = groundtune.evaluate(
            generator=f"openai:{server.url}", generator_model="m", eval_file=tmp_path / "eval.jsonl",
            full_dataset_file_path=tmp_path / "documents.jsonl", embedding_model=bert_embedding_folder,
            output_dir=tmp_path / "out", query_history="user", quiet=True, bootstrap_samples=100,
        )  # fmt: skip
    (note,) = [note for note in found.notes if "search queries" in note]
    assert note.startswith(f"{len(rows)} of {len(rows)} search queries are longer than the 24 tokens")
