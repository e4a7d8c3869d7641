"""The same model gives the same answers in an evaluation, in a stream, and behind a server."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import INSTRUCTION, tiny_examples
from fake_server import FakeServer, Refusal
from test_evaluation import evaluator, hits_for, without_times

from groundtune.arguments import ModelArguments
from groundtune.evaluation.answering import Asked, answer_by_chat, answer_by_completions, answer_here
from groundtune.evaluation.metrics import generation_scores
from groundtune.model import generators
from groundtune.model.attention import attends_by_layout
from groundtune.model.endpoint import Endpoint
from groundtune.model.generators import LocalModel
from groundtune.model.loading import add_lora
from groundtune.model.opening import AnsweringModel


def asked(family, **options) -> Asked:
    made = evaluator(family, **options)
    return Asked("retrieved", made.examples, made.hits, INSTRUCTION, 12, 0.6, 200, made)


def test_a_model_here_answers_as_training_evaluates_it(family):
    one = asked(family)
    found = answer_here(family.model(), bf16=False)(one, lambda done: None)
    assert without_times(found) == without_times(one.evaluator(family.model()))


def test_a_stream_is_the_answer_of_an_evaluation_word_by_word(family):
    one, model = asked(family), family.model()
    answers = [p.answer for p in answer_here(model, bf16=False)(one, lambda done: None).predictions]
    local = LocalModel(model, family.tokenizer, bf16=False)
    prompt = one.evaluator.prompt
    streams = [list(local.stream(prompt, question.prompt_ids, 12)) for question in one.evaluator.questions]
    assert ["".join(words) for words in streams] == answers
    assert family.name == "gemma" or any(len(words) > 1 for words in streams)  # that one writes halves of characters


def test_a_model_here_reads_the_system_message_too(family, monkeypatch):
    seen, greedy = [], generators.generate_greedy
    monkeypatch.setattr(generators, "generate_greedy", lambda *a, **kw: seen.extend(a[1]) or greedy(*a, **kw))
    messages = [{"role": "system", "content": "library book"}, {"role": "user", "content": "nine question?"}]
    (reply,) = LocalModel(family.model(), family.tokenizer, bf16=False).complete([messages], 3)
    text = family.tokenizer.decode(seen[0])
    assert text.index("library book") < text.index("nine question?") and reply.prompt_tokens == len(seen[0])


def test_completions_get_the_very_ids_of_our_prompts_and_are_scored_alike(family):
    """The server runs the tiny model, so the evaluation must equal the local one."""
    one, model = asked(family), family.model()
    local = answer_here(model, bf16=False)(one, lambda done: None)
    by_ids = {tuple(q.prompt_ids): p.answer for q, p in zip(one.evaluator.questions, local.predictions)}
    with FakeServer(lambda body: by_ids[tuple(body["prompt"])]) as server:
        found = answer_by_completions(Endpoint(server.url, "m"))(one, lambda done: None)
    assert [p.answer for p in found.predictions] == [p.answer for p in local.predictions]
    for metric in ("generation/f1", "retrieval/mrr", "grounded/tokens"):
        assert found.metrics[metric] == local.metrics[metric]
    stops = server.bodies[0]["stop"]
    ids = [family.tokenizer.convert_tokens_to_ids(text) for text in stops]
    assert set(one.evaluator.prompt.stop_ids) <= set(ids)


def test_chat_gets_the_prompt_as_messages_with_all_that_was_retrieved():
    examples, hits = tiny_examples(), hits_for(tiny_examples())
    one = Asked("retrieved", examples, hits, INSTRUCTION, 12, 0.6, 200)
    with FakeServer(lambda body: "Four coins a year.") as server:
        found = answer_by_chat(Endpoint(server.url, "m", concurrency=1))(one, lambda done: None)
    for body, example, these, prediction in zip(server.bodies, examples, hits, found.predictions, strict=True):
        messages = body["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant", "user"][: len(example.chat_history) + 1]
        text = "\n".join(m["content"] for m in messages)
        parts = [INSTRUCTION, *(hit.document.text for hit in these), *(t.message for t in example.chat_history)]
        places = [text.index(part) for part in [*parts, example.question]]
        assert places == sorted(places) and example.answer not in text.replace(example.question, "")
        for name, value in generation_scores("Four coins a year.", example.answer).items():
            assert prediction.scores[name] == value
        assert prediction.passages_read == len(these) and prediction.prompt_tokens == 7


def test_an_answer_that_fails_is_counted_and_in_no_mean():
    examples, hits = tiny_examples(), hits_for(tiny_examples())
    lost = examples[1].question
    with FakeServer(lambda body: Refusal(400) if lost in json.dumps(body) else "At nine.") as server:
        one = Asked("retrieved", examples, hits, INSTRUCTION, 12, 0.6, 200)
        found = answer_by_chat(Endpoint(server.url, "m"))(one, lambda done: None)
    assert (found.n, found.failed, found.scored("generation/f1")) == (6, 1, 5)
    assert found.metrics["generation/exact_match"].value == pytest.approx(1 / 5)
    assert found.scored("retrieval/mrr") == 6  # the retriever did not fail


def _noting_its_end(words, ended):
    ended.append((yield from words))


def test_a_local_model_completes_messages_by_its_template(family):
    """As for a judge: one message, no instruction, no passages."""
    local = LocalModel(family.model(), family.tokenizer, bf16=False)
    prompt = replace(family.prompt(), instruction="")
    expected = prompt.prompt_ids([], [], "Rate the answer.")
    text = family.tokenizer.decode(expected)
    assert INSTRUCTION not in text and text.count("Rate the answer.") == 1 and "\n\nRate" not in text
    (reply,) = local.complete([[{"role": "user", "content": "Rate the answer."}]], 8)
    ended = []
    streamed = "".join(_noting_its_end(local.stream(prompt, expected, 8), ended))
    assert reply.prompt_tokens == len(expected) and reply.new_tokens <= 8 and not reply.failure
    assert reply.text == streamed and [one.finished for one in ended] == [reply.finished]


@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_that_is_opened_attends_as_the_one_that_was_trained(families, tmp_path, adapter):
    """Otherwise an evaluation pads every prompt, and in bfloat16 rounds differently from training's."""
    family, folder = families["llama"], tmp_path / "model"
    model = add_lora(family.model(), ModelArguments(use_peft=True, lora_r=2)) if adapter else family.model()
    model.save_pretrained(folder)
    arguments = ModelArguments(model_name_or_path=str(folder), dtype="float32")
    opened = AnsweringModel(arguments, False, str(family.folder) if adapter else "").open(family.prompt(), 0)
    assert attends_by_layout(opened) and not opened.training
    one = asked(family)
    assert without_times(one.evaluator(opened)) == without_times(one.evaluator(family.model()))
