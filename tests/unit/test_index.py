"""The cache of vectors is used where it fits; elsewhere what is missing is embedded, and nothing stale is searched."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace

import numpy as np
import pytest
from conftest import FakeEmbedder, tiny_documents

from groundtune.files import sha256_of
from groundtune.index import load_or_build_index
from groundtune.schema import Document


def vectors_of(documents) -> np.ndarray:
    return FakeEmbedder().embed_documents([d.text for d in documents])


def build(folder, documents, **settings) -> list[str]:
    """Load or build, check that the vectors are those of the documents, and return the texts that were embedded."""
    embedder = FakeEmbedder()
    embedder.settings |= settings
    index = load_or_build_index(folder, documents, embedder)
    assert list(index.documents) == list(documents)
    np.testing.assert_array_equal(index.vectors, vectors_of(documents))
    return embedder.documents


@pytest.fixture
def built(tmp_path):
    assert build(tmp_path, tiny_documents()) == [d.text for d in tiny_documents()]
    return tmp_path


def test_a_second_run_embeds_nothing(built):
    assert build(built, tiny_documents()) == []


def test_the_order_of_documents_is_that_of_the_call_and_not_of_the_cache(built):
    assert build(built, tiny_documents()[::-1]) == []


def test_a_changed_or_new_document_is_embedded_alone(built):
    documents = tiny_documents()
    documents[2] = Document("changed", "Title: Price\nA card is free now.")
    documents.append(Document("new"))
    assert build(built, documents) == [documents[2].text, "new"]
    assert build(built, documents) == []


def test_removed_documents_vanish(built):
    fewer = tiny_documents()[1:3]
    assert build(built, fewer) == []
    (manifest,) = built.glob("*/manifest.json")
    assert len(json.loads(manifest.read_text())["ids"]) == 2
    assert len(build(built, tiny_documents())) == 4


def test_metadata_dates_and_the_folder_s_name_change_nothing(built, tmp_path_factory):
    for path in built.rglob("*"):
        os.utime(path, (1, 1))
    documents = [Document(d.page_content, f" {d.fmt_content}\n", {"other": 1}) for d in tiny_documents()]
    moved = tmp_path_factory.mktemp("moved") / "new name"
    built.rename(moved)
    assert build(moved, documents) == []


@pytest.mark.parametrize(
    "settings", [{"weights": "2"}, {"document_prompt": "passage: "}, {"dtype": "bfloat16"}, {"new setting": 0}]
)
def test_vectors_of_other_settings_are_neither_reused_nor_evicted(built, settings):
    everything = [d.text for d in tiny_documents()]
    assert build(built, tiny_documents(), **settings) == everything
    assert build(built, tiny_documents(), **settings) == build(built, tiny_documents()) == []


def test_the_name_of_the_model_is_no_setting(built):
    """The same weights by another path are the same model."""
    assert (
        load_or_build_index(built, tiny_documents(), (other := FakeEmbedder(name="elsewhere"))) and not other.documents
    )


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)


def change(path, **changes):
    """As an editor would: the file stays a valid one."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_id(path):
    change(path, ids=json.loads(path.read_text())["ids"][1:])


def swap_ids(path):
    first, second, *others = json.loads(path.read_text())["ids"]
    change(path, ids=[second, first, *others])


def vouch_for_other_vectors(path):
    """Vectors and their checksum are exchanged together."""
    vectors = path.with_name("vectors.npy")
    np.save(vectors, np.load(vectors)[::-1])
    change(path, vectors_sha256=sha256_of(vectors))


DAMAGE = {
    "truncated vectors": ("vectors.npy", truncate),
    "flipped bit in vectors": ("vectors.npy", flip),
    "empty vectors": ("vectors.npy", lambda path: path.write_bytes(b"")),
    "missing vectors": ("vectors.npy", lambda path: path.unlink()),
    "a pickle for vectors": ("vectors.npy", lambda path: np.save(path, np.array([{}], dtype=object))),
    "truncated manifest": ("manifest.json", truncate),
    "empty manifest": ("manifest.json", lambda path: path.write_text("")),
    "list as manifest": ("manifest.json", lambda path: path.write_text("[1]")),
    "binary manifest": ("manifest.json", lambda path: path.write_bytes(b"\xff\xfe")),
    "too few ids": ("manifest.json", drop_id),
    "two ids exchanged": ("manifest.json", swap_ids),
    "another checksum": ("manifest.json", vouch_for_other_vectors),
    "a setting changed": ("manifest.json", lambda path: change(path, settings={})),
    "another name of the model": ("manifest.json", lambda path: change(path, embedding_model="other")),
    "deeply nested manifest": ("manifest.json", lambda path: path.write_text("[" * 100_000)),
    "text as manifest": ("manifest.json", lambda path: path.write_text('"sha256"')),
    "number as manifest": ("manifest.json", lambda path: path.write_text("7")),
    "no checksum": ("manifest.json", lambda path: path.write_text('{"ids": []}')),
}


