"""Somebody to talk to in the tests of the chat: in the process, or a server with OpenAI's API. Both are scripted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serve.engine.router import Route
from slm.joints import Finish, Message, SamplingOptions


@dataclass
class ScriptedTalker:
    """Implements serve.chat.talker.Talker. Each answer is a list of pieces; an exception among them is raised.

    A token is a character. sent: what it was given; samplings: how it was asked.
    """

    answers: list[list[str | BaseException]]
    context: int = 0
    name: str = "scripted"
    sent: list[list[Message]] = field(default_factory=list)
    samplings: list[SamplingOptions] = field(default_factory=list)

    def adapters(self) -> list[tuple[str, str]]:
        return []

    def route(self, wanted: str, messages: Sequence[Message]) -> Route:
        return Route(None, "")

    def chat(
        self, messages: Sequence[Message], adapter: str | None, sampling: SamplingOptions
    ) -> Generator[str | Finish, None, None]:
        self.sent.append(list(messages))
        self.samplings.append(sampling)
        said = 0
        for piece in self.answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            said += len(piece)
            yield piece
        yield Finish("stop", None, "", self.count(messages, None), said, 0.1, 0.1)

    def count(self, messages: Sequence[Message], adapter: str | None) -> int:
        return sum(len(message["content"]) for message in messages)


@dataclass
class FakeServer:
    """What it says, in pieces with `pause_s` between; what it was sent. key: the one it asks for.

    dies: it is gone behind an answer's last piece, without a word that this was the end.
    """

    url: str = ""
    answers: list[list[str]] = field(default_factory=list)
    pause_s: float = 0.0
    dies: bool = False
    key: str = ""
    rows: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "fake"}])
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """It listens on loopback until the end of the block."""
    script = FakeServer()

    class _Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/v1/models"
            refused = script.key and self.headers.get("Authorization") != f"Bearer {script.key}"
            body = {"data": script.rows} if found else {"error": {"message": "no such path"}}
            if refused:
                body = {"error": {"message": "a key is needed"}}
            self._send(401 if refused else 200 if found else 404, json.dumps(body).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self._send(404, b"{}")
                return
            script.bodies.append(body)
            pieces = script.answers.pop(0)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                for piece in pieces:
                    self._event({"model": "fake", "choices": [{"delta": {"content": piece}, "finish_reason": None}]})
                    time.sleep(script.pause_s)
                if script.dies:
                    return
                usage = {"prompt_tokens": 7, "completion_tokens": len(pieces)}
                self._event({"model": "fake", "choices": [{"delta": {}, "finish_reason": "stop"}]})
                self._event({"model": "fake", "choices": [], "usage": usage})
                self.wfile.write(b": bye\n\ndata: [DONE]\n\n")
            except OSError:  # the client has gone
                return

        def _event(self, body: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
