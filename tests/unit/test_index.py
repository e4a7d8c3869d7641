"""The cache of vectors is used where it fits; elsewhere what is missing is embedded, and nothing stale is searched."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
from conftest import FakeEmbedder, tiny_documents

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


def swap_ids(path):
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "ids": manifest["ids"][1:]}))


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
    "too few ids": ("manifest.json", swap_ids),
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
