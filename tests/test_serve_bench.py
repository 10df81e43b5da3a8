"""The serving benchmark: what its clients count, what is computed from it, and a whole run on a tiny model."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from serve.adapters.registry import vet_adapter, vet_base
from serve.bench.adapters import random_adapters, write_random_adapter
from serve.bench.load import Outcome, ask, closed_loop, quantile, tokens_per_second
from serve.bench.peers import contenders, end_tokens
from serve.bench.process import peak_rss_mb, running
from serve.bench.prompts import conversation, long_conversation, next_turn
from serve.bench.report import failures, median_of_rounds, ratios, table_rows
from serve.bench.servers.run import ServeBenchOptions, bench_serving
from serve.bench.servers.scenarios import LoadPlan, summary
from serve.cli import bench as cli_bench
from serve.engine.engine import open_engine
from serve.upstream import Launch, UpstreamOptions
from slm.errors import EngineError, InputError, MissingFileError
from slm.joints import Finish, SamplingOptions
from slm.native.process import children_of, status_mb
from slm.native.threads import settle_openmp, without_settling
from tests.path_joints import PathJoints
from tests.tiny_gguf import EOS, LAYERS, TOKENS, write_adapter, write_model

BODY = {"messages": [], "max_tokens": 5}


def text(content: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content}, "finish_reason": reason}]}


END = {"choices": [{"delta": {}, "finish_reason": "length"}]}
USAGE = {"choices": [], "usage": {"completion_tokens": 5, "prompt_tokens": 90}}


def streamed(*events: Any, status: int = 200, breaks: bool = False) -> Outcome:
    """What `ask` makes of a server that sends these events (dicts as JSON, strings as they are)."""

    class Stream(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for event in events:
                data = event if isinstance(event, str) else json.dumps(event)
                yield f"data: {data}\n\n".encode()
            if breaks:
                raise httpx.ReadError("connection reset")

    def answer(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        assert asked["stream"] and asked["stream_options"] == {"include_usage": True}
        return httpx.Response(status, stream=Stream())

    async def run() -> Outcome:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server") as client:
            return await ask(client, BODY)

    return asyncio.run(run())


# --- what a client counts ---------------------------------------------------------------------------------------


def test_tokens_are_the_servers_usage_not_the_number_of_events() -> None:
    outcome = streamed(text(""), text("two tokens"), text(" three more"), END, USAGE, "[DONE]")
    assert (outcome.tokens, outcome.prompt_tokens, outcome.short, outcome.error) == (5, 90, False, "")
    assert outcome.text == "two tokens three more"
    assert outcome.first is not None and outcome.started <= outcome.first <= outcome.ended


def test_a_stream_without_usage_counts_only_when_it_ended_at_max_tokens() -> None:
    assert streamed(text("a"), END, "[DONE]").tokens == 5
    stopped = streamed(text("a", "stop"), "[DONE]")
    assert stopped.tokens == 0 and stopped.error == "an answer without tokens"


def test_an_answer_with_fewer_tokens_is_short_but_not_failed() -> None:
    few = {"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 9}}
    outcome = streamed(text("a", "stop"), few, "[DONE]")
    assert outcome.short and not outcome.error and outcome.tokens == 3


@pytest.mark.parametrize(
    ("events", "options", "words", "told"),
    [
        ([text("a"), "[DONE]"], {}, "ended before", False),  # no finish reason: it was cut off
        ([text("a"), END], {}, "ended before", False),
        ([text("a"), {"error": {"message": "the engine died"}}, "[DONE]"], {}, "the engine died", True),
        ([text("a"), "{not json"], {}, "JSONDecodeError", False),
        ([text("a")], {"breaks": True}, "connection reset", False),
        ([{"error": "no"}], {"status": 503}, "HTTP 503", False),
    ],
)
def test_an_answer_that_is_not_whole_has_failed(
    events: list[Any], options: dict[str, Any], words: str, told: bool
) -> None:
    outcome = streamed(*events, **options)
    assert words in outcome.error and outcome.told is told


def test_the_first_text_is_told_once() -> None:
    told: list[int] = []

    async def run() -> None:
        content = "".join(f"data: {json.dumps(e)}\n\n" for e in (text(""), text("a"), text("b"), END, USAGE))
        transport = httpx.MockTransport(lambda _: httpx.Response(200, text=content + "data: [DONE]\n\n"))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            await ask(client, BODY, on_first=lambda: told.append(1))

    asyncio.run(run())
    assert told == [1]


# --- what is computed -------------------------------------------------------------------------------------------


def test_the_closed_loop_keeps_every_client_busy_with_one_request_at_a_time() -> None:
    under_way: set[int] = set()
    most = 0
    seen: list[tuple[int, int]] = []

    async def send(client: int, number: int) -> Outcome:
        nonlocal most
        assert client not in under_way
        under_way.add(client)
        most = max(most, len(under_way))
        await asyncio.sleep(0.01)
        under_way.remove(client)
        seen.append((client, number))
        return Outcome(0, 0, 1, 5)

    outcomes, begin, end = asyncio.run(closed_loop(send, clients=3, seconds=0.2))
    assert most == 3 and len(outcomes) == len(seen) == len(set(seen)) and end - begin == pytest.approx(0.2)
    for client in range(3):
        numbers = [number for one, number in seen if one == client]
        assert numbers == list(range(len(numbers))) and len(numbers) > 3


@st.composite
def outcome_lists(draw: Callable[..., Any]) -> list[Outcome]:
    times = st.floats(0, 10)
    parts = []
    for _ in range(draw(st.integers(1, 8))):
        started, first, ended = sorted(draw(st.lists(times, min_size=3, max_size=3)))
        parts.append(Outcome(started, first, ended, draw(st.integers(1, 100))))
    return parts


@given(outcome_lists(), st.floats(0.1, 20))
def test_throughput_counts_each_token_once_and_only_inside_the_window(outcomes: list[Outcome], end: float) -> None:
    total = sum(one.tokens for one in outcomes)
    inside = tokens_per_second(outcomes, 0.0, end) * end
    assert -1e-6 <= inside <= total + 1e-6
    assert tokens_per_second(outcomes, 0.0, 10.0) * 10 == pytest.approx(total)
    assert inside <= tokens_per_second(outcomes, 0.0, end + 1) * (end + 1) + 1e-6
    whole = sum(one.tokens for one in outcomes if one.ended <= end)
    assert inside >= whole - 1e-6


def test_an_answer_that_outlasts_the_window_counts_in_part() -> None:
    half = Outcome(started=0, first=1, ended=3, tokens=11)
    assert tokens_per_second([half], 0, 2) * 2 == pytest.approx(1 + 10 / 2)
    assert tokens_per_second([Outcome(0, 1, 3, 11, error="cut off")], 0, 4) == 0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], q: float) -> None:
    assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-6)


def test_a_summary_counts_failures_and_leaves_them_out_of_the_times() -> None:
    outcomes = [Outcome(0, 1, 2, 8, prompt_tokens=90), Outcome(0, 3, 4, 6, prompt_tokens=92, short=True)]
    figures = summary([*outcomes, Outcome(0, 9, 9, error="cut off")], [Outcome(0, None, 1, error="before")])
    assert figures == {
        "requests": 4, "failed": 2, "short": 1, "prompt_tokens": 91, "ttft_p50_s": 2,
        "ttft_p95_s": pytest.approx(2.9), "error": "before",
    }  # fmt: skip


def figures(tokens_per_s: float | None, ttft: float | None, failed: int = 0) -> dict[str, Any]:
    part = {
        "requests": 10, "failed": failed, "short": 0, "prompt_tokens": 90, "ttft_p50_s": ttft, "ttft_p95_s": ttft,
        "error": "words" if failed else "", "tokens_per_s": tokens_per_s,
    }  # fmt: skip
    return {name: dict(part) for name in ("mixed", "one_adapter", "overtaking", "second_turn")}


def test_rounds_become_medians_and_counts_are_added() -> None:
    merged = median_of_rounds([figures(100, 1.0), figures(150, 3.0, failed=2), figures(110, None)])
    assert merged["mixed"]["tokens_per_s"] == 110 and merged["mixed"]["ttft_p50_s"] == 2.0
    assert merged["mixed"]["requests"] == 30 and merged["mixed"]["failed"] == 2
    assert failures(merged) == (8, 120, "words")


def test_a_ratio_above_one_says_that_ours_is_better_whatever_the_figure() -> None:
    better = ratios(figures(150, 0.5), figures(75, 2.0))
    assert better["mixed_tokens_per_s"] == 2.0 and better["mixed_ttft_p95_s"] == 4.0
    assert ratios(figures(150, None), figures(75, 2.0))["mixed_ttft_p95_s"] is None
    servers = [{"name": n, "peak_rss_mb": None, "start_s": 1.0, **figures(9, 1.0)} for n in ("slm", "peer")]
    headings, rows = table_rows(servers)
    assert headings == ["", "slm", "peer", "ours / peer"] and all(len(row) == 4 for row in rows)
    assert rows[-3][1] == "0 of 40"


def test_prompts_share_their_beginning_and_none_repeats() -> None:
    asked = [conversation(language, n) for language in ("en", "ja") for n in range(500)]
    assert len({turns[0]["content"] for turns in asked}) == 1
    assert len({turns[1]["content"] for turns in asked}) == 1000
    first = long_conversation(1, 18)
    assert next_turn(first, "answer")[:2] == first and long_conversation(2, 18) != first


# --- adapters and servers ---------------------------------------------------------------------------------------


def test_a_random_adapter_fits_every_linear_layer_and_changes_the_answer(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    layers = write_random_adapter(model, tmp_path / "a.gguf", seed=0)
    write_random_adapter(model, tmp_path / "b.gguf", seed=1)
    assert layers == LAYERS * 7
    base = vet_base(model)
    assert [vet_adapter(name, tmp_path / f"{name}.gguf", base).name for name in "ab"] == ["a", "b"]
    adapters = {name: tmp_path / f"{name}.gguf" for name in "ab"}
    with open_engine(model, adapters, threads=1) as engine:

        def scores(adapter: str | None) -> str:
            answer = engine.complete("Once upon a time", adapter=adapter, sampling=SamplingOptions(max_tokens=64))
            return "".join(piece for piece in answer if not isinstance(piece, Finish))

        assert len({scores(None), scores("a"), scores("b")}) == 3


def test_as_many_random_adapters_are_made_as_are_asked_for(tmp_path: Path) -> None:
    files = random_adapters(write_model(tmp_path / "tiny.gguf"), tmp_path, 4)
    assert list(files) == ["en", "ja", "adapter-3", "adapter-4"]
    assert len({path.read_bytes() for path in files.values()}) == 4


def test_the_tokens_that_end_an_answer_are_found(tmp_path: Path) -> None:
    assert end_tokens(write_model(tmp_path / "tiny.gguf")) == sorted([EOS, TOKENS.index("<|im_end|>")])


def test_a_server_that_does_not_start_is_an_error_with_its_last_words() -> None:
    launch = Launch([sys.executable, "-c", "print('no such model'); raise SystemExit(4)"], {}, "/health")
    with (
        pytest.raises(EngineError, match=r"code 4.*no such model"),
        running(launch, UpstreamOptions(Path("m"), port=1)),
    ):
        raise AssertionError("it is not running")


def test_a_peer_runs_with_the_users_environment_not_with_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    settle_openmp()
    assert "GOMP_SPINCOUNT" in os.environ and without_settling(os.environ) == before
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert without_settling(os.environ)["GOMP_SPINCOUNT"] == "7"


def test_memory_is_that_of_the_whole_family() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"1\n"  # the child runs its own program
        child = children_of(parent.pid)[0]
        whole, one = peak_rss_mb(parent.pid), status_mb(child)
        assert whole is not None and one is not None and whole > one > 1
        assert parent.stdin is not None
        parent.stdin.close()
    assert status_mb(child) is None


def test_only_a_peer_that_was_named_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingFileError):
        contenders(model, ["en", "ja"], ["llama-server"])
    found, missing = contenders(model, ["en", "ja"], ["all"])
    assert [one.name for one in found] == ["slm", "llama-cpp-python"]
    assert len(missing) == 1 and "llama-server is not measured" in missing[0]
    assert found[0].fields(1) == {"model": "ja"}


def test_a_whole_run_beside_llama_cpps_python_server(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    plan = LoadPlan(clients=2, tokens=4, seconds=0.3, records=2, long_tokens=40, repeats=1)
    result = bench_serving(model, {}, ["llama-cpp-python"], plan, ServeBenchOptions(rounds=1, context=2048, threads=1))
    assert [server["name"] for server in result["servers"]] == ["slm", "llama-cpp-python"]
    for server in result["servers"]:
        failed, requests, words = failures(server)
        assert failed == 0 and requests >= 2 + 2 + 1 + 1, words
        assert server["mixed"]["ttft_p50_s"] > 0 and server["peak_rss_mb"] > 10
        assert server["second_turn"]["ttft_p50_s"] > 0 and server["overtaking"]["ttft_p50_s"] > 0
    assert set(result["ratios"]) == {"llama-cpp-python"}
    json.dumps(result)


def test_the_command_shows_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Any] = {
        "model": "m.gguf", "adapters": ["en", "ja"], "plan": {"clients": 8, "tokens": 64, "seconds": 15.0}, "rounds": 3,
        "servers": [{"name": n, "peak_rss_mb": 99.0, "start_s": 1.0, **figures(9, 1.0, failed=1)} for n in "ab"],
        "overhead": {"steps": 100, "decode_s": 0.97, "step_s": 1.0, "overhead": 0.03},
    }  # fmt: skip
    asked: list[Any] = []
    monkeypatch.setattr("serve.bench.servers.run.bench_serving", lambda *args, **_: asked.append(args) or shown)
    adapters = [f"--adapter={name}={write_adapter(tmp_path / f'{name}.gguf')}" for name in ("en", "ja", "fr")]
    result = CliRunner().invoke(cli_bench.bench_serve, ["m.gguf", *adapters], obj=PathJoints())
    assert result.exception is None and asked[0][3].adapters == 3
    assert "3.0%" in result.stdout and "a: 4 failed; the first: words" in result.stdout
    one = CliRunner().invoke(cli_bench.bench_serve, ["m.gguf", adapters[0]], obj=PathJoints())
    assert isinstance(one.exception, InputError) and "two or more" in str(one.exception)
    assert CliRunner().invoke(cli_bench.bench_serve, ["m.gguf", "--adapter", "x"]).exit_code == 2
    many = CliRunner().invoke(cli_bench.bench_serve, ["m.gguf", "--random", "9", "--clients", "9"], obj=PathJoints())
    assert many.exception is None and asked[-1][3].adapters == 9
    few = CliRunner().invoke(cli_bench.bench_serve, ["m.gguf", "--random", "9"], obj=PathJoints())
    assert few.exit_code == 2 and "give --clients 9" in few.output
    both = CliRunner().invoke(cli_bench.bench_serve, ["m.gguf", *adapters, "--random", "2"], obj=PathJoints())
    assert both.exit_code == 2 and "where --adapter names none" in both.output
