"""The HTTP server around an engine: OpenAI's API, adapters at run time, and the page at `/`.

It knows nothing of the child process or of how an index is searched: it is handed an engine and a retriever.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serve.api import (
    Answer,
    ChatRequest,
    CompletionRequest,
    Generation,
    LoadAdapter,
    VllmLoad,
    VllmUnload,
    citations_of,
    error_body,
    plain_error,
)
from serve.engine import Engine, Event, Sink, Ticket
from serve.page import PAGE_PATHS, add_page
from slm import __version__
from slm.errors import InputError, SlmError, UnsupportedError
from slm.joints import Finish, Grounded, Message, Retriever

_T = TypeVar("_T")
_OPEN_PATHS = (*PAGE_PATHS, "/health")


def create_app(
    engine: Engine,
    *,
    allowed_folders: Sequence[Path] = (),
    api_key: str | None = None,
    retriever: Retriever | None = None,
) -> FastAPI:
    """The application.

    allowed_folders: where adapters may be loaded from. api_key: asked of every request but the page and /health.
    """
    app = FastAPI(title="slm-cpu", version=__version__, redoc_url=None)
    folders = [folder.resolve() for folder in allowed_folders]
    _install_errors(app)

    if api_key is not None:

        @app.middleware("http")
        async def check_key(request: Request, call_next: Callable[[Request], Any]) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            right = hmac.compare_digest(given.encode("utf-8", "replace"), api_key.encode())
            if not right and request.url.path not in _OPEN_PATHS:
                body = plain_error("a valid API key is needed", kind="authentication_error", code="invalid_api_key")
                return JSONResponse(body, 401, headers={"www-authenticate": "Bearer"})
            response: Response = await call_next(request)
            return response

    @app.get("/health")
    def health() -> JSONResponse:
        ready = engine.state == "ready"
        body = {"status": "ok" if ready else engine.state, "restarts": engine.restarts}
        return JSONResponse(body, 200 if ready else 503)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        base = engine.base.name
        head = {"id": base, "object": "model", "owned_by": "slm-cpu", "parent": None}
        rows: list[dict[str, Any]] = [{**head, "context": engine.context, "retrieval": retriever is not None}]
        for adapter in engine.adapters():
            row = {"id": adapter.name, "object": "model", "owned_by": "slm-cpu", "parent": base}
            rows.append({**row, "language": adapter.language})
        return {"object": "list", "data": rows}

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        sampling = body.sampling()
        messages = [turn.plain() for turn in body.messages]
        way = await asyncio.to_thread(engine.route, body.model, messages)
        grounded = await asyncio.to_thread(_grounded, retriever, messages) if body.rag else None
        messages = grounded.messages if grounded else messages

        def begin(sink: Sink) -> Ticket:
            return engine.begin_chat(messages, sink, adapter=way.adapter, sampling=sampling, fit=body.limit is None)

        answer = Answer(chat=True, model=way.adapter or engine.base.name, adapter=way.adapter, reason=way.reason)
        return await _respond(request, body, answer, begin, _route_headers(way.adapter, way.reason), grounded)

    @app.post("/v1/completions")
    async def complete(request: Request, body: CompletionRequest) -> Response:
        sampling = body.sampling()
        way = await asyncio.to_thread(engine.route, body.model, [Message(role="user", content=body.prompt)])

        def begin(sink: Sink) -> Ticket:
            return engine.begin_complete(
                body.prompt, sink, adapter=way.adapter, sampling=sampling, fit=body.limit is None
            )

        answer = Answer(chat=False, model=way.adapter or engine.base.name, adapter=way.adapter, reason=way.reason)
        return await _respond(request, body, answer, begin, _route_headers(way.adapter, way.reason), None)

    def load(name: str, path: str, scale: float = 1.0) -> dict[str, Any]:
        adapter = engine.load_adapter(name, _allowed(path, folders), scale=scale)
        return {"name": adapter.name, "scale": adapter.scale, "language": adapter.language}

    @app.get("/lora-adapters")
    def list_adapters() -> list[dict[str, Any]]:
        return [
            {"id": n, "name": a.name, "path": str(a.path), "scale": a.scale, "language": a.language}
            for n, a in enumerate(engine.adapters())
        ]

    @app.post("/lora-adapters")
    def load_adapter(body: LoadAdapter) -> dict[str, Any]:
        return load(body.name, body.path, body.scale)

    @app.delete("/lora-adapters/{name}")
    def unload_adapter(name: str) -> dict[str, Any]:
        engine.unload_adapter(name)
        return {"name": name, "unloaded": True}

    @app.post("/v1/load_lora_adapter")
    def vllm_load(body: VllmLoad) -> dict[str, Any]:
        if not body.load_inplace and any(a.name == body.lora_name for a in engine.adapters()):
            raise InputError(
                f"the adapter '{body.lora_name}' is loaded already", hint="Set load_inplace to replace it."
            )
        return load(body.lora_name, body.lora_path)

    @app.post("/v1/unload_lora_adapter")
    def vllm_unload(body: VllmUnload) -> dict[str, Any]:
        return unload_adapter(body.lora_name)

    add_page(app)
    return app


def _install_errors(app: FastAPI) -> None:
    @app.exception_handler(SlmError)
    async def ours(_: Request, error: SlmError) -> JSONResponse:
        status, body = error_body(error)
        return JSONResponse(body, status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            message, param = f"the body is not valid JSON: {first.get('ctx', {}).get('error', '')}", None
        else:
            message, param = f"{where or 'body'}: {first['msg']}", where or None
        return JSONResponse(plain_error(message, code="invalid_request", param=param), 400)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        body = plain_error(str(error.detail), code=f"http_{error.status_code}")
        return JSONResponse(body, error.status_code, headers=error.headers)


def _allowed(path: str, folders: Sequence[Path]) -> Path:
    """The path, if it lies in an allowed folder. What lies elsewhere is not even looked at."""
    resolved = Path(path).resolve()
    if not any(resolved.is_relative_to(folder) for folder in folders):
        raise InputError(
            f"adapters may not be loaded from '{path}'",
            hint="Start the server with --adapters-dir naming the folder that holds them.",
        )
    return resolved


def _grounded(retriever: Retriever | None, messages: Sequence[Message]) -> Grounded:
    """The last question with its passages."""
    if retriever is None:
        raise UnsupportedError("this server has no index", hint="Start it with --rag INDEX.")
    return retriever.grounded(next((m["content"] for m in reversed(messages) if m["role"] == "user"), ""))


def _route_headers(adapter: str | None, reason: str) -> dict[str, str]:
    """Which adapter answers and why; percent-encoded where a header could not carry it."""
    return {"x-slm-adapter": quote(adapter or "base"), "x-slm-route-reason": quote(reason, safe=" ,;:'%()")}


async def _respond(
    request: Request,
    body: Generation,
    answer: Answer,
    begin: Callable[[Sink], Ticket],
    headers: dict[str, str],
    grounded: Grounded | None = None,
) -> Response:
    """Start the request and answer it, whole or as events; a client that goes away cancels it."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def sink(event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed when the server is being stopped
            loop.call_soon_threadsafe(events.put_nowait, event)

    ticket = await asyncio.to_thread(begin, sink)
    if body.stream:
        first = await _unless_left(request, ticket, events.get())  # an error before the start has its own status
        if isinstance(first, SlmError):
            raise first
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return _EventStream(_stream(first, events, answer, usage, grounded), ticket, headers)

    async def collect() -> tuple[str, Finish]:
        pieces: list[str] = []
        while isinstance(event := await events.get(), str):
            pieces.append(event)
        if isinstance(event, SlmError):
            raise event
        text = "".join(pieces)
        return (grounded.citations.feed(text) + grounded.citations.end() if grounded else text), event

    text, finish = await _unless_left(request, ticket, collect())
    return JSONResponse(answer.whole(text, finish, await _quoted(grounded)), headers=headers)


