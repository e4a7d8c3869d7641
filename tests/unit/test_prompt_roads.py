"""The model reads the same ids for a question in training, in evaluation, in a dialogue and on a server."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from conftest import (
    FAMILIES,
    HISTORICAL_PREFIXES,
    INSTRUCTION,
    MORE_TEMPLATES,
    make_tokenizer,
    random_history,
    random_text,
)

from groundtune.arguments import ModelArguments, PromptArguments
from groundtune.evaluation.answering import _asked, answer_by_completions
from groundtune.evaluation.arguments import GROUPS, InferenceArguments
from groundtune.methods import METHODS
from groundtune.model.endpoint import Endpoint
from groundtune.model.generators import LocalModel
from groundtune.model.loading import load_tokenizer
from groundtune.prompts.policies import draw, gold_passages
from groundtune.prompts.prompt import make_prompt
from groundtune.schema import Document, Ended, Example, Hit, Turn
from groundtune.serving import dialogue as asking

DIALOGUES = 200
TOKENIZERS = (*FAMILIES, *MORE_TEMPLATES)
ROOM = 10**6
ODD = [
    "\u200b", "\u202eright to left\u202c", "e\u0301", "\ud55c\uae00", "\u0645\u0631", "\U0001f469\u200d\U0001f4bb",
    "\x0b", "\u2028", "\xa0", "\ufeff", "   ", "\t\t", "\r\n", "{{ x }}", "{% raw %}", "<br/>", "\\n", "%s", "", " ",
]  # fmt: skip


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder(request, tmp_path_factory):
    """A tokenizer folder as on a user's disk."""
    made = tmp_path_factory.mktemp(request.param)
    make_tokenizer(request.param).save_pretrained(made)
    return made


@pytest.fixture(params=["prefix", "chat template"])
def flags(request) -> dict[str, str]:
    return HISTORICAL_PREFIXES if request.param == "prefix" else {}


def dialogues(tokenizer) -> list[Example]:
    """Random questions after random histories, with gold passages; some texts contain special tokens."""
    rng = random.Random(7)
    special = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()} | {"<s>", "</s>", "<|im_end|>"})

    def text(words: int = 8) -> str:
        parts = [random_text(rng, words) for _ in range(rng.randint(1, 2))]
        parts += rng.choices(ODD, k=rng.randint(0, 2)) + rng.choices(special, k=rng.choice([0, 0, 1, 2]))
        rng.shuffle(parts)
        return rng.choice(["", " "]).join(parts)

    return [
        Example(
            question=text() or "Why?",
            answer=text(4) or "So.",
            gold_documents=tuple(Document(text(12), rng.choice(["", text(12)])) for _ in range(rng.randint(1, 4))),
            chat_history=tuple(Turn(turn.speaker, text()) for turn in random_history(rng)),
            source=f"dialogues.jsonl:{i + 1}",
        )
        for i in range(DIALOGUES)
    ]


def hits_of(example: Example) -> tuple[Hit, ...]:
    return tuple(Hit(document, 1.0) for document in example.gold_documents)


def inference(folder, flags, server: bool) -> InferenceArguments:
    """Arguments of `groundtune evaluate` and `ask`, for a local model or the same one on a server."""
    groups = {name: group() for name, group in zip(InferenceArguments.__dataclass_fields__, GROUPS)}
    groups["prompt"] = PromptArguments(instruction=INSTRUCTION, **flags)
    groups["model"] = ModelArguments(model_name_or_path=str(folder))
    groups["data"].max_seq_length, groups["evaluation"].bootstrap_samples = ROOM, 100
    if server:
        groups["generator"].generator, groups["generator"].generator_model = "openai:http://localhost:1/v1", "m"
        groups["generator"].concurrency = 1
    return InferenceArguments(**groups)


@pytest.fixture
def sent(monkeypatch) -> list[list[int]]:
    """The prompts that a faked openai package sends to an OpenAI-compatible server."""
    prompts: list[list[int]] = []

    def create(model, prompt, extra_body, stream=False):
        prompts.append(prompt)
        said = SimpleNamespace(choices=[SimpleNamespace(text="So.", finish_reason="stop")], usage=None)
        return [said] if stream else said

    monkeypatch.setattr(Endpoint, "_client", SimpleNamespace(completions=SimpleNamespace(create=create)))
    return prompts


def so():
    yield "So."
    return Ended(True)


def asked_one_by_one(arguments: InferenceArguments, examples: list[Example]) -> None:
    """Ask each question in a dialogue that has reached it."""
    write = asking._writer(arguments)
    for example in examples:
        retriever = SimpleNamespace(search=lambda queries, k, example=example: [hits_of(example)])
        dialogue = asking.Dialogue(retriever, 4, "user", write, list(example.chat_history))
        sources, words = dialogue.ask(example.question)
        assert "".join(words) == "So." and len(sources) == len(gold_passages(example))


def test_a_prompt_has_the_same_ids_on_every_road(folder, flags, sent, monkeypatch):
    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=str(folder)))
    prompt = make_prompt(tokenizer, PromptArguments(instruction=INSTRUCTION, **flags))
    examples, sft = dialogues(tokenizer), METHODS["sft"]

    rows = sft.encode(examples, [sft.policy(e, (), draw(0, 0, 0)) for e in examples], prompt, ROOM)
    trained = [row.prompt_ids for row in rows]
    assert len({tuple(ids) for ids in trained}) > DIALOGUES // 2

    hits = [hits_of(example) for example in examples]
    during_training = sft.evaluator(
        name="eval", examples=examples, hits=hits, prompt=prompt, pad_id=tokenizer.pad_token_id, max_length=ROOM,
        max_new_tokens=8, batch_size=8,
    )  # fmt: skip
    assert [question.prompt_ids for question in during_training.questions] == trained

    by_server = inference(folder, flags, server=True)
    asked = _asked(by_server, "retrieved", examples, hits, 0.0, tokenizer)
    assert [question.prompt_ids for question in asked.evaluator.questions] == trained
    answer_by_completions(by_server.generator_endpoint())(asked, lambda done: None)
    assert sent == trained
    sent.clear()
    asked_one_by_one(by_server, examples)
    assert sent == trained

    here = []
    monkeypatch.setattr(LocalModel, "stream", lambda self, prompt, ids, new, borders: here.append(ids) or so())
    monkeypatch.setattr("groundtune.model.opening.AnsweringModel.open", lambda *given: None)
    asked_one_by_one(inference(folder, flags, server=False), examples)
    assert here == trained


def test_every_row_of_these_dialogues_teaches_its_answer_and_ends(folder, flags):
    """The same dialogues, as a run checks them before it starts."""
    from groundtune.training.labels import what_else_is_learnt

    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=str(folder)))
    prompt = make_prompt(tokenizer, PromptArguments(instruction=INSTRUCTION, **flags))
    examples, bos = dialogues(tokenizer), tokenizer.bos_token_id
    for example in examples:
        (row,) = METHODS["sft"].encode([example], [gold_passages(example)], prompt, ROOM)
        assert what_else_is_learnt(row, example.answer, prompt) is None
        assert row.answer_ids[-1] in prompt.stop_ids and not set(row.answer_ids[:-1]) & set(prompt.stop_ids)
        assert row.prompt_ids[:2] != [bos, bos]
