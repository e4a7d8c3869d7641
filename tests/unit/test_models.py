"""Loading a model runs none of its code: no pickle, and no code except that of a pinned commit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES

from groundtune.arguments import GROUPS, Arguments, ModelArguments
from groundtune.errors import ModelError
from groundtune.model import attention, loading
from groundtune.model.loading import add_lora, load_model, load_tokenizer
from groundtune.model.opening import AnsweringModel
from groundtune.training.arguments import QATrainingArguments

COMMIT = "0123456789abcdef" * 2 + "01234567"


def problems(**model) -> list[str]:
    named = ModelArguments(model_name_or_path="owner/model", **model)
    groups = [named if group is ModelArguments else group() for group in GROUPS]
    return Arguments("sft", *groups, QATrainingArguments(output_dir="out")).check(complete=False)


@pytest.mark.parametrize(
    "revision", [None, "", "main", "v1.0", "0123abc", COMMIT[:-1], COMMIT + "0", "g" * 40, f"{COMMIT}\n"]
)
def test_code_of_a_model_needs_a_whole_commit(revision):
    (problem,) = problems(trust_remote_code=True, model_revision=revision)
    assert problem.startswith("--trust_remote_code: ") and "--model_revision" in problem


def test_a_whole_commit_will_do_and_without_code_any_revision():
    assert problems(trust_remote_code=True, model_revision=COMMIT) == []
    assert problems(model_revision="main") == problems() == []


def test_the_code_of_another_repository_is_pinned_to_the_same_commit(monkeypatch):
    """`auto_map` may name another one, which transformers would read from its main branch."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = []

    def refuse(name, **options):
        asked.append(options)
        raise OSError("not here")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    for trusted in (True, False):
        arguments = ModelArguments(model_name_or_path="owner/model", trust_remote_code=trusted, model_revision=COMMIT)
        with pytest.raises(ModelError):
            load_tokenizer(arguments)
        with pytest.raises(ModelError):
            load_model(arguments, bf16=False, stop_ids=(1,), pad_id=0)
    assert [options["trust_remote_code"] for options in asked] == [True, True, False, False]
    assert [options.get("code_revision") for options in asked] == [COMMIT, COMMIT, None, None]
    assert all(options["revision"] == COMMIT for options in asked)


@pytest.mark.parametrize("road", ["on its base", "as a model"])
def test_an_adapter_that_names_a_module_imports_nothing(families, tmp_path, monkeypatch, road):
    """PEFT before 0.20 imported any module that was named."""
    family, folder = families["llama"], tmp_path / "adapter"
    add_lora(family.model(), ModelArguments(use_peft=True, lora_r=2)).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    planted = {"base_model_name_or_path": str(family.folder), "megatron_config": {"a": 1}, "megatron_core": "planted"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **planted}))
    (tmp_path / "planted.py").write_text("raise SystemExit('code of an adapter ran')")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(folder), dtype="float32")
    with pytest.raises(ModelError, match="megatron_config"):
        if road == "on its base":
            AnsweringModel(arguments, bf16=False, base=str(family.folder)).open(family.prompt(), 0)
        else:
            load_model(arguments, bf16=False, stop_ids=(1,), pad_id=0)


def test_code_is_trusted_only_where_its_commit_is_known(monkeypatch):
    """With an adapter on its base, the given revision pins only one of the two: the code of the other is unknown."""
    from transformers import AutoTokenizer

    asked = []
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name, **options: asked.append(options) or 1 / 0)
    for revision in (None, "main"):
        with pytest.raises(ModelError):
            load_tokenizer(ModelArguments("owner/model", trust_remote_code=True, model_revision=revision))
    assert [(o["trust_remote_code"], "code_revision" in o) for o in asked] == [(False, False)] * 2


def test_the_code_of_a_run_s_model_stays_that_of_its_commit(tmp_path):
    """A full model saved by a run may name code on the hub, but only the run's arguments give the commit."""
    from groundtune.model.opening import AnsweringModel

    model = ModelArguments(str(tmp_path), model_revision=COMMIT, trust_remote_code=True, gguf_file="model.gguf")
    saved = AnsweringModel(model, bf16=False, by_run=True)._as_saved()
    assert (saved.model_revision, saved.gguf_file) == (COMMIT, None)
    plain = AnsweringModel(replace(model, trust_remote_code=False), bf16=False, by_run=True)._as_saved()
    assert plain.model_revision is None


def test_code_in_a_model_s_folder_is_not_run(families, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(families["llama"].folder, folder)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "auto_map": own, "model_type": "own"}))
    arguments = ModelArguments(model_name_or_path=str(folder))
    with pytest.raises(ModelError):
        load_model(arguments, bf16=False, stop_ids=(1,), pad_id=0)
    try:
        load_tokenizer(arguments)
    except ModelError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "ran").exists() and config["model_type"] == "llama"


