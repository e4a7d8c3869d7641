"""A broken model folder ends in one line that names the file, in time, and before memory is taken for its claims."""

from __future__ import annotations

import copy
import json
import os
import struct
import time
from pathlib import Path

import pytest
from damages import FOLDERS, LFS, TEMPLATES, TOKENIZERS, WEIGHTS, put, weights
from test_model_folders import adapter, changed, embedding, load, model, one_line, saved_adapter  # noqa: F401  fixtures

from groundtune.arguments import ModelArguments, PromptArguments
from groundtune.cli import main
from groundtune.errors import ModelError
from groundtune.model.loading import load_tokenizer
from groundtune.model.opening import _with_adapter
from groundtune.prompts.prompt import make_prompt
from groundtune.retrieval.embedder import Embedder
from groundtune.system.model_folders import embedding_problems, model_problems
from groundtune.system.panics import is_panic
from groundtune.system.patterns import pattern_problem
from groundtune.system.templates import MOST_CHARACTERS, MOST_STEPS, BoundedEnvironment
from groundtune.system.weights import file_problem

pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


def refusal(folder: Path) -> str:
    """The one line with which a decoder is refused."""
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    return one_line(caught.value)


# Files


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "NaN"])
def test_weights_that_are_damaged_are_one_line_for_a_decoder_and_for_an_embedding_model(model, embedding, name):  # noqa: F811
    for folder in (model, embedding):
        weights(WEIGHTS[name])(folder)
    refusal(model)
    with pytest.raises(Exception) as caught:  # libraries raise many types
        Embedder(str(embedding))
    assert str(caught.value)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "config.json", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named_with_the_way_out(model, adapter, name):  # noqa: F811
    folder = adapter if name.startswith("adapter") else model
    (folder / name).write_bytes(LFS)
    assert model_problems(str(folder)) == [
        f"{folder / name}: is a Git LFS pointer in place of the file; run `git lfs pull` in its folder"
    ]


def test_a_file_that_may_not_be_read_is_reported_as_that(model, monkeypatch):  # noqa: F811
    def refused(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("groundtune.system.weights.open", refused, raising=False)
    path = model / "model.safetensors"
    assert file_problem(path) == f"{path}: cannot be read (permission denied); make it readable"


@pipes
@pytest.mark.parametrize("name", [name for name in FOLDERS if name.endswith("a pipe")])
def test_a_pipe_in_a_folder_is_not_waited_for(model, name):  # noqa: F811
    FOLDERS[name](model)
    assert "is not an ordinary file; replace it" in model_problems(str(model))[0]


def test_whole_weights_are_no_problem_whatever_their_header_holds(tmp_path):
    path = tmp_path / "model.safetensors"
    for header in ({}, {"__metadata__": {"a": "b"}}, {"a": {"dtype": "F4", "shape": [0, 3], "data_offsets": [0, 0]}}):
        told = json.dumps(header).encode() + b"  "
        path.write_bytes(struct.pack("<Q", len(told)) + told)
        assert file_problem(path) == ""


@pytest.mark.parametrize("name", [name for name in FOLDERS if name.startswith("index names")])
def test_an_index_that_names_what_is_not_there_is_one_line(model, name):  # noqa: F811
    FOLDERS[name](model)
    (problem,) = model_problems(str(model))
    assert problem.startswith(f"{model / 'model.safetensors.index.json'}: ")


# Settings and weights that do not belong together


@pytest.mark.parametrize("name, value", [
    ("hidden_size", 10**9), ("vocab_size", 10**12), ("intermediate_size", 10**12), ("num_attention_heads", 10**9),
    ("num_hidden_layers", 10**9), ("num_hidden_layers", 10**30), ("num_hidden_layers", 99), ("num_labels", 10**9),
    ("num_hidden_layers", 3), ("num_hidden_layers", 1), ("num_hidden_layers", 0), ("intermediate_size", 65),
    ("rms_norm_eps", float("nan")), ("model_type", "own"),
])  # fmt: skip
def test_sizes_are_compared_with_the_weights_before_memory_is_taken_for_them(model, name, value):  # noqa: F811
    changed(model / "config.json", **{name: value})
    begin = time.process_time()
    refusal(model)
    assert time.process_time() - begin < 5


def test_weights_of_more_layers_are_an_error_and_others_that_are_not_used_one_line(model, caplog):  # noqa: F811
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, "value_head.weight": tensors["model.norm.weight"].clone()}, model / "model.safetensors")
    assert load(model)
    (line,) = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert line == f"{model}: 1 weights are not part of a LlamaForCausalLM and are not used: value_head.weight"
    changed(model / "config.json", num_hidden_layers=1)
    assert "weights belong to layers beyond the 1 of config.json" in refusal(model)


def test_weights_that_the_class_of_the_model_ignores_are_not_mentioned(model, caplog):  # noqa: F811
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    ignored = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**tensors, ignored: tensors["model.norm.weight"].clone()}, model / "model.safetensors")
    assert load(model) and "not used" not in caplog.text


