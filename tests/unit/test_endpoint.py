"""Every prompt that goes to a server is answered or counted as failed, and the key goes nowhere else."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_server import FakeServer, Raw, Refusal, drop_by_drop, endless_body, endless_stream, packed_body

from groundtune.model.endpoint import Endpoint, EndpointError, lasting
from groundtune.system.servers import address_problems, server_kind

ROOT = Path(__file__).parents[2]
KEY = "sk-SECRET-0123456789"


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def content(body: dict) -> str:
    return body["messages"][-1]["content"]


def test_replies_come_in_the_order_of_the_prompts_however_they_finish():
    barrier, done = threading.Barrier(3, timeout=30), []

    def speak(body):
        if content(body) != "0":
            barrier.wait()  # three at once, or this never ends
        return f"answer {content(body)}"

    with FakeServer(speak) as server:
        endpoint = Endpoint(server.url, "m", concurrency=3)
        replies = endpoint.complete([said(str(i)) for i in range(7)], 50, on_done=done.append)
    assert [reply.text for reply in replies] == [f"answer {i}" for i in range(7)]
    assert all(reply.finished and not reply.failure for reply in replies)
    assert replies[0].prompt_tokens == 7 and replies[0].new_tokens == 2
    assert sum(done) == 7


def test_a_request_is_greedy_and_says_what_was_asked_for():
    with FakeServer(lambda body: "yes") as server:
        Endpoint(server.url, "m").complete([said("hello")], 50)
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["body"] == {"model": "m", "messages": said("hello"), "max_tokens": 50, "temperature": 0.0}


def test_options_win_and_null_takes_a_field_out():
    with FakeServer(lambda body: "yes") as server:
        options = {"max_tokens": None, "max_completion_tokens": 9, "seed": 1}
        Endpoint(server.url, "m", options).complete([said("hello")], 50)
    assert server.bodies[0].keys() == {"model", "messages", "temperature", "max_completion_tokens", "seed"}


def test_a_prompt_goes_as_token_ids_with_at_most_four_ends():
    with FakeServer(lambda body: " the answer ", finish_reason="length") as server:
        stop = ["a", "b", "c", "d", "e"]
        (reply,) = Endpoint(server.url, "m").continue_prompts([[1, 5, 7]], 50, stop=stop)
    assert server.requests[0]["path"] == "/v1/completions"
    assert server.bodies[0]["prompt"] == [1, 5, 7] and server.bodies[0]["stop"] == ["a", "b", "c", "d"]
    assert reply.text == "the answer" and not reply.finished


# Failures


def test_what_fails_once_is_asked_again():
    seen = []

    def speak(body):
        seen.append(content(body))
        return Refusal(429) if seen.count(content(body)) < 3 else "yes"

    with FakeServer(speak) as server:
        replies = Endpoint(server.url, "m", retries=2).complete([said("a"), said("b")], 50)
    assert [reply.text for reply in replies] == ["yes", "yes"] and len(seen) == 6


@pytest.mark.parametrize("status, attempts", [(500, 3), (429, 3), (400, 1)])
def test_what_goes_on_failing_is_a_failure_and_the_others_are_answered(status, attempts):
    def speak(body):
        return Refusal(status, "out of order") if content(body) == "b" else "yes"

    with FakeServer(speak) as server:
        replies = Endpoint(server.url, "m", retries=2).complete([said(c) for c in "abc"], 50)
    assert [reply.text for reply in replies] == ["yes", "", "yes"]
    assert "out of order" in replies[1].failure and [bool(r.failure) for r in replies] == [False, True, False]
    assert [content(body) for body in server.bodies].count("b") == attempts


def test_a_first_prompt_that_fails_by_itself_does_not_end_it_all():
    with FakeServer(lambda body: Refusal(400, "too long") if content(body) == "a" else "yes") as server:
        replies = Endpoint(server.url, "m").complete([said("a"), said("b")], 50)
    assert "too long" in replies[0].failure and replies[1].text == "yes"


NONSENSE = [
    b"<html>Welcome</html>", b"{}", b'{"choices": []}', b"[]", b'{"choices": [{"mess', b"\xff", b"[" * 100_000,
    b'{"choices": {"0": 1}}', b'{"choices": [{"message": {"content": 17}}]}',
    b'{"choices": [{"message": {"content": ["yes"]}}]}',
]  # fmt: skip


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
@pytest.mark.parametrize("nonsense", NONSENSE)
def test_what_is_no_reply_is_a_failure_and_the_others_are_answered(nonsense, kind):
    with FakeServer(lambda body: nonsense if content(body) == "b" else "yes") as server:
        server.content_type = kind
        replies = Endpoint(server.url, "m").complete([said(c) for c in "abc"], 50)
    assert [reply.text for reply in replies] == ["yes", "", "yes"]
    assert [bool(reply.failure) for reply in replies] == [False, True, False]


ENDLESS = {
    endless_body: "its reply is longer than 1 MB", endless_stream: "its reply is longer than 1 MB",
    drop_by_drop: "no reply within 1 s", packed_body: "its reply is packed (gzip), unasked",
}  # fmt: skip


@pytest.mark.parametrize("talk", ENDLESS)
def test_a_reply_without_an_end_is_one_problem_on_every_road(monkeypatch, talk):
    monkeypatch.setattr("groundtune.model.endpoint.MOST_BYTES", 2**20)
    for road in ROADS.values():
        with Raw(talk) as server, pytest.raises(EndpointError) as caught:
            road(Endpoint(server.url, "m", retries=0, timeout=1))
        assert str(caught.value).startswith(f"{server.url}: {ENDLESS[talk]}")


def test_a_reply_without_an_end_halfway_is_a_failure_and_loses_no_answer(monkeypatch):
    monkeypatch.setattr("groundtune.model.endpoint.MOST_BYTES", 1000)
    with FakeServer(lambda body: "a" * 2000 if content(body) == "b" else "yes") as server:
        replies = Endpoint(server.url, "m").complete([said(c) for c in "abc"], 50)
    assert [reply.text for reply in replies] == ["yes", "", "yes"] and "its reply is longer than" in replies[1].failure


def test_a_server_that_is_not_there_is_one_problem_at_once():
    with FakeServer(lambda body: "yes") as server:
        url = server.url
    with pytest.raises(EndpointError) as caught:
        Endpoint(url, "m", retries=0).complete([said(str(i)) for i in range(1000)], 50)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{url}: ") and "is the server running" in problem


@pytest.mark.parametrize("status, way_out", [(401, "OPENAI_API_KEY"), (403, "allowed"), (404, "end in /v1")])
def test_a_wrong_key_or_model_is_one_problem_at_once_without_the_key(monkeypatch, status, way_out):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer(lambda body: Refusal(status, f"wrong: {KEY}")) as server, pytest.raises(EndpointError) as caught:
        Endpoint(server.url, "m").complete([said("a"), said("b")], 50)
    assert way_out in str(caught.value) and KEY not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_server_on_this_machine_is_reached_without_the_proxy(monkeypatch, variable):
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with FakeServer(lambda body: "yes") as server:
        for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
            assert Endpoint(url, "m", retries=0).complete([said("a")], 50)[0].text == "yes"


def test_a_proxy_that_does_not_reach_a_server_is_named_with_the_way_around_it(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(EndpointError) as caught:
        Endpoint("http://gpu.invalid:8000/v1", "m", retries=0).complete([said("a")], 50)
    way_around = "through the proxy http://***@127.0.0.1:9; to ask it directly, add gpu.invalid to NO_PROXY"
    assert way_around in str(caught.value)


@pytest.mark.parametrize("status, text", [(429, "insufficient_quota: see your plan"), (402, "Insufficient Balance")])
def test_an_account_without_credit_is_one_problem_after_one_request(status, text):
    with FakeServer(lambda body: Refusal(status, text)) as server, pytest.raises(EndpointError) as caught:
        Endpoint(server.url, "m").complete([said("a"), said("b")], 50)
    assert len(server.requests) == 1 and text in str(caught.value)
    assert "quota or credit is used up" in str(caught.value) and str(caught.value).endswith("its plan and billing")


def test_a_server_that_asks_to_wait_is_given_that_time():
    wait = Refusal(429, headers={"retry-after-ms": "300"})
    with FakeServer(lambda body: "yes" if len(server.requests) > 1 else wait) as server:
        (reply,) = Endpoint(server.url, "m").complete([said("a")], 50)
    first, second = (request["time"] for request in server.requests)
    assert reply.text == "yes" and second - first >= 0.3


def test_a_limit_that_stays_is_a_line_with_the_time_it_asks_for_and_the_flags():
    refusal = Refusal(429, "slow down", {"retry-after-ms": "1", "retry-after": "7"})
    with FakeServer(lambda body: refusal) as server:
        (reply,) = Endpoint(server.url, "m", retries=1).complete([said("a")], 50)
    assert reply.failure.startswith("the server limits requests, and asks to wait 7 s (")
    assert "slow down" in reply.failure
    assert reply.failure.endswith("; lower --concurrency, or set --requests_per_minute")


@pytest.mark.parametrize(
    "text",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",
        "`inputs` tokens + `max_new_tokens` must be <= 4096.",
        "prompt is too long: 5000 tokens > 4096 maximum",
    ],
)
def test_a_prompt_that_is_too_long_for_the_server_is_a_line_with_the_flags_that_shorten_it(text):
    with FakeServer(lambda body: Refusal(400, text)) as server:
        endpoint = Endpoint(server.url, "m")
        (reply,) = endpoint.complete([said("a")], 50)
        with pytest.raises(EndpointError) as caught:
            list(endpoint.stream(said("a"), 50))
    for line in (reply.failure, str(caught.value)):
        assert "the prompt is longer than the server's context (" in line and text[:60] in line
        assert "lower --eval_num_to_retrieve or --max_seq_length" in line


def test_a_key_that_is_refused_halfway_is_a_failure_and_loses_no_answer():
    with FakeServer(lambda body: Refusal(401) if content(body) == "c" else "yes") as server:
        replies = Endpoint(server.url, "m").complete([said(c) for c in "abc"], 50)
    assert [bool(reply.failure) for reply in replies] == [False, False, True]


def test_a_server_that_goes_away_fails_what_it_is_asked_then_and_ends_nothing():
    with FakeServer(lambda body: "yes") as server:
        ask = lasting(Endpoint(server.url, "m", retries=0).complete)
        (reply,) = ask([said("a")], 50)
    gone = ask([said("b"), said("c")], 50)
    assert reply.text == "yes" and [r.text for r in gone] == ["", ""]
    assert all("is the server running" in r.failure for r in gone)
    with pytest.raises(EndpointError):
        lasting(Endpoint(server.url, "m", retries=0).complete)([said("a")], 50)


# Redirects


ROADS = {
    "chat": lambda endpoint: endpoint.complete([said("a"), said("b")], 50),
    "prompt": lambda endpoint: endpoint.continue_prompts([[1, 2], [3]], 50),
    "stream": lambda endpoint: list(endpoint.stream(said("a"), 50)),
    "stream of a prompt": lambda endpoint: list(endpoint.stream_prompt([1, 2], 50)),
}


def moved(to: str, status: int = 307) -> Refusal:
    return Refusal(status, headers={"Location": to})


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_moves_nothing_to_another_address_and_names_both(status, road):
    with FakeServer(lambda body: "yes") as other:
        to = other.url.replace("//", "//user:pass@") + "/chat/completions?token=t0psecret&next=1"
        with FakeServer(lambda body: moved(to, status)) as server, pytest.raises(EndpointError) as caught:
            ROADS[road](Endpoint(server.url, "m", retries=0))
    assert other.requests == [] and len(server.requests) == 1
    (problem,) = caught.value.problems
    assert problem.startswith(f"{server.url}: ") and "\n" not in problem
    assert (
        f"({status}) to {other.url.replace('//', '//***@')}/chat/completions, " in problem and "if you trust" in problem
    )
    assert "pass" not in problem and "t0psecret" not in problem


def test_a_redirect_halfway_is_a_failure_and_loses_no_answer():
    with FakeServer(lambda body: "yes") as other:
        to = f"{other.url}/chat/completions"
        with FakeServer(lambda body: moved(to) if content(body) == "b" else "yes") as server:
            replies = Endpoint(server.url, "m", retries=0).complete([said(c) for c in "abc"], 50)
    assert [reply.text for reply in replies] == ["yes", "", "yes"] and other.requests == []
    assert f"{server.url}: " in replies[1].failure and f" to {to}, " in replies[1].failure


def test_a_redirect_on_the_same_server_is_not_followed_either():
    """Its path is relative, but the message shows the full URL."""
    with FakeServer(lambda body: moved("/login")) as server, pytest.raises(EndpointError) as caught:
        Endpoint(server.url, "m", retries=0).complete([said("a")], 50)
    assert f" to {server.url.removesuffix('/v1')}/login, " in str(caught.value) and len(server.requests) == 1


# Ctrl-C


INTERRUPTED = """
import sys
from groundtune.model.endpoint import Endpoint
endpoint = Endpoint(sys.argv[1], "m", concurrency=2)
endpoint.complete([[{"role": "user", "content": text}] for text in "abcdef"], 50)
"""


@pytest.mark.usefixtures("signals_of_a_terminal")
@pytest.mark.parametrize("busy", ["hangs", "asks to wait"])
def test_ctrl_c_waits_for_no_request_and_for_no_retry(busy):
    released, asked = threading.Event(), threading.Semaphore(0)

    def speak(body):
        if content(body) == "a":
            return "yes"
        asked.release()
        if busy == "hangs":
            released.wait(60)
        return Refusal(429, headers={"retry-after": "50"})

    with FakeServer(speak) as server:
        command = [sys.executable, "-c", INTERRUPTED, server.url]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert asked.acquire(timeout=60) and asked.acquire(timeout=60)
                time.sleep(0.3)  # and now both wait, for the server or until they ask again
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=8) == -signal.SIGINT
                assert process.stderr.read().rstrip().endswith("KeyboardInterrupt")
            finally:
                released.set()
                process.kill()
    assert len(server.requests) == 3  # none was begun after it


def test_what_a_thread_raises_is_raised_and_what_has_not_begun_never_begins():
    def on_done(done: int) -> None:
        if len(server.requests) > 1:
            raise ZeroDivisionError

    with FakeServer(lambda body: "yes") as server:
        with pytest.raises(ZeroDivisionError):
            Endpoint(server.url, "m", concurrency=1).complete([said(str(i)) for i in range(300)], 50, on_done=on_done)
        asked = len(server.requests)
        time.sleep(0.3)
        assert len(server.requests) - asked <= 1 and asked < 300


@pytest.mark.parametrize("counted", ['"a"', "[1]", "NaN", "1e999", "-5", "true", "1" + "0" * 400])
def test_what_is_no_number_of_tokens_and_half_a_character_lose_no_answer(counted, tmp_path):
    choice = '{"message": {"content": "half \\ud800 [[3]]"}, "finish_reason": {"a": 1}}'
    usage = f'{{"prompt_tokens": {counted}, "completion_tokens": 7}}'
    body = f'{{"choices": [{choice}], "usage": {usage}}}'.encode()
    with FakeServer(lambda _: body, content_type="application/json") as server:
        (reply,) = Endpoint(server.url, "m").complete([said("a")], 50)
    assert (reply.text, reply.failure, reply.prompt_tokens, reply.new_tokens) == ("half ? [[3]]", "", None, 7)
    (tmp_path / "answer.txt").write_text(reply.text, "utf-8")


# The key


def test_the_account_at_openai_is_told_to_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    with FakeServer(lambda body: "yes") as server:
        Endpoint(server.url, "m").complete([said("a")], 50)
    assert not {"openai-organization", "openai-project"} & set(server.requests[0]["headers"])
    for url in ("https://api.openai.com/v1", "https://eu.api.openai.com/v1"):
        assert Endpoint(url, "m")._client.organization == "org-1"
    for url in ("https://notopenai.com/v1", "https://api.openai.com.evil.example/v1", "http://api.openai.com@evil/v1"):
        assert Endpoint(url, "m")._client.organization is None


def test_the_key_is_that_of_the_environment_and_in_no_failure_or_description(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("GROUNDTUNE_API_KEY", KEY)
    with FakeServer(lambda body: Refusal(400, KEY) if content(body) == "b" else "yes") as server:
        endpoint = Endpoint(server.url, "m")
        replies = endpoint.complete([said("a"), said("b")], 50)
    assert {request["headers"]["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert KEY not in repr(replies) + repr(endpoint)


# Pace, streams, checks


def test_no_more_requests_are_sent_in_a_minute_than_allowed():
    with FakeServer(lambda body: "yes") as server:
        begin = time.monotonic()
        Endpoint(server.url, "m", requests_per_minute=600).complete([said(str(i)) for i in range(5)], 50)
    times = sorted(r["time"] - begin for r in server.requests)
    assert all(seconds >= turn * 0.1 for turn, seconds in enumerate(times)), times


def test_a_stream_gives_the_words_as_they_come():
    with FakeServer(lambda body: "one two three") as server:
        endpoint = Endpoint(server.url, "m")
        assert list(endpoint.stream(said("count"), 50)) == ["one", " two", " three"]
        assert list(endpoint.stream_prompt([3, 4], 50, stop=["x"])) == ["one", " two", " three"]
    assert server.bodies[0]["stream"] is True and server.bodies[1]["prompt"] == [3, 4]


@pytest.mark.parametrize("ended, finished", [("stop", True), ("length", False)])
def test_a_stream_returns_whether_it_came_to_its_end(ended, finished):
    event = {"choices": [{"index": 0, "delta": {"content": "one"}, "finish_reason": ended}]}
    stream = b"data: " + json.dumps(event).encode() + b"\n\ndata: [DONE]\n\n"
    with FakeServer(lambda body: stream, content_type="text/event-stream") as server:
        words = Endpoint(server.url, "m").stream(said("count"), 50)
        assert next(words) == "one"
        with pytest.raises(StopIteration) as end:
            next(words)
    assert end.value.value.finished is finished


def test_a_stream_that_is_refused_is_a_problem():
    with FakeServer(lambda body: Refusal(404)) as server, pytest.raises(EndpointError, match="end in /v1"):
        list(Endpoint(server.url, "m").stream(said("a"), 50))


@pytest.mark.parametrize(
    "body", [b'{"choices": [{"message": {"content": "yes"}}]}', b"<html>Welcome</html>", b"data: [DONE]\n\n", b""]
)
def test_an_answer_without_a_stream_is_a_problem_and_no_empty_answer(body):
    server = FakeServer(lambda _: body, content_type="application/json")
    with server, pytest.raises(EndpointError) as caught:
        list(Endpoint(server.url, "m").stream(said("a"), 50))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{server.url}: ") and "stream" in problem


@pytest.mark.parametrize("event", [b'{"choices": [{"delta', b"[1]", b'{"choices": [7]}'])
def test_an_event_that_is_no_piece_of_an_answer_is_a_problem(event):
    stream = b"data: " + event + b"\n\n"
    server = FakeServer(lambda body: stream, content_type="text/event-stream")
    with server, pytest.raises(EndpointError, match="not a reply of an OpenAI-compatible server"):
        list(Endpoint(server.url, "m").stream(said("a"), 50))


def test_no_prompts_ask_nothing():
    assert Endpoint("http://127.0.0.1:1/v1", "m").complete([], 50) == []


def test_what_can_be_seen_before_asking_is_said_together(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problems = Endpoint("localhost:8000", "").check("judge")
    assert [problem.split(":")[0] for problem in problems] == ["--judge", "--judge_model", "--judge"]
    assert 'pip install "openai>=' in problems[2]


# Requests of other kinds


def as_json(said: object) -> bytes:
    return json.dumps(said).encode()


def test_a_request_of_another_kind_gets_the_json_that_comes_in_the_order_of_the_requests():
    with FakeServer(lambda body: as_json([body["n"]]), content_type="application/json") as server:
        found = Endpoint(server.url, "", {"extra": 1}).ask("/rank", [{"n": i} for i in range(5)])
    assert found == [[i] for i in range(5)]
    assert {request["path"] for request in server.requests} == {"/v1/rank"}
    assert all(body["extra"] == 1 for body in server.bodies)


@pytest.mark.parametrize(
    "reply, said",
    [
        (Refusal(404, "no such path"), "is the address right, and does the server do this?"),
        (Refusal(401, "who are you?"), "set the environment variable OWN_KEY to its key"),
        (Refusal(307, headers={"location": "http://elsewhere.test/"}), "the server redirects (307)"),
        (b"<html>", "not JSON"),
    ],
)
def test_a_request_of_another_kind_that_fails_is_one_line(reply, said, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer(lambda body: reply, content_type="application/json") as server:
        with pytest.raises(EndpointError, match=re.escape(said)) as error:
            Endpoint(server.url, "", retries=0, keys=("OWN_KEY",)).ask("/rank", [{}, {}])
        assert "\n" not in str(error.value) and len(server.requests) == 1
        assert KEY not in str(server.requests)


def test_only_a_server_with_an_address_and_of_the_right_kind_can_be_named():
    assert server_kind("jina:http://a") == "jina" and server_kind("owner/model") == server_kind("tei") == ""
    assert address_problems("reranker", "jina:https://a/v1", ["jina", "tei"]) == []
    (problem,) = address_problems("reranker", "openai:http://a", ["jina", "tei"])
    assert "write jina:URL, tei:URL" in problem
    (problem,) = address_problems("reranker", "tei:localhost", ["jina", "tei"])
    assert "has no address; write one such as tei:http://" in problem
