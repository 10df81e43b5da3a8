"""What keeps a connection usable on its way: signs of life on silent streams, HEAD, preflights, both loopbacks."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.bench.load import ask as bench_ask
from serve.bench.load import new_client
from serve.engine.engine import Engine
from serve.server import listen
from serve.server import respond as runs
from serve.server.guard import Keys
from slm.errors import ResourceError
from tests.served import LOCAL, Served, engine, error_of, folder, guarded, served, standing_still
from tests.tiny_gguf import write_model
from tests.waiting import eventually

__all__ = ["engine", "folder", "served"]  # fixtures

ROOT = Path(__file__).parent.parent
CHAT: Any = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "stream": True}
STREAMS: Any = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Hello", "max_tokens": 3, "stream": True},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 3, "stream": True},
}


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life in tenths of seconds."""
    monkeypatch.setattr(runs, "PATIENCE_S", 0.2)
    monkeypatch.setattr(runs, "PULSE_S", 0.1)


@contextmanager
def stopped_for(engine: Engine, seconds: float) -> Iterator[None]:
    """An engine that stands still for so long."""
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, os.kill, [engine.pid, signal.SIGCONT])
    timer.start()
    try:
        yield
    finally:
        timer.join()


# --- streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_begins_before_the_first_token_and_is_never_silent_for_long(
    served: Served, hasty: None, path: str
) -> None:
    with stopped_for(served.engine, 1.5):
        began = time.monotonic()
        with httpx.stream("POST", served.url + path, json=STREAMS[path], timeout=20) as reply:
            assert reply.status_code == 200 and time.monotonic() - began < 1.4
            assert reply.headers["x-accel-buffering"] == "no"
            assert {"no-cache", "no-store", "no-transform"} <= set(reply.headers["cache-control"].split(", "))
            came = [(time.monotonic() - began, line) for line in reply.iter_lines() if line]
    lines = [line for _, line in came]
    comments = [number for number, line in enumerate(lines) if line.startswith(":")]
    assert len(comments) >= 5 and {lines[number] for number in comments} == {": keep-alive"}
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(came)]
    assert max(gaps) < 1.0
    opening = [line for line in lines[: comments[0]] if line.startswith("data:")]
    assert len(opening) == {"/v1/chat/completions": 1, "/v1/completions": 0, "/v1/responses": 2}[path]
    answer = [json.loads(line[6:]) for line in lines[comments[-1] :] if line.startswith("data: {")]
    assert len(answer) >= 4 and lines[-1].startswith("data: ")


def test_a_stream_that_flows_has_no_comments_in_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PULSE_S", 30.0)
    for path, body in STREAMS.items():
        assert "\n:" not in served.post(path, body).text


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"max_tokens": 5000}, 400), ({"logit_bias": {"99999": 1}}, 400), ({"model": "fr"}, 404), ({"top_p": 7}, 400)],
)
def test_what_can_be_known_before_the_stream_begins_has_its_own_status(
    served: Served, fields: dict[str, Any], status: int
) -> None:
    reply = served.post("/v1/chat/completions", {**CHAT, **fields})
    assert reply.status_code == status and error_of(reply)["message"]


def test_an_error_after_the_stream_has_begun_is_an_event_of_it(served: Served, hasty: None) -> None:
    """What the engine refuses while it is slow to do so."""
    for path, body in STREAMS.items():
        with ExitStack() as opened:
            with standing_still(served.engine):  # until the head is there, however long that takes
                asked = {**body, "logit_bias": {"99999": 1}}
                reply = opened.enter_context(httpx.stream("POST", served.url + path, json=asked, timeout=60))
            assert reply.status_code == 200
            reply.read()
        assert "99999 is no token id" in reply.text
        failed = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")][-1]
        assert failed["error"]["code"] == "invalid_value"


def test_clients_pass_over_the_comments(served: Served, hasty: None) -> None:
    asked: Any = {"model": "en", "temperature": 0, "stream": True}
    with stopped_for(served.engine, 0.8):
        chat = list(served.client.chat.completions.create(**asked, messages=CHAT["messages"], max_tokens=3))
    assert len("".join(event.choices[0].delta.content or "" for event in chat)) == 3
    with stopped_for(served.engine, 0.8):
        events = list(served.client.responses.create(**asked, input="Hello", max_output_tokens=3))
    assert [event.sequence_number for event in events] == list(range(11))

    async def load() -> Any:
        async with new_client(served.url, 1) as client:
            return await bench_ask(client, {"messages": CHAT["messages"], "max_tokens": 3, "temperature": 0})

    with stopped_for(served.engine, 0.8):
        outcome = asyncio.run(load())
    assert outcome.error == "" and outcome.tokens == 3 and outcome.ttft is not None and outcome.ttft > 0.5