def test_an_embedding_model_without_some_weights_is_refused_but_for_its_pooler(embedding):  # noqa: F811
    from safetensors.torch import load_file, save_file

    tensors = load_file(embedding / "model.safetensors")
    assert "pooler.dense.weight" in tensors
    without = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(without, embedding / "model.safetensors")
    assert Embedder(str(embedding))
    without.pop("embeddings.word_embeddings.weight")
    save_file(without, embedding / "model.safetensors")
    with pytest.raises(ValueError, match="1 weights are missing and would be random: embeddings.word_embeddings"):
        Embedder(str(embedding))


def test_an_end_token_without_an_embedding_is_one_line_of_ask(model, data_folder, capsys):  # noqa: F811
    changed(model / "tokenizer_config.json", eos_token="<nobody>")
    documents = f"--full_dataset_file_path {data_folder}/documents.jsonl --retriever bm25"
    assert main(f"ask {model} Why? {documents}".split()) == 2
    assert f"{model}: the tokenizer produces ids up to" in capsys.readouterr().err


def test_weights_that_are_nan_are_one_line_of_ask(model, data_folder, capsys):  # noqa: F811
    weights(WEIGHTS["NaN"])(model)
    documents = f"--full_dataset_file_path {data_folder}/documents.jsonl --retriever bm25"
    assert main(f"ask {model} Why? {documents}".split()) == 2
    assert f"{model}: its outputs are NaN; are its weights damaged?" in capsys.readouterr().err.splitlines()


def test_two_flags_that_are_swapped_are_recognised(model, embedding):  # noqa: F811
    (problem,) = model_problems(str(embedding))
    assert "holds an embedding model" in problem and "may be swapped" in problem
    (problem,) = embedding_problems(str(model))
    assert "holds a LlamaForCausalLM" in problem and "is this an embedding model?" in problem


# Tokenizers


@pytest.mark.parametrize("name, damage", [(name, damage) for name, damage, harmless in TOKENIZERS if not harmless])
def test_a_tokenizer_that_does_not_work_is_one_line_and_no_report_of_rust(model, capfd, name, damage):  # noqa: F811
    damage(model)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(ModelArguments(model_name_or_path=str(model)))
    assert str(model) in one_line(caught.value)
    assert "panicked" not in capfd.readouterr().err


