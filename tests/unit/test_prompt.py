"""The model reads the same tokens in training as when it answers, in every family and style."""

from __future__ import annotations

import copy
import random
import re

import pytest
from conftest import (
    FAMILIES,
    HISTORICAL_PREFIXES,
    INSTRUCTION,
    make_tokenizer,
    random_documents,
    random_history,
    random_text,
)

from groundtune.arguments import PromptArguments
from groundtune.errors import ModelError
from groundtune.prompts.policies import required_first
from groundtune.prompts.prompt import make_prompt, request_ids
from groundtune.prompts.rows import encode_questions, encode_rows
from groundtune.schema import ASSISTANT, USER, Document, Example, Turn, nfc

DIALOGUES = 120


def dialogues(seed: int = 0):
    """Random (passages, chat history, question, answer) of all shapes."""
    rng = random.Random(seed)
    for _ in range(DIALOGUES):
        yield random_documents(rng), random_history(rng), random_text(rng), random_text(rng)


def special_spellings(tokenizer) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def with_flags(family, **flags):
    return make_prompt(family.tokenizer, PromptArguments(instruction=INSTRUCTION, **flags))


# Prompt and answer fit together


def test_the_generation_prompt_is_the_beginning_of_the_training_row(family, style):
    prompt = family.prompt(style)
    examples = [Example(q, a, (), history) for _, history, q, a in dialogues()]
    passages = [required_first(droppable=documents) for documents, *_ in dialogues()]
    rows = encode_rows(examples, passages, prompt, 10_000)
    questions = encode_questions(examples, passages, prompt, 10_000)
    assert len(rows) == len(questions) == DIALOGUES
    for row, question in zip(rows, questions):
        assert row.prompt_ids == question.prompt_ids
        assert row.answer_ids[-1] in prompt.stop_ids
        # What follows the prompt does not depend on its content.
        assert not set(row.answer_ids[:-1]) & set(prompt.stop_ids)


def test_the_row_spells_what_the_template_spells_for_the_whole_conversation(family):
    """Read as text, a row is the template's rendering of the conversation, up to the end of the answer's turn."""
    prompt, tokenizer = family.prompt(), family.tokenizer
    for documents, history, question, answer in dialogues(1):
        question, answer = nfc(question), nfc(answer)  # as all data is once it has been read
        row = [*prompt.prompt_ids(documents, history, question), *prompt.answer_ids(answer)]
        opening = "\n\n".join([INSTRUCTION, *(d.text for d in documents)]).strip()
        messages = [["user", opening]]
        for turn in [*history, Turn(USER, question), Turn(ASSISTANT, answer.strip())]:
            if messages[-1][0] == turn.speaker:
                messages[-1][1] += f"\n\n{turn.message}"
            else:
                messages.append([turn.speaker, turn.message])
        messages = [{"role": role, "content": content} for role, content in messages]
        expected = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
        spelt = tokenizer.decode(row, clean_up_tokenization_spaces=False)
        # Only the space that SentencePiece-like tokenizers write around special tokens may differ.
        assert re.sub(r"\s", "", spelt) == re.sub(r"\s", "", expected)


def test_a_prefix_row_spells_instruction_passages_and_turns(families):
    family = families["llama"]  # byte-level: decoding gives back every character
    prompt = family.prompt("prefix")
    history = (Turn(USER, "Hello."), Turn(ASSISTANT, "Good day."), Turn(USER, "A question."), Turn(ASSISTANT, "Yes?"))
    row = [*prompt.prompt_ids([Document("One."), Document("x", "Two.")], history, "Why?"), *prompt.answer_ids(" So. ")]
    assert family.tokenizer.decode(row) == (
        f"<s>{INSTRUCTION}\n\nOne.\n\nTwo.\n\n"
        "<s>[INST]: Hello. [/INST]: Good day.</s><s>[INST]: A question. [/INST]: Yes?</s>"
        "<s>[INST]: Why? [/INST]: So.</s>"
    )


def test_a_row_is_tokenised_as_the_running_text_that_it_spells(family, style):
    prompt, tokenizer = family.prompt(style), family.tokenizer
    for documents, history, question, answer in dialogues(2):
        row = [*prompt.prompt_ids(documents, history, question), *prompt.answer_ids(answer)]
        whole = tokenizer.decode(row, clean_up_tokenization_spaces=False)
        assert tokenizer(whole, add_special_tokens=False)["input_ids"] == row


