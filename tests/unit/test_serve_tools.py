"""The two tools for agents, called by the client of the `mcp` package."""

from __future__ import annotations

import asyncio

import httpx2 as httpx
import pytest
from conftest import FACTS
from mcp import Client
from serving import arguments_of, running, tiny_flags

from groundtune.commands.serve import open_serving
from groundtune.schema import ASSISTANT, USER, Turn
from groundtune.serving.dialogue import open_dialogue

QUESTIONS = [question for _, question, _ in FACTS.values()]


@pytest.fixture(scope="module")
def words(families, static_embedding_folder, data_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    flags = tiny_flags(families["qwen"], static_embedding_folder, data_folder, folder / "index")
    return families["qwen"].folder, flags | {"feedback_file": folder / "votes.jsonl"}


@pytest.fixture(scope="module")
def server(words):
    with running(open_serving(*arguments_of(words[0], **words[1]))) as found:
        yield found


def called(server, tool, **arguments):
    async def call():
        async with Client(f"{server.url}/mcp") as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(call())


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_there_are_two_tools_for_clients_of_today_and_of_before(server, mode):
    async def listed():
        async with Client(f"{server.url}/mcp", mode=mode) as client:
            return (await client.list_tools()).tools

    assert sorted(tool.name for tool in asyncio.run(listed())) == ["ask", "search"]


def test_a_search_gives_the_passages_that_the_retriever_finds(server):
    found = called(server, "search", question=QUESTIONS[1], passages=3).structured_content["passages"]
    hits = server.batching.finder.now.retriever.search([QUESTIONS[1]], 3)[0]
    assert [(one["title"], one["text"]) for one in found] == [
        (hit.document.metadata["title"], hit.document.text) for hit in hits
    ]
    assert [one["score"] for one in found] == pytest.approx([hit.score for hit in hits])


def test_a_search_can_be_narrowed(server):
    found = called(server, "search", question=QUESTIONS[1], filter='title == "Dogs"').structured_content["passages"]
    assert [one["title"] for one in found] == ["Dogs"]


def test_an_answer_is_that_of_ask_with_its_history_and_passages(server, words):
    arguments, _ = arguments_of(words[0], **words[1])
    dialogue = open_dialogue(arguments)
    dialogue.turns = [Turn(USER, QUESTIONS[0]), Turn(ASSISTANT, "At nine.")]
    sources, text = dialogue.ask(QUESTIONS[1])
    reply = called(server, "ask", question=QUESTIONS[1], history=[QUESTIONS[0], "At nine."]).structured_content
    assert reply["answer"] == "".join(text)
    assert [one["title"] for one in reply["passages"]] == [source.title for source in sources]


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("ask", {"question": " "}, "the question is empty"),
        ("ask", {"question": "long " * 4000}, "at most"),
        ("ask", {"question": "long " * 1000}, "too long"),
        ("search", {"question": "x", "passages": 0}, "passages: is 0"),
    ],
)
def test_a_call_that_cannot_be_answered_is_told_why(server, tool, arguments, told):
    reply = called(server, tool, **arguments)
    assert reply.is_error and told in reply.content[0].text
    assert server.settled()


def test_a_page_of_another_site_cannot_call_a_tool_and_no_stream_stays_open(server):
    sent = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for headers, status in (({"origin": "http://x.example"}, 403), ({"host": "x.example"}, 421)):
        assert httpx.post(f"{server.url}/mcp", json=call, headers=sent | headers).status_code == status
    assert httpx.get(f"{server.url}/mcp", headers=sent).status_code == 405


def test_an_agent_that_hangs_up_frees_its_slot(words):
    longer = {"max_seq_length": 2000, "max_new_tokens": 1800, "per_device_eval_batch_size": 1}
    with running(open_serving(*arguments_of(words[0], **words[1] | longer))) as server:
        with pytest.raises(Exception):  # noqa: B017  whatever the client makes of it
            called_within(server, 0.5)
        assert server.settled()


def called_within(server, seconds):
    async def call():
        async with Client(f"{server.url}/mcp", read_timeout_seconds=seconds) as client:
            return await client.call_tool("ask", {"question": QUESTIONS[0]})

    return asyncio.run(asyncio.wait_for(call(), seconds + 2))
