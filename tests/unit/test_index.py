"""The vector cache is used if it matches; otherwise missing vectors are embedded, and stale ones are never searched."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FakeEmbedder, tiny_documents
from damages import INDEXES
from safetensors.torch import load_file, save_file

import groundtune.retrieval.stores.local
from groundtune.cli import run_command
from groundtune.data.files import sha256_of
from groundtune.errors import DataError
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.stores.local import Index, Shard, embed_shard, load_or_build_index
from groundtune.schema import Document
from groundtune.system.durable import write_manifest


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


def test_old_and_new_vectors_stand_at_the_places_of_their_documents(built):
    documents = tiny_documents()[::-1]
    documents[1:1] = [Document("new"), Document("newer")]
    assert build(built, documents) == ["new", "newer"]
    assert build(built, documents[:1] + documents) == []  # a document that is there twice has its vector twice


def test_vectors_are_held_once_also_after_a_search(built, monkeypatch):
    from groundtune.retrieval.stores.local import Index

    embedder = FakeEmbedder()
    index = load_or_build_index(built, tiny_documents(), embedder)
    index.search(embedder.embed_questions(["book"]), 2)
    assert vars(index).keys() == {field.name for field in fields(Index)}
    assert sum(isinstance(value, np.ndarray) for value in vars(index).values()) == 1
    # The newly embedded vectors themselves are written and searched, not a copy.
    made = []
    monkeypatch.setattr(
        FakeEmbedder, "embed_documents", lambda self, texts, so_far: made.append(self._embed(texts)) or made[0]
    )
    index = load_or_build_index(built / "new", tiny_documents(), embedder)
    assert index.vectors is made[0]


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
    """Edit a file so that it stays valid."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_id(path):
    change(path, ids=json.loads(path.read_text())["ids"][1:])


def swap_ids(path):
    first, second, *others = json.loads(path.read_text())["ids"]
    change(path, ids=[second, first, *others])


def vouch_for_other_vectors(path):
    """Replace vectors together with their checksum."""
    vectors = path.with_name("vectors.npy")
    np.save(vectors, np.load(vectors)[::-1])
    change(path, vectors_sha256=sha256_of(vectors))


