"""A running server as its clients see it: what they ask and get, its guard, and an engine that stands still."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from serve.child.messages import Stats
from serve.engine.engine import Engine, open_engine
from serve.engine.events import Ticket
from serve.server.app import create_app
from serve.server.connection import server_config
from serve.server.guard import Policy
from tests.running_server import serving, tiny_engine
from tests.tiny_gguf import write_adapter, write_model

HELLO: Any = [{"role": "user", "content": "Hello"}]
LOCAL = Policy(hosts=frozenset({"localhost", "127.0.0.1", "::1"}))


@dataclass
class FakeEngine:
    """What the metrics ask of an engine; `stats` waits for `free`."""

    names: list[str] = field(default_factory=lambda: ["en", "ja"])
    restarts: int = 2
    state: str = "ready"
    pid: int | None = None
    asked: int = 0
    free: threading.Event = field(default_factory=threading.Event)

    def adapters(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self.names]

    def stats(self) -> Stats:
        self.asked += 1
        self.free.wait(20)
        return Stats(parallel=4, running=1, waiting=3, contexts=2, adapters=("k",))


@dataclass(frozen=True)
class Served:
    """A running server, and the files it was made from."""

    url: str
    engine: Engine
    folder: Path

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **options)

    def chat(self, text: str, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, **fields}
        return self.post("/v1/chat/completions", body)

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=60)


@contextmanager
def running(engine: Engine, folder: Path, **options: Any) -> Iterator[Served]:
    with serving(uvicorn.Config(create_app(engine, **options), log_level="error")) as url:
        yield Served(url, engine, folder)


@contextmanager
def guarded(engine: Engine, folder: Path, policy: Policy = LOCAL, **options: Any) -> Iterator[Served]:
    """A server as the command starts it."""
    app = create_app(engine, policy=policy, **options)
    with serving(server_config(app, policy.limits)) as url:
        yield Served(url, engine, folder)


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


def text_of(reply: Any) -> str:
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def tokens_of(reply: Any) -> int:
    assert reply.status_code == 200, reply.text
    return int(reply.json()["usage"]["prompt_tokens"])


def chat(text: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with tiny_engine(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openai")
    model = write_model(folder / "tiny.gguf")
    adapters = {"en": write_adapter(folder / "en.gguf", seed=1), "ja": write_adapter(folder / "ja.gguf", seed=2)}
    with open_engine(model, adapters, threads=1, parallel=4) as engine, running(engine, folder) as server:
        yield server


@contextmanager
def standing_still(engine: Engine) -> Iterator[None]:
    """An engine that is slow to a certainty."""
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine.pid, signal.SIGCONT)


@pytest.fixture
def begun(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Ticket]:
    """The requests that have reached the engine, as they come."""
    tickets: list[Ticket] = []
    begin = engine.begin_chat

    def begin_chat(*args: Any, **options: Any) -> Ticket:
        tickets.append(begin(*args, **options))
        return tickets[-1]

    monkeypatch.setattr(engine, "begin_chat", begin_chat)
    return tickets
