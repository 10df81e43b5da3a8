"""A server behind its guard: pages, keys, a full queue, limits of time and size, and what is never written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.engine.engine import Engine
from serve.engine.events import Ticket
from serve.server.guard import Keys, Limits, Policy
from tests.served import Served, begun, chat, engine, error_of, folder, guarded, standing_still
from tests.waiting import eventually

__all__ = ["begun", "engine", "folder"]  # fixtures

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def served(engine: Engine, folder: Path) -> Iterator[Served]:
    with guarded(engine, folder, allowed_folders=[folder]) as server:
        yield server


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
        assert eventually(lambda: engine.stats().running == engine.stats().waiting == 0)
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