def claim_a_terabyte(path):
    """As a malicious author of the index could write it, with a matching manifest."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**38, 2)})
    about = json.loads((path.parent / "manifest.json").read_text())
    write_manifest(path.parent, {name: about[name] for name in about if name not in ("files", "sha256")})


DAMAGE = {
    "a terabyte of vectors": ("vectors.npy", claim_a_terabyte),
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


@pytest.mark.parametrize("name", ["NaN", "infinity", "other lengths", "fewer rows", "float64", "objects", "ids twice"])
def test_vectors_that_no_model_gives_are_embedded_anew_though_their_checksum_is_right(tmp_path, embedder, name):
    embedder.settings["similarity"] = "cosine"
    whole = load_or_build_index(tmp_path, tiny_documents(), embedder)
    embedder.documents.clear()
    INDEXES[name](tmp_path)
    again = load_or_build_index(tmp_path, tiny_documents(), embedder)
    assert len(embedder.documents) == len(tiny_documents()) and np.array_equal(again.vectors, whole.vectors)


def test_another_model_s_index_in_the_place_of_one_is_not_believed(built):
    """Complete and undamaged, but under the fingerprint of other settings."""
    build(built, tiny_documents(), weights="2")
    first, second = sorted(built.glob("*"))
    for name in ("manifest.json", "vectors.npy"):
        (second / name).write_bytes((first / name).read_bytes())
    assert sorted(len(build(built, tiny_documents(), weights=weights)) for weights in "12") == [0, 6]


def test_vectors_of_other_settings_under_the_same_fingerprint_are_not_believed(built, monkeypatch, caplog):
    """If a setting were ever missing from the fingerprint, the manifest would still contain it."""
    monkeypatch.setattr(groundtune.retrieval.stores.local, "fingerprint", lambda settings: next(built.glob("*")).name)
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


# The fingerprint: twelve single changes to a real embedding model in its folder, or to the documents


@dataclass
class Changed:
    """The inputs of an index, one of which is changed."""

    folder: Path
    documents: list[Document]
    document_prompt: str | None = None

    def embedder(self) -> Embedder:
        return Embedder(str(self.folder), document_prompt=self.document_prompt)


def edit_json(name: str, change):
    def edit(changed: Changed) -> None:
        path = changed.folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text("utf-8")))), "utf-8")

    return edit


def one_weight(changed: Changed) -> None:
    path = changed.folder / "model.safetensors"
    weights = load_file(path)
    weights[min(weights)].view(-1)[0] += 1e-6
    save_file(weights, path, metadata={"format": "pt"})


def in_half_precision(changed: Changed) -> None:
    path = changed.folder / "model.safetensors"
    save_file({name: w.half() for name, w in load_file(path).items()}, path, metadata={"format": "pt"})
    edit_json("config.json", lambda config: {**config, "dtype": "float16"})(changed)


def exchange_two_tokens(tokenizer: dict) -> dict:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["library"], vocabulary["book"] = vocabulary["book"], vocabulary["library"]
    return tokenizer


def first_document(**fields):
    def edit(changed: Changed) -> None:
        changed.documents[0] = replace(changed.documents[0], **fields)

    return edit


EVERY, ONE = 6, 1  # documents that must be embedded again
CHANGES = {
    "one weight": (one_weight, EVERY),
    "the activation": (edit_json("config.json", lambda config: {**config, "hidden_act": "relu"}), EVERY),
    "the tokenizer": (edit_json("tokenizer.json", exchange_two_tokens), EVERY),
    "the pooling": (edit_json("1_Pooling/config.json", lambda config: {**config, "pooling_mode": "cls"}), EVERY),
    "the document prompt": (lambda changed: setattr(changed, "document_prompt", "passage: "), EVERY),
    "the similarity": (
        edit_json("config_sentence_transformers.json", lambda c: {**c, "similarity_fn_name": "dot"}),
        EVERY,
    ),
    "the length it reads": (edit_json("sentence_bert_config.json", lambda c: {**c, "max_seq_length": 12}), EVERY),
    "the type of the weights": (in_half_precision, EVERY),
    "the index's own format": (None, EVERY),
    "the formatted text of a document": (first_document(fmt_content="Title: Opening\nIt opens at ten."), ONE),
    "a document without its title": (first_document(fmt_content=""), ONE),
    "a new document": (lambda changed: changed.documents.append(Document("new")), ONE),
}
NO_CHANGES = {
    "nothing": lambda changed: None,
    "every file touched": lambda changed: [os.utime(path, (1, 1)) for path in changed.folder.rglob("*")],
    "the model's folder renamed": lambda changed: setattr(
        changed, "folder", changed.folder.rename(changed.folder.with_name("another name"))
    ),
    "the model described in a README": lambda changed: (changed.folder / "README.md").write_text("A model."),
    "metadata of a document": first_document(metadata={"touched": 1}),
    "space around a document": first_document(fmt_content=" Title: Opening\nThe library opens at nine.\n"),
    "the order of documents": lambda changed: changed.documents.reverse(),
}


def embedded_after(change, bert_embedding_folder, tmp_path, monkeypatch) -> int:
    """The number of documents that a second run embeds after one change."""
    changed = Changed(tmp_path / "model", tiny_documents())
    shutil.copytree(bert_embedding_folder, changed.folder)
    load_or_build_index(tmp_path / "index", changed.documents, changed.embedder())
    if change is None:
        monkeypatch.setattr(groundtune.retrieval.stores.local, "_FORMAT", -1)
    else:
        change(changed)
    embedder, embedded = changed.embedder(), []
    original = Embedder.embed_documents
    monkeypatch.setattr(
        Embedder,
        "embed_documents",
        lambda self, texts, *so_far: embedded.extend(texts) or original(self, texts, *so_far),
    )
    index = load_or_build_index(tmp_path / "index", changed.documents, embedder)
    monkeypatch.undo()
    texts = [document.text for document in changed.documents]
    np.testing.assert_allclose(index.vectors, embedder.embed_documents(texts), atol=2e-3)
    return len(embedded)


def test_there_are_twelve_changes_and_every_setting_is_among_them(bert_embedding_folder):
    assert len(CHANGES) == 12
    assert len(Embedder(str(bert_embedding_folder)).settings) == sum(n == EVERY for _, n in CHANGES.values()) - 1


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_one_thing_embeds_what_it_touches_anew(name, bert_embedding_folder, tmp_path, monkeypatch):
    change, documents = CHANGES[name]
    assert embedded_after(change, bert_embedding_folder, tmp_path, monkeypatch) == documents


@pytest.mark.parametrize("name", NO_CHANGES)
def test_what_is_renamed_touched_or_put_in_another_order_is_not_embedded(
    name, bert_embedding_folder, tmp_path, monkeypatch
):
    assert embedded_after(NO_CHANGES[name], bert_embedding_folder, tmp_path, monkeypatch) == 0


def test_vectors_without_a_manifest_are_not_believed(built):
    """A run killed between the two files leaves this."""
    (path,) = built.glob("*/manifest.json")
    path.unlink()
    assert len(build(built, tiny_documents())) == 6


class Slow(FakeEmbedder):
    """Lets another run start before it is done."""

    def embed_documents(self, texts, so_far=None):
        time.sleep(0.3)
        return super().embed_documents(texts)


@pytest.mark.parametrize("second", ["the same documents", "others"])
def test_of_two_runs_at_the_same_time_one_waits_and_neither_s_vectors_are_mixed(tmp_path, second):
    first, other = tiny_documents(), tiny_documents()[::-1]
    if second == "others":
        other = [replace(d, page_content=f"{d.page_content} Now.", fmt_content="") for d in other]
    embedders, found = [Slow(), Slow()], {}

    def start(i, documents):
        found[i] = load_or_build_index(tmp_path, documents, embedders[i])

    threads = [threading.Thread(target=start, args=given) for given in enumerate((first, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, documents in enumerate((first, other)):
        np.testing.assert_array_equal(found[i].vectors, vectors_of(documents))
    assert sum(len(e.documents) for e in embedders) == (6 if second == "the same documents" else 12)
    (store,) = tmp_path.iterdir()
    on_disk = groundtune.retrieval.stores.local._read(store, FakeEmbedder().settings)
    rows = {int(id): row for row, id in enumerate(on_disk.ids)}
    written = (first,) if second == "the same documents" else (first, other)
    (last,) = [documents for documents in written if int(documents[0].id, 16) in rows]
    of_last = on_disk.vectors[[rows[int(document.id, 16)] for document in last]]
    np.testing.assert_array_equal(of_last, vectors_of(last))


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, error):
    def fail(self, *args, **kwargs):
        raise error

    monkeypatch.setattr("groundtune.system.locks.FileLock.acquire", fail)
    assert len(build(tmp_path, tiny_documents())) == 6
    assert "file system without locks" in caplog.text


def test_a_folder_that_cannot_be_made_is_the_user_s_to_solve(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="--full_dataset_index_path: .*file/inner/.* cannot be written to"):
        build(tmp_path / "file/inner", tiny_documents())


def test_a_build_that_is_killed_goes_on_where_it_last_wrote(tmp_path, static_embedding_folder, monkeypatch):
    monkeypatch.setattr(groundtune.retrieval.stores.local, "_WRITTEN_EVERY", 2)
    documents, encode = [Document(t) for t in ("nine", "six books", "a question", "the", "free")], Embedder._encode
    encoded = []

    def killed_at(part):
        def encode_some(self, texts, prompt, model):
            if len(encoded) == part:
                raise KeyboardInterrupt
            encoded.append(texts)
            return encode(self, texts, prompt, model)

        monkeypatch.setattr(Embedder, "_encode", encode_some)

    def build():
        return load_or_build_index(tmp_path / "index", documents, Embedder(str(static_embedding_folder), batch_size=1))

    killed_at(3)
    with pytest.raises(KeyboardInterrupt):
        build()
    killed_at(None)
    vectors, texts = build().vectors, [text for part in encoded for text in part]
    assert len(texts) == 6 and len(set(texts)) == 5  # the one after the last writing twice
    fresh = load_or_build_index(tmp_path / "other", documents, Embedder(str(static_embedding_folder)))
    np.testing.assert_array_equal(vectors, fresh.vectors)
    np.testing.assert_array_equal(build().vectors, fresh.vectors)


def test_shards_embed_every_document_once_and_the_index_of_them_is_that_of_one_process(tmp_path):
    documents = [*tiny_documents(), tiny_documents()[1]]  # one twice, as the same passage can be
    embedders = [FakeEmbedder() for _ in range(3)]
    counts = [
        embed_shard(tmp_path, documents, embedder, "float32", Shard(i + 1, 3)) for i, embedder in enumerate(embedders)
    ]
    assert counts == [(2, 2)] * 3
    texts = [text for embedder in embedders for text in embedder.documents]
    assert sorted(texts) == sorted(d.text for d in tiny_documents())
    assert build(tmp_path, documents) == []
    assert not list(tmp_path.glob("*.part-*"))


def test_a_shard_that_is_done_is_not_embedded_again_and_a_missing_one_is_made_up_for(tmp_path):
    documents = tiny_documents()
    assert embed_shard(tmp_path, documents, FakeEmbedder(), "float32", Shard(2, 2)) == (3, 3)
    assert embed_shard(tmp_path, documents, FakeEmbedder(), "float32", Shard(2, 2)) == (3, 0)
    assert build(tmp_path, documents) == [d.text for d in documents[::2]]
    assert embed_shard(tmp_path, documents, FakeEmbedder(), "float32", Shard(1, 2)) == (3, 0)


def test_a_shard_that_is_killed_goes_on_where_it_last_wrote(tmp_path, static_embedding_folder, monkeypatch):
    monkeypatch.setattr(groundtune.retrieval.stores.local, "_WRITTEN_EVERY", 2)
    documents, encode = [Document(f"{word} a book") for word in ("nine", "six", "free", "the")], Embedder._encode
    encoded = []

    def killed(self, texts, prompt, model):
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(texts)
        return encode(self, texts, prompt, model)

    def shard():
        embedder = Embedder(str(static_embedding_folder), batch_size=1)
        return embed_shard(tmp_path / "index", documents, embedder, "float32", Shard(1, 1))

    monkeypatch.setattr(Embedder, "_encode", killed)
    with pytest.raises(KeyboardInterrupt):
        shard()
    monkeypatch.setattr(Embedder, "_encode", encode)
    assert shard() == (4, 2)
    whole = load_or_build_index(tmp_path / "index", documents, Embedder(str(static_embedding_folder)))
    alone = load_or_build_index(tmp_path / "alone", documents, Embedder(str(static_embedding_folder)))
    np.testing.assert_array_equal(whole.vectors, alone.vectors)


def test_vectors_of_shards_differ_from_those_of_one_process_by_rounding_only(tmp_path, bert_embedding_folder):
    """In another batch, a text is padded to another length, and the products add up in another order."""
    documents, embedder = tiny_documents(), Embedder(str(bert_embedding_folder))
    for i in (1, 2):
        embed_shard(tmp_path / "shards", documents, embedder, "float32", Shard(i, 2))
    shards, alone = (load_or_build_index(tmp_path / name, documents, embedder).vectors for name in ("shards", "alone"))
    np.testing.assert_allclose(shards, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shard", "5/4"), "--shard: '5/4' is no shard; write 2/4"),
        (("--shard", "0/4"), "--shard: '0/4' is no shard"),
        (("--shard", "1/2", "--filter", "draft"), "--filter: has no effect with --shard"),
    ],
)
def test_a_shard_that_cannot_be_is_one_line(data_folder, static_embedding_folder, tmp_path, words, said, capsys):
    assert run_command("index", index_words(data_folder, static_embedding_folder, tmp_path, *words)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--")]
    assert line.startswith(said)


def test_the_command_says_what_a_shard_did_and_what_comes_next(data_folder, static_embedding_folder, tmp_path, capsys):
    assert run_command("index", index_words(data_folder, static_embedding_folder, tmp_path, "--shard", "1/4")) == 0
    said = capsys.readouterr().out
    assert said.startswith("shard 1/4: 2 documents, of which 2 were embedded now") and "without --shard" in said
    words = index_words(data_folder, static_embedding_folder, tmp_path, "--shard", "1/4", "--json")
    assert run_command("index", words) == 0
    assert json.loads(capsys.readouterr().out)["embedded"] == 0


def index_words(data: Path, model: Path, folder: Path, *words: str) -> list[str]:
    files = {"full_dataset_file_path": data / "documents.jsonl", "full_dataset_index_path": folder}
    named = [word for name, path in {**files, "embedding_model": model}.items() for word in (f"--{name}", str(path))]
    return [*named, *words]


def test_a_failed_write_leaves_no_believable_index(built, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(groundtune.retrieval.stores.local.np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        build(built, [*tiny_documents(), Document("new")])
    monkeypatch.undo()
    assert set(build(built, [*tiny_documents(), Document("new")])) >= {"new"}


def test_search_is_exact_and_asks_for_no_more_than_there_is():
    from groundtune.retrieval.stores.local import Index

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    queries = rng.normal(size=(9, 8)).astype(np.float32)
    index = Index([Document(str(i)) for i in range(50)], vectors)
    scores, positions = index.search(queries, 5)
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :5]
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, expected, axis=1), rtol=1e-5)
    assert index.search(queries, 80)[1].shape == (9, 50)


def test_on_macos_the_search_has_one_thread(monkeypatch):
    """FAISS and PyTorch each bring an OpenMP there, and the second one crashes in its first parallel loop."""
    import faiss

    threads = []
    monkeypatch.setattr(faiss, "omp_set_num_threads", threads.append)
    index = Index(tiny_documents(), vectors_of(tiny_documents()))
    monkeypatch.setattr("sys.platform", "darwin")
    index.search(index.vectors[:1], 1)
    assert threads == [1]
