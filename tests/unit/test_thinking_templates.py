"""Rows of reasoning models are what their templates write, and only what follows the thoughts is an answer.

The templates are written for these tests; each does what that of a family of models does around an answer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
from conftest import INSTRUCTION, MORE_TEMPLATES, TEMPLATES, _byte_level
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from groundtune.arguments import PromptArguments
from groundtune.errors import ModelError
from groundtune.prompts.policies import required_first
from groundtune.prompts.prompt import make_prompt, request_prompt
from groundtune.prompts.rows import encode_questions, encode_rows
from groundtune.prompts.thoughts import after_thoughts, outside_thoughts
from groundtune.schema import ASSISTANT, USER, Document, Example, Turn
from groundtune.training.labels import what_else_is_learnt

ANSWER = "Ten euros."


def turns(user: str, answer: str, asks: str, last: str = "") -> str:
    """A template: how it writes a user's turn, an earlier answer, the generation prompt, and the last answer."""
    return (
        f"{{% for m in messages %}}{{% if m['role'] == 'user' %}}{user}{{% elif loop.last %}}{last or answer}"
        f"{{% else %}}{answer}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{asks}{{% endif %}}"
    )


C, NL = "{{ m['content'] }}", "{{ '\\n' }}"  # a line feed after a block would be trimmed
OFF = "{% if enable_thinking is defined and not enable_thinking %}"
IM_USER, IM = f"<|im_start|>user\n{C}<|im_end|>\n", "<|im_start|>assistant\n"


@dataclass(frozen=True)
class Like:
    """A family: its template, control tokens, how a prompt without thoughts ends, and what a model writes."""

    template: str
    special: tuple[str, ...]
    tail: str  # of a prompt, with --thinking drop
    end: str  # of an answer's turn
    says: str  # the model, thinking first, from the generation prompt on; the answer is `ANSWER`
    plain: tuple[str, ...] = ()  # added tokens that are not special
    keep: bool = True  # whether a row can begin with the generation prompt
    ends: tuple[str, ...] = ()  # of the model's own configuration
    closing: str = ""  # learnt between the answer and its end


