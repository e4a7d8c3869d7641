"""Whatever a model folder contains, no pickle is read, no code runs, and no file outside it is opened."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("bm25s", reason="needs the extra [bm25]")

import groundtune.model.loading
from groundtune.arguments import ModelArguments
from groundtune.cli import main
from groundtune.errors import ModelError
from groundtune.model.loading import add_lora, load_model, load_tokenizer
from groundtune.model.opening import _with_adapter
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.reading_limit import reading_limit
from groundtune.runs.checkpoints import newest_checkpoint, read_checkpoint
from groundtune.system.durable import Damaged, write_manifest
from groundtune.system.model_folders import embedding_problems, model_problems, nothing_unpickled

links = pytest.mark.skipif(os.name == "nt", reason="not everybody may make links on Windows")


@pytest.fixture
def bomb(tmp_path, monkeypatch) -> bytes:
    """A pickle that creates a file when read, and a `torch.load` that would read it."""

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"weight": Bomb()}, tmp_path / "bomb")
    careless = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: careless(*args, **kwargs | {"weights_only": False}))
    yield (tmp_path / "bomb").read_bytes()
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def model(families, tmp_path) -> Path:
    shutil.copytree(families["llama"].folder, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def saved_adapter(families, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    add_lora(families["llama"].model(), ModelArguments(lora_r=2)).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved_adapter, model, tmp_path) -> Path:
    """A folder with a LoRA adapter of `model`."""
    folder = tmp_path / "adapter"
    shutil.copytree(saved_adapter, folder)
    changed(folder / "adapter_config.json", base_model_name_or_path=str(model))
    return folder


@pytest.fixture
def embedding(bert_embedding_folder, tmp_path) -> Path:
    """A folder with a BERT, a pooling and a dense layer."""
    folder = tmp_path / "embedding"
    shutil.copytree(bert_embedding_folder, folder)
    from safetensors.torch import save_file

    (folder / "2_Dense").mkdir()
    config = {"in_features": 16, "out_features": 8, "bias": False, "activation_function": "torch.nn.Tanh"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    save_file({"linear.weight": torch.ones(8, 16)}, folder / "2_Dense" / "model.safetensors")
    modules = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.Dense"
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def changed(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load(folder: Path) -> object:
    return load_model(ModelArguments(model_name_or_path=str(folder)), bf16=False, stop_ids=(1,), pad_id=0)


def one_line(error: Exception) -> str:
    assert "\n" not in str(error)
    return str(error)


def in_shards(model: Path, shard: object) -> Path:
    """The model with an index that names `shard` for every weight."""
    from safetensors.torch import load_file

    names = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def test_what_is_as_it_should_be_is_loaded(model, adapter, embedding):
    assert model_problems(str(model)) == model_problems(str(adapter)) == embedding_problems(str(embedding)) == []
    assert _with_adapter(load(model), str(adapter), None)
    assert load(in_shards(model, "model-00001-of-00001.safetensors"))
    assert Embedder(str(embedding)).embed_questions(["a"]).shape == (1, 8)


def test_pickles_beside_the_safetensors_that_are_read_do_no_harm(bomb, model, adapter, embedding):
    for path in (model / "pytorch_model.bin", adapter / "adapter_model.bin", embedding / "2_Dense/pytorch_model.bin"):
        path.write_bytes(bomb)
    assert _with_adapter(load(model), str(adapter), None)
    assert Embedder(str(embedding)).embed_questions(["a"]).shape == (1, 8)


# A decoder


def bin_alone(model: Path, bomb: bytes) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(bomb)


def bin_in_shards(model: Path, bomb: bytes) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model-1.bin").write_bytes(bomb)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model-1.bin"}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def bin_as_a_shard(model: Path, bomb: bytes) -> None:
    (in_shards(model, "shard.bin") / "shard.bin").write_bytes(bomb)


def bin_of_another_folder(model: Path, bomb: bytes) -> None:
    (model.parent / "shard.bin").write_bytes(bomb)
    in_shards(model, "../shard.bin")


def bin_by_its_path(model: Path, bomb: bytes) -> None:
    (model.parent / "shard.bin").write_bytes(bomb)
    in_shards(model, str(model.parent / "shard.bin"))


def bin_that_the_configuration_names(model: Path, bomb: bytes) -> None:
    (model / "model.safetensors").unlink()
    (model / "adapter_model.bin").write_bytes(bomb)
    changed(model / "config.json", transformers_weights="adapter_model.bin")


def safetensors_of_another_folder(model: Path, bomb: bytes) -> None:
    in_shards(model, "../elsewhere.safetensors")
    (model / "model-00001-of-00001.safetensors").rename(model.parent / "elsewhere.safetensors")


def no_name_at_all(model: Path, bomb: bytes) -> None:
    in_shards(model, 17)


def no_list_at_all(model: Path, bomb: bytes) -> None:
    (in_shards(model, "") / "model.safetensors.index.json").write_text("[]")


def linked_shard(model: Path, bomb: bytes) -> None:
    in_shards(model, "shard.safetensors")
    (model / "model-00001-of-00001.safetensors").rename(model.parent / "mine.safetensors")
    (model / "shard.safetensors").symlink_to(model.parent / "mine.safetensors")


def linked_weights(model: Path, bomb: bytes) -> None:
    (model / "model.safetensors").rename(model.parent / "mine.safetensors")
    (model / "model.safetensors").symlink_to(model.parent / "mine.safetensors")


def linked_configuration(model: Path, bomb: bytes) -> None:
    (model / "generation_config.json").rename(model.parent / "mine.json")
    (model / "generation_config.json").symlink_to(model.parent / "mine.json")


WRONG_MODELS = [
    bin_alone, bin_in_shards, bin_as_a_shard, bin_of_another_folder, bin_by_its_path, bin_that_the_configuration_names,
    safetensors_of_another_folder, no_name_at_all, no_list_at_all,
    *(pytest.param(make, marks=links) for make in (linked_shard, linked_weights, linked_configuration)),
]  # fmt: skip


@pytest.mark.parametrize("make", WRONG_MODELS)
def test_a_decoder_is_refused_by_every_command_in_one_line(bomb, model, data_folder, tmp_path, capsys, make):
    make(model, bomb)
    problem = model_problems(str(model))[0]
    assert str(model) in problem and "\n" not in problem
    with pytest.raises(ModelError) as caught:
        load(model)
    assert one_line(caught.value) == problem
    data = f"--full_dataset_file_path {data_folder}/documents.jsonl --retriever bm25"
    files = f"--train_file {data_folder}/train.jsonl --eval_file {data_folder}/eval.jsonl"
    answers = f"--eval_file {data_folder}/test.jsonl --contexts gold --output_dir {tmp_path}/out"
    for command in (
        f"sft --model_name_or_path {model} {files} {data} --output_dir {tmp_path}/out",
        f"evaluate {model} {answers}",
        f"ask {model} Why? {data}",
        f"evaluate --generator openai:http://localhost:9/v1 --generator_model m {answers} --judge {model}",
        f"questions {data_folder}/documents.jsonl -o {tmp_path}/qa --generator {model} --min_words 1",
    ):
        assert main(command.split()) == 2, command
        assert problem in capsys.readouterr().err.splitlines(), command
    assert not (tmp_path / "out").exists()


@links
def test_a_linked_tokenizer_is_refused_where_only_the_tokenizer_is_read(model):
    (model / "tokenizer.json").rename(model.parent / "mine.json")
    (model / "tokenizer.json").symlink_to(model.parent / "mine.json")
    with pytest.raises(ModelError, match=r"tokenizer\.json leads to .*mine\.json, outside the model's folder"):
        load_tokenizer(ModelArguments(model_name_or_path=str(model)))


def test_the_tokenizer_of_a_model_that_a_server_serves_is_read_beside_any_weights(bomb, model):
    bin_alone(model, bomb)
    assert load_tokenizer(ModelArguments(model_name_or_path=str(model)))


@pytest.mark.parametrize("make", [bin_as_a_shard, bin_that_the_configuration_names])
def test_what_a_model_of_the_hub_lists_is_not_unpickled(bomb, model, monkeypatch, make):
    # As for a name on the hub.
    monkeypatch.setattr(groundtune.model.loading, "model_problems", lambda *args, **kwargs: [])
    make(model, bomb)
    with pytest.raises(ModelError, match="is a pickle, not safetensors"):
        load(model)


def test_torch_load_is_itself_again_afterwards(bomb):
    before = torch.load
    with pytest.raises(ValueError, match="a.bin is a pickle"), nothing_unpickled():
        torch.load("folder/a.bin", weights_only=True)
    assert torch.load is before


def test_a_gguf_file_lies_in_its_folder(model):
    assert model_problems(str(model), "model.gguf") == []
    for name in ("../model.gguf", "/model.gguf"):
        (problem,) = model_problems(str(model), name)
        assert problem == f"--gguf_file: {name} is not inside {model}"


# The hub's cache


@links
def test_a_snapshot_in_the_cache_of_the_hub_is_read_through_its_links(model, tmp_path, monkeypatch):
    repository = tmp_path / "cache" / "models--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(model.iterdir())):
        # All repositories in the cache share large files.
        blobs = tmp_path / "cache" / "blobs" / "00" if path.suffix == ".safetensors" else repository / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    assert model_problems(str(snapshot)) == [] and load(snapshot)
    elsewhere = tmp_path / "elsewhere"  # a folder of links into the cache, as earlier downloads made it
    shutil.copytree(snapshot, elsewhere, symlinks=True)
    assert model_problems(str(elsewhere))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert model_problems(str(elsewhere)) == [] and load(elsewhere)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "config.json")
    assert len(model_problems(str(snapshot))) == 1


@links
def test_the_folder_of_a_model_may_be_a_link(model, tmp_path):
    (tmp_path / "name").symlink_to(model)
    assert model_problems(str(tmp_path / "name")) == [] and load(tmp_path / "name")


# An adapter and its base


def test_an_adapter_that_is_a_pickle_is_not_read(bomb, model, adapter, data_folder, tmp_path, capsys):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(bomb)
    loaded = load(model)
    with pytest.raises(ModelError, match=r"adapter_model\.bin is a pickle") as caught:
        _with_adapter(loaded, str(adapter), None)
    answers = f"--eval_file {data_folder}/test.jsonl --contexts gold --output_dir {tmp_path}/out"
    assert main(f"evaluate {adapter} --base_model {model} {answers}".split()) == 2
    assert one_line(caught.value) in capsys.readouterr().err.splitlines()


def test_an_adapter_of_the_hub_is_not_unpickled(bomb, model, adapter, monkeypatch):
    monkeypatch.setattr("groundtune.model.opening.model_problems", lambda *args, **kwargs: [])
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(bomb)
    loaded = load(model)
    with pytest.raises(ModelError, match="is a pickle, not safetensors"):
        _with_adapter(loaded, str(adapter), None)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_base_of_an_adapter_is_looked_at_as_well(bomb, model, adapter, tmp_path, depth):
    bin_as_a_shard(model, bomb)
    named = adapter
    for i in range(depth - 1):  # an adapter of an adapter
        named = tmp_path / f"adapter-{i}"
        shutil.copytree(adapter, named)
        changed(named / "adapter_config.json", base_model_name_or_path=str(adapter))
    (problem,) = model_problems(str(named))
    assert "shard.bin" in problem
    with pytest.raises(ModelError, match="shard.bin"):
        load(named)


def test_a_base_that_is_named_in_place_of_the_adapter_s_own_is_the_one_that_is_looked_at(
    bomb, model, adapter, data_folder, tmp_path, capsys
):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    bin_as_a_shard(other, bomb)
    answers = f"--eval_file {data_folder}/test.jsonl --contexts gold --output_dir {tmp_path}/out"
    assert main(f"evaluate {adapter} --base_model {other} {answers}".split()) == 2
    assert model_problems(str(other))[0] in capsys.readouterr().err.splitlines()
    bin_as_a_shard(model, bomb)
    assert model_problems(str(adapter), with_base=False) == []


def test_an_adapter_that_is_its_own_base_ends(adapter):
    changed(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    assert model_problems(str(adapter)) == []


# An embedding model


def embedding_bin(embedding: Path, bomb: bytes) -> None:
    bin_alone(embedding, bomb)


def dense_bin(embedding: Path, bomb: bytes) -> None:
    bin_alone(embedding / "2_Dense", bomb)


def routed_class(embedding: Path, bomb: bytes) -> None:
    (embedding / "2_Dense" / "router_config.json").write_text('{"types": {"query": "own.Own"}}')


def listed(**values):
    """An embedding model whose last module is replaced."""

    def change(embedding: Path, bomb: bytes) -> None:
        modules = json.loads((embedding / "modules.json").read_text())
        modules[-1] |= values
        (embedding / "modules.json").write_text(json.dumps(modules))

    change.__name__ = "listed " + " ".join(values.values())
    return change


def linked_module(embedding: Path, bomb: bytes) -> None:
    (embedding / "2_Dense").rename(embedding.parent / "2_Dense")
    (embedding / "2_Dense").symlink_to(embedding.parent / "2_Dense")


WRONG_EMBEDDINGS = [
    embedding_bin, dense_bin, bin_as_a_shard, routed_class, listed(type="own.Own"), listed(type="os.path"),
    listed(type="sentence_transformers.base.model.torch"), listed(type="sentence_transformers_evil.Own"),
    listed(path="../2_Dense"), pytest.param(linked_module, marks=links), pytest.param(linked_weights, marks=links),
]  # fmt: skip


@pytest.mark.parametrize("make", WRONG_EMBEDDINGS)
def test_an_embedding_model_is_refused_by_every_command(bomb, embedding, model, data_folder, tmp_path, capsys, make):
    (embedding / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    make(embedding, bomb)
    problem = embedding_problems(str(embedding))[0]
    assert str(embedding) in problem and "\n" not in problem
    for opened in (Embedder, reading_limit):
        with pytest.raises(ValueError) as caught:
            opened(str(embedding))
        assert one_line(caught.value) == problem
    documents = f"{data_folder}/documents.jsonl"
    index = f"--full_dataset_index_path {tmp_path}/index"
    data = f"--full_dataset_file_path {documents} {index} --embedding_model {embedding}"
    files = f"--train_file {data_folder}/train.jsonl --eval_file {data_folder}/eval.jsonl"
    for command in (
        f"swr --model_name_or_path {model} {files} {data} --output_dir {tmp_path}/out",
        f"evaluate {model} --eval_file {data_folder}/test.jsonl {data} --output_dir {tmp_path}/out",
        f"ask {model} Why? {data}",
        f"index {data}",
    ):
        assert main(command.split()) == 2, command
        assert problem in capsys.readouterr().err.splitlines(), command
    questions = f"questions {documents} -o {tmp_path}/qa --generator {model} --min_words 1"
    assert main([*questions.split(), "--embedding_model", str(embedding)]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "index").exists() and not (tmp_path / "out").exists()


def test_a_later_layer_of_an_embedding_model_of_the_hub_is_not_unpickled(bomb, embedding, monkeypatch):
    monkeypatch.setattr("groundtune.retrieval.embedder.refuse_embedding_model", lambda name: None)
    dense_bin(embedding, bomb)
    with pytest.raises(ValueError, match="is a pickle, not safetensors"):
        Embedder(str(embedding))


# A checkpoint


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "other/adapter_model.bin"])
def test_a_checkpoint_with_a_pickle_is_not_resumed_from(bomb, tmp_path, caplog, name):
    folder = tmp_path / "run" / "checkpoint-2"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(bomb)
    write_manifest(folder, {"step": 2, "resumable": True})
    with pytest.raises(Damaged, match=rf"{Path(name).name} is a pickle"):
        read_checkpoint(folder)
    assert newest_checkpoint(tmp_path / "run") is None
    assert "is a pickle" in caplog.text


@pytest.mark.parametrize("name, content", [
    ("trainer_state.json", b"[" * 100_000), ("trainer_state.json", b"17"), ("optimizer.json", b"{"),
    ("optimizer.safetensors", b"no tensors"),
])  # fmt: skip
def test_a_checkpoint_with_a_file_that_no_library_can_read_is_not_resumed_from(tmp_path, caplog, name, content):
    folder = tmp_path / "run" / "checkpoint-2"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    write_manifest(folder, {"step": 2, "resumable": True})
    assert newest_checkpoint(tmp_path / "run") is None
    assert f"was not read: {folder / name}: " in caplog.text


def test_the_bomb_is_one(bomb, tmp_path):
    torch.load(tmp_path / "bomb")
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
