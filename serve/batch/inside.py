"""The server's application asked inside this process, without a socket: a request means the same in both places.

It knows nothing of batches.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import Message, Scope

from serve.engine.served import ServedEngine
from serve.server.app import create_app
from serve.server.guard import Limits, Policy
from slm.errors import EngineError

# Whoever asks holds back by himself, and an answer may take as long as it takes.
_POLICY = Policy(limits=Limits(queue=1_000_000, request_s=0.0))


class InsideServer:
    """Answers requests (implements `serve.batch.run.BatchAnswering`) with an engine; use it on an event loop."""

    def __init__(self, engine: ServedEngine) -> None:
        self._engine = engine
        self._app = create_app(engine, policy=_POLICY)

    async def ask(self, url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON body of the server's answer. Raises EngineError where the engine is gone for good."""
        request = json.dumps(body).encode()
        call = _Call(request)
        work = asyncio.ensure_future(self._app(_scope(url, len(request)), call.receive, call.send))
        try:
            # Awaited aside: the guard makes an answer of a cancellation, and whoever cancels wants none.
            await asyncio.wait({work})
            work.result()
        finally:
            work.cancel()
        if call.status == 503 and self._engine.state in ("down", "closed"):
            raise EngineError(
                f"the engine is {self._engine.state}: it could not be started again", found=_message(call.body)
            )
        answer: dict[str, Any] = json.loads(call.body)
        return call.status, answer


def _scope(url: str, size: int) -> Scope:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"%d" % size)]
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": url, "raw_path": url.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": None, "server": None, "state": {},
    }  # fmt: skip


class _Call:
    """Both ends of one request of ASGI; the client stays until it has its answer."""

    def __init__(self, request: bytes) -> None:
        self._request: bytes | None = request
        self.status = 0
        self.body = b""

    async def receive(self) -> Message:
        if self._request is None:
            await asyncio.Event().wait()  # there is no more to send, and nobody leaves
        body, self._request = self._request, None
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")


def _message(body: bytes) -> str:
    return str(json.loads(body)["error"]["message"])[:300]