CHATML = ("<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
EMPTY = "<think>\n\n</think>\n\n"
LIKE = {
    "qwen3": Like(
        turns(IM_USER, f"{IM}{C}<|im_end|>\n", f"{IM}{OFF}{EMPTY}{{% endif %}}", f"{IM}{EMPTY}{C}<|im_end|>\n"),
        CHATML, f"{IM}{EMPTY}", "<|im_end|>", f"<think>\nhm\n</think>\n\n{ANSWER}", THINK,
    ),
    "qwen3 thinking": Like(
        turns(IM_USER, f"{IM}{C}<|im_end|>\n", f"{IM}<think>\n", f"{IM}{EMPTY}{C}<|im_end|>\n"),
        CHATML, f"{IM}{EMPTY}", "<|im_end|>", f"hm\n</think>\n\n{ANSWER}", THINK,
    ),
    "qwq": Like(
        turns(IM_USER, f"{IM}{C}<|im_end|>\n", f"{IM}<think>\n"),
        CHATML, IM, "<|im_end|>", f"hm\n</think>\n\n{ANSWER}", THINK, keep=False,
    ),
    "deepseek r1": Like(
        "<BOS>" + turns(f"<｜User｜>{C}", f"<｜Assistant｜>{C}<EOS>", "<｜Assistant｜><think>\n"),
        ("<BOS>", "<EOS>", "<｜User｜>", "<｜Assistant｜>"), "<｜Assistant｜>", "<EOS>", f"hm\n</think>\n\n{ANSWER}",
        THINK, keep=False,
    ),
    "deepseek v3.1": Like(
        "<BOS>" + turns(f"<｜User｜>{C}", f"<｜Assistant｜></think>{C}<EOS>",
                        "<｜Assistant｜>{{ '<think>' if thinking is defined and thinking else '</think>' }}"),
        ("<BOS>", "<EOS>", "<｜User｜>", "<｜Assistant｜>"), "<｜Assistant｜></think>", "<EOS>", ANSWER, THINK,
    ),
    "gpt-oss": Like(
        turns(f"<|start|>user<|message|>{C}<|end|>", f"<|start|>assistant<|channel|>final<|message|>{C}<|end|>",
              "<|start|>assistant", f"<|start|>assistant<|channel|>final<|message|>{C}<|return|>"),
        ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>", "<|call|>"),
        "<|start|>assistant<|channel|>final<|message|>", "<|return|>",
        f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}",
        ends=("<|return|>", "<|call|>"),
    ),
    "command r": Like(
        "<BOS>" + turns(f"<|USER_TOKEN|>{C}<|END_OF_TURN_TOKEN|>", f"<|CHATBOT_TOKEN|>{C}<|END_OF_TURN_TOKEN|>",
                        "<|CHATBOT_TOKEN|>"),
        ("<BOS>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>", ANSWER,
    ),
    "command r7b": Like(  # it always ends with a generation prompt
        "<BOS>" + turns(
            f"<|USER_TOKEN|>{C}<|END_OF_TURN_TOKEN|>",
            f"<|CHATBOT_TOKEN|><|START_RESPONSE|>{C}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "",
        ) + "<|CHATBOT_TOKEN|>",
        ("<BOS>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|START_RESPONSE|>",
         "<|END_RESPONSE|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        "<|CHATBOT_TOKEN|><|START_RESPONSE|>", "<|END_OF_TURN_TOKEN|>",
        f"<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
        ends=("<|END_OF_TURN_TOKEN|>",), closing="<|END_RESPONSE|>",
    ),
    "glm 4": Like(
        "[gMASK]<sop>" + turns(f"<|user|>\n{C}", f"<|assistant|>\n{C}", "<|assistant|>\n"),
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<EOS>"), "<|assistant|>\n", "<|user|>",
        ANSWER, ends=("<EOS>", "<|user|>", "<|observation|>"),
    ),
    "glm 4.5": Like(
        "[gMASK]<sop>" + turns(f"<|user|>\n{C}{OFF}/nothink{{% endif %}}", f"<|assistant|>\n<think></think>\n{C}",
                               f"<|assistant|>{OFF}{{{{ '\\n<think></think>' }}}}{{% endif %}}"),
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<EOS>"),
        "<|assistant|>\n<think></think>", "<|user|>", f"\n<think>hm</think>\n{ANSWER}", THINK,
        ends=("<EOS>", "<|user|>", "<|observation|>"),
    ),
    "granite": Like(
        "{% if thinking is defined and thinking %}<|role|>system<|/role|>Think.<EOS>\n{% endif %}" + turns(
            f"<|role|>user<|/role|>{C}<EOS>\n", f"<|role|>assistant<|/role|>{C}<EOS>\n", "<|role|>assistant<|/role|>"),
        ("<|role|>", "<|/role|>", "<EOS>"), "<|role|>assistant<|/role|>", "<EOS>",
        f"<think>hm</think><response>{ANSWER}</response>",
    ),
    "kimi k2": Like(
        turns(f"<|im_user|>user<|im_middle|>{C}<|im_end|>", f"<|im_assistant|>assistant<|im_middle|>{C}<|im_end|>",
              "<|im_assistant|>assistant<|im_middle|>"),
        ("<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>", "<EOS>"),
        "<|im_assistant|>assistant<|im_middle|>", "<|im_end|>", ANSWER,
    ),
    "kimi k2 thinking": Like(
        turns(f"<|im_user|>user<|im_middle|>{C}<|im_end|>",
              f"<|im_assistant|>assistant<|im_middle|><think></think>{C}<|im_end|>",
              "<|im_assistant|>assistant<|im_middle|>"),
        ("<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>", "<EOS>"),
        "<|im_assistant|>assistant<|im_middle|><think></think>", "<|im_end|>", f"<think>hm</think>{ANSWER}", THINK,
    ),
    "kimi k3": Like(
        turns(
            f"<|open|>message user<|sep|>{C}<|close|>message<|sep|><|end_of_msg|>",
            "<|open|>message assistant<|sep|>{% if thinking is not defined or thinking %}<|open|>think<|sep|>"
            f"<|close|>think<|sep|>{{% endif %}}<|open|>response<|sep|>{C}<|close|>response<|sep|>"
            "<|close|>message<|sep|><|end_of_msg|>",
            "<|open|>message assistant<|sep|><|open|>"
            "{{ 'think' if thinking is not defined or thinking else 'response' }}<|sep|>",
        ),
        ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        "<|open|>message assistant<|sep|><|open|>response<|sep|>", "<|end_of_msg|>",
        f"hm<|close|>think<|sep|><|open|>response<|sep|>{ANSWER}<|close|>response<|sep|><|close|>message<|sep|>",
        closing="<|close|>response<|sep|><|close|>message<|sep|>",
    ),
    "magistral": Like(
        "<BOS>" + turns(f"[INST]{C}[/INST]", f"{C}<EOS>", ""),
        ("<BOS>", "<EOS>", "[INST]", "[/INST]", "[THINK]", "[/THINK]"), "[/INST]", "<EOS>",
        f"[THINK]hm[/THINK]{ANSWER}",
    ),
    "nemotron super": Like(
        turns(f"<|header|>user<|/header|>\n\n{C}<|eot|>", f"<|header|>assistant<|/header|>\n\n{C}<|eot|>",
              "<|header|>assistant<|/header|>\n\n"),
        ("<|header|>", "<|/header|>", "<|eot|>", "<EOS>"), "<|header|>assistant<|/header|>\n\n", "<|eot|>",
        f"<think>\nhm\n</think>\n\n{ANSWER}",
    ),
    "minimax m2": Like(
        turns(f"]~b]user\n{C}[e~[\n", f"]~b]ai\n{C}[e~[\n", "]~b]ai\n<think>\n"),
        ("]~b]", "[e~["), "]~b]ai\n", "[e~[", f"hm\n</think>\n\n{ANSWER}", THINK, keep=False,
    ),
    "step 3": Like(
        turns(IM_USER, f"{IM}{C}<|im_end|>\n", f"{IM}<think>\n", f"{IM}<think>\n\n</think>\n{C}<|im_end|>\n"),
        CHATML, f"{IM}<think>\n\n</think>\n", "<|im_end|>", f"hm\n</think>\n{ANSWER}",
    ),
    "seed-oss": Like(
        turns(f"<seed:bos>user\n{C}<seed:eos>", f"<seed:bos>assistant\n{C}<seed:eos>", "<seed:bos>assistant\n"),
        ("<seed:bos>", "<seed:eos>", "<seed:think>", "</seed:think>"), "<seed:bos>assistant\n", "<seed:eos>",
        f"<seed:think>hm</seed:think>{ANSWER}",
    ),
    "gemma 4": Like(
        turns(f"<|turn>user\n{C}<turn|>\n", f"<|turn>model\n{C}<turn|>\n",
              "<|turn>model\n{% if not enable_thinking | default(false) %}<|channel>thought\n<channel|>{% endif %}"),
        ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<EOS>"), "<|turn>model\n", "<turn|>",
        f"<|channel>thought\nhm<channel|>{ANSWER}", keep=False,
    ),
    "apriel": Like(  # the end of a turn stands between turns only
        turns(f"<|begin_user|>\n{C}", f"{NL}<|begin_assistant|>\n{C}\n<|end|>\n",
              f"{NL}<|begin_assistant|>\nHere are my reasoning steps:\n", f"{NL}<|begin_assistant|>\n{C}"),
        ("<|begin_user|>", "<|begin_assistant|>", "<|end|>"), "\n<|begin_assistant|>\n", "<|end|>",
        f"hm\n[BEGIN FINAL RESPONSE]\n{ANSWER}", keep=False, ends=("<|end|>",), closing="\n",
    ),
    "exaone deep": Like(
        turns(f"[|user|]{C}\n", f"[|assistant|]{C}[|endofturn|]\n", "[|assistant|]<thought>\n"),
        ("[|user|]", "[|assistant|]", "[|endofturn|]"), "[|assistant|]", "[|endofturn|]",
        f"hm\n</thought>\n{ANSWER}", keep=False,
    ),
    "hunyuan": Like(
        turns(f"<|hy_user|>{C}", f"<|hy_assistant|><think>\n\n</think>\n{C}<EOS>",
              f"<|hy_assistant|>{OFF}<think>\n\n</think>\n{{% endif %}}"),
        ("<|hy_user|>", "<|hy_assistant|>", "<EOS>"), "<|hy_assistant|><think>\n\n</think>\n", "<EOS>",
        f"<think>\nhm\n</think>\n<answer>\n{ANSWER}\n</answer>",
    ),
    "nemotron nano": Like(  # thinks unless a text says /no_think
        "{% set off = '/no_think' in messages[0]['content'] %}" + turns(
            "<S>User\n{{ m['content'].replace('/no_think', '') }}\n",
            f"<S>Assistant\n{C}\n<E>\n", "<S>Assistant\n{{ '<think></think>' if off else '<think>\n\n' }}",
            f"<S>Assistant\n{{{{ '<think></think>' if off else '<think>\n\n' }}}}{C}\n<E>\n",
        ),
        ("<S>", "<E>"), "<S>Assistant\n<think></think>", "<E>", f"hm\n</think>\n{ANSWER}", keep=False, closing="\n",
    ),
    "nanbeige": Like(  # the end of the turn is no special token
        turns(IM_USER, f"{IM}{C}<|im_end|>\n", f"{IM}<think>\n", f"{IM}{EMPTY}{C}<|im_end|>\n"),
        ("<|im_start|>", "<EOS>"), f"{IM}{EMPTY}", "<|im_end|>", f"hm\n</think>\n\n{ANSWER}", ("<|im_end|>", *THINK),
    ),
}  # fmt: skip
NO_THINK = "nemotron nano"


@functools.cache
def _backend() -> str:
    return _byte_level("qwen", ["<pad>"]).to_str()


@functools.cache
def tokenizer_like(name: str) -> PreTrainedTokenizerFast:
    like = LIKE[name]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_backend()), pad_token="<pad>")
    added = [AddedToken(token, special=True, normalized=False) for token in like.special]
    tokenizer.add_tokens(added + [AddedToken(token, special=False, normalized=False) for token in like.plain])
    tokenizer.eos_token = "<EOS>" if "<EOS>" in like.special else like.end
    tokenizer.bos_token = "<BOS>" if "<BOS>" in like.special else None
    tokenizer.chat_template, tokenizer.name_or_path = like.template, f"like-{name}"
    tokenizer.model_end_ids = tuple(map(tokenizer.convert_tokens_to_ids, like.ends))
    return tokenizer