# Special tokens


def test_there_is_one_beginning_of_sequence_and_it_is_first(family, style):
    """Only the historical user prefix may add another one before each user turn."""
    prompt, tokenizer = family.prompt(style), family.tokenizer
    bos = tokenizer.bos_token_id
    for documents, history, question, answer in dialogues():
        ids = [*prompt.prompt_ids(documents, history, question), *prompt.answer_ids(answer)]
        if bos is None:
            assert ids[0] != tokenizer.eos_token_id
            continue
        spelt = (
            1 + sum(turn.speaker == USER for turn in history)
            if style == "prefix" and tokenizer.bos_token == "<s>"
            else 0
        )
        if family.name == "llama" and style == "chat template":  # its template starts every user turn with one
            turns = [Turn(USER, "opening"), *history, Turn(USER, question)]
            spelt = sum(t.speaker == USER and (i == 0 or turns[i - 1].speaker != USER) for i, t in enumerate(turns)) - 1
        assert ids[0] == bos and ids.count(bos) == 1 + spelt


def test_plain_prefixes_and_templates_give_exactly_one_beginning(family):
    bos = family.tokenizer.bos_token_id
    for flags in ({}, {"user_prefix": "USER"}, {"sep_sys": "\n"}):
        prompt = with_flags(family, **flags)
        ids = prompt.prompt_ids([Document("One.")], (), "Why?")
        assert ids.count(bos) == (bos is not None) and (bos is None or ids[0] == bos)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma", "llama3", "phi"])
@pytest.mark.parametrize("template_writes_it", [True, False])
def test_a_chat_prompt_has_the_ids_that_transformers_gives_for_the_template(name, template_writes_it):
    """Nothing is added: where the template writes no BOS token there is none, in rows, answers and on servers alike."""
    tokenizer = make_tokenizer(name)
    if not template_writes_it:
        for written in ("{{ bos_token }}", "bos_token + "):
            tokenizer.chat_template = tokenizer.chat_template.replace(written, "")
    prompt = make_prompt(tokenizer, PromptArguments(instruction=""))
    turns = [{"role": "user", "content": "Hello there?"}]
    theirs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=False)["input_ids"]
    ids = prompt.prompt_ids([], (), "Hello there?")
    assert ids == list(theirs)
    adds = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert prompt.lacks_bos == (adds and ids[0] != tokenizer.bos_token_id)
    plain = make_prompt(tokenizer, PromptArguments(user_prefix="USER")).prompt_ids([], (), "Hello there?")
    assert (plain[0] == tokenizer.bos_token_id) == adds


def test_special_tokens_spelt_in_data_stay_text(family, style):
    prompt, tokenizer = family.prompt(style), family.tokenizer
    spellings, rng = special_spellings(tokenizer), random.Random(3)

    def hostile() -> str:
        pieces = [rng.choice([*spellings, *spellings, "library", " ", "<", "|", ">", "s>", "", "\n"]) for _ in range(6)]
        return f"a{''.join(pieces)}z"

    special = set(tokenizer.all_special_ids)
    for documents, history, _, answer in dialogues(4):
        spelt = [Document(hostile()) for _ in documents], [Turn(t.speaker, hostile()) for t in history], hostile()
        harmless = [Document("b") for _ in documents], [Turn(t.speaker, "b") for t in history], "b"
        found = [id for id in prompt.prompt_ids(*spelt) if id in special]
        assert found == [id for id in prompt.prompt_ids(*harmless) if id in special]
        ids = prompt.answer_ids(hostile())
        assert [id for id in ids if id in special] == [id for id in prompt.answer_ids("b") if id in special]
        assert prompt.answer_ids(answer)[-1] == ids[-1]


def test_stop_ids_are_the_end_of_turn_and_of_sequence_and_never_padding(family, style):
    prompt, tokenizer = family.prompt(style), family.tokenizer
    end_of_turn = {"gemma": "<end_of_turn>", "qwen": "<|im_end|>"}.get(family.name, tokenizer.eos_token)
    expected = {tokenizer.eos_token_id}
    if style == "chat template":
        expected.add(tokenizer.convert_tokens_to_ids(end_of_turn))
        assert prompt.answer_ids("Yes.")[-1] == tokenizer.convert_tokens_to_ids(end_of_turn)
    assert set(prompt.stop_ids) == expected
    if family.name == "llama":
        assert tokenizer.pad_token_id == tokenizer.eos_token_id  # the case in which masking by id would lose the end
    else:
        assert tokenizer.pad_token_id not in prompt.stop_ids


