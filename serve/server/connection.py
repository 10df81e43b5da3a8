"""One client's connection: time limits for a request's head, a limit on how many are open, errors in OpenAI's shape.

uvicorn's HTTP/1.1 protocol on h11, with what it lacks: it waits for ever for the first byte, or for the rest of a head.
It knows nothing of requests' contents.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import h11
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.server.guard import Limits, Refusal, too_slow
from slm.terminal.console import is_debug

_BAD_HTTP = Refusal(400, "this is not HTTP/1.1, or the request's head is larger than 16 kB", "invalid_http")
_CROWDED = Refusal(
    503, "too many connections are open. Try again later", "too_many_connections", "server_error",
    headers=(("retry-after", "5"),),
)  # fmt: skip
_SPARE = 64  # connections over the limit that are told so; beyond, they are cut off
_LINGER_S = 1.0
_FRESH_S = 2.0  # a connection that has asked nothing yet is not taken for an idle one before


def server_config(app: Any, limits: Limits) -> uvicorn.Config:
    """How uvicorn serves the application. Clients' addresses are taken from the connection, never from a header."""
    return uvicorn.Config(
        app,
        http=partial(Connection, limits=limits),  # type: ignore[arg-type]
        ws="none",
        log_level="warning" if is_debug() else "error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, int(limits.idle_s)),
        timeout_graceful_shutdown=3,
    )


class Connection(H11Protocol):
    """A connection that does not wait for ever.

    The application finds `abort` in its scope's state: it cuts the connection off.
    """

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._deaf = False
        self._since = self.loop.time()

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        over = len(self.connections) - self._limits.connections
        if over > 0:  # those that are being closed do not count
            over -= sum(1 for c in self.connections if c is not self and c.transport.is_closing())
        if over > 0 and not self._replace_an_idle_one():
            if over > _SPARE:
                transport.abort()
                return
            self.app = _crowded
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._watch_head()
        else:
            self._forget_head()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """For what h11 does not understand."""
        self._answer(_BAD_HTTP)

    def _watch_head(self) -> None:
        """Give the head its time, counted from its first byte or the connection's start; more bytes add none."""
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self._limits.read_s, self._head_is_late)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.conn.trailing_data[0]:
            self._answer(too_slow("head", self._limits.read_s))
        else:
            self.transport.close()

    def _answer(self, refusal: Refusal) -> None:
        """An answer from outside the application, and the connection's end.

        What the client still sends is heard for a moment and dropped: closing at once would reset the connection, and
        with it the answer that is on its way.
        """
        try:
            out = self.conn.send(h11.Response(status_code=refusal.status, headers=refusal.head(close=True)))
            out += self.conn.send(h11.Data(data=refusal.content())) + self.conn.send(h11.EndOfMessage())
            self.transport.write(out)
        except h11.LocalProtocolError:  # an answer is under way already; it cannot be completed
            self.transport.abort()
            return
        self._deaf = True
        self._forget_head()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    def _replace_an_idle_one(self) -> bool:
        """Close the connection that has been idle longest. False when all are at work."""
        now = self.loop.time()
        others = [c for c in self.connections if isinstance(c, Connection) and c is not self]
        idle = [c for c in others if c.idle and not c.transport.is_closing()]
        idle = [c for c in idle if c.cycle is not None or now - c._since > _FRESH_S]
        if not idle:
            return False
        min(idle, key=lambda c: c._since).timeout_keep_alive_handler()
        return True


async def _crowded(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of a connection over the limit."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": _CROWDED.status, "headers": _CROWDED.head(close=True)})
    await send({"type": "http.response.body", "body": _CROWDED.content()})
