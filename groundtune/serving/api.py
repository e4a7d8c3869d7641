"""The server: a chat page, an OpenAI-compatible API, tools for agents, and the votes of its users, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from groundtune.schema import Turn
from groundtune.serving.answers import Answer, Serving, refusal, searched
from groundtune.serving.chat import Refused, Request, parsed, read_request, sampling_of
from groundtune.serving.feedback import Shown, Vote, answered, line_of
from groundtune.serving.guard import Guard
from groundtune.serving.tools import ToolsApp, make_tools
from groundtune.serving.voices import BASE, TUNED

PAGES = Path(__file__).parent / "pages"


class _Events(StreamingResponse):
    """An answer that is streamed; its ticket is given back at the end, or when the client hangs up."""

    def __init__(self, answer: Answer) -> None:
        # nginx would keep the words until there are many.
        super().__init__(answer.events(), headers={"x-accel-buffering": "no"}, media_type="text/event-stream")
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answer.serving.batching.leave(self.answer.ticket)


async def complete(serving: Serving, http: HttpRequest) -> Response:
    """Answer a request for a chat completion."""
    request = read_request(await http.body(), serving.most_characters)
    ticket = serving.wanted(request)
    answer = Answer(serving, request, ticket)
    serving.enqueue(ticket)
    streamed = False
    try:
        if not request.stream:
            return Response(await _unless_gone(http, answer.whole()), media_type="application/json")
        # What is wrong with the question is known soon, and has a status of its own then.
        await answer.find_soon()
        streamed = True
        return _Events(answer)
    finally:
        if not streamed:
            serving.batching.leave(ticket)


async def _unless_gone(http: HttpRequest, work: Coroutine[Any, Any, str]) -> str:
    """The result of `work`, which is given up if the client hangs up."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(http))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(499, "the client has closed the connection")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _hung_up(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def vote(serving: Serving, http: HttpRequest) -> Response:
    """Save a vote; the reply is sent once it is on disk."""
    cast: Vote = parsed(Vote, await http.body())
    one = len(cast.shown) == 1
    if cast.vote not in (("", "up", "down") if one else ("", "left", "right", "both", "neither")):
        raise Refused(400, f"vote: {cast.vote} is not about {'one answer' if one else 'two answers'}")
    keys = [cast.id] if one else [f"{cast.id}:{side}" for side in (0, 1)]
    answers = [
        serving.given.get(key) or await _of_before(serving, shown) for key, shown in zip(keys, cast.shown, strict=True)
    ]
    models = [TUNED] if one else serving.order(cast.id)
    answers = [{"model": model} | answer for model, answer in zip(models, answers, strict=True)]
    row = line_of(cast, answers, serving.facts)
    await asyncio.get_running_loop().run_in_executor(None, serving.feedback.add, row)
    return JSONResponse({"saved": True})


async def _of_before(serving: Serving, shown: Shown) -> dict[str, Any]:
    """An answer of before a restart, as the page shows it; its passages are found again, and never the page's."""
    turns = tuple(Turn(turn.speaker, turn.message) for turn in shown.history)
    found = await searched(serving, Request(shown.question, turns))
    read = [source for source in found if source.document.id in shown.sources]
    history = [turn.model_dump() for turn in shown.history]
    return answered(shown.question, history, shown.answer, read, sampling_of(shown.again))


def make_app(serving: Serving) -> FastAPI:
    """The application. Its own documentation pages are off: they load scripts from other hosts."""
    tools = ToolsApp(make_tools(serving))
    made = _lifespan(serving, tools)
    app = FastAPI(title="Groundtune", docs_url=None, redoc_url=None, openapi_url=None, lifespan=made)
    app.add_middleware(Guard, api_key=serving.api_key)
    app.router.routes.append(Route("/mcp", tools, methods=["POST"]))

    @app.exception_handler(Refused)
    async def refused(http: HttpRequest, error: Refused) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def no_such_path(http: HttpRequest, error: HTTPException) -> JSONResponse:
        return JSONResponse(Refused(error.status_code, str(error.detail)).body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(http: HttpRequest, error: Exception) -> JSONResponse:
        told = refusal(error)
        return JSONResponse(told.body, told.status)

    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/chat.js", "chat.js", "text/javascript"),
        ("/chat.css", "chat.css", "text/css"),
    ):
        app.add_api_route(path, _static(PAGES / name, kind), methods=["GET", "HEAD"])

    @app.post("/v1/chat/completions")
    async def chat_completions(http: HttpRequest) -> Response:
        return await _told(complete(serving, http))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "groundtune"} for name in serving.names]
        return {"object": "list", "data": listed}

    @app.post("/feedback")
    async def feedback(http: HttpRequest) -> Response:
        return await _told(vote(serving, http))

    @app.get("/settings")
    async def settings() -> dict[str, Any]:
        compares = BASE in serving.batching.voices
        return {"model": serving.name, "compares": compares, "questions": serving.questions}

    @app.get("/favicon.ico")
    async def no_icon() -> Response:
        return Response(status_code=204)

    @app.get("/health")
    async def health() -> Response:
        batching = serving.batching
        told = {
            "status": "ok" if batching.alive else "failed",
            "answering": batching.busy,
            "waiting": len(batching.waiting),
        }
        return JSONResponse(told, 200 if batching.alive else 503)

    return app


async def _told(work: Coroutine[Any, Any, Response]) -> Response:
    """The response of `work`, or what its client is told about a failure."""
    try:
        return await work
    except Exception as error:
        refused = refusal(error)
        return JSONResponse(refused.body, refused.status, refused.headers)


def _static(path: Path, kind: str) -> Callable[[], Response]:
    content = path.read_bytes()

    def page() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8")

    return page


def _lifespan(serving: Serving, tools: ToolsApp) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        serving.batching.start()
        async with tools.manager.run():
            yield
        serving.batching.close()
        serving.pool.shutdown(wait=False, cancel_futures=True)

    return lifespan