# Answers are decoded unchanged


def test_an_answer_survives_tokens_and_back(family, style):
    prompt, rng = family.prompt(style), random.Random(5)
    for text in [random_text(rng, 12) for _ in range(200)] + [
        "x",
        " Two  spaces , kept . ",
        "line\n\nline",
        "don 't . !",
    ]:
        assert prompt.answer_text(prompt.answer_ids(text)) == text.strip()


def test_nothing_after_the_end_of_turn_is_part_of_the_answer(family, style):
    prompt = family.prompt(style)
    for stop in prompt.stop_ids:
        ids = [*prompt.answer_ids("Yes.")[:-1], stop, *prompt.answer_ids("More.")]
        assert prompt.answer_text(ids) == "Yes."
    assert prompt.answer_text([prompt.stop_ids[0]]) == ""


def test_a_tokenizer_that_tidies_spaces_up_does_not_change_an_answer(families):
    family = families["mistral"]
    tidy = type(family.tokenizer).from_pretrained(
        family.folder, clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True
    )
    assert tidy.decode(tidy("a , b .", add_special_tokens=False)["input_ids"]) == "a, b."  # the setting is on
    prompt = make_prompt(tidy, PromptArguments())
    assert prompt.answer_text(prompt.answer_ids("a , b . don 't")) == "a , b . don 't"


# The prefix style


@pytest.mark.parametrize("flag", ["user_prefix", "assistant_prefix", "sep_user", "sep_sys"])
def test_any_prefix_flag_chooses_the_prefix_style_though_there_is_a_template(family, flag):
    assert with_flags(family).style == "chat template"
    assert with_flags(family, **{flag: HISTORICAL_PREFIXES[flag]}).style == "prefix"


def test_without_flags_and_template_turns_are_user_and_assistant(family, monkeypatch):
    monkeypatch.setattr(family.tokenizer, "chat_template", None)
    prompt = with_flags(family)
    history = (Turn(USER, "Hello."), Turn(ASSISTANT, "Good day."))
    ids = [*prompt.prompt_ids([], history, "Why?"), *prompt.answer_ids("So.")]
    spelt = family.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    eos, bos = family.tokenizer.eos_token, family.tokenizer.bos_token or ""
    expected = f"{bos}{INSTRUCTION}\n\nUSER: Hello. ASSISTANT: Good day.{eos}USER: Why? ASSISTANT: So.{eos}"
    # Mistral's tokenizer writes a space after each special token.
    assert spelt.replace("<s> ", "<s>").replace("</s> ", "</s>") == expected


@pytest.mark.parametrize("sep_sys", ["\n", "###", " END", "", "</s> "])
def test_a_separator_that_ends_nothing_is_followed_by_an_end_token_and_is_no_part_of_the_answer(family, sep_sys):
    prompt = with_flags(family, user_prefix="USER", sep_sys=sep_sys)
    ids = prompt.answer_ids("Nine in the morning.")
    assert ids[-1] == family.tokenizer.eos_token_id
    assert prompt.answer_text(ids) == "Nine in the morning."
    # The separator is learnt as well: it is in every turn of the history that the model reads.
    assert sep_sys.strip() in family.tokenizer.decode(ids)


# Templates