def test_weights_that_are_a_pickle_are_refused_and_not_read(families, tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    folder = tmp_path / "model"
    shutil.copytree(families["llama"].folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="read from safetensors only"):
        load_model(ModelArguments(model_name_or_path=str(folder)), bf16=False, stop_ids=(1,), pad_id=0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_way_to_damage_a_tokenizer_is_one_line(families, tmp_path, name):
    folder = tmp_path / "model"
    for damage in (b"", b"{", b"[]", b'{"version": "1.0"}', b"\xff\xfe"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(families[name].folder, folder)
        (folder / "tokenizer.json").write_bytes(damage)
        with pytest.raises(ModelError) as caught:
            load_tokenizer(ModelArguments(model_name_or_path=str(folder)))
        assert str(folder) in str(caught.value) and "tokenizer" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture
def seeing(families, tmp_path):
    """A folder with a tiny multimodal Gemma 3, like those of 4B and more."""
    from transformers import AutoModelForCausalLM, Gemma3Config

    family = families["gemma"]
    text = {**family.model().config.to_dict(), "vocab_size": len(family.tokenizer) + 1}
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    return ModelArguments(model_name_or_path=str(tmp_path), use_peft=True, lora_r=2)


def test_an_adapter_of_a_model_that_also_sees_is_on_its_language_layers_alone(seeing):
    model = load_model(seeing, bf16=False, stop_ids=(1,), pad_id=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2  # A and B, seven linear layers, two blocks
    assert all(".language_model.layers." in name for name in trained)
    assert model.generation_config.bos_token_id == model.config.get_text_config().bos_token_id is not None


def test_a_text_model_s_adapter_leaves_nothing_out(families):
    arguments = ModelArguments(model_name_or_path=str(families["gemma"].folder), use_peft=True)
    model = load_model(arguments, bf16=False, stop_ids=(1,), pad_id=0)
    assert model.peft_config["default"].exclude_modules is None


@pytest.mark.parametrize(
    "template",
    [
        "Today is {{ strftime_now('%d %b %Y') }}.",
        "{% if strftime_now is defined %}Today is {{ strftime_now('%Y') }}.{% endif %}",
    ],
)
def test_a_template_that_writes_the_date_writes_the_same_every_day(families, tmp_path, template):
    tokenizer = families["qwen"].tokenizer
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        tokenizer.save_pretrained(tmp_path / "once")
    finally:
        tokenizer.chat_template = before
    once = load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path / "once")))
    once.save_pretrained(tmp_path / "again")
    for loaded in (once, load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path / "again")))):
        assert loaded.chat_template == once.chat_template
        assert loaded.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "Today is 26 Jul 2024."


def test_a_model_without_sdpa_is_loaded_with_what_it_has(families, tmp_path):
    """For example Gemma 2, whose scores are capped."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path), use_peft=False)
    assert load_model(arguments, bf16=False, stop_ids=(1,), pad_id=0).config._attn_implementation == "eager"


def test_a_configuration_that_names_another_attention_does_not_choose_it(families, tmp_path):
    shutil.copytree(families["llama"].folder, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text("utf-8"))
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "attn_implementation": "flash_attention_2"}))
    arguments = ModelArguments(model_name_or_path=str(tmp_path / "model"), use_peft=False)
    assert load_model(arguments, bf16=False, stop_ids=(1,), pad_id=0).config._attn_implementation == "sdpa"


def test_flash_attention_that_is_not_there_is_a_line_and_the_fastest_exact_attention_runs(families, caplog):
    """The commands that users have print the flag; without its package it must not end them."""
    family = families["llama"]
    settings = {"bf16": False, "stop_ids": (2,), "pad_id": 0}
    plain = load_model(ModelArguments(str(family.folder)), **settings)
    assert "flash" not in caplog.text
    asked = load_model(ModelArguments(str(family.folder), use_flash_attention=True), **settings)
    (record,) = [record for record in caplog.records if "--use_flash_attention" in record.getMessage()]
    assert "the package flash-attn is not installed" in record.getMessage()
    ids = torch.tensor([[1, 5, 9, 4]])
    assert torch.equal(plain(ids).logits, asked(ids).logits)


def test_flash_attention_that_is_there_does_not_cost_packing(families, monkeypatch):
    """Packing saves more: where it is exact it is used, and elsewhere the attention that was asked for remains."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: object())
    assert loading.attention_for(ModelArguments("any", use_flash_attention=True)) == "flash_attention_2"
    monkeypatch.undo()
    for exact in (True, False):
        model = families["llama"].model()
        model.config._attn_implementation = "flash_attention_2"  # as with the package, which is not here
        chosen = model.set_attn_implementation
        names = []

        def choose(name, names=names, chosen=chosen):
            names.append(name)
            if name != "flash_attention_2":
                chosen(name)

        model.set_attn_implementation = choose
        if not exact:
            monkeypatch.setattr(attention, "_difference", lambda model, to_train: "they differ")
        problem = attention.use_packed_attention(model)
        assert (problem, names[-1]) == ((None, attention.NAME) if exact else ("they differ", "flash_attention_2"))
