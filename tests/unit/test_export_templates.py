"""An export's chat template gives the token ids of the run's prompt, and Ollama's template gives the same text."""

from __future__ import annotations

import random

import pytest
from conftest import HISTORICAL_PREFIXES, INSTRUCTION, make_tokenizer, random_documents, random_history, random_text
from go_template import render

from groundtune.arguments import PromptArguments
from groundtune.errors import ModelError
from groundtune.export.chat_template import rendered, with_trained_template, written_ids
from groundtune.export.ollama import Frame, frame_of, modelfile
from groundtune.prompts.prompt import asked_of_template, make_prompt
from groundtune.schema import Turn

FAMILIES = ("llama", "mistral", "gemma", "qwen", "llama3", "phi")
PLAIN = {"user_prefix": "USER", "assistant_prefix": "ASSISTANT"}
PROMPTS = {
    "template": {},
    "thoughts kept": {"thinking": "keep"},
    "historical prefixes": HISTORICAL_PREFIXES,
    "prefixes": PLAIN,
}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make_tokenizer(name) for name in FAMILIES}


def exported(tokenizer, flags):
    prompt = make_prompt(tokenizer, PromptArguments(instruction=INSTRUCTION, **flags))
    return prompt, with_trained_template(tokenizer, prompt)


def conversations(n: int, alternating: bool):
    rng = random.Random(0)
    for _ in range(n):
        history = tuple(Turn(t.speaker, t.message.strip() or "x") for t in random_history(rng))
        if alternating:
            history = tuple(
                Turn(("user", "assistant")[i % 2], t.message) for i, t in enumerate(history[: len(history) & ~1])
            )
        yield random_documents(rng), history, random_text(rng).strip() or "x"


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_of_an_export_gives_the_ids_of_the_prompt_for_any_conversation(tokenizers, family, kind):
    prompt, tokenizer = exported(tokenizers[family], PROMPTS[kind])
    for asked in conversations(20, alternating=False):
        assert written_ids(tokenizer, prompt, *asked) == prompt.prompt_ids(*asked)
    assert tokenizers[family].chat_template == make_tokenizer(family).chat_template, "the run's own is unchanged"


def test_a_template_that_writes_the_prompt_already_is_exported_unchanged(tokenizers):
    prompt, tokenizer = exported(tokenizers["gemma"], {})
    assert tokenizer.chat_template == tokenizers["gemma"].chat_template


def test_a_client_cannot_switch_on_thoughts_that_were_not_trained(tokenizers):
    prompt, tokenizer = exported(tokenizers["qwen"], {})
    messages = asked_of_template(prompt, (), (), "Why?")
    thinking = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert thinking == rendered(tokenizer, messages) and thinking.endswith("<think>\n\n</think>\n\n")


def test_a_tokenizer_for_which_no_template_gives_the_prompt_is_refused_with_the_alternative(tokenizers, monkeypatch):
    prompt = make_prompt(tokenizers["llama"], PromptArguments(instruction=INSTRUCTION))
    monkeypatch.setattr(type(prompt), "prompt_ids", lambda *_: [1, 2, 3])
    with pytest.raises(ModelError, match="--generator_api completions"):
        with_trained_template(tokenizers["llama"], prompt)


@pytest.mark.parametrize("kind", ["template", "historical prefixes", "prefixes"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_for_ollama_gives_the_text_of_the_chat_template(tokenizers, family, kind):
    prompt, tokenizer = exported(tokenizers[family], PROMPTS[kind])
    frame = frame_of(tokenizer, prompt)
    for asked in conversations(20, alternating=True):
        messages = asked_of_template(prompt, *asked)
        bos = tokenizer.bos_token if prompt.tokens.bos else ""  # Ollama adds it, as the tokenizer does
        assert bos + render(frame.in_go(), messages) == rendered(tokenizer, messages)
        assert bos + frame.written(messages) == rendered(tokenizer, messages)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index ~ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
    ],
)
def test_prompts_that_are_more_than_texts_around_messages_are_refused_for_ollama(tokenizers, template):
    prompt, tokenizer = exported(tokenizers["gemma"], {})
    tokenizer.chat_template = "{{ bos_token }}" + template
    with pytest.raises(ModelError, match="--to ollama: .*--to vllm"):
        frame_of(tokenizer, prompt)


def test_a_template_without_the_bos_token_that_ollama_would_add_is_refused(tokenizers):
    prompt, tokenizer = exported(tokenizers["gemma"], {})
    tokenizer.chat_template = tokenizer.chat_template.removeprefix("{{ bos_token }}")
    with pytest.raises(ModelError, match="Ollama would put <bos> before every prompt"):
        frame_of(tokenizer, prompt)


def test_a_modelfile_is_greedy_ends_at_every_stop_and_has_room_for_every_prompt():
    text = modelfile(Frame("<a>", user='say "x"\n', tail="<b>\n"), ".", ["<end>", "</s>"], 2048, 64)
    lines = text.splitlines()
    assert lines[0] == "FROM ." and lines[1].startswith('TEMPLATE """') and lines[1].count('"""') == 2
    assert lines[2:] == [
        "PARAMETER temperature 0", "PARAMETER repeat_penalty 1", "PARAMETER num_ctx 2048", "PARAMETER num_predict 64",
        'PARAMETER stop "<end>"', 'PARAMETER stop "</s>"',
    ]  # fmt: skip
