"""A reply that is not an answer is a failure: it is excluded from means, and not counted as a wrong answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_server import FakeServer

from groundtune.evaluation.judge import JudgePrompt, judged
from groundtune.model.endpoint import Endpoint, EndpointError
from groundtune.model.generators import LocalModel
from groundtune.prompts.thoughts import after_thoughts
from groundtune.schema import Prediction, Reply

ASKED = [[{"role": "user", "content": "How much?"}]]


def replied(message: dict | None, finish_reason: object = "stop", path: str = "chat", **fields) -> Reply:
    """The `Reply` to a choice with this message (or, for completions, these fields)."""
    said = {"message": {"role": "assistant", **message}} if message is not None else fields
    body = json.dumps({"id": "1", "object": "x", "created": 0, "model": "m", "choices": [
        {"index": 0, "finish_reason": finish_reason, **said}]}).encode()  # fmt: skip
    with FakeServer(lambda request: body, content_type="application/json") as server:
        endpoint = Endpoint(server.url, "m", retries=0)
        (reply,) = endpoint.complete(ASKED, 9) if path == "chat" else endpoint.continue_prompts([[1, 2]], 9)
    return reply


@pytest.mark.parametrize(
    "message, finish_reason, why",
    [
        ({"content": None}, "stop", "an empty reply (finish_reason stop)"),
        ({"content": ""}, "stop", "an empty reply"),
        ({"content": " \n"}, None, "an empty reply"),
        ({"content": []}, "stop", "an empty reply"),
        ({"content": None}, "length", "only thoughts"),
        ({"content": "", "reasoning_content": "Let me see."}, "length", "only thoughts"),
        ({"content": None, "reasoning": "Let me see."}, "stop", "only thoughts"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]}, "length", "only thoughts"),
        ({"content": "<think>Let me"}, "length", "only thoughts"),
        ({"content": "<think>a</think>ten <think>or"}, "length", "only thoughts"),
        ({"content": "<think>Let me see.</think>"}, "stop", "an empty reply"),
        ({"content": None, "refusal": "I can't help\nwith it."}, "stop", "the model refused: I can't help with it."),
        ({"content": "Ten", "refusal": "I stop here."}, "stop", "the model refused"),
        ({"content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
         "tool_calls", "called a tool"),
        ({"content": None, "function_call": {"name": "f", "arguments": ""}}, "function_call", "called a tool"),
        ({"content": ""}, "tool_use", "called a tool"),
        ({"content": "I will look it up."}, "tool_calls", "called a tool"),
        ({"content": "I can't"}, "refusal", "the model refused"),
        ({"content": [{"type": "refusal", "refusal": "I can't."}]}, "stop", "the model refused: I can't."),
        ({"content": [{"type": "thinking", "thinking": "Hm."}]}, "stop", "only thoughts"),
        ({"content": "<|channel|>analysis<|message|>It says ten"}, "stop", "only thoughts"),
        ({"content": "analysisWe need the price."}, "stop", "only thoughts"),
        ({"content": "[THINK]Let me see."}, "stop", "only thoughts"),
        *(({"content": "Ten eu"}, spelt, "content filter") for spelt in ("content_filter", "SAFETY", "recitation")),
        *(({"content": "Ten eu"}, spelt, "the server stopped the reply") for spelt in ("error", "abort", "cancelled")),
        ({"content": 3}, "stop", "not a reply"),
        ({"content": {"text": "Ten"}}, "stop", "not a reply"),
    ],
)  # fmt: skip
def test_what_is_no_answer_has_failed_and_says_why(message, finish_reason, why):
    reply = replied(message, finish_reason)
    assert why in reply.failure and reply.text == "" and "\n" not in reply.failure


@pytest.mark.parametrize(
    "message, text",
    [
        ({"content": "Ten euros."}, "Ten euros."),
        ({"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Ten "},
                      {"type": "text", "text": "euros."}]}, "Ten euros."),
        ({"content": [{"type": "output_text", "text": "Ten euros."}]}, "Ten euros."),
        ({"content": "<think>It says ten.</think>\n\nTen euros."}, "Ten euros."),
        ({"content": "It says ten.\n</think>\nTen euros."}, "Ten euros."),  # the prompt opened the thought
        ({"content": "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Ten euros."},
         "Ten euros."),
        ({"content": "analysisIt says ten.assistantfinalTen euros."}, "Ten euros."),  # without control tokens
        ({"content": "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Ten euros.<|END_RESPONSE|>"}, "Ten euros."),
        ({"content": "<think>hm</think>\n<answer>\nTen euros.\n</answer>"}, "Ten euros."),
        ({"content": [{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": {"value": "Ten euros."}}]},
         "Ten euros."),
        ({"content": "Ten euros.", "reasoning_content": "It says ten.", "refusal": None, "tool_calls": []},
         "Ten euros."),
        ({"content": "Ten euros.", "tool_calls": [{"id": "1", "type": "function",
                                                   "function": {"name": "f", "arguments": ""}}]}, "Ten euros."),
    ],
)  # fmt: skip
def test_an_answer_is_what_is_said_after_the_last_thought(message, text):
    reply = replied(message)
    assert (reply.text, reply.failure, reply.finished) == (text, "", True)


@pytest.mark.parametrize(
    "finish_reason, finished",
    [("stop", True), ("eos", True), ("end_turn", True), (None, True), ("", True), ("something new", True),
     ("length", False), ("LENGTH", False), ("max_tokens", False), ("MAX_TOKENS", False), ("model_length", False),
     ("max-tokens", False), ("FinishReason.MAX_TOKENS", False), ("FINISH_REASON_MAX_TOKENS", False),
     ("stop_sequence", True), ("STOP", True), ("FinishReason.STOP", True), ("eos_token", True)],
)  # fmt: skip
def test_every_spelling_of_a_cut_answer_is_one(finish_reason, finished):
    reply = replied({"content": "Ten eu"}, finish_reason)
    assert (reply.text, reply.failure, reply.finished) == ("Ten eu", "", finished)


def test_a_continuation_that_ends_at_once_is_the_models_own_answer_and_null_is_none():
    """As with a local model that starts with its end token: both are scored."""
    assert replied(None, path="completions", text="") == Reply("", True)
    assert "an empty reply" in replied(None, path="completions", text=None).failure
    assert replied(None, "length", path="completions", text="<think>Hm").failure
    assert replied(None, "content_filter", path="completions", text="Ten").failure


def test_a_continuation_of_a_prompt_that_opened_a_thought_begins_inside_it():
    for said, expected in (("hm</think>Ten.", ("Ten.", True)), ("It says ten", ("", False))):
        with FakeServer(lambda body, said=said: said) as server:
            endpoint = Endpoint(server.url, "m", retries=0)
            (reply,) = endpoint.continue_prompts([[1, 2]], 9, opened="<think>\n", special_tokens=True)
            assert (reply.text, reply.finished) == expected and bool(reply.failure) != reply.finished
            assert server.bodies[0]["skip_special_tokens"] is False
            if reply.failure:
                with pytest.raises(EndpointError, match="only thoughts"):
                    list(endpoint.stream_prompt([1, 2], 9, opened="<think>\n"))
            else:
                assert "".join(endpoint.stream_prompt([1, 2], 9, opened="<think>\n")) == "Ten."


def test_a_stream_of_thoughts_or_a_refusal_is_a_problem_and_no_empty_answer():
    def stream(*deltas: dict) -> bytes:
        chunks = [{"id": "1", "object": "x", "created": 0, "model": "m", "choices": [{"index": 0, "delta": delta}]}
                  for delta in deltas]  # fmt: skip
        return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks]).encode() + b"data: [DONE]\n\n"

    for deltas, why in (
        ([{"content": None, "reasoning_content": "Hm."}], "only thoughts"),
        ([{"refusal": "I "}, {"refusal": "can't."}], "the model refused: I can't."),
        ([{"content": "<think>It says "}, {"content": "ten"}], "only thoughts"),
        ([{"content": ""}], "an empty reply"),
    ):
        spoken = FakeServer(lambda body, deltas=deltas: stream(*deltas), content_type="text/event-stream")
        with spoken as server, pytest.raises(EndpointError, match=why):
            list(Endpoint(server.url, "m", retries=0).stream(ASKED[0], 9))
    thought_aloud = [{"content": piece} for piece in ("<thi", "nk>Hm", ".</th", "ink>", "Ten ", "euros", ".")]
    for said in (
        [{"reasoning_content": "Hm."}, {"content": "Ten "}, {"content": "euros."}],
        [{"content": [{"type": "thinking", "thinking": "Hm."}]}, {"content": "Ten euros."}],
        thought_aloud,
    ):
        with FakeServer(lambda body, said=said: stream(*said), content_type="text/event-stream") as server:
            assert "".join(Endpoint(server.url, "m", retries=0).stream(ASKED[0], 9)) == "Ten euros."


@pytest.mark.parametrize(
    "text, expected",
    [("Ten.", ("Ten.", False)), (" a </think> Ten. ", ("Ten.", False)), ("<think>a", ("", True)), ("", ("", False)),
     ("<think>a</think>Ten.<think>b</think>Nine.", ("Nine.", False)), ("<think>a</think>Ten.<think>b", ("", True))],
)  # fmt: skip
def test_a_text_counts_after_its_last_thought(text, expected):
    assert after_thoughts(text) == expected


def test_a_model_here_that_ends_inside_its_thoughts_has_failed(family, monkeypatch):
    local = LocalModel(family.model(), family.tokenizer, bf16=False)
    for text, expected in (("<think>hm", ("", True)), ("<think>hm</think> Ten.", ("Ten.", False)), ("", ("", True))):
        monkeypatch.setattr(type(family.prompt()), "answer_text", lambda self, ids, text=text: text)
        (reply,) = local.complete([[{"role": "user", "content": "How much?"}]], 2)
        assert (reply.text, bool(reply.failure)) == expected


def test_an_evaluated_answer_that_ends_inside_a_thought_is_unfinished_and_no_thought_is_scored(family, monkeypatch):
    from test_evaluation import evaluator

    made, model = evaluator(family), family.model()
    gold = made.examples[0].answer
    for text, f1 in ((f"<think>hm</think>\n{gold}", 1.0), (f"<think>{gold}", 0.0)):
        monkeypatch.setattr(type(made.prompt), "answer_text", lambda self, ids, text=text: text)
        prediction = made(model).predictions[0]
        assert prediction.scores["generation/f1"] == f1
        assert f1 or prediction.scores["generation/unfinished"] == 1.0


def test_a_judge_that_is_cut_inside_its_thoughts_gives_no_grade():
    from conftest import tiny_examples

    prediction = Prediction(tiny_examples()[0], (), "Ten euros.", True, 0, 1, 1, {})
    prompt = JudgePrompt("correctness", "$answer [[3]]")
    with FakeServer(lambda body: "<think>I would say [[5]], or", finish_reason="length") as server:
        complete = Endpoint(server.url, "m", retries=0).complete
        (graded,) = judged([prediction], prompt, complete, 9, lambda done: None)
    assert "judge/correctness" not in graded.scores
    assert replace(graded, judged={}) == replace(prediction, judged={})
