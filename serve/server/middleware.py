"""The guard around the application: reads each request's body within its limits, and answers for what goes wrong.

An ASGI middleware. What is allowed is decided in `serve.server.guard`; it knows nothing of the engine or of the routes.
What it writes to the log never holds a header, a query or a body.
"""

from __future__ import annotations

import asyncio
import traceback
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from fastapi import FastAPI
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.server.guard import (
    GENERATION,
    Policy,
    Queue,
    Refusal,
    answers_asked,
    not_json,
    refuse_body,
    refuse_head,
    refuse_size,
    refuse_values,
    too_large,
    too_slow,
    took_too_long,
)
from serve.server.metrics import Metrics
from serve.server.routes.parsed import PARSED
from slm.terminal.console import is_debug, note

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_HELD = 8  # bodies of the largest size that are in memory at once
_LINGER_S, _LINGER_BYTES = 2.0, 64_000_000
_LARGE = 65_536  # a body that is parsed beside the event loop, one at a time


def install_guard(
    app: FastAPI, policy: Policy, *, context: int, metrics: Metrics, open_paths: Iterable[str] = ()
) -> None:
    """Put the guard around an application. context: the engine's, in tokens. open_paths: more that need no key."""
    policy = replace(policy, open_paths=policy.open_paths.union(open_paths))
    app.add_middleware(RequestGuard, policy=policy, context=context, metrics=metrics)
    if policy.origins:
        app.add_middleware(
            _Cors, allow_origins=policy.origins, allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"], expose_headers=["x-slm-adapter", "x-slm-route-reason", "retry-after"],
            allow_private_network=True,  # an allowed page of the wide network may reach a server on this machine
        )  # fmt: skip


class _Cors(CORSMiddleware):
    """With the answer to a browser's question about private networks given to allowed origins alone."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if not self.is_allowed_origin(request_headers["origin"]):
            del response.headers["access-control-allow-private-network"]
        return response


class RequestGuard:
    """Judges every request before the application sees it, and ends those that take too long."""

    def __init__(self, app: ASGIApp, policy: Policy, context: int, metrics: Metrics) -> None:
        self._app, self._policy, self._context, self._metrics = app, policy, context, metrics
        self._queue = Queue(policy.limits.queue)
        self._held = 0
        self._parsing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        # HEAD is answered as GET, without the body.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._judge(asked, receive, answer)
        except asyncio.CancelledError:  # the server is being stopped and waits for this request no longer
            await answer.end_with(Refusal(503, "the server is being stopped", "shutting_down", "server_error"))
        finally:
            self._metrics.responded(_route(asked), answer.status)
            if self._policy.access_log:
                answer.log()

    async def _judge(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = dict(scope["headers"])
        target = scope.get("raw_path", b"") + scope.get("query_string", b"")
        refusal = refuse_size(target, scope["headers"])
        refusal = refusal or refuse_head(scope["method"], scope["path"], headers, self._policy)
        if refusal:
            await answer.refuse(refusal, unread=_has_body(headers))
            return
        if not _has_body(headers):
            await self._run(scope, receive, answer)
            return
        body = _Body()
        try:
            limit = self._policy.limits.read_s
            try:
                refusal = await asyncio.wait_for(self._read(receive, body), limit)
            except asyncio.TimeoutError:
                refusal = too_slow("body", limit)
            except _GoneError:
                return
            if refusal:
                await answer.refuse(refusal, unread=body.more)
            else:
                await self._judge_body(scope, receive, answer, bytes(body.data))
        finally:
            self._held -= len(body.data)

    async def _read(self, receive: Receive, body: _Body) -> Refusal | None:
        """Fill `body`, counting what really comes. Raises _GoneError when the client leaves."""
        most = self._policy.limits.body_bytes
        while body.more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            chunk, body.more = message.get("body", b""), message.get("more_body", False)
            if len(body.data) + len(chunk) > most:
                return too_large(self._policy.limits)
            if self._held + len(chunk) > _HELD * most:
                again = (("retry-after", "5"),)
                return Refusal(429, "too many large requests at once", "queue_full", "rate_limit_error", headers=again)
            body.data += chunk
            self._held += len(chunk)
        return None

    async def _judge_body(self, scope: Scope, receive: Receive, answer: _Answer, body: bytes) -> None:
        if scope["method"] == "DELETE":
            await self._run(scope, _replay(body, receive), answer)
            return
        value, refusal = await self._parse(body)
        refusal = refusal or refuse_body(value, self._policy.limits, self._context)
        if refusal:
            await answer.refuse(refusal)
            return
        scope[PARSED] = value
        if scope["path"] not in GENERATION:
            await self._run(scope, _replay(body, receive), answer)
            return
        answers = answers_asked(value)
        refusal = self._queue.enter(answers)
        if refusal:
            self._metrics.rejected(value.get("model") if isinstance(value, dict) else None)
            await answer.refuse(refusal)
            return
        try:
            await self._run(scope, _replay(body, receive), answer)
        finally:
            self._queue.leave(answers)

    async def _parse(self, body: bytes) -> tuple[Any, Refusal | None]:
        """Strict JSON: no NaN, no lone surrogates, at most 200 levels deep. A mark that says UTF-8 is taken."""
        refusal = refuse_values(body)
        body = body.removeprefix(BOM_UTF8)
        if refusal:
            return None, refusal
        try:
            if len(body) < _LARGE:
                return from_json(body, allow_inf_nan=False), None
            async with self._parsing:
                return await asyncio.to_thread(from_json, body, allow_inf_nan=False), None
        except ValueError as error:
            return None, Refusal(400, f"the body {not_json(error)}", "invalid_request")

    async def _run(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """The application's answer, within the time a request may take."""
        limit = self._policy.limits.request_s
        work = asyncio.ensure_future(self._app(scope, receive, answer.send))
        try:
            await asyncio.wait({work}, timeout=limit or None)
            if not work.done():
                work.cancel()
                await asyncio.wait({work}, timeout=1.0)  # a thread cannot be stopped, and is not waited for
                await answer.end_with(took_too_long(limit))
        finally:
            work.cancel()
        if work.done() and not work.cancelled() and (error := work.exception()):
            _tell(error)
            await answer.end_with(Refusal(500, "the server failed on this request", "internal_error", "server_error"))