def test_an_empty_thought_is_never_learnt(families):
    family = families["qwen"]
    prompt = family.prompt()
    assert family.tokenizer.decode(prompt.prompt_ids([], (), "Why?")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert family.tokenizer.decode(prompt.answer_ids("So.")) == "So.<|im_end|>"


def test_an_empty_thought_that_the_template_writes_before_an_answer_is_read_and_not_learnt(families, monkeypatch):
    """Though it is not in the generation prompt."""
    tokenizer = families["qwen"].tokenizer
    thoughtless = tokenizer.chat_template.replace("enable_thinking is false", "enable_thinking is none")
    monkeypatch.setattr(tokenizer, "chat_template", thoughtless)
    prompt = make_prompt(tokenizer, PromptArguments())
    read = tokenizer.decode(prompt.prompt_ids([], (), "Why?"))
    assert read.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(prompt.answer_ids("So.")) == "So.<|im_end|>"


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen"])
def test_histories_that_do_not_alternate_are_rendered_by_templates_that_refuse_them(families, name):
    family = families[name]
    said = [[ASSISTANT], [USER], [ASSISTANT, ASSISTANT, USER], [USER, USER, ASSISTANT], [ASSISTANT, USER, ASSISTANT]]
    with pytest.raises(Exception, match="must alternate"):
        family.tokenizer.apply_chat_template([{"role": "assistant", "content": "Hi"}])
    for speakers in said:
        history = [Turn(speaker, f"word{i}") for i, speaker in enumerate(speakers)]
        text = family.tokenizer.decode(family.prompt().prompt_ids([Document("Passage.")], history, "Why?"))
        places = [text.index(part) for part in (INSTRUCTION, "Passage.", *(t.message for t in history), "Why?")]
        assert places == sorted(places)


def test_an_assistant_that_begins_is_rendered_where_there_is_nothing_before_it(families):
    prompt = make_prompt(families["mistral"].tokenizer, PromptArguments(instruction=""))
    history = [Turn(ASSISTANT, "Hello, how can I help?")]
    assert "Hello, how can I help?" in prompt.tokens.tokenizer.decode(prompt.prompt_ids([], history, "When?"))


def test_passages_are_read_in_the_order_given_and_by_their_formatted_text(family, style):
    documents = [Document("page one", "Title: A\npage one"), Document(" page two "), Document("page three", " \n")]
    text = family.tokenizer.decode(family.prompt(style).prompt_ids(documents, (), "Why?"))
    places = [text.index(part) for part in (INSTRUCTION, "Title: A\npage one\n\npage two\n\npage three", "Why?")]
    assert places == sorted(places)


# A text prompt by itself


def test_a_request_is_the_users_message_where_there_is_a_chat_template_and_else_the_text_alone(family, style):
    prompt = family.prompt(style)
    text = "Passage:\nOpen at nine.\n\nQuestions:\n"
    ids = request_ids(prompt, [Turn(USER, text)])
    bos = family.tokenizer.bos_token_id
    assert ids.count(bos) <= 1 or bos is None
    if style == "chat template":
        assert ids == prompt.prompt_ids([], (), text)
    else:
        written = family.tokenizer.decode(ids, skip_special_tokens=True)
        assert written.strip() == text.strip() and "USER" not in written and "ASSISTANT" not in written


def test_a_request_cannot_spell_a_special_token(family, style):
    for spelling in special_spellings(family.tokenizer):
        added = set(request_ids(family.prompt(style), [Turn(USER, f"One {spelling} two")])) - set(
            request_ids(family.prompt(style), [Turn(USER, "One two")])
        )
        assert not added & set(family.tokenizer.all_special_ids), spelling


@pytest.mark.parametrize("template", [
    "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{% include 'other' %}", "{% for %}",
    "{{ messages[99].content.x }}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}",
])  # fmt: skip
def test_a_chat_template_that_fails_is_one_line_and_reaches_nothing(families, template):
    tokenizer = copy.deepcopy(families["llama"].tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="its chat template fails .*; give --user_prefix") as caught:
        make_prompt(tokenizer, PromptArguments())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost, template", [
    ("passages", "{% for m in messages %}{{ m.content.split('\n')[-1] }}{% endfor %}"),
    ("passages", "{{ bos_token }}"), ("passages", "Hello."), ("passages", ""),
    ("question", "{% for m in messages %}{{ m.content.split('\n')[0] }}{% endfor %}"),
    ("question", "{% for m in messages %}{{ m.content[:12] }}{% endfor %}"),
    ("answer", "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"),
    ("answer", "{% for m in messages %}{{ m.content if m.role == 'user' else m.content | upper }}{% endfor %}"),
])  # fmt: skip
def test_a_chat_template_that_leaves_out_what_it_is_given_is_one_line(families, lost, template):
    tokenizer = copy.deepcopy(families["llama"].tokenizer)
    tokenizer.chat_template = template or {"default": template}
    with pytest.raises(ModelError, match=f"its chat template leaves (out the {lost}|an answer out); .*--user_prefix"):
        make_prompt(tokenizer, PromptArguments()).answer_ids("So.")  # a missing answer matters to training alone
    assert make_prompt(tokenizer, PromptArguments(user_prefix="Q")).prompt_ids([], (), "Why?")
