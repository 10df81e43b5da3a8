"""Clients that mean harm, or that are broken, on real sockets: the server answers them in kind and goes on."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.engine.engine import Engine
from serve.engine.events import Ticket
from serve.server.guard import Keys, Limits, Policy
from tests.served import Served, begun, engine, error_of, folder, guarded, standing_still
from tests.waiting import eventually

__all__ = ["begun", "engine", "folder"]  # fixtures

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ASK = b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}'
IMPATIENT = Policy(limits=Limits(read_s=1.0, body_bytes=200_000, idle_s=5))


@pytest.fixture(scope="module")
def served(engine: Engine, folder: Path) -> Iterator[Served]:
    with guarded(engine, folder) as server:
        yield server


@pytest.fixture(scope="module")
def impatient(engine: Engine, folder: Path) -> Iterator[Served]:
    """A server that gives a head and a body one second each."""
    with guarded(engine, folder, IMPATIENT) as server:
        yield server


@pytest.fixture(autouse=True)
def still_well(engine: Engine, served: Served, impatient: Served) -> Iterator[None]:
    """After each client, both servers answer, by the same engine process, and nothing is left running."""
    pid = engine.pid
    yield
    for server in (served, impatient):
        assert server.chat("Hello").status_code == 200
    assert engine.pid == pid
    assert eventually(lambda: engine.stats().running == engine.stats().waiting == 0)


def connect(server: Served) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def everything(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    got = b""
    with suppress(ConnectionResetError):
        while piece := client.recv(65_536):
            got += piece
    return got


def said(server: Served, data: bytes) -> bytes:
    with connect(server) as client:
        with suppress(ConnectionError):
            client.sendall(data)
        return everything(client)


def error_in(answer: bytes) -> tuple[int, str]:
    """Status and code of an answer that is one error in OpenAI's shape."""
    head, _, content = answer.partition(b"\r\n\r\n")
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), str(error["code"])


# --- HTTP that is none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"x" * 100_000,
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: ten\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n",
    ],
    ids=range(17),
)
def test_malformed_http_is_an_error_in_openais_shape_and_the_end(impatient: Served, data: bytes) -> None:
    status, code = error_in(said(impatient, data))
    assert (status, code) in {(400, "invalid_http"), (431, "head_too_large")}


def test_a_second_request_smuggled_behind_a_lying_length_is_one_of_its_own(served: Served) -> None:
    """The body ends where the length says; what follows is judged as a request, with no key of the first's."""
    smuggled = b"GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    data = HEAD + b"Content-Length: %d\r\n\r\n" % len(ASK) + ASK + smuggled
    first, second = said(served, data).split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200") and second.startswith(b"421")
    both = HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + smuggled
    answers = said(served, both).split(b"HTTP/1.1 ")[1:]
    assert not any(answer.startswith(b"200") for answer in answers)


def test_pipelined_requests_are_answered_in_their_order(served: Served) -> None:
    data = b"".join(
        b"GET /%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (path, end)
        for path, end in ((b"health", b""), (b"nothing", b""), (b"health", b"Connection: close\r\n"))
    )
    answers = said(served, data).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"404", b"200"]


