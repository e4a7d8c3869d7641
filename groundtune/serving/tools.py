"""Two tools for agents, by the Model Context Protocol: search the documents, and ask the model about them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import Message, Receive, Scope, Send

from groundtune.schema import Turn
from groundtune.serving.answers import Answer, Serving, refusal, searched
from groundtune.serving.chat import checked_filter, request_of, shown_source
from groundtune.serving.dialogue import Source

T = TypeVar("T")
_MOST_PASSAGES = 50


def make_tools(serving: Serving) -> MCPServer[Any]:
    """The tools; every call is a question in the same queue as those of the API."""
    logging.getLogger("mcp").setLevel(logging.WARNING)
    server: MCPServer[Any] = MCPServer("groundtune", subscriptions=False, log_level="WARNING")

    @server.tool()
    async def search(question: str, passages: int = 4, filter: str = "") -> dict[str, Any]:
        """Find the passages of the documents that are about a question: title, file, page, score and text of each.
        `filter` is a condition on their metadata, such as: lang == "en" and date >= "2025"."""
        if not 1 <= passages <= _MOST_PASSAGES:
            raise ToolError(f"passages: is {passages}; ask for 1 to {_MOST_PASSAGES}")
        found = await _told(_found(serving, question, passages, filter))
        return {"passages": [shown_source(source) for source in found]}

    @server.tool()
    async def ask(question: str, history: list[str] | None = None, filter: str = "") -> dict[str, Any]:
        """Answer a question from the documents, with the passages that were read.
        `history` has the earlier messages of the dialogue, oldest first: a question, its answer, the next question ...
        `filter` is as in search."""
        turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(history or []) if text.strip()]
        answer = await _told(_answered(serving, question, turns, filter))
        said = answer.told.said
        cited = {"cited": said.marked} if said.marked else {}
        sources = [shown_source(source, said.answer) for source in answer.sources]
        return {"answer": said.answer, **cited, "finished": answer.told.finished, "passages": sources}

    return server


async def _found(serving: Serving, question: str, passages: int, filter: str) -> list[Source]:
    request = replace(request_of(question, (), serving.most_characters), filter=checked_filter(filter))
    return await searched(serving, request, passages)


async def _answered(serving: Serving, question: str, turns: list[Turn], filter: str) -> Answer:
    request = replace(request_of(question, turns, serving.most_characters), filter=checked_filter(filter))
    answer = Answer(serving, request, serving.wanted(request))
    serving.enqueue(answer.ticket)
    try:
        await answer.whole()
    finally:
        serving.batching.leave(answer.ticket)
    return answer


async def _told(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; a failure is told to the agent."""
    try:
        return await work
    except Exception as error:
        raise ToolError(refusal(error).message) from error


class ToolsApp:
    """The tools as an ASGI application without sessions; a call is given up when its client hangs up."""

    def __init__(self, server: MCPServer[Any]) -> None:
        checked_by_our_guard = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        server.streamable_http_app(stateless_http=True, json_response=True, transport_security=checked_by_our_guard)
        self.manager = server.session_manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = await receive()  # all of the body: the guard has read it

        given = False

        async def once() -> Message:
            nonlocal given
            if given:
                await asyncio.sleep(math.inf)
            given = True
            return first

        call = asyncio.ensure_future(self.manager.handle_request(scope, once, send))
        gone = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait([call, gone], return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                call.result()
        finally:
            call.cancel()
            gone.cancel()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
