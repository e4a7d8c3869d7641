"""Whatever a model's JSON files contain, no code comes from a hub, and nothing outside the model is used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from test_model_folders import adapter, bomb, changed, embedding, load, model, saved_adapter  # noqa: F401  fixtures

from groundtune.arguments import ModelArguments
from groundtune.cli import main
from groundtune.errors import ModelError
from groundtune.model.loading import end_ids, load_tokenizer
from groundtune.model.opening import _with_adapter
from groundtune.retrieval.embedder import Embedder
from groundtune.retrieval.reading_limit import reading_limit
from groundtune.system import hub_access, model_folders
from groundtune.system.model_folders import embedding_problems, hub_problems, loading, model_problems

links = pytest.mark.skipif(os.name == "nt", reason="not everybody may make links on Windows")
KERNEL = "someone/kernel"


@pytest.fixture
def secret(tmp_path) -> Path:
    """A local file that is unrelated to any model."""
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path / "secret.txt"


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The hub URLs that are requested; nothing leaves this machine."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    found = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    session = _http.get_session()

    def send(request, *args, **kwargs):
        found.append(str(request.url))
        raise OSError("no hub here")

    monkeypatch.setattr(session, "_send_single_request", send)  # after the hook that keeps requests back
    return found


def put(path: Path, **values) -> None:
    """Set values in a JSON file, which is created if necessary."""
    if not path.exists():
        path.write_text("{}")
    changed(path, **values)


# Attention from a hub: the package `kernels` fetches and runs it


@pytest.mark.parametrize("settings", [
    {"_attn_implementation": KERNEL}, {"attn_implementation": f"paged|{KERNEL}@main:name"},
    {"experts_implementation": KERNEL}, {"text_config": {"_attn_implementation": {"": KERNEL}}},
], ids=str)  # fmt: skip
def test_no_configuration_names_code_on_a_hub(model, embedding, settings):  # noqa: F811
    changed(model / "config.json", **settings)
    changed(embedding / "config.json", **settings)
    for (problem,) in (model_problems(str(model)), embedding_problems(str(embedding))):
        assert "someone/kernel" in problem and "code on a hub, which is not run" in problem
    with pytest.raises(ModelError, match="code on a hub"):
        load(model)
    with pytest.raises(ValueError, match="code on a hub"):
        Embedder(str(embedding))


def test_the_attention_of_the_library_may_be_named(model, embedding):  # noqa: F811
    changed(model / "config.json", _attn_implementation="eager")
    changed(embedding / "config.json", attn_implementation="eager")
    assert load(model) and Embedder(str(embedding))


# Arguments that sentence-transformers hands on


@pytest.mark.parametrize("settings, problem", [
    ({"model_args": {"attn_implementation": "sdpa", "allow_all_kernels": True}}, "model_args: allow_all_kernels is"),
    ({"model_kwargs": {"offload_folder": "/new", "device_map": {"": "disk"}}}, "model_kwargs: device_map is"),
    ({"config_args": {"_configuration_file": "other.json"}}, "config_args: _configuration_file is"),
    ({"tokenizer_args": {"vocab_file": "vocab.txt"}}, "tokenizer_args: vocab_file is"),
    ({"processor_kwargs": ["a"]}, "processor_kwargs: ['a'] is"),
    ({"tokenizer_name_or_path": "owner/tokenizer"}, "'owner/tokenizer' is another model"),
    ({"modality_config": {"text": {"method": "push_to_hub"}}}, "'push_to_hub' is not an embedding method"),
], ids=str)  # fmt: skip
def test_only_arguments_that_do_no_harm_are_handed_on(embedding, settings, problem):  # noqa: F811
    put(embedding / "sentence_bert_config.json", **settings)
    assert problem in embedding_problems(str(embedding))[0]
    with pytest.raises(ValueError) as caught:
        Embedder(str(embedding))
    assert problem in str(caught.value)
    with pytest.raises(ValueError):
        reading_limit(str(embedding))


def test_arguments_that_do_no_harm_are_handed_on(embedding):  # noqa: F811
    arguments = {"model_args": {"attn_implementation": "eager"}, "tokenizer_args": {"padding_side": "left"}}
    put(embedding / "sentence_bert_config.json", **arguments)
    assert Embedder(str(embedding)).model.tokenizer.padding_side == "left"


# Files and models elsewhere


@pytest.mark.parametrize("key", ["vocab_file", "gguf_file", "tokenizer_file", "vocab", "init_inputs", "anything"])
def test_no_file_of_this_machine_is_a_tokenizer_s(model, secret, key):  # noqa: F811
    value = [str(secret)] if key == "init_inputs" else str(secret)
    changed(model / "tokenizer_config.json", **{key: value})
    with pytest.raises(ModelError, match=rf"tokenizer_config\.json: {key}: .*secret\.txt' is outside the model"):
        load_tokenizer(ModelArguments(model_name_or_path=str(model)))


@pytest.mark.parametrize("value", ["https://example.com/vocab", r"\\server\share\vocab"])
def test_no_file_of_a_network_is_a_tokenizer_s(model, value):  # noqa: F811
    changed(model / "tokenizer_config.json", vocab_file=value)
    assert "is outside the model" in model_problems(str(model))[0]


def test_names_that_lead_nowhere_or_inside_or_are_not_followed_do_no_harm(model, secret):  # noqa: F811
    names = {"name_or_path": str(secret), "special_tokens_map_file": str(secret), "vocab_file": "/nowhere/vocab.json"}
    changed(model / "tokenizer_config.json", **names, tokenizer_file=str(model / "tokenizer.json"), merges_file="\0")
    changed(model / "config.json", _name_or_path=str(secret.parent))
    assert model_problems(str(model)) == [] and load_tokenizer(ModelArguments(model_name_or_path=str(model)))


@links
@pytest.mark.parametrize("linked", ["additional_chat_templates", "additional_chat_templates/other.jinja"])
def test_no_link_in_a_subfolder_leads_out_of_a_model(model, secret, linked):  # noqa: F811
    (model / linked).parent.mkdir(exist_ok=True)
    (model / linked).symlink_to(secret if linked.endswith(".jinja") else secret.parent)
    with pytest.raises(ModelError, match="outside the model's folder"):
        load_tokenizer(ModelArguments(model_name_or_path=str(model)))


@links
def test_no_file_behind_a_link_of_an_embedding_model_is_opened(embedding, secret, monkeypatch):  # noqa: F811
    (embedding / "1_Pooling/config.json").unlink()
    (embedding / "1_Pooling/config.json").symlink_to(secret)
    monkeypatch.setattr(Path, "read_text", lambda path, *args: pytest.fail(f"{path} was opened"))
    (problem,) = embedding_problems(str(embedding))
    assert "1_Pooling/config.json leads to" in problem and "outside the model's folder" in problem


@links
def test_what_a_run_leaves_beside_its_model_may_be_linked(model, secret):  # noqa: F811
    (model / "index").symlink_to(secret.parent)
    assert model_problems(str(model)) == []


# Adapters


@pytest.mark.parametrize("settings, problem", [
    ({"peft_type": "SHADOW", "shadow_model": "owner/model"}, "peft_type is 'SHADOW', and only LoRA"),
    ({"peft_type": "XLORA", "adapters": {"a": "owner/adapter"}}, "peft_type is 'XLORA', and only LoRA"),
    ({"peft_type": None}, "peft_type is None"),
    ({"megatron_config": {"a": 1}, "megatron_core": "own"}, "megatron_config: would import modules"),
], ids=str)  # fmt: skip
def test_only_lora_adapters_are_read(model, adapter, settings, problem):  # noqa: F811
    changed(adapter / "adapter_config.json", **settings)
    loaded = load(model)
    with pytest.raises(ModelError) as caught:
        _with_adapter(loaded, str(adapter), None)
    assert problem in str(caught.value)


def test_an_adapter_without_weights_is_refused_and_the_hub_is_not_asked_for_them(
    model, adapter, asked, monkeypatch, tmp_path  # noqa: F811
):  # fmt: skip
    (adapter / "adapter_model.safetensors").unlink()
    monkeypatch.chdir(tmp_path.parent)  # so that its path looks like a name on the hub
    loaded = load(model)
    with pytest.raises(ModelError, match="contains no adapter_model.safetensors"):
        _with_adapter(loaded, f"{tmp_path.name}/adapter", None)
    assert asked == []


def test_a_folder_is_a_model_or_an_adapter_and_not_both(model, adapter, embedding):  # noqa: F811
    shutil.copy(adapter / "adapter_config.json", model)
    shutil.copy(adapter / "adapter_config.json", embedding)
    with pytest.raises(ModelError, match="contains both config.json and adapter_config.json"):
        load(model)
    assert "contains both config.json and adapter_config.json" in " ".join(embedding_problems(str(embedding)))


@pytest.mark.parametrize("base", ["owner/base", "{model}", None, 17])
def test_the_base_of_an_embedding_model_s_adapter_is_in_its_folder(model, adapter, embedding, base):  # noqa: F811
    for name in ("config.json", "model.safetensors"):
        (embedding / name).unlink()
    shutil.copytree(adapter, embedding, dirs_exist_ok=True)
    changed(embedding / "adapter_config.json", base_model_name_or_path=base and str(base).format(model=model))
    with pytest.raises(ValueError, match="is outside the folder; merge the two"):
        Embedder(str(embedding))


# The hub


def test_no_hub_is_asked_while_a_folder_is_loaded(model, embedding, asked, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_access, "_no_answer_from", lambda address: asked.append(address) or "")
    arguments = ModelArguments(model_name_or_path="model")
    assert load_tokenizer(arguments) and load(Path("model")) and end_ids(arguments)
    assert Embedder("embedding") and reading_limit("embedding")
    processor = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "owner/audio"}
    put(embedding / "processor_config.json", processor_class="DiaProcessor", audio_tokenizer=processor)
    with pytest.raises(ValueError, match="nothing is downloaded for a folder"):
        Embedder("embedding")
    assert asked == []


def test_the_hub_is_in_reach_again_afterwards(model, asked, monkeypatch):  # noqa: F811
    from huggingface_hub import constants, model_info

    monkeypatch.setattr(hub_access, "_no_answer_from", lambda address: "")
    with loading(str(model)):
        assert constants.HF_HUB_OFFLINE
    with loading("owner/model"):
        assert not constants.HF_HUB_OFFLINE
    with pytest.raises(Exception, match="no hub here"):
        model_info("owner/model")
    assert len(asked) == 1


def test_the_settings_of_a_model_of_the_hub_are_looked_at_before_it_is_loaded(
    model, adapter, embedding, monkeypatch  # noqa: F811
):  # fmt: skip
    folders = {"owner/model": model, "owner/adapter": adapter, "owner/embedding": embedding}

    def downloaded(name, revision=None, allow_patterns=()):
        assert "config.json" in allow_patterns and "*/adapter_config.json" in allow_patterns
        return str(folders[name])

    monkeypatch.setattr("huggingface_hub.snapshot_download", downloaded)
    assert [hub_problems(name) for name in folders] == [[], [], []]
    loaded = load(model)
    changed(model / "config.json", _attn_implementation=KERNEL)
    changed(adapter / "adapter_config.json", peft_type="SHADOW")
    put(embedding / "sentence_bert_config.json", model_args={"allow_all_kernels": True})
    with pytest.raises(ModelError, match="owner/model/config.json: .*code on a hub"):
        load(Path("owner/model"))
    with pytest.raises(ModelError, match="owner/adapter/adapter_config.json: peft_type"):
        _with_adapter(loaded, "owner/adapter", None)
    with pytest.raises(ValueError, match="owner/embedding/sentence_bert_config.json: model_args: allow_all_kernels"):
        Embedder("owner/embedding")
    monkeypatch.setattr(model_folders, "PATTERNS", ["config.json"])  # whatever goes wrong, loading says what
    assert hub_problems("owner/embedding") == []


# Settings that libraries assume to be valid


@pytest.mark.parametrize("settings", [
    {"r": "8"}, {"target_modules": 17}, {"alpha_pattern": 1}, {"lora_dropout": 2},
], ids=str)  # fmt: skip
def test_an_adapter_with_odd_settings_is_one_line(model, adapter, settings):  # noqa: F811
    changed(adapter / "adapter_config.json", **settings)
    loaded = load(model)
    with pytest.raises(ModelError, match="cannot load the adapter on") as caught:
        _with_adapter(loaded, str(adapter), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("modules", [
    {}, [], [1], [{"type": "sentence_transformers.models.Transformer"}], [{"type": 1, "path": ""}],
    [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.SentenceTransformerTrainer"}],
    [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.router.Router"}],
], ids=str)  # fmt: skip
def test_an_embedding_model_with_odd_modules_is_one_line(embedding, data_folder, tmp_path, capsys, modules):  # noqa: F811
    (embedding / "modules.json").write_text(json.dumps(modules))
    data = f"--full_dataset_file_path {data_folder}/documents.jsonl --full_dataset_index_path {tmp_path}/index"
    assert main(f"index {data} --embedding_model {embedding}".split()) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Loading weights" not in line]
    assert str(embedding) in line


@pytest.mark.parametrize("name", ["load", "hub", "nn.Linear", ""])
def test_a_type_is_one(model, name):  # noqa: F811
    changed(model / "config.json", dtype="torch.float8_e4m3fn", text_config={"torch_dtype": "bfloat16"})
    assert model_problems(str(model)) == []
    changed(model / "config.json", dtype=name)
    with pytest.raises(ModelError, match="not a data type; use bfloat16 or float32"):
        load(model)


@pytest.mark.parametrize("prompts", [["a"], 17, {"query": 17}], ids=str)
def test_prompts_that_are_no_texts_are_one_line(embedding, prompts):  # noqa: F811
    changed(embedding / "config_sentence_transformers.json", prompts=prompts)
    with pytest.raises(ValueError, match="is not a mapping of names to texts"):
        Embedder(str(embedding))


# Commands


def test_a_setting_that_is_refused_is_one_line_of_every_command(
    model, embedding, data_folder, tmp_path, capsys  # noqa: F811
):  # fmt: skip
    pytest.importorskip("bm25s", reason="needs the extra [bm25]")
    changed(model / "config.json", _attn_implementation=KERNEL)
    put(embedding / "sentence_bert_config.json", tokenizer_args={"vocab_file": "x"})
    documents = f"--full_dataset_file_path {data_folder}/documents.jsonl"
    files = f"--train_file {data_folder}/train.jsonl --eval_file {data_folder}/eval.jsonl"
    for command in (
        f"sft --model_name_or_path {model} {files} {documents} --retriever bm25 --output_dir {tmp_path}/out",
        f"ask {model} Why? {documents} --retriever bm25",
        f"index {documents} --embedding_model {embedding} --full_dataset_index_path {tmp_path}/out",
        f"doctor swr {files} {documents} --model_name_or_path {model} --embedding_model {embedding}",
    ):
        assert main(command.split()) == 2, command
        shown = "".join(capsys.readouterr())
        assert "_attn_implementation names" in shown or "vocab_file is not passed on" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"a":' * 100_000, "17", "[]", "null", '"x"', "<html>"])
@pytest.mark.parametrize("name", ["config.json", "special_tokens_map.json", "generation_config.json"])
def test_settings_that_are_no_json_object_are_one_line(model, name, content):  # noqa: F811
    (model / name).write_text(content)
    (problem,) = model_problems(str(model))
    assert problem.startswith(f"{model / name}: is not the JSON object that it should be (") and len(problem) < 400


def test_json_of_any_other_shape_says_nothing(model):  # noqa: F811
    for content in ({"a": [[["b"]]]}, {"vocab_file": 17}, {"eos_token": None}):
        (model / "special_tokens_map.json").write_text(json.dumps(content))
        assert model_problems(str(model)) == []
