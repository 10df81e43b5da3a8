"""The server's guard: what is let in, what is refused and how; on plain data, a bare application, and a server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from serve.cli_guard import Origin, Size, guard_options, policy_of
from serve.engine import Engine, Ticket
from serve.server.app import create_app
from serve.server.connection import server_config
from serve.server.guard import (
    Keys,
    Limits,
    Policy,
    Queue,
    allowed_file,
    answers_asked,
    keys_of_text,
    refuse_body,
    refuse_head,
    refuse_values,
)
from serve.server.metrics import Metrics
from serve.server.middleware import Guard
from slm.errors import InputError, MissingFileError, UnsupportedError
from tests.running_server import serving, tiny_engine
from tests.test_serve_http import Served, error_of
from tests.test_serve_metrics import FakeEngine
from tests.waiting import eventually

ROOT = Path(__file__).parent.parent
JSON = {b"content-type": b"application/json"}
LOCAL = Policy(hosts=frozenset({"localhost", "127.0.0.1", "::1"}))


@contextmanager
def guarded(engine: Engine, folder: Path, policy: Policy = LOCAL, **options: Any) -> Iterator[Served]:
    """A server as the command starts it."""
    app = create_app(engine, policy=policy, **options)
    with serving(server_config(app, policy.limits)) as url:
        yield Served(url, engine, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guard")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with tiny_engine(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(engine: Engine, folder: Path) -> Iterator[Served]:
    with guarded(engine, folder, allowed_folders=[folder]) as server:
        yield server


def status_of(method: str, headers: dict[bytes, bytes], policy: Policy = LOCAL, path: str = "/v1/models") -> int:
    refusal = refuse_head(method, path, headers, policy)
    return refusal.status if refusal else 200


# --- keys -------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=1, max_size=5), st.data())
def test_every_key_lets_in_and_nothing_else_does(keys: list[str], data: st.DataObject) -> None:
    some = Keys(keys)
    right = data.draw(st.sampled_from(keys))
    assert some.admit(b"Bearer " + right.encode()) and some.admit(b"bearer   " + right.encode() + b" ")
    wrong = data.draw(st.one_of(st.text(), st.sampled_from([right[:-1], right + "x", right.swapcase()])))
    if wrong.strip() not in keys:
        assert not some.admit(b"Bearer " + wrong.encode("utf-8", "replace"))
    assert not some.admit(right.encode()) and not some.admit(b"Basic " + right.encode()) and not some.admit(b"")


def test_keys_do_not_show_themselves_and_none_lets_everybody_in() -> None:
    assert "hunter2" not in repr(Policy(Keys(["hunter2"])))
    assert Keys().admit(b"") and not Keys()


def test_an_engine_that_takes_one_key_gets_it_or_none() -> None:
    assert Keys().single() is None and Keys(["k"]).single() == "k"
    with pytest.raises(UnsupportedError):
        Keys(["k", "l"]).single()


def test_a_key_file_has_a_key_a_line() -> None:
    assert keys_of_text("# ours\nalpha\n\n  beta \n#gamma\r\n", "f") == ("alpha", "beta")
    for text in ("", "# nothing\n\n", "alpha\ntwo words\n"):
        with pytest.raises(InputError):
            keys_of_text(text, "f")


# --- hosts and origins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "localhost.:80"])
def test_a_loopback_server_answers_to_its_own_names(host: str) -> None:
    assert status_of("GET", {b"host": host.encode()}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0:8080",
        "[::1].evil.example:1@x", "evil.example#localhost", "127.0.0.2", "[::]", "2130706433", "localhost@evil.example",
    ],
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    assert status_of("GET", {b"host": host.encode()}) == 421
    assert status_of("GET", {b"host": host.encode()}, Policy(hosts=None)) == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9", "http://127.0.0.1", "x"])
def test_a_foreign_page_changes_nothing(origin: str) -> None:
    head = {b"host": b"127.0.0.1:8080", b"origin": origin.encode(), **JSON}
    for method in ("POST", "DELETE", "PUT", "PATCH", "BREW"):
        assert status_of(method, head) == 403
    assert status_of("GET", head) == 200
    assert status_of("POST", head, Policy(origins=(origin.lower(),))) == 200


def test_the_servers_own_page_may_ask_also_behind_tls() -> None:
    for origin in (b"http://127.0.0.1:8080", b"https://127.0.0.1:8080"):
        assert status_of("POST", {b"host": b"127.0.0.1:8080", b"origin": origin, **JSON}) == 200


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp"],
)
def test_what_a_form_can_send_is_not_taken_for_json(kind: str) -> None:
    assert status_of("POST", {b"content-type": kind.encode()}) == 415
    assert status_of("POST", {b"content-type": b"Application/JSON; charset=utf-8"}) == 200


def test_the_declared_length_is_judged_before_anything_is_read() -> None:
    for length, status in {b"10000000": 200, b"10000001": 413, b"9" * 4000: 413, b"-1": 200, b"": 200}.items():
        assert status_of("POST", {**JSON, b"content-length": length}) == status


# --- bodies -----------------------------------------------------------------------------------------------------


def refused(body: Any, **limits: Any) -> str | None:
    refusal = refuse_body(body, Limits(**limits), 100)
    return f"{refusal.status} {refusal.param or refusal.code}" if refusal else None


def chat(text: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def test_a_conversation_counts_as_one_prompt_and_a_list_of_texts_as_many() -> None:
    assert refused(chat("x" * 3000)) is None
    assert refused(chat("x" * 3201)) == "400 context_length_exceeded"
    assert refused({"messages": [{"role": "user", "content": "x" * 90}] * 40}) == "400 context_length_exceeded"
    assert refused(chat([{"type": "text", "text": "x" * 3201}])) == "400 context_length_exceeded"
    assert refused(chat("x", tools=[{"function": {"name": "f", "parameters": {"y" * 4000: {}}}}])) is not None
    assert refused({"prompt": "x" * 3201}) == refused({"input": ["x", "x" * 3201]}) == "400 context_length_exceeded"
    assert refused({"input": ["x" * 3000] * 100}) is None
    assert refused({"prompt": [1] * 3201}) == refused({"tokens": [[1] * 3201]}) == "400 context_length_exceeded"
    assert refused({"prompt": "x" * 500}, prompt_characters=499) is not None


def test_n_and_stop_strings_have_limits() -> None:
    assert (
        refused(chat("x", n=8)) is None
        and refused(chat("x", n=9)) == "400 n"
        and refused(chat("x", n=10**30)) == "400 n"
    )
    assert refused(chat("x", stop=["a"] * 16)) is None and refused(chat("x", stop=["a"] * 17)) == "400 stop"
    assert refused(chat("x", stop="a" * 1001)) == refused(chat("x", stop=["a" * 1001])) == "400 stop"
    assert refused(from_json(b'{"x": 1e999}')) == "400 invalid_request"


NAMES = st.sampled_from(["n", "stop", "prompt", "messages", "x"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner),
    max_leaves=30,
)  # fmt: skip


@given(JSON_VALUES)
def test_any_json_is_judged_without_an_error_and_asks_for_at_least_one_answer(value: Any) -> None:
    refusal = refuse_body(value, Limits(), 4096)
    assert refusal is None or json.loads(refusal.content())["error"]["message"]
    assert answers_asked(value) >= 1


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed() -> None:
    for body in (b"[" * 600_000, b'{"a":' * 600_000, b"[" + b"0," * 600_000 + b"0]"):
        refusal = refuse_values(body)
        assert refusal is not None and refusal.status == 413
    assert refuse_values(json.dumps({"input": ["A sentence, as they are."] * 100_000}).encode()) is None


def test_answers_are_n_for_each_prompt() -> None:
    assert answers_asked({"n": 3, "prompt": ["a", "b"]}) == 6
    assert answers_asked({"prompt": [1, 2, 3]}) == answers_asked({"prompt": "a"}) == answers_asked([]) == 1


# --- the queue --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60), st.integers(1, 10))
def test_the_queue_never_holds_more_than_its_limit_and_empties(steps: list[tuple[bool, int]], limit: int) -> None:
    now = [0.0]
    queue = Queue(limit, clock=lambda: now[0])
    inside: list[int] = []
    for entering, answers in steps:
        now[0] += 0.5
        if entering:
            full = queue.inside + min(answers, limit) > limit
            refusal = queue.enter(answers)
            assert (refusal is not None) == full
            if refusal:
                assert refusal.status == 429 and 1 <= int(dict(refusal.headers)["retry-after"]) <= 120
            else:
                inside.append(answers)
        elif inside:
            queue.leave(inside.pop())
        assert queue.inside == sum(min(n, limit) for n in inside) <= limit
    for answers in inside:
        queue.leave(answers)
    assert queue.inside == 0


def test_the_wait_is_as_long_as_the_recent_rate_says() -> None:
    now = [100.0]
    queue = Queue(1000, clock=lambda: now[0])
    assert queue.retry_after_s() == 10  # nothing is known yet
    queue.enter(1000)
    for _ in range(20):  # one every two seconds
        now[0] += 2
        queue.leave()
    assert queue.retry_after_s() == 2
    queue.enter(20)
    for _ in range(4):
        assert queue.enter() is not None
    assert queue.retry_after_s() == 10  # four are before it
    now[0] += 1000
    assert queue.retry_after_s() == 10


# --- allowed folders --------------------------------------------------------------------------------------------


def test_no_path_leads_out_of_the_allowed_folders(tmp_path: Path) -> None:
    inside, outside = tmp_path / "adapters", tmp_path / "adapters-other"
    inside.mkdir()
    outside.mkdir()
    (inside / "a.gguf").write_bytes(b"x")
    (outside / "b.gguf").write_bytes(b"x")
    (inside / "file-link").symlink_to(outside / "b.gguf")
    (inside / "folder-link").symlink_to(outside)
    (inside / "circle").symlink_to(inside / "circle")
    os.mkfifo(inside / "pipe")
    hostile = [
        "", ".", "..", "/", "/etc/passwd", str(outside / "b.gguf"), f"{inside}/../adapters-other/b.gguf", "~/x",
        f"{inside}/file-link", f"{inside}/folder-link/b.gguf", f"{inside}/pipe", f"{inside}/a.gguf\0.txt", "\0",
        f"{inside}/" + "x/" * 5000, "x" * 70_000, str(inside).upper() + "/a.gguf", f"file://{inside}/a.gguf",
        f"{inside}/./../../{tmp_path.name}/adapters-other/b.gguf", "/proc/self/environ", "/dev/zero", str(outside),
    ]  # fmt: skip
    for path in hostile:
        try:
            allowed = allowed_file(path, [inside.resolve()])
        except InputError as error:
            assert len(str(error)) < 600
        else:  # whatever is let through lies inside
            assert allowed.is_relative_to(inside.resolve()) and "x/x/x" in path
    assert allowed_file(f"{inside}/sub/../a.gguf", [inside.resolve()]) == (inside / "a.gguf").resolve()
    with pytest.raises(InputError):
        allowed_file(str(inside / "a.gguf"), [])


# --- a bare application behind the guard ------------------------------------------------------------------------


class Client:
    """An ASGI client of one request: gives the body in pieces, keeps what is sent. `stuck` never takes an event."""

    def __init__(self, path: str = "/v1/models", body: bytes | None = None, *, stuck: bool = False) -> None:
        self.scope: dict[str, Any] = {
            "type": "http", "method": "GET" if body is None else "POST", "path": path, "raw_path": path.encode(),
            "query_string": b"token=marked-query", "client": ("10.0.0.9", 5), "state": {"abort": self._abort},
            "headers": [],
        }  # fmt: skip
        if body is not None:
            self.scope["headers"] = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        self._body = body or b""
        self._stuck = stuck
        self._given = False
        self._gone = asyncio.Event()
        self.aborted = False
        self.sent: list[dict[str, Any]] = []

    def _abort(self) -> None:
        self.aborted = True
        self._gone.set()

    async def receive(self) -> Any:
        if self._given:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        self._given = True
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: Any) -> None:
        if self._stuck and message["type"] == "http.response.body":
            await self._gone.wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


def run_behind_guard(app: Any, policy: Policy, **request: Any) -> Client:
    async def run() -> Client:
        client = Client(**request)
        guard = Guard(app, policy, 1000, Metrics(FakeEngine(state="down")))
        await asyncio.wait_for(guard(client.scope, client.receive, client.send), 20)
        return client

    return asyncio.run(run())


async def streaming(scope: Any, receive: Any, send: Any) -> None:
    """An answer that never ends."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while True:
        await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
        await asyncio.sleep(0.02)