def prompt_like(name: str, thinking: str = "drop"):
    instruction = INSTRUCTION + (" /no_think" if name == NO_THINK and thinking == "drop" else "")
    return make_prompt(tokenizer_like(name), PromptArguments(instruction=instruction, thinking=thinking))


HISTORIES = {
    "no history": (),
    "history": (Turn(USER, "Free?"), Turn(ASSISTANT, "No, it is not."), Turn(USER, "Why?"), Turn(ASSISTANT, "So.")),
}
PASSAGES = required_first(droppable=[Document("The lamp costs ten euros."), Document("It is blue.")])


def row_and_messages(prompt, history):
    example = Example("What does it cost?", ANSWER, (), history)
    (row,) = encode_rows([example], [PASSAGES], prompt, 10_000)
    (question,) = encode_questions([example], [PASSAGES], prompt, 10_000)
    assert question.prompt_ids == row.prompt_ids
    said = [*history, Turn(USER, example.question), Turn(ASSISTANT, ANSWER)]
    opening = "\n\n".join([prompt.instruction, "The lamp costs ten euros.", "It is blue."])
    messages = [{"role": turn.speaker, "content": turn.message} for turn in said]
    messages[0]["content"] = f"{opening}\n\n{messages[0]['content']}"
    assert what_else_is_learnt(row, ANSWER, prompt) is None
    return row, messages