def test_a_panic_that_only_some_text_causes_ends_the_command_with_one_line(monkeypatch, capsys):
    class PanicException(BaseException):
        pass

    def fail(words):
        raise PanicException("index out of bounds")

    assert is_panic(PanicException())
    monkeypatch.setattr("groundtune.commands.ask.main", fail)
    assert main(["ask"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# Chat templates


@pytest.mark.parametrize("name", [
    "range of a billion", "loops in loops", "loops in loops that print", "loop over a text times 10**9",
    "macro that calls itself twice", "recursive macro", "power of powers", "text times 10**11", "list times 10**11",
    "text doubled 60 times", "text joined 60 times", "text printed 60 times", "format to 10**11",
    "format method to 10**11", "centred in 10**11", "justified to 10**11",
])  # fmt: skip
def test_a_chat_template_takes_limited_time_and_memory(families, name):
    tokenizer = copy.deepcopy(families["llama"].tokenizer)
    tokenizer.chat_template = TEMPLATES[name]
    begin = time.process_time()
    with pytest.raises(ModelError, match="its chat template") as caught:
        make_prompt(tokenizer, PromptArguments())
    assert time.process_time() - begin < 20 and len(one_line(caught.value)) < 500


def test_a_bounded_template_writes_what_it_wrote_before(families):
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    roles = ["user", "assistant"] * 9
    messages = [{"role": role, "content": f"Text {i}.\n\nMore {{}} %d"} for i, role in enumerate(roles)]
    own = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{{ loop.index ~ '/' ~ loop.length }}{{ m.content | upper | replace('T', 't') }}{{ '%s-%d' % ('a', 3) }}"
        "{{ '{:>5}'.format(ns.n) }}{% if loop.last %}{{ '=' * 20 }}{{ messages | map(attribute='role') | join(', ') }}"
        "{{ messages[::-1][0].content | trim }}{% endif %}{% endfor %}"
        "{% for x in [1, 2, 3] if x > 1 %}{{ x ** 2 }}{% else %}none{% endfor %}"
    )
    templates = [own, *(families[name].tokenizer.chat_template for name in ("llama", "gemma", "qwen"))]
    for template in templates:
        given = {"messages": messages, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
        plain, bounded = ImmutableSandboxedEnvironment(), BoundedEnvironment()
        assert bounded.from_string(template).render(given) == plain.from_string(template).render(given)
        assert bounded.steps < MOST_STEPS / 100 and bounded.characters < MOST_CHARACTERS / 100


def test_every_rendering_has_all_steps():
    template = BoundedEnvironment().from_string("{% for i in range(90000) %}{% endfor %}x")
    assert [template.render() for _ in range(5)] == ["x"] * 5


# Adapters


ENDLESS = ["(.*)*(.*)*x", "((a|.)*)*$y", "(([a-z_.0-9]+)+)+X"]


@pytest.mark.parametrize("pattern, problem", [(ENDLESS[1], "takes more than"), ("(", "cannot be read")])
def test_a_regular_expression_that_does_not_end_is_refused(pattern, problem):
    names = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]
    assert problem in pattern_problem([("fullmatch", r".*(q|v)_proj"), ("fullmatch", pattern)], names, seconds=0.5)
    assert pattern_problem([("fullmatch", r".*(q|v)_proj"), ("match", "q_proj")], names) == ""


@pytest.mark.parametrize("settings", [
    {"target_modules": ENDLESS[0]}, {"exclude_modules": ENDLESS[2]}, {"alpha_pattern": {ENDLESS[1]: 2}},
    {"rank_pattern": {ENDLESS[1]: 2}}, {"modules_to_save": [ENDLESS[1]]},
    {"layers_pattern": ENDLESS[1], "layers_to_transform": [0]},
], ids=str)  # fmt: skip
def test_no_pattern_of_an_adapter_is_tried_without_a_limit(model, adapter, settings, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        "groundtune.model.opening.pattern_problem",
        lambda patterns, names: pattern_problem(patterns, names, seconds=0.5),
    )
    changed(adapter / "adapter_config.json", **settings)
    loaded = load(model)
    with pytest.raises(ModelError, match="takes more than 0 seconds; list the modules by their names"):
        _with_adapter(loaded, str(adapter), None)


@pytest.mark.parametrize("settings, problem", [
    *(({"init_lora_weights": name}, "init_lora_weights is") for name in (
        "pissa_niter_100000", "pissa_niter_x", "loftq", "corda", "lora_ga", "own", 17, []
    )),
    ({"layer_replication": [[0, 2]]}, "layer_replication: is not supported"),
    *(({"r": rank}, "gives the rank") for rank in (0, -1, 10**9, "2", 2.5)),
    ({"rank_pattern": {"q_proj": 10**9}}, "gives the rank"),
    ({"target_modules": ["q_proj"]}, "weights belong to no layer"),
    ({"r": 3}, "cannot load the adapter"), ({"target_modules": ["nobody"]}, "cannot load the adapter"),
], ids=str)  # fmt: skip
def test_an_adapter_whose_settings_do_not_fit_its_weights_is_one_line(model, adapter, settings, problem):  # noqa: F811
    changed(adapter / "adapter_config.json", **settings)
    loaded = load(model)
    with pytest.raises(ModelError, match=problem) as caught:
        _with_adapter(loaded, str(adapter), None)
    assert str(adapter) in one_line(caught.value)


@pytest.mark.parametrize("init", [True, False, "gaussian", "olora", "pissa_niter_4"])
def test_an_adapter_is_the_same_however_it_began_where_that_leaves_the_base_alone(model, adapter, init):  # noqa: F811
    changed(adapter / "adapter_config.json", init_lora_weights=init)
    assert _with_adapter(load(model), str(adapter), None)


# The doctor


def problems_in(capsys) -> list[str]:
    """The errors of the doctor, or the problems for which it did not begin."""
    out, err = capsys.readouterr()
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    return errors or [line for line in err.splitlines() if line and "Loading weights" not in line]


@pytest.mark.parametrize("damage", [
    weights(WEIGHTS["cut in half"]), weights(WEIGHTS["Git LFS pointer"]), weights(WEIGHTS["a tensor missing"]),
    weights(WEIGHTS["a matrix transposed"]), FOLDERS["index names a missing shard"], FOLDERS["no weights"],
    FOLDERS["weights of more layers"], put("config.json", {"model_type": "own"}),
    put("config.json", {"num_hidden_layers": 10**9}), put("tokenizer_config.json", {"model_max_length": "long"}),
    lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATES["loops in loops"]),
    lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATES["without the question"]),
])  # fmt: skip
def test_the_doctor_finds_what_loading_would_stop_at(model, data_folder, capsys, damage):  # noqa: F811
    damage(model)
    data = f"--train_file {data_folder}/train.jsonl --retriever bm25"
    assert main(f"doctor sft --model_name_or_path {model} {data} --quiet".split()) == 2
    (line,) = problems_in(capsys)
    assert str(model) in line


@pytest.mark.parametrize("damage", [
    weights(WEIGHTS["cut in half"]), weights(WEIGHTS["a tensor missing"]), weights(WEIGHTS["Git LFS pointer"]),
    put("config.json", {"num_hidden_layers": 2}), put("1_Pooling/config.json", {"pooling_mode": "own"}),
    put("2_Dense/config.json", {"in_features": 17}), put("config.json", {"hidden_size": 17}),
    lambda folder: (folder / "modules.json").write_text("{}"),
])  # fmt: skip
def test_the_doctor_finds_a_broken_embedding_model(embedding, data_folder, capsys, damage):  # noqa: F811
    damage(embedding)
    data = f"--train_file {data_folder}/train.jsonl --full_dataset_file_path {data_folder}/documents.jsonl"
    assert main(f"doctor swr --embedding_model {embedding} {data} --quiet".split()) == 2
    (line,) = problems_in(capsys)
    assert str(embedding) in line