def test_a_client_that_leaves_a_silent_stream_cancels_its_request(served: Served, hasty: None) -> None:
    with (
        standing_still(served.engine),
        httpx.stream(
            "POST", f"{served.url}/v1/chat/completions", json={**CHAT, "max_tokens": 1500}, timeout=20
        ) as reply,
    ):
        assert next(reply.iter_lines()).startswith("data: ")
    assert eventually(lambda: served.engine.stats().running == served.engine.stats().waiting == 0, 5)


# --- HEAD -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/web/app.js", "/health", "/v1/models", "/v1/models/en", "/metrics", "/props", "/slots", "/docs",
             "/openapi.json", "/lora-adapters", "/v1/models/fr", "/nothing"],
)  # fmt: skip
def test_head_is_answered_as_get_without_the_body(served: Served, path: str) -> None:
    get, head = httpx.get(served.url + path), httpx.head(served.url + path)
    assert head.status_code == get.status_code and head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # the figures have changed
        assert head.headers["content-length"] == get.headers["content-length"]


def test_head_asks_nothing_of_a_path_that_only_posts_and_needs_the_key_as_well(engine: Engine, folder: Path) -> None:
    with guarded(engine, folder, replace(LOCAL, keys=Keys(["k"]))) as server:
        assert httpx.head(f"{server.url}/v1/models").status_code == 401
        key = {"authorization": "Bearer k"}
        assert httpx.head(f"{server.url}/v1/models", headers=key).status_code == 200
        assert httpx.head(f"{server.url}/v1/chat/completions", headers=key).status_code == 405
        counts = httpx.get(f"{server.url}/metrics", headers=key).text
        assert 'slm_http_responses_total{route="/v1/models",status="200"} 1.0' in counts


# --- preflights -------------------------------------------------------------------------------------------------


def test_a_page_of_the_public_network_may_ask_if_its_origin_is_allowed(engine: Engine, folder: Path) -> None:
    friend = "https://friend.example"
    asked = {"access-control-request-method": "POST", "access-control-request-private-network": "true"}
    allow = "access-control-allow-private-network"
    with guarded(engine, folder, replace(LOCAL, origins=(friend,))) as server:
        url = f"{server.url}/v1/responses"
        reply = httpx.options(url, headers={**asked, "origin": friend})
        assert reply.status_code == 200 and reply.headers[allow] == "true"
        assert reply.headers["access-control-allow-origin"] == friend
        assert allow not in httpx.options(url, headers={**asked, "origin": "https://evil.example"}).headers
        del asked["access-control-request-private-network"]
        assert allow not in httpx.options(url, headers={**asked, "origin": friend}).headers
    with guarded(engine, folder) as server:
        assert allow not in httpx.options(f"{server.url}/v1/responses", headers={**asked, "origin": friend}).headers


# --- both loopbacks ---------------------------------------------------------------------------------------------


def addresses(host: str, port: int = 0) -> list[str]:
    with ExitStack() as stack:
        return [listener.getsockname()[0] for listener in listen.bind(stack, host, port)]


@needs_ipv6
def test_localhost_is_both_loopbacks_at_one_port_and_other_hosts_are_themselves() -> None:
    with ExitStack() as stack:
        first, second = listen.bind(stack, "localhost", 0)
        assert (first.getsockname()[0], second.getsockname()[0]) == ("127.0.0.1", "::1")
        assert first.getsockname()[1] == second.getsockname()[1]
        assert listen.url_of(first) == f"http://127.0.0.1:{first.getsockname()[1]}"
        assert listen.url_of(second).startswith("http://[::1]:")
    assert addresses("127.0.0.1") == ["127.0.0.1", "::1"]
    assert addresses("::1") == ["::1"]
    assert addresses("0.0.0.0") == ["0.0.0.0"]
    assert addresses("127.0.0.2") == ["127.0.0.2"]


@needs_ipv6
def test_a_port_that_another_program_has_on_ipv6_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        assert addresses("127.0.0.1", port) == ["127.0.0.1"]
        assert f"another program listens on [::1]:{port}" in capsys.readouterr().err
        with pytest.raises(ResourceError, match=re.escape(f"[::1]:{port}")):
            addresses("localhost", port)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ResourceError, match="Choose another port"):
        addresses("127.0.0.1", other.getsockname()[1])


def test_a_machine_without_ipv6_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without(family: int = -1, *args: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *args, **options)

    monkeypatch.setattr(socket, "socket", without)
    assert addresses("localhost") == ["127.0.0.1"]


@needs_ipv6
def test_the_command_answers_on_both_loopbacks(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "slm_cli", "serve", str(write_model(tmp_path / "tiny.gguf")), "--port", "0",
        "--threads", "1", "--context", "256",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            said = next(line for line in lines if "listening on" in line)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
            assert found is not None
            for url in (found.group(), f"http://[::1]:{found.group(1)}"):
                assert eventually(partial(answers, f"{url}/health"), 30)
                assert (
                    httpx.post(f"{url}/v1/responses", json={"input": "Hi", "max_output_tokens": 2}).status_code == 200
                )
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