def test_an_unforeseen_error_is_a_500_that_tells_nobody_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError(f"cannot read {(await receive())['body'].decode()}")

    policy = Policy(access_log=True)
    client = run_behind_guard(failing, policy, path="/v1/chat/completions", body=b'{"prompt": "marked-prompt"}')
    assert client.status == 500 and json.loads(client.text)["error"]["code"] == "internal_error"
    said = capsys.readouterr().err
    assert "ValueError" in said and "test_serve_guard.py" in said
    assert re.search(r"^20\S+ 10\.0\.0\.9 POST /v1/chat/completions 500 0\.\d+ s$", said, re.MULTILINE)
    assert "marked" not in said + client.text


def test_an_answer_that_takes_too_long_is_a_504_or_an_error_event() -> None:
    cancelled = []

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(scope["path"])

    policy = Policy(limits=Limits(request_s=0.2))
    client = run_behind_guard(silent, policy)
    assert client.status == 504 and json.loads(client.text)["error"]["code"] == "answer_timeout"
    assert cancelled == ["/v1/models"]
    client = run_behind_guard(streaming, policy)
    *events, error, done, _ = client.text.split("\n\n")
    assert events and set(events) == {"data: x"} and done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "answer_timeout"
    assert client.sent[-1].get("more_body", False) is False and not client.aborted