@dataclass
class _Body:
    """What has come of a body, and whether more is to come."""

    data: bytearray = field(default_factory=bytearray)
    more: bool = True


class _GoneError(Exception):
    """The client closed the connection."""


class _Answer:
    """What has been sent of one answer; adds the headers that every answer has."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._began = asyncio.get_running_loop().time()
        self._events = False
        self._over = False
        self.status = 0

    async def send(self, message: Message) -> None:
        """Pass on what the application sends, until the answer has been ended."""
        if self._over:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            known = {name.lower(): value for name, value in headers}
            self._events = known.get(b"content-type", b"").startswith(b"text/event-stream")
            message = {**message, "headers": headers + [pair for pair in _HEADERS if pair[0] not in known]}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._over = True
        await self._send(message)

    async def refuse(self, refusal: Refusal, *, unread: bool = False) -> None:
        """Answer with an error. unread: the client may still be sending, so it is heard out for a moment.

        Closing at once would reset the connection and with it the answer that is on its way.
        """
        head = refusal.head(close=unread)
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": head})
        await self.send({"type": "http.response.body", "body": refusal.content(), "more_body": True})
        if unread:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hear_out(), _LINGER_S)
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _hear_out(self) -> None:
        heard = 0
        while heard < _LINGER_BYTES:
            message = await self._receive()
            heard += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return

    async def end_with(self, refusal: Refusal) -> None:
        """End an answer that went wrong: an error of its own, an event in a stream, or a cut-off connection."""
        if self._over:
            return
        if not self.status:
            await self.refuse(refusal)
            return
        last = b"data: " + refusal.content() + b"\n\ndata: [DONE]\n\n"
        if self._events:
            with suppress(asyncio.TimeoutError):  # a client that reads nothing does not read this either
                await asyncio.wait_for(self.send({"type": "http.response.body", "body": last}), 1.0)
                return
        self._over = True
        abort: Callable[[], None] | None = self._scope.get("state", {}).get("abort")
        if abort:
            abort()
            await asyncio.sleep(0)  # the connection's end is told in the loop's next round

    def log(self) -> None:
        """One line: time, client, method, path without its query, status, seconds."""
        client = (self._scope.get("client") or ("-",))[0]
        path = self._scope.get("raw_path", b"").decode("ascii", "replace")[:200]
        seconds = asyncio.get_running_loop().time() - self._began
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        note(f"{when} {client} {self._scope['method']} {path} {self.status or '-'} {seconds:.3f} s")


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` for an application whose request's body has been read already."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _route(scope: Scope) -> str:
    """The path as the application declares it; not the client's, of which there may be any number."""
    return str(getattr(scope.get("route"), "path", "other"))


def _tell(error: BaseException) -> None:
    """Say where an unforeseen error arose. Its message is kept out: it may quote the request."""
    frames = traceback.extract_tb(error.__traceback__)[-8 if is_debug() else -1 :]
    where = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    note(f"internal error: {type(error).__name__} at {where}")