def ids_of(tokenizer, messages, **how) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("name", LIKE)
def test_a_row_is_what_the_template_writes_up_to_the_end_of_the_turn(name, history):
    prompt, tokenizer, like = prompt_like(name), tokenizer_like(name), LIKE[name]
    row, messages = row_and_messages(prompt, HISTORIES[history])
    assert tokenizer.decode(row.prompt_ids).endswith(like.tail)
    assert tokenizer.decode(row.answer_ids).lstrip() == f"{ANSWER}{like.closing}{like.end}"
    if name in ("glm 4", "glm 4.5", "apriel"):  # the turn ends where the next begins
        messages.append({"role": "user", "content": "And then?"})
    ids = [*row.prompt_ids, *row.answer_ids]
    assert ids == ids_of(tokenizer, messages, enable_thinking=False, thinking=False)[: len(ids)]
    assert row.answer_ids[-1] in prompt.stop_ids and not set(row.answer_ids[:-1]) & set(prompt.stop_ids)


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("name", LIKE)
def test_a_model_that_may_think_reads_the_generation_prompt_and_a_row_is_still_the_template_s(name, history):
    prompt, tokenizer, like = prompt_like(name, "keep"), tokenizer_like(name), LIKE[name]
    example = Example("What does it cost?", ANSWER, (), HISTORIES[history])
    (question,) = encode_questions([example], [PASSAGES], prompt, 10_000)
    if not like.keep:
        with pytest.raises(ModelError, match=f"like-{name}: its chat template asks with .* but writes an answer after"):
            encode_rows([example], [PASSAGES], prompt, 10_000)
        return
    row, messages = row_and_messages(prompt, HISTORIES[history])
    assert question.prompt_ids == ids_of(tokenizer, messages[:-1], add_generation_prompt=True)
    if name in ("glm 4", "glm 4.5"):
        messages.append({"role": "user", "content": "And then?"})
    ids = [*row.prompt_ids, *row.answer_ids]
    assert ids == ids_of(tokenizer, messages)[: len(ids)]


