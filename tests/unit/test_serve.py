"""`groundtune serve` with the clients that people use, against tiny random models."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2 as httpx
import openai
import pytest
from conftest import FACTS, tiny_documents
from fake_server import FakeServer
from serving import arguments_of, running, tiny_flags, until

from groundtune.commands.serve import open_serving
from groundtune.data.files import write_documents
from groundtune.errors import DataError
from groundtune.model.generation import PackedDecoder
from groundtune.schema import ASSISTANT, USER, Turn
from groundtune.serving.dialogue import open_dialogue

QUESTIONS = [question for _, question, _ in FACTS.values()]


@pytest.fixture(scope="module")
def flags(families, static_embedding_folder, data_folder, tmp_path_factory):
    return tiny_flags(families["qwen"], static_embedding_folder, data_folder, tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def model(families):
    return families["qwen"].folder


def opened(model, flags, tmp_path, **more):
    return open_serving(*arguments_of(model, **flags, feedback_file=tmp_path / "votes.jsonl", **more))


@pytest.fixture(scope="module")
def server(model, flags, tmp_path_factory):
    with running(opened(model, flags, tmp_path_factory.mktemp("served"))) as found:
        yield found


@pytest.fixture(scope="module")
def dialogue(model, flags):
    """What `groundtune ask` answers with."""
    return open_dialogue(arguments_of(model, **flags)[0])


def asked(dialogue, question, history=()):
    dialogue.turns = list(history)
    sources, words = dialogue.ask(question)
    return "".join(words), sources


def said(*texts):
    """Messages that alternate, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def client(server, **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=options.pop("api_key", "none"), max_retries=0, **options)


def test_the_openai_client_gets_what_ask_answers_with_its_sources(server, dialogue):
    for question in QUESTIONS:
        reply = client(server).chat.completions.create(model=server.serving.name, messages=said(question))
        text, sources = asked(dialogue, question)
        assert reply.choices[0].message.content == text
        assert [(s["title"], s["text"], s["score"]) for s in reply.sources] == [
            (s.title, s.document.text, pytest.approx(s.score)) for s in sources
        ]
        cited = reply.choices[0].message.annotations
        assert [one.url_citation.title for one in cited] == [source.title for source in sources]
        assert reply.choices[0].finish_reason == ("stop" if dialogue.told.finished else "length")
        assert reply.usage.completion_tokens <= 12 and reply.usage.prompt_tokens > 10


def test_a_stream_has_the_same_words_in_pieces_with_the_sources_first(server, dialogue):
    chunks = list(
        client(server).chat.completions.create(
            model=server.serving.name, messages=said(QUESTIONS[0]), stream=True, stream_options={"include_usage": True}
        )
    )
    text, sources = asked(dialogue, QUESTIONS[0])
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(words) == text and len(words) > 1
    assert [source["title"] for source in chunks[0].sources] == [source.title for source in sources]
    assert chunks[-2].choices[0].finish_reason in ("stop", "length") and chunks[-2].sources[0]["used"] is not None
    assert chunks[-1].usage.completion_tokens <= 12


def test_earlier_turns_are_the_history_as_in_a_dialogue(server, dialogue):
    history = [Turn(USER, QUESTIONS[0]), Turn(ASSISTANT, "At nine.")]
    reply = client(server).chat.completions.create(model="", messages=said(QUESTIONS[0], "At nine.", QUESTIONS[1]))
    assert reply.choices[0].message.content == asked(dialogue, QUESTIONS[1], history)[0]


def test_many_users_at_once_get_the_answers_that_each_would_get_alone(server, dialogue):
    async def ask_all():
        asker = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        async def streamed(question):
            stream = await asker.chat.completions.create(model="", messages=said(question), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        return await asyncio.gather(*(streamed(question) for question in QUESTIONS * 5))

    assert asyncio.run(ask_all()) == [asked(dialogue, question)[0] for question in QUESTIONS] * 5


def test_models_and_health_are_listed(server):
    assert [model.id for model in client(server).models.list()] == [server.serving.name]
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "answering": 0, "waiting": 0}


