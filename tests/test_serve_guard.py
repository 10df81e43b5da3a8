"""The server's guard around a bare application, and the options that become its policy."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from serve.cli.guard import GuardOptions, Origin, Size, guard_options, policy_of
from serve.server.guard import Limits, Policy
from serve.server.metrics import Metrics
from serve.server.middleware import RequestGuard
from slm.errors import InputError, MissingFileError
from tests.served import FakeEngine

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
        guard = RequestGuard(app, policy, 1000, Metrics(FakeEngine(state="down")))
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
        guard = RequestGuard(waiting, Policy(limits=limits), 1000, Metrics(FakeEngine(state="down")))
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


# --- the command ------------------------------------------------------------------------------------------------


def policy_from(*args: str, host: str = "127.0.0.1") -> Policy:
    got: list[Policy] = []

    @click.command()
    @guard_options
    def command(**options: Any) -> None:
        got.append(policy_of(host, GuardOptions(**options)))

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

    def knows_beta(**options: Any) -> None:
        assert policy_of("127.0.0.1", GuardOptions(**options)).keys.admit(b"Bearer beta")

    for mode, warned in ((0o600, False), (0o640, True), (0o604, True)):
        file.chmod(mode)
        result = CliRunner().invoke(click.command()(guard_options(knows_beta)), ["--api-key-file", str(file)])
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
