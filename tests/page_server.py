"""A server for the page's tests: the real page, and an API that answers what the test says, when it says so.

It stands where the engine's server stands, on a real port; the events are those of POST /v1/chat/completions.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from serve.server.page import add_page
from tests.running_server import serving

PASSAGES = [
    {
        "number": 1, "title": "Paid leave", "heading": "How many days", "source": "leave.md", "cited": True,
        "text": "You begin with **ten days**\nof paid leave.\n\n| Years | Days |\n|---|---|\n| 6 | 20 |",
        "quote": "You begin with ten days of paid leave.",
    },
    {
        "number": 2, "title": "休暇", "heading": "申請", "source": "https://wiki.example/leave", "cited": False,
        "text": "申請は前日までに行います。上長が承認します。", "quote": "申請は前日までに行います。",
    },
]  # fmt: skip

HOTELS = "Ask **first**. 🍣\n\n| City | Night |\n|---|---|\n| Nara | 3,000 yen |\n| Osaka | 13,000 yen |"


def pointed(*, said: bool) -> dict[str, Any]:
    """A passage with a line that a reader points at, the last row of its table, or that only came near."""
    start = HOTELS.index("| Osaka")
    return {
        "number": 1, "title": "Trips", "heading": "Hotels", "source": "trips.md", "cited": said, "text": HOTELS,
        "quote": "City: Osaka, Night: 13,000 yen", "start": start, "end": len(HOTELS),
        "lines": [{"start": start, "end": len(HOTELS), "said": said}],
    }  # fmt: skip


@dataclass
class Script:
    """What the server says. pieces: the answer's text in its events. hold: after so many pieces it waits for
    `release`. refuse: status, error body and headers of the next answer. die_after: pieces before an error event.
    refused: what a pointed answer says of itself; None: it is none."""

    pieces: list[str] = field(default_factory=lambda: ["Good ", "morning."])
    citations: list[dict[str, Any]] = field(default_factory=list)
    refused: bool | None = None
    adapters: dict[str, str | None] = field(default_factory=lambda: {"en": "en", "ja": "ja"})
    base: str = "tiny"
    retrieval: bool = False
    key: str | None = None
    state: str = "ok"
    hold: int | None = None
    refuse: tuple[int, dict[str, Any], dict[str, str]] | None = None
    die_after: int | None = None
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    cancelled: int = 0
    _release: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self._release.set()

    async def events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """The answer to a request as server-sent events."""
        adapter = {"auto": "en", "base": None}.get(body["model"], body["model"])
        head = {"id": "x", "model": adapter or self.base, "slm": {"adapter": adapter, "route_reason": "for the test"}}

        def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
            choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
            return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

        sources: dict[str, Any] = {"citations": self.citations} if body.get("rag") else {}
        if sources and self.refused is not None:
            sources["refused"] = self.refused
        done = False
        try:
            yield event({"role": "assistant", "content": ""}, **sources)
            yield ": keep-alive\n\n"  # as the server does while it reads a long prompt
            for n, piece in enumerate(self.pieces):
                if n == self.hold:
                    while not self._release.is_set():
                        await asyncio.sleep(0.02)
                if n == self.die_after:
                    error = {"message": "the engine ended (signal 9)", "type": "server_error", "code": "engine_died"}
                    yield f"data: {json.dumps({'error': error})}\n\n"
                    done = True
                    return
                yield event({"content": piece})
                await asyncio.sleep(0.005)
            yield event({}, "stop", **sources)
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': {'completion_tokens': len(self.pieces)}})}\n\n"
            yield "data: [DONE]\n\n"
            done = True
        finally:
            self.cancelled += not done

    def app(self) -> FastAPI:
        app = FastAPI()
        add_page(app)

        @app.middleware("http")
        async def locked(request: Request, call_next: Callable[[Request], Any]) -> Response:
            wrong = self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}"
            if wrong and request.url.path.startswith("/v1/"):
                return JSONResponse({"error": {"message": "a valid API key is needed", "code": "invalid_api_key"}}, 401)
            response: Response = await call_next(request)
            return response

        @app.get("/health")
        def health() -> JSONResponse:
            return JSONResponse({"status": self.state, "restarts": 0}, 200 if self.state == "ok" else 503)

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            rows: list[dict[str, Any]] = [{"id": self.base, "parent": None, "retrieval": self.retrieval}]
            rows += [{"id": name, "parent": self.base, "language": code} for name, code in self.adapters.items()]
            return {"object": "list", "data": rows}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            self.asked.append(body)
            if self.refuse:
                (status, error, headers), self.refuse = self.refuse, None
                return JSONResponse({"error": error}, status, headers=headers)
            return StreamingResponse(self.events(body), media_type="text/event-stream")

        return app


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve an app on a free port of this machine; its address."""
    with serving(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)) as url:
        yield f"{url}/"