def test_a_client_that_reads_nothing_is_cut_off_in_the_end() -> None:
    client = run_behind_guard(streaming, Policy(limits=Limits(request_s=0.2)), stuck=True)
    assert client.aborted and client.text == ""


def test_a_whole_answer_that_fails_half_way_is_cut_off_and_not_completed() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        raise ValueError

    client = run_behind_guard(failing, Policy())
    assert client.aborted and len(client.sent) == 1


def test_large_bodies_at_once_are_bounded_in_memory() -> None:
    most = 1000
    limits = Limits(body_bytes=most)

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        await scope["hold"].wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> list[int]:
        guard = Guard(waiting, Policy(limits=limits), 1000, Metrics(FakeEngine(state="down")))
        hold = asyncio.Event()
        clients = [Client("/lora-adapters", json.dumps("x" * (most - 2)).encode()) for _ in range(12)]
        tasks = []
        for client in clients:
            client.scope["hold"] = hold
            tasks.append(asyncio.create_task(guard(client.scope, client.receive, client.send)))
        await asyncio.sleep(0.1)
        for client in clients:
            client._gone.set()
        hold.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        again = Client("/lora-adapters", b'"x"')
        again.scope["hold"] = hold
        await guard(again.scope, again.receive, again.send)
        return [client.status for client in (*clients, again)]

    assert asyncio.run(run()) == [200] * 8 + [429] * 4 + [200]