@pytest.mark.parametrize("name, damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_embedded_anew_with_a_warning(built, caplog, name, damage):
    (path,) = built.glob(f"*/{name}")
    damage(path)
    with caplog.at_level(logging.WARNING, "groundtune"):
        assert len(build(built, tiny_documents())) == 6
    (record,) = caplog.records
    assert "damaged" in record.getMessage() and str(path.parent) in record.getMessage()
    assert build(built, tiny_documents()) == []  # and repaired


def test_another_model_s_index_in_the_place_of_one_is_not_believed(built):
    """Whole and undamaged, but under the fingerprint of other settings."""
    build(built, tiny_documents(), weights="2")
    first, second = sorted(built.glob("*"))
    for name in ("manifest.json", "vectors.npy"):
        (second / name).write_bytes((first / name).read_bytes())
    assert sorted(len(build(built, tiny_documents(), weights=weights)) for weights in "12") == [0, 6]


def test_vectors_of_other_settings_under_the_same_fingerprint_are_not_believed(built, monkeypatch, caplog):
    """Were a setting ever forgotten in the fingerprint, the manifest still names it."""
    import groundtune.index

    monkeypatch.setattr(groundtune.index, "_fingerprint", lambda settings: next(built.glob("*")).name)
    assert build(built, tiny_documents()) == []
    assert len(build(built, tiny_documents(), weights="2")) == 6
    assert "made with other settings" in caplog.text


def test_vectors_are_parsed_only_after_their_checksum(built, monkeypatch):
    (path,) = built.glob("*/vectors.npy")
    flip(path)
    loaded, load = [], np.load
    monkeypatch.setattr(np, "load", lambda file, **options: loaded.append(file.name) or load(file, **options))
    build(built, tiny_documents())
    assert loaded == []
    build(built, tiny_documents())
    assert loaded == [str(path)]


# The fingerprint: twelve changes, of one field each

REAL = {
    "weights": "0f", "config": {"hidden_act": "gelu"}, "tokenizer": "1e", "modules": ["Pooling mean"],
    "document_prompt": "passage: ", "similarity": "cosine", "max_tokens": 256, "dtype": "torch.float32",
}  # fmt: skip
CHANGED = {
    "weights": "0e", "config": {"hidden_act": "relu"}, "tokenizer": "1f", "modules": ["Pooling cls"],
    "document_prompt": "", "similarity": "dot", "max_tokens": 512, "dtype": "torch.bfloat16",
}  # fmt: skip
DOCUMENT_CHANGES = {
    "the formatted text of a document": lambda d: [
        replace(d[0], fmt_content="Title: Opening\nThe library opens at ten."),
        *d[1:],
    ],
    "a document without its title": lambda d: [replace(d[0], fmt_content=""), *d[1:]],
    "a new document": lambda d: [*d, Document("new")],
}


def test_the_settings_below_are_those_of_a_real_embedder(bert_embedding_folder):
    from groundtune.embedding import Embedder

    assert Embedder(str(bert_embedding_folder)).settings.keys() == REAL.keys() == CHANGED.keys()


@pytest.mark.parametrize("name", REAL)
def test_a_change_of_one_setting_embeds_every_document_anew(tmp_path, name):
    assert len(build(tmp_path, tiny_documents(), **REAL)) == 6
    assert len(build(tmp_path, tiny_documents(), **REAL | {name: CHANGED[name]})) == 6


@pytest.mark.parametrize("change", DOCUMENT_CHANGES.values(), ids=DOCUMENT_CHANGES)
def test_a_change_of_one_document_embeds_it_anew(tmp_path, change):
    build(tmp_path, tiny_documents(), **REAL)
    assert len(build(tmp_path, change(tiny_documents()), **REAL)) == 1


def test_a_change_of_the_index_s_own_format_embeds_every_document_anew(tmp_path, monkeypatch):
    import groundtune.index

    build(tmp_path, tiny_documents(), **REAL)
    monkeypatch.setattr(groundtune.index, "_FORMAT", -1)
    assert len(build(tmp_path, tiny_documents(), **REAL)) == 6


def test_there_are_twelve_changes():
    assert len(REAL) + len(DOCUMENT_CHANGES) + 1 == 12


def test_vectors_without_a_manifest_are_not_believed(built):
    """A run killed between the two files leaves this."""
    (path,) = built.glob("*/manifest.json")
    path.unlink()
    assert len(build(built, tiny_documents())) == 6


def test_a_failed_write_leaves_no_believable_index(built, monkeypatch):
    import groundtune.index

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(groundtune.index.np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        build(built, [*tiny_documents(), Document("new")])
    monkeypatch.undo()
    assert set(build(built, [*tiny_documents(), Document("new")])) >= {"new"}


def test_search_is_exact_and_asks_for_no_more_than_there_is():
    from groundtune.index import Index

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    queries = rng.normal(size=(9, 8)).astype(np.float32)
    index = Index([Document(str(i)) for i in range(50)], vectors)
    scores, positions = index.search(queries, 5)
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :5]
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, expected, axis=1), rtol=1e-5)
    assert index.search(queries, 80)[1].shape == (9, 50)