@pytest.mark.parametrize("name", LIKE)
def test_the_answer_is_what_follows_the_thought_and_a_thought_that_is_cut_is_none(name):
    like, tokenizer = LIKE[name], tokenizer_like(name)
    for thinking in ("keep",) if "<think>" not in like.says else ("keep", "drop"):
        prompt = prompt_like(name, thinking)
        ids = tokenizer(like.says + like.end, add_special_tokens=False)["input_ids"]
        assert after_thoughts(prompt.answer_text(ids)) == (ANSWER, False)
        thought = like.says.partition("hm")[0] + "hm"
        if thought != like.says + "hm":
            cut = tokenizer(f"{thought} It says ten", add_special_tokens=False)["input_ids"]
            assert after_thoughts(prompt.answer_text(cut)) == ("", True)
        pieces = [prompt.answer_text(ids[:n]) for n in range(len(ids) + 1)]
        grown = [after.removeprefix(before) for before, after in zip(["", *pieces], pieces)]
        assert "".join(outside_thoughts(grown)) == ANSWER  # as `ask` streams it


@pytest.mark.parametrize("name", LIKE)
def test_every_end_of_the_model_stops_an_answer_and_no_document_can_spell_one(name):
    """Those of the template, the tokenizer and the configurations, whether the token is special or not."""
    tokenizer, like = tokenizer_like(name), LIKE[name]
    ends = {like.end, tokenizer.eos_token, *like.ends}
    for prompt in (prompt_like(name), prompt_like(name, "keep")):
        assert {*prompt.stop_ids} == {*map(tokenizer.convert_tokens_to_ids, ends)} and {*prompt.stop_texts} == ends
        said = f"a {' b '.join([*ends, *like.special, *like.plain])} c"
        spelt = prompt.prompt_ids([Document(said)], [Turn(USER, said), Turn(ASSISTANT, said)], said)
        plain = prompt.prompt_ids([Document("a")], [Turn(USER, "a"), Turn(ASSISTANT, "a")], "a")
        control = [*prompt.tokens.special_ids]
        assert [id for id in spelt if id in control] == [id for id in plain if id in control]


def test_a_template_that_answers_inside_a_thought_stops_the_run_and_says_how_to_close_it():
    prompt = make_prompt(tokenizer_like(NO_THINK), PromptArguments())
    line = r"^like-nemotron nano: its chat template writes an answer inside a thought \('<think>.*give --user_prefix"
    for problem in (lambda: prompt.prompt_ids([], (), "Why?"), lambda: prompt.answer_ids("So.")):
        with pytest.raises(ModelError, match=line) as caught:
            problem()
        assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    judge = request_prompt(tokenizer_like(NO_THINK))  # which writes no row, and may think
    assert judge.prompt_ids([], (), "Why?") and judge.opened == "<think>\n\n"


def test_a_template_that_leaves_answers_out_stops_the_run():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_backend()), pad_token="<pad>")
    tokenizer.eos_token = "<pad>"
    tokenizer.chat_template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    prompt = make_prompt(tokenizer, PromptArguments())
    with pytest.raises(ModelError, match="its chat template leaves an answer out"):
        prompt.answer_ids("So.")


@pytest.mark.parametrize("name", [*TEMPLATES, *MORE_TEMPLATES])
def test_a_template_without_thoughts_is_asked_with_its_generation_prompt(name):
    from conftest import make_tokenizer

    tokenizer = make_tokenizer(name)
    for thinking, off in (("drop", {"enable_thinking": False}), ("keep", {})):
        prompt = make_prompt(tokenizer, PromptArguments(instruction="", thinking=thinking))
        asked = ids_of(tokenizer, [{"role": "user", "content": "Why?"}], add_generation_prompt=True, **off)
        assert prompt.prompt_ids([], (), "Why?") == asked and prompt.opened == ""
        assert prompt.tail == ("", "")