def test_an_upgrade_to_websockets_is_not_made(served: Served) -> None:
    upgrade = (
        b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    )
    answer = said(served, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n")
    assert b"101" not in answer.split(b"\r\n")[0]


# --- slow and silent clients ------------------------------------------------------------------------------------


def drip(client: socket.socket, data: bytes, every_s: float = 0.1) -> bytes:
    """Send a byte at a time until the server answers or closes; what it said."""
    client.settimeout(every_s)
    for position in range(len(data)):
        with suppress(ConnectionError):
            client.sendall(data[position : position + 1])
        try:
            first = client.recv(65_536)
        except TimeoutError:
            continue
        except ConnectionResetError:
            return b""
        client.settimeout(20)
        return first + everything(client) if first else b""
    raise AssertionError("the server waits for ever")


def test_a_head_that_comes_a_byte_at_a_time_is_given_up(impatient: Served) -> None:
    began = time.monotonic()
    with connect(impatient) as client:
        assert error_in(drip(client, b"GET /health HTTP/1.1\r\nX: " + b"x" * 1000)) == (408, "request_timeout")
    assert time.monotonic() - began >= IMPATIENT.limits.read_s


def test_a_body_that_comes_a_byte_at_a_time_is_given_up(impatient: Served) -> None:
    with connect(impatient) as client:
        client.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        assert error_in(drip(client, b"{" + b" " * 1000)) == (408, "request_timeout")
    with connect(impatient) as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        assert error_in(drip(client, b"1\r\n \r\n" * 300)) == (408, "request_timeout")


def test_a_slow_second_head_on_a_kept_connection_is_given_up_too(impatient: Served) -> None:
    with connect(impatient) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 200")
        assert error_in(drip(client, b"GET /health HTTP/1.1\r\nX: " + b"x" * 1000)) == (408, "request_timeout")


def test_a_client_that_says_nothing_is_closed_without_a_word(impatient: Served) -> None:
    with connect(impatient) as client:
        began = time.monotonic()
        assert everything(client) == b""
        assert time.monotonic() - began >= 0.9


def test_a_kept_connection_is_closed_when_it_has_been_idle(engine: Engine, folder: Path) -> None:
    policy = Policy(limits=Limits(read_s=30, idle_s=1))
    with guarded(engine, folder, policy) as server, connect(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        began = time.monotonic()
        assert everything(client).startswith(b"HTTP/1.1 200")
        assert 0.9 <= time.monotonic() - began < 10


def test_a_body_that_never_ends_is_a_413(impatient: Served) -> None:
    chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    answer = said(
        impatient, HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 40 + b"0\r\n\r\n"
    )
    assert error_in(answer) == (413, "body_too_large")
    answer = said(impatient, HEAD + b"Content-Length: %d\r\n\r\n" % 10**15)
    assert error_in(answer) == (413, "body_too_large")


def test_without_a_key_nothing_is_read(engine: Engine, folder: Path) -> None:
    with guarded(engine, folder, Policy(Keys(["k"]), limits=Limits(read_s=1))) as server:
        with connect(server) as client:
            client.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
            answer = everything(client)
        assert not answer.startswith(b"HTTP/1.1 100") and error_in(answer) == (401, "invalid_api_key")


# --- clients that leave -----------------------------------------------------------------------------------------


def test_a_client_that_leaves_in_the_middle_of_its_body_was_never_there(
    served: Served, engine: Engine, begun: list[Ticket]
) -> None:
    for length in (len(ASK) + 1, 10_000):
        with connect(served) as client:
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % length + ASK)
            client.shutdown(socket.SHUT_WR)
            assert everything(client) == b""
    assert begun == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_while_it_is_answered_ends_its_request(
    served: Served, engine: Engine, begun: list[Ticket], stream: bool, reset: bool
) -> None:
    body = json.loads(ASK) | {"max_tokens": 1900, "stream": stream, "model": "en"}
    content = json.dumps(body).encode()
    with connect(served) as client, standing_still(engine):
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        assert eventually(lambda: len(begun) == 1)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    # `still_well` waits until nothing runs; 1,900 tokens would also end by themselves, so look at once.
    assert eventually(lambda: engine.stats().running == 0, 5)


# --- many connections -------------------------------------------------------------------------------------------


def test_three_hundred_idle_connections_do_not_keep_others_out(served: Served) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(served)) for _ in range(300)]
        for client in idle[::3]:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for client in idle[1::3]:
            client.sendall(b"POST /v1/chat/completions HT")
        results: list[int] = []
        threads = [threading.Thread(target=lambda: results.append(served.chat("Hello").status_code)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == [200] * 20
        assert all(client.recv(65_536).startswith(b"HTTP/1.1 200") for client in idle[::3])


def test_at_the_limit_idle_connections_give_way_and_busy_ones_are_kept(
    engine: Engine, folder: Path, begun: list[Ticket]
) -> None:
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with guarded(engine, folder, Policy(limits=Limits(connections=4))) as server, ExitStack() as stack:
        for _ in range(20):  # each more than the four takes the place of the one that has been idle longest
            client = stack.enter_context(connect(server))
            client.sendall(get)
            assert client.recv(65_536).startswith(b"HTTP/1.1 200")
        with standing_still(engine):
            busy = [stack.enter_context(connect(server)) for _ in range(4)]
            for client in busy:
                client.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(ASK) + ASK)
            assert eventually(lambda: len(begun) == 4)
            assert error_in(said(server, get)) == (503, "too_many_connections")
        for client in busy:
            assert everything(client).startswith(b"HTTP/1.1 200")
        assert server.chat("Hello").status_code == 200


# --- bodies that are JSON, nearly -------------------------------------------------------------------------------


def ask_with(server: Served, content: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers, timeout=60)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"messages":[', b'[{"a":'])
@pytest.mark.parametrize("size", [10_000, 10_000_000])
def test_json_ten_megabytes_deep_is_refused(served: Served, opening: bytes, size: int) -> None:
    reply = ask_with(served, opening * (size // len(opening)))
    assert (reply.status_code, error_of(reply)["code"]) == (
        (413, "body_too_large") if size > 10**6 else (400, "invalid_request")
    )


@pytest.mark.parametrize(
    "content",
    [
        rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
        rb'{"messages": [{"role": "user", "content": "\udc00\ud800"}]}',
        rb'{"messages": [{"role": "user", "content": "\ud83d"}], "stop": "\ude00"}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        ASK.decode().encode("utf-16"),
        ASK.replace(b'"temperature": 0', b'"temperature": NaN'),
        ASK.replace(b'"temperature": 0', b'"temperature": Infinity'),
        ASK.replace(b'"temperature": 0', b'"temperature": -Infinity'),
        ASK.replace(b'"temperature": 0', b'"temperature": 1e999'),
        ASK.replace(b'"temperature": 0', b'"seed": ' + b"9" * 5000),
        ASK.replace(b'"temperature": 0', b'"n": 1e400'),
        ASK + ASK,
        ASK + b"\0",
        b"\0" * 1000,
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_not_quite_json_is_a_400(served: Served, begun: list[Ticket], content: bytes) -> None:
    reply = ask_with(served, content)
    assert reply.status_code == 400 and error_of(reply)["type"] == "invalid_request_error"
    assert begun == []


@pytest.mark.parametrize(
    "text", ["\0", "\x00\x01\x1b[31m", "\ufffe\uffff", "👩‍👩‍👧‍👦" * 50, "\u202e" * 100, "é" * 500, "<|im_end|><s></s>"]
)
def test_unusual_but_sound_text_is_answered(served: Served, text: str) -> None:
    assert served.chat(text).status_code == 200


def test_a_large_but_sound_request_is_answered(served: Served) -> None:
    """A megabyte of fields that have no effect."""
    extra: Any = {"metadata": [{"k": "v" * 50}] * 15_000, "user": "u"}
    assert served.post("/v1/completions", {"prompt": "Hello", "max_tokens": 2, **extra}).status_code == 200