def test_a_system_message_is_ignored_with_a_log_line_unless_it_is_allowed(
    server, dialogue, caplog, model, flags, tmp_path
):
    messages = [{"role": "system", "content": "Answer in French."}, *said(QUESTIONS[0])]
    with caplog.at_level("INFO"):
        reply = client(server).chat.completions.create(model="", messages=messages)
    assert reply.choices[0].message.content == asked(dialogue, QUESTIONS[0])[0]
    assert "--allow_system_prompt" in caplog.text
    with running(opened(model, flags, tmp_path, allow_system_prompt="true")) as other:
        reply = client(other).chat.completions.create(model="", messages=messages)
    french = open_dialogue(arguments_of(model, **{**flags, "instruction": "Answer in French."})[0])
    assert reply.choices[0].message.content == asked(french, QUESTIONS[0])[0]


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": "x"}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
        ({"messages": said("a", "b")}, 400, "the last one must be the user's question"),
        ({"messages": said(" ")}, 400, "the last one must be the user's question"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only text"),
        ({"messages": said("long " * 4000)}, 400, "at most"),
        ({"messages": said("long " * 1000)}, 400, "your question"),
        ({"model": "gpt-x"}, 404, "is not served here; there is"),
        ({"n": 2}, 400, "n: not supported"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"messages": said("\ud800")}, 400, ""),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_cannot_be_answered_is_told_why(server, change, status, told, stream):
    body = {"messages": said(QUESTIONS[0]), "stream": stream, **change}
    content = json.dumps(body).encode()
    reply = httpx.post(
        f"{server.url}/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert reply.status_code == status and told in reply.json()["error"]["message"]
    assert server.settled()


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b'{"messages": NaN}'])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/feedback"])
def test_what_is_no_request_is_refused(server, content, path):
    reply = httpx.post(f"{server.url}{path}", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 400 and reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_another_site_cannot_use_the_server_through_a_browser(server, headers, status):
    sent = {"content-type": "application/json", **headers}
    with httpx.Client() as web:
        reply = web.post(f"{server.url}/v1/chat/completions", content=b"{}", headers=sent)
    assert reply.status_code == status and "default-src 'none'" in reply.headers["content-security-policy"]


def raw(server, head, body=b""):
    """The status of a request that no client would send."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        with suppress(OSError):  # it may be refused before all of it is sent
            connection.sendall(f"{head}\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode() + body)
        return int(connection.recv(100).split()[1])


def test_a_body_is_refused_as_soon_as_it_is_too_large_whatever_its_stated_length(server):
    head = "POST /v1/chat/completions HTTP/1.1"
    assert raw(server, head, b"Content-Length: 99999999999\r\n\r\n") == 413
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert raw(server, head, b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17) == 413


@pytest.fixture
def one_slot(model, flags, tmp_path):
    """A server that answers one question at a time, at length, while one more may wait."""
    longer = {"max_seq_length": 2000, "max_new_tokens": 900, "per_device_eval_batch_size": 1, "queue_size": 1}
    with running(opened(model, flags | longer, tmp_path)) as server:
        yield server


def begun(server, question=QUESTIONS[0]):
    """A stream whose first words have come."""
    stream = client(server).chat.completions.create(model="", messages=said(question), stream=True)
    for chunk in stream:
        if chunk.choices[0].delta.content:
            return stream


def waits(server, n=1):
    """A client that waits for its answer in the queue."""
    wanted = {"model": "", "messages": said(QUESTIONS[1])}
    thread = threading.Thread(target=lambda: client(server).chat.completions.create(**wanted), daemon=True)
    thread.start()
    assert until(lambda: len(server.batching.waiting) == n)
    return thread


def test_a_client_that_hangs_up_frees_its_slot_whether_it_was_answered_or_waited(one_slot):
    stream = begun(one_slot)
    with pytest.raises(openai.APITimeoutError):  # while it waits
        client(one_slot, timeout=0.2).chat.completions.create(model="", messages=said(QUESTIONS[1]))
    assert until(lambda: not one_slot.batching.waiting) and one_slot.batching.busy == 1
    stream.close()
    assert one_slot.settled()
    with pytest.raises(openai.APITimeoutError):  # while it is answered, not as a stream
        client(one_slot, timeout=0.2).chat.completions.create(model="", messages=said(QUESTIONS[1]))
    assert one_slot.settled()


def test_when_the_queue_is_full_a_client_is_told_when_to_come_back(one_slot):
    stream = begun(one_slot)
    waiting = waits(one_slot)
    with pytest.raises(openai.RateLimitError) as refused:
        client(one_slot).chat.completions.create(model="", messages=said(QUESTIONS[0]))
    assert int(refused.value.response.headers["retry-after"]) >= 1
    stream.close()  # and the one that waited has its turn
    waiting.join(30)
    assert not waiting.is_alive() and one_slot.settled()


def test_a_server_that_is_ended_first_finishes_what_it_has_accepted(one_slot):
    stream, waiting = begun(one_slot), waits(one_slot)
    one_slot.server.should_exit = True
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    waiting.join(30)
    assert not waiting.is_alive()
    with pytest.raises(openai.APIConnectionError):
        client(one_slot).models.list()


def test_with_a_key_nobody_else_is_answered_and_the_name_of_the_host_is_free(model, flags, tmp_path):
    with running(opened(model, flags, tmp_path, api_key="k1-secret")) as server:
        for path in ("/v1/models", "/settings", "/nowhere"):
            for given in ("", "Bearer k1-secre", "Bearer k1-secret2", "Basic k1-secret", "Bearer \xe9"):
                reply = httpx.get(f"{server.url}{path}", headers={"authorization": given.encode("latin-1")})
                assert reply.status_code == 401
        assert client(server, api_key="k1-secret").models.list().data
        named = {"host": "documents.example", "authorization": "Bearer k1-secret"}
        assert httpx.get(f"{server.url}/v1/models", headers=named).status_code == 200
        assert httpx.get(f"{server.url}/v1/models", headers=named | {"origin": "http://x.example"}).status_code == 403
        assert httpx.get(f"{server.url}/").status_code == httpx.get(f"{server.url}/health").status_code == 200


def test_a_filter_narrows_the_search_of_one_request(server):
    ask = client(server).chat.completions.create
    narrow = {"filter": 'title == "Dogs" or title == "Food"'}
    reply = ask(model="", messages=said(QUESTIONS[0]), extra_body=narrow)
    assert sorted(source["title"] for source in reply.sources) == ["Dogs", "Food"]
    assert "Opening" in {source["title"] for source in ask(model="", messages=said(QUESTIONS[0])).sources}
    for wrong, told in (('title = "Dogs"', "filter"), ('title == "Cats"', "leaves none of the 6 passages")):
        with pytest.raises(openai.BadRequestError, match=told):
            ask(model="", messages=said(QUESTIONS[0]), extra_body={"filter": wrong})


def test_documents_that_have_changed_are_in_use_without_a_restart(model, flags, tmp_path, caplog):
    documents = tmp_path / "documents.jsonl"
    write_documents(documents, tiny_documents()[:3])
    changed = {"full_dataset_file_path": documents, "full_dataset_index_path": tmp_path / "index"}
    with caplog.at_level("INFO"), running(opened(model, flags | changed, tmp_path)) as server:

        def titles():
            reply = client(server).chat.completions.create(model="", messages=said(QUESTIONS[4]))
            return {source["title"] for source in reply.sources}

        before = server.serving.facts["hashes"]["documents"]
        assert "Dogs" not in titles()
        documents.write_text("{not JSON", "utf-8")
        assert until(lambda: "cannot be read" in caplog.text) and "Dogs" not in titles()
        write_documents(documents, tiny_documents())
        assert until(lambda: "are in use now" in caplog.text) and "Dogs" in titles()
        assert server.serving.facts["hashes"]["documents"] != before


def test_when_memory_runs_out_fewer_are_answered_side_by_side_and_nothing_is_lost(
    model, flags, tmp_path, monkeypatch, dialogue
):
    serving = opened(model, flags, tmp_path, per_device_eval_batch_size=4)
    original, failures = PackedDecoder.step, iter([True, False, True])

    def step(decoder):
        if len(decoder.running) > 1 and next(failures, False):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        original(decoder)

    monkeypatch.setattr(PackedDecoder, "step", step)
    with running(serving) as server, ThreadPoolExecutor(6) as users:
        answers = users.map(
            lambda question: client(server).chat.completions.create(model="", messages=said(question)), QUESTIONS
        )
        texts = [answer.choices[0].message.content for answer in answers]
    assert texts == [asked(dialogue, question)[0] for question in QUESTIONS]
    assert serving.batching.voices["tuned"].slots < 4


def test_a_model_that_fails_fails_the_questions_it_was_answering_and_no_later_ones(model, flags, tmp_path, monkeypatch):
    serving = opened(model, flags, tmp_path)
    original = PackedDecoder.step
    monkeypatch.setattr(PackedDecoder, "step", lambda decoder: 1 / 0)
    with running(serving) as server:
        with pytest.raises(openai.InternalServerError, match="its log says why"):
            client(server).chat.completions.create(model="", messages=said(QUESTIONS[0]))
        with pytest.raises(openai.APIError, match="its log says why"):
            list(client(server).chat.completions.create(model="", messages=said(QUESTIONS[0]), stream=True))
        monkeypatch.setattr(PackedDecoder, "step", original)
        assert client(server).chat.completions.create(model="", messages=said(QUESTIONS[0])).choices


def test_a_model_without_packed_attention_answers_the_same(families, flags, tmp_path, dialogue, monkeypatch):
    monkeypatch.setattr("groundtune.model.generation.attends_by_layout", lambda model: False)
    with running(opened(families["qwen"].folder, flags, tmp_path)) as server, ThreadPoolExecutor(6) as users:
        answers = list(
            users.map(lambda q: client(server).chat.completions.create(model="", messages=said(q)), QUESTIONS)
        )
    assert [one.choices[0].message.content for one in answers] == [asked(dialogue, q)[0] for q in QUESTIONS]


def test_another_server_can_write_the_answers(flags, tmp_path, dialogue):
    def words(body):
        return f"It says: {body['messages'][-1]['content'][:20]}"

    remote = {name: flags[name] for name in ("full_dataset_file_path", "embedding_model", "full_dataset_index_path")}
    with FakeServer(words) as behind:
        generator = {"generator": f"openai:{behind.url}", "generator_model": "m", "concurrency": 2}
        with running(open_serving(*arguments_of(**remote, **generator, feedback_file=tmp_path / "v.jsonl"))) as server:
            reply = client(server).chat.completions.create(model="", messages=said(QUESTIONS[0]))
            streamed = begun(server)
            streamed.close()
            assert server.settled()
    assert reply.choices[0].message.content.startswith("It says:") and len(reply.sources) == 4
    assert reply.usage is None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"host": "::"}, "--host: :: can be reached from other machines"),
        ({"host": "192.0.2.7"}, "--host: 192.0.2.7 can be reached"),
        ({"port": 70000}, "--port: 70000 is no port"),
        ({"api_key": "two words"}, "--api_key: has characters"),
        ({"queue_size": -1}, "--queue_size"),
    ],
)
def test_what_would_be_dangerous_or_fail_is_refused_before_anything_is_loaded(flags, told):
    problems = arguments_of("model", **flags)[1].check("model")
    assert len(problems) == 1 and problems[0].startswith(told)


def test_a_port_that_is_taken_is_one_line(server):
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(DataError, match=f"--port: cannot listen on 127.0.0.1, port {port}"):
        arguments_of("model", port=port)[1].bound()
