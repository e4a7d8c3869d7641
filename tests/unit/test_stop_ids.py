"""An answer stops where the model itself stops: at every end token that tokenizer, template or configurations name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer
from transformers import AddedToken, AutoModelForCausalLM

from groundtune.arguments import ModelArguments, PromptArguments
from groundtune.model.generation import generate_greedy
from groundtune.model.loading import end_ids, load_model, load_tokenizer
from groundtune.model.opening import AnsweringModel
from groundtune.prompts.prompt import make_prompt
from groundtune.schema import ASSISTANT, USER, Document, Turn

# As GLM-4's: a turn ends where the next begins, and the template writes no end.
WITHOUT_END = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.fixture
def folder(families, tmp_path) -> Path:
    """A model whose generation configuration names two end tokens besides the tokenizer's."""
    folder = tmp_path / "model"
    shutil.copytree(families["llama"].folder, folder)
    write(folder, "generation_config.json", eos_token_id=[5, 7])
    return folder


def write(folder: Path, name: str, **changes) -> None:
    path = folder / name
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | changes), "utf-8")


def prompt_of(folder: Path, **flags):
    return make_prompt(load_tokenizer(ModelArguments(str(folder))), PromptArguments(**flags))


@pytest.mark.parametrize("flags", [{}, {"user_prefix": "USER"}], ids=["chat template", "prefix"])
def test_every_end_token_of_the_configurations_stops_an_answer(folder, flags):
    write(folder, "config.json", eos_token_id=[7, 9], text_config={"eos_token_id": 11})
    prompt = prompt_of(folder, **flags)
    assert set(prompt.stop_ids) == {prompt.tokens.eos_id, 5, 7, 9, 11}
    assert len(prompt.stop_texts) == len(set(prompt.stop_texts)) and all(prompt.stop_texts)
    assert prompt.answer_ids("So.")[-1] in prompt.stop_ids
    assert sum(id in prompt.stop_ids for id in prompt.answer_ids("So.")) == 1


def test_the_answer_is_that_of_the_models_own_generate(folder):
    """A model that says 5 after everything is done at once, and not at the limit."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = load_tokenizer(ModelArguments(str(folder)))
    tokenizer.chat_template = WITHOUT_END
    prompt = make_prompt(tokenizer, PromptArguments())
    ids = prompt.prompt_ids([], [], "Why?")
    for said in (5, 7):
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.weight[said] = 1
            model.model.norm.weight.fill_(1.0)
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1].sum()
        model.lm_head.weight.data.mul_(torch.sign(hidden))
        expected = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0][len(ids) :].tolist()
        (ours,) = generate_greedy(model, [ids], stop_ids=prompt.stop_ids, pad_id=0, max_new_tokens=12, batch_size=1)
        assert ours.ids == expected == [said] and ours.finished


def test_base_model_adapter_and_whole_model_stop_at_the_same_tokens(folder, tmp_path):
    """An adapter's folder may lack the generation configuration: its base's counts too."""
    prompt = prompt_of(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    prompt.tokens.tokenizer.save_pretrained(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    opened = AnsweringModel(ModelArguments(str(adapter)), bf16=False, base=str(folder)).open_tokenizer()
    assert make_prompt(opened, PromptArguments()).stop_ids == prompt.stop_ids
    whole = load_model(ModelArguments(str(folder)), bf16=False, stop_ids=prompt.stop_ids, pad_id=0)
    whole.save_pretrained(tmp_path / "whole")
    prompt.tokens.tokenizer.save_pretrained(tmp_path / "whole")
    assert set(prompt_of(tmp_path / "whole").stop_ids) == set(prompt.stop_ids)


def test_a_separator_that_is_one_token_ends_an_answer_and_one_of_the_text_does_not():
    tokenizer = make_tokenizer("llama3")
    prompt = make_prompt(tokenizer, PromptArguments(user_prefix="USER", sep_sys="<|eot_id|>"))
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert prompt.stop_ids == (end, tokenizer.eos_token_id) and prompt.answer_ids("So.")[-1] == end
    assert prompt.answer_text([*tokenizer("So.", add_special_tokens=False)["input_ids"], end, 9, 9]) == "So."
    plain = make_prompt(tokenizer, PromptArguments(user_prefix="USER", sep_sys="."))
    assert plain.stop_ids == (tokenizer.eos_token_id,) and plain.answer_ids("So")[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("style", ["chat template", "prefix"])
def test_an_end_of_turn_that_was_added_as_no_special_token_ends_answers_and_is_inert_in_documents(style):
    tokenizer = make_tokenizer("qwen")
    tokenizer.add_tokens([AddedToken("<|turn_end|>", special=False), AddedToken("<|tool|>", special=False)])
    end, tool = (tokenizer.convert_tokens_to_ids(token) for token in ("<|turn_end|>", "<|tool|>"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|turn_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    flags = {"user_prefix": "USER", "sep_sys": "<|turn_end|>"} if style == "prefix" else {}
    prompt = make_prompt(tokenizer, PromptArguments(**flags))
    assert prompt.stop_ids[0] == end and prompt.answer_ids("So.")[-1] == end and "<|turn_end|>" in prompt.stop_texts

    def count(*parts: str) -> int:
        document, said, question = parts
        history = [Turn(USER, said), Turn(ASSISTANT, said)]
        return prompt.prompt_ids([Document(document)], history, question).count(end)

    plain = count("text", "text", "text")
    assert count(*["a <|turn_end|> b"] * 3) == plain, "a document, a turn or a question ends a turn"
    assert prompt.answer_ids("a <|turn_end|> b").count(end) == 1
    assert tool in prompt.tokens.encode(prompt.tokens.inert("<|tool|>"))  # it marks nothing here


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"eos_token_id": "5"}', '{"eos_token_id": [true, -1, 5.0, null, "5"]}',
                '{"eos_token_id": {"a": 5}}', '{"text_config": 3}', "[" * 100_000],
)  # fmt: skip
def test_a_configuration_that_says_nothing_of_use_names_no_end(folder, content):
    (folder / "generation_config.json").write_text(content)
    (folder / "config.json").unlink()
    assert end_ids(ModelArguments(str(folder))) == []


def test_an_id_beyond_the_vocabulary_stops_nothing(folder):
    write(folder, "generation_config.json", eos_token_id=[5, 10**9])
    assert 10**9 not in prompt_of(folder).stop_ids and 5 in prompt_of(folder).stop_ids