class _EventStream(StreamingResponse):
    """Server-sent events of one request, which is cancelled when the client goes away at any moment."""

    def __init__(self, events: AsyncIterator[str], ticket: Ticket, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**headers, "cache-control": "no-store"})
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()


async def _unless_left(request: Request, ticket: Ticket, wanted: Coroutine[Any, Any, _T]) -> _T:
    """The result of `wanted`, unless the client closes the connection first: then the request is cancelled."""
    work = asyncio.create_task(wanted)
    left = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            ticket.cancel()
            raise HTTPException(499, "the client closed the connection")
        return work.result()
    except asyncio.CancelledError:
        ticket.cancel()
        raise
    finally:
        work.cancel()
        left.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(
    event: Event, events: asyncio.Queue[Event], answer: Answer, usage: bool, grounded: Grounded | None
) -> AsyncIterator[str]:
    """The events of one answer; an error after the start is an event of its own."""
    yield _event(answer.chunk("", first=True, citations=citations_of(grounded)))
    while isinstance(event, str):
        if ready := grounded.citations.feed(event) if grounded else event:
            yield _event(answer.chunk(ready))
        event = await events.get()
    if isinstance(event, Finish):
        if grounded and (rest := grounded.citations.end()):
            yield _event(answer.chunk(rest))
        yield _event(answer.chunk(None, reason=event.reason, citations=await _quoted(grounded)))
        if usage:
            yield _event(answer.usage_chunk(event))
    else:
        yield _event(error_body(event)[1])
    yield "data: [DONE]\n\n"


async def _quoted(grounded: Grounded | None) -> dict[str, Any]:
    """The citations of an answer that has been given, with their quotes."""
    return citations_of(grounded, await asyncio.to_thread(grounded.quotes)) if grounded else {}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