# --- a server ---------------------------------------------------------------------------------------------------


def test_every_answer_has_the_strict_headers(served: Served) -> None:
    for path in ("/", "/health", "/v1/models", "/nothing", "/metrics"):
        headers = httpx.get(served.url + path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY" and headers["cross-origin-opener-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in headers["content-security-policy"] or path == "/"
        assert "access-control-allow-origin" not in headers and "server" not in headers


def test_a_web_page_cannot_drive_the_server(served: Served) -> None:
    loading = {"name": "x", "path": str(served.folder / "en.gguf")}
    evil = {"host": "evil.example:8080"}
    assert error_of(httpx.get(f"{served.url}/v1/models", headers=evil))["code"] == "host_not_allowed"
    reply = served.post("/lora-adapters", loading, headers={"origin": "https://evil.example"})
    assert reply.status_code == 403 and error_of(reply)["code"] == "origin_not_allowed"
    reply = httpx.post(
        f"{served.url}/lora-adapters", content=json.dumps(loading), headers={"content-type": "text/plain"}
    )
    assert reply.status_code == 415 and "application/json" in error_of(reply)["message"]
    reply = httpx.delete(f"{served.url}/lora-adapters/en", headers={"origin": "null"})
    assert reply.status_code == 403 and [a.name for a in served.engine.adapters()] == ["en"]
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{served.url}/lora-adapters", headers=preflight).headers
    own = served.post("/v1/chat/completions", chat("Hello", max_tokens=2), headers={"origin": served.url})
    assert own.status_code == 200


def test_a_named_origin_may_ask_and_sees_errors_too(engine: Engine, folder: Path) -> None:
    friend = "https://chat.example.com"
    with guarded(engine, folder, Policy(Keys(["k"]), origins=(friend,))) as server:
        asked = {"origin": friend, "access-control-request-method": "POST",
                 "access-control-request-headers": "authorization,content-type,x-stainless-os"}  # fmt: skip
        preflight = httpx.options(f"{server.url}/v1/chat/completions", headers=asked)
        assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == friend
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        other = httpx.options(f"{server.url}/v1/chat/completions", headers={**asked, "origin": "https://evil.example"})
        assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
        reply = server.post("/v1/chat/completions", chat("Hello"), headers={"origin": friend})
        assert reply.status_code == 401 and reply.headers["access-control-allow-origin"] == friend
        key = {"authorization": "Bearer k"}
        reply = server.post("/v1/chat/completions", chat("Hi", max_tokens=2), headers={"origin": friend, **key})
        assert reply.status_code == 200 and "x-slm-adapter" in reply.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in reply.headers


def test_with_keys_each_opens_and_the_metrics_need_one_too(engine: Engine, folder: Path) -> None:
    with guarded(engine, folder, Policy(Keys(["one", "鍵"]))) as server:
        for key, status in {"one": 200, "鍵": 200, "On": 401, "one,鍵": 401}.items():
            for path in ("/metrics", "/v1/models"):
                headers = {"authorization": f"Bearer {key}".encode()}
                assert httpx.get(server.url + path, headers=headers, timeout=30).status_code == status  # type: ignore[arg-type]
        assert httpx.get(server.url).status_code == httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/openapi.json").status_code == 401
        for path in ("//health", "/health/", "/HEALTH", "/health/../metrics", "/%68ealth/x"):
            assert httpx.get(f"{server.url}{path}").status_code == 401


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


def test_a_full_queue_is_a_429_that_says_when_to_come_again(engine: Engine, folder: Path, begun: list[Ticket]) -> None:
    with guarded(engine, folder, Policy(limits=Limits(queue=2))) as server, ThreadPoolExecutor(2) as clients:
        with standing_still(engine):
            waiting = [clients.submit(server.chat, "Hello", model="en") for _ in range(2)]
            assert eventually(lambda: len(begun) == 2)
            reply = server.chat("Hello")
            assert error_of(reply)["code"] == "queue_full" and 1 <= int(reply.headers["retry-after"]) <= 120
            assert httpx.get(f"{server.url}/health").status_code == 200
            assert httpx.get(f"{server.url}/lora-adapters").status_code == 200
        assert [reply.result().status_code for reply in waiting] == [200, 200]
        assert server.chat("Hello").status_code == 200
        scrape = httpx.get(f"{server.url}/metrics", timeout=30).text
        assert 'slm_http_responses_total{route="other",status="429"}' in scrape
        assert 'slm_requests_total{adapter="",outcome="rejected"}' in scrape


def test_a_server_that_stops_tells_those_who_wait(engine: Engine, folder: Path, begun: list[Ticket]) -> None:
    with ThreadPoolExecutor(1) as clients, standing_still(engine):
        with guarded(engine, folder) as server:
            waiting = clients.submit(server.chat, "Hello", model="en")
            assert eventually(lambda: len(begun) == 1)
        assert waiting.result().status_code == 503 and error_of(waiting.result())["code"] == "shutting_down"


def test_a_request_over_its_time_is_ended_in_the_engine_too(engine: Engine, folder: Path) -> None:
    limits = Limits(request_s=0.4)
    with guarded(engine, folder, Policy(limits=limits)) as server:
        long = chat("On and on", max_tokens=2000, model="en", logit_bias=None)
        with standing_still(engine):
            reply = server.post("/v1/chat/completions", long)
            assert reply.status_code == 504 and error_of(reply)["type"] == "timeout_error"
            streamed = server.post("/v1/chat/completions", {**long, "stream": True})
            assert streamed.status_code == 504
        assert eventually(lambda: engine.stats()["running"] == engine.stats()["waiting"] == 0)
    with guarded(engine, folder) as server:
        assert server.chat("Hello", model="en").status_code == 200


def test_ten_megabytes_of_text_never_reach_the_engine(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the engine was asked")

    monkeypatch.setattr(engine, "route", never)
    monkeypatch.setattr(engine, "begin_chat", never)
    with guarded(engine, folder) as server:
        reply = server.chat("あ" * 3_000_000)
        assert reply.status_code == 400
        error = error_of(reply)
        assert error["code"] == "context_length_exceeded"
        assert "3,000," in error["message"] and f"{engine.context:,} tokens" in error["message"]


def test_a_body_over_the_limit_is_a_413_that_arrives_declared_or_not(engine: Engine, folder: Path) -> None:
    with guarded(engine, folder, Policy(limits=Limits(body_bytes=100_000))) as server:
        for content in (b"x" * 3_000_000, iter([b"x" * 50_000] * 60)):
            reply = httpx.post(
                f"{server.url}/v1/chat/completions", content=content, headers={"content-type": "application/json"}
            )
            assert reply.status_code == 413 and error_of(reply)["code"] == "body_too_large"
        assert httpx.post(f"{server.url}/lora-adapters", json={"name": "x" * 90_000, "path": "x"}).status_code == 400


@pytest.mark.parametrize("path", ["/etc/passwd", "\0", "x" * 5000, "../../etc/shadow", "/proc/self/environ", "~root"])
def test_hostile_adapter_paths_are_refused_over_http(served: Served, path: str) -> None:
    reply = served.post("/lora-adapters", {"name": "x", "path": path})
    assert reply.status_code == 400 and "may not be loaded" in error_of(reply)["message"]
    reply = served.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": path})
    assert reply.status_code == 400 and [a.name for a in served.engine.adapters()] == ["en"]


# --- the command ------------------------------------------------------------------------------------------------


def policy_from(*args: str, host: str = "127.0.0.1") -> Policy:
    got: list[Policy] = []

    @click.command()
    @guard_options
    def command(**options: Any) -> None:
        got.append(policy_of(host, **options))

    result = CliRunner().invoke(command, list(args), catch_exceptions=False)
    if result.exit_code:
        raise click.UsageError(result.output)
    return got[0]


def test_the_options_defaults_are_the_limits_defaults() -> None:
    assert policy_from().limits == Limits()
    assert policy_from().hosts == frozenset({"localhost", "127.0.0.1", "::1"})


def test_the_options_become_the_policy() -> None:
    policy = policy_from(
        "--max-body", "1.5MiB", "--max-queue", "3", "--cors-origin", "https://A.example:8443/",
        "--allow-host", "Box.local", "--request-timeout", "0", "--access-log",
    )  # fmt: skip
    assert policy.limits.body_bytes == 1_572_864 and policy.limits.queue == 3 and policy.limits.request_s == 0
    assert policy.origins == ("https://a.example:8443",) and policy.access_log
    assert policy.hosts is not None and {"box.local", "localhost"} <= policy.hosts


def test_other_hosts_need_a_key_or_a_word_and_answer_to_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com"):
        with pytest.raises(InputError, match="--api-key-file"):
            policy_from(host=host)
        assert policy_from("--no-key-ok", host=host).hosts is None
        monkeypatch.setenv("SLM_TEST_KEY", " secret ")
        policy = policy_from("--api-key-env", "SLM_TEST_KEY", host=host)
        assert policy.keys.admit(b"Bearer secret")
        assert "SLM_TEST_KEY" not in os.environ, "a child process would have it"
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        assert host in (policy_from(host=host).hosts or ())


def test_a_key_file_that_others_may_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    with pytest.raises(MissingFileError):
        policy_from("--api-key-file", str(file))
    file.write_text("alpha\nbeta\n")
    file.chmod(0o600)
    for mode, warned in ((0o600, False), (0o640, True), (0o604, True)):
        file.chmod(mode)
        result = CliRunner().invoke(
            click.command()(
                guard_options(lambda **o: policy_of("127.0.0.1", **o).keys.admit(b"Bearer beta") or exit(3))
            ),
            ["--api-key-file", str(file)],
        )
        assert result.exit_code == 0 and ("chmod 600" in result.stderr) is warned
        assert "alpha" not in result.output
    for content in (b"", b"\xff\xfe\x00", b"# none\n"):
        file.write_bytes(content)
        with pytest.raises(InputError):
            policy_from("--api-key-file", str(file))
    with pytest.raises(InputError):
        policy_from("--api-key-file", str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (Size(), ["1", "10MB", "1.5 kib", "2GB"], ["", "MB", "-1", "10 parsec", "1e9", "ten"]),
        (Origin(), ["https://a.b", "http://[::1]:80", "chrome-extension://abcdef"], ["*", "null", "a.b", "https://a/b", "https://*.a"]),
    ],
)  # fmt: skip
def test_sizes_and_origins_are_checked(kind: click.ParamType, right: list[str], wrong: list[str]) -> None:  # type: ignore[type-arg]
    for text in right:
        assert kind.convert(text, None, None)
    for text in wrong:
        with pytest.raises(click.UsageError):
            kind.convert(text, None, None)


def test_neither_keys_nor_prompts_are_written_anywhere(folder: Path, tmp_path: Path) -> None:
    """With everything switched on that writes: --debug, the access log, llama.cpp's own log."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **os.environ, "SLM_HOME": str(home), "HOME": str(home), "TMPDIR": str(home), "SLM_LLAMA_LOG": "1",
        "MARKED_KEY": "key-Zq7", "XDG_CONFIG_HOME": str(home), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "slm_cli", "--debug", "serve", str(folder / "tiny.gguf"), "--port", "0", "--threads", "1",
        "--adapter", f"en={folder / 'en.gguf'}", "--api-key-env", "MARKED_KEY", "--access-log", "--max-body", "50kB",
    ]  # fmt: skip
    log = home / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=home, env=environment)
    try:
        assert eventually(lambda: b"curl" in log.read_bytes() or process.poll() is not None, 60)
        url = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert url is not None, log.read_text()
        ask: Callable[..., httpx.Response] = lambda **o: httpx.post(  # noqa: E731
            f"{url.group()}/v1/chat/completions?q=query-Zq7", timeout=60,
            headers={"authorization": "Bearer key-Zq7", "content-type": "application/json"}, **o,
        )  # fmt: skip
        assert ask(json=chat("prompt-Zq7", max_tokens=4)).status_code == 200
        assert ask(json=chat("prompt-Zq7", max_tokens=4, stream=True)).status_code == 200
        assert ask(json=chat("prompt-Zq7", max_tokens="prompt-Zq7")).status_code == 400
        assert ask(json=chat("prompt-Zq7", max_tokens=10**6)).status_code == 400
        assert ask(json=chat("prompt-Zq7" * 9000)).status_code == 413
        assert ask(content=b'{"prompt-Zq7').status_code == 400
        assert httpx.get(f"{url.group()}/v1/models", headers={"authorization": "Bearer wrong-Zq7"}).status_code == 401
        if Path("/proc").exists():  # the engine is a child process; it has no use for the key
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert children and not any(b"key-Zq7" in Path(f"/proc/{c}/environ").read_bytes() for c in children)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    written = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert written[log].count(b"POST /v1/chat/completions") == 6, "a line for each request"
    assert b"llama" in written[log]
    assert not [str(path) for path, content in written.items() if b"Zq7" in content]


def test_as_many_answers_as_the_option_says_are_given(engine: Engine, folder: Path) -> None:
    with guarded(engine, folder, Policy(limits=Limits(choices=12))) as server:
        assert len(server.chat("Hi", n=12).json()["choices"]) == 12
        refused = server.chat("Hi", n=13)
        assert refused.status_code == 400 and "at most 12 answers" in error_of(refused)["message"]
        assert server.chat("Hi", n="12").status_code == 400, "a number that the guard does not read is none"
