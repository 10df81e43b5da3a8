"""The server's metrics: what one scrape says after known requests, read with Prometheus' own parser."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.engine.engine import open_engine
from serve.engine.events import Sink, Ticket
from serve.engine.router import Route
from serve.server.metrics import Metrics
from slm.errors import ContextOverflowError, EngineDiedError, InputError
from slm.joints import Finish
from slm.native.process import resident_bytes
from tests.served import FakeEngine, Served, running
from tests.tiny_gguf import write_adapter, write_model

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def figures(text: str) -> Figures:
    """Every sample of a scrape by its name and labels; a series that stands there twice is an error."""
    found: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{sample.name} stands there twice"
            found[key] = sample.value
    return found


def value(found: Figures, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def adapters_in(found: Figures) -> set[str]:
    return {text for _, labels in found for name, text in labels if name == "adapter"}


def metrics_of(engine: FakeEngine) -> Metrics:
    return Metrics(engine)


def begin(metrics: Metrics, adapter: str | None = "en") -> tuple[Sink, Ticket, list[Any], list[str]]:
    """One measured request: the engine's side of its sink, its ticket, what came through, and what was cancelled."""
    sinks: list[Sink] = []
    seen: list[Any] = []
    cancelled: list[str] = []

    def start(sink: Sink) -> Ticket:
        sinks.append(sink)
        return Ticket(Route(adapter, "", None), lambda: cancelled.append("yes"))

    ticket = metrics.measured(start, adapter)(seen.append)
    return sinks[0], ticket, seen, cancelled


def finish(prompt: int = 30, made: int = 5, cached: int = 10) -> Finish:
    return Finish("stop", "en", "", prompt, made, 0.1, 0.2, cached_tokens=cached)


# --- a request's figures ----------------------------------------------------------------------------------------


def test_an_answer_counts_its_tokens_and_times_and_passes_through_unchanged() -> None:
    metrics = metrics_of(FakeEngine(state="down"))
    sink, ticket, seen, cancelled = begin(metrics)
    events: list[str | Finish] = ["He", "ll", "o", finish()]
    for event in events:
        time.sleep(0.011)
        sink(event)
    ticket.cancel()  # as every streamed answer does at its end
    assert seen == events and cancelled == ["yes"]
    found = figures(metrics.text().decode())
    assert value(found, "slm_requests_total", adapter="en", outcome="ok") == 1
    assert value(found, "slm_requests_total", adapter="en", outcome="cancelled") is None
    assert value(found, "slm_prompt_tokens_total", adapter="en") == 30
    assert value(found, "slm_cached_prompt_tokens_total", adapter="en") == 10
    assert value(found, "slm_generated_tokens_total", adapter="en") == 5
    first = value(found, "slm_time_to_first_token_seconds_sum", adapter="en")
    whole = value(found, "slm_request_duration_seconds_sum", adapter="en")
    between = value(found, "slm_inter_token_seconds_sum", adapter="en")
    assert value(found, "slm_inter_token_seconds_count", adapter="en") == 2
    assert first is not None and whole is not None and between is not None
    assert first >= 0.011 and between >= 0.022 and whole >= first + between
    assert value(found, "slm_inter_token_seconds_bucket", adapter="en", le="0.01") == 0


def test_every_way_to_end_is_an_outcome_of_its_own() -> None:
    metrics = metrics_of(FakeEngine(state="down"))
    _, ticket, _, cancelled = begin(metrics)
    ticket.cancel()
    ticket.cancel()
    assert cancelled == ["yes", "yes"]
    begin(metrics)[0](EngineDiedError("it ended"))
    begin(metrics)[0](ContextOverflowError("too long"))
    for error in (InputError("no"), EngineDiedError("no"), ZeroDivisionError()):

        def failing(_: Sink, error: Exception = error) -> Ticket:
            raise error

        with pytest.raises(type(error)):
            metrics.measured(failing, "en")(lambda _: None)
    metrics.rejected("ja")
    metrics.rejected("auto")
    metrics.rejected(["nonsense"])
    found = figures(metrics.text().decode())
    outcomes = {"cancelled": 1.0, "error": 3.0, "rejected": 2.0}
    assert {k: value(found, "slm_requests_total", adapter="en", outcome=k) for k in outcomes} == outcomes
    assert value(found, "slm_requests_total", adapter="ja", outcome="rejected") == 1
    assert value(found, "slm_requests_total", adapter="", outcome="rejected") == 2


def test_no_name_that_is_not_loaded_makes_a_series_and_an_unloaded_adapter_loses_its_own() -> None:
    engine = FakeEngine(state="down")
    metrics = metrics_of(engine)
    begin(metrics, "ja")[0](finish())
    begin(metrics, None)[0](finish())
    late, _, passed, _ = begin(metrics, "ja")
    for number in range(50):
        metrics.rejected(f"made-up-{number}")
        begin(metrics, f"made-up-{number}")[0](finish())
    assert adapters_in(figures(metrics.text().decode())) == {"ja", "base", ""}
    engine.names.remove("ja")
    late("x")
    late(finish())  # it was under way when its adapter was unloaded
    assert passed == ["x", finish()]
    assert adapters_in(figures(metrics.text().decode())) == {"base", ""}
    engine.names.append("ja")
    begin(metrics, "ja")[0](finish())
    assert value(figures(metrics.text().decode()), "slm_requests_total", adapter="ja", outcome="ok") == 1


def test_a_busy_engine_does_not_hold_up_a_scrape_and_is_asked_once() -> None:
    engine = FakeEngine()
    metrics = metrics_of(engine)
    began = time.monotonic()
    texts = [metrics.text().decode() for _ in range(2)]
    assert time.monotonic() - began < 15, "the engine answers after 20 s"
    assert engine.asked == 1
    assert all("slm_requests_running" not in text and "slm_engine_up 1.0" in text for text in texts)
    engine.free.set()
    assert engine.free.is_set() and value(figures(metrics.text().decode()), "slm_requests_waiting") == 3


def test_counts_are_exact_when_many_threads_count() -> None:
    metrics = metrics_of(FakeEngine(state="down"))

    def one(number: int) -> None:
        sink, ticket, _, _ = begin(metrics)
        sink("a")
        ends = [ticket.cancel, lambda: sink(finish(made=1))][: 1 + number % 2]
        with ThreadPoolExecutor(2) as both:
            for end in [both.submit(end) for end in ends]:
                end.result()

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(one, range(400)))
    found = figures(metrics.text().decode())
    ended = [value(found, "slm_requests_total", adapter="en", outcome=o) or 0 for o in ("ok", "cancelled")]
    assert sum(ended) == 400 == value(found, "slm_request_duration_seconds_count", adapter="en")


def test_two_servers_in_one_process_share_nothing() -> None:
    first, second = metrics_of(FakeEngine(state="down")), metrics_of(FakeEngine(state="down"))
    begin(first)[0](finish())
    assert adapters_in(figures(second.text().decode())) == set()
    assert b"slm_" not in prometheus_client.generate_latest()


def test_resident_memory_is_that_of_the_process_or_absent() -> None:
    own = resident_bytes(os.getpid())
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        assert own is not None and abs(own - kilobytes * 1024) < 0.2 * own
    else:
        assert own is None
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert resident_bytes(gone.pid) is None and resident_bytes(None) is None


# --- a real server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("metrics")
    model = write_model(folder / "tiny.gguf")
    adapters = {"en": write_adapter(folder / "en.gguf", seed=1), "ja": write_adapter(folder / "ja.gguf", seed=2)}
    with (
        open_engine(model, adapters, threads=1, parallel=2) as engine,
        running(engine, folder, allowed_folders=[folder]) as server,
    ):
        yield server


def scraped(served: Served) -> Figures:
    reply = httpx.get(f"{served.url}/metrics", timeout=30)
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return figures(reply.text)


def test_a_scrape_says_what_the_server_did(served: Served) -> None:
    before = scraped(served)
    answers = [served.chat("Hello", model="en").json() for _ in range(2)]
    list(served.client.chat.completions.create(
        model="ja", messages=[{"role": "user", "content": "Hello"}], max_tokens=6, stream=True
    ))  # fmt: skip
    assert served.chat("Hello", model="en", max_tokens=5000).status_code == 400
    assert served.chat("Hello", model="nobody").status_code == 404
    found = scraped(served)
    used = [answer["usage"] for answer in answers]
    assert value(found, "slm_requests_total", adapter="en", outcome="ok") == 2
    assert value(found, "slm_requests_total", adapter="en", outcome="rejected") == 1
    assert value(found, "slm_requests_total", adapter="ja", outcome="ok") == 1
    assert value(found, "slm_prompt_tokens_total", adapter="en") == sum(u["prompt_tokens"] for u in used)
    cached = sum(u["prompt_tokens_details"]["cached_tokens"] for u in used)
    assert value(found, "slm_cached_prompt_tokens_total", adapter="en") == cached > 0
    assert value(found, "slm_generated_tokens_total", adapter="en") == sum(u["completion_tokens"] for u in used) == 16
    assert value(found, "slm_time_to_first_token_seconds_count", adapter="ja") == 1
    assert "nobody" not in adapters_in(found)
    assert value(before, "slm_adapters_loaded") == value(found, "slm_adapters_loaded") == 2
    assert value(found, "slm_engine_up") == 1 and value(found, "slm_engine_restarts_total") == 0
    assert value(found, "slm_requests_running") == value(found, "slm_requests_waiting") == 0
    contexts = value(found, "slm_contexts_open")
    assert contexts is not None and contexts >= 1
    routes = {"/v1/chat/completions": {"200": 3.0, "400": 1.0, "404": 1.0}, "/metrics": {"200": 1.0}}
    for route, by_status in routes.items():
        counted = {s: value(found, "slm_http_responses_total", route=route, status=s) for s in by_status}
        assert counted == by_status
    if Path("/proc").exists():
        for process in ("server", "engine"):
            assert (value(found, "slm_resident_memory_bytes", process=process) or 0) > 1_000_000


def test_paths_that_no_route_has_are_one_series(served: Served) -> None:
    for number in range(20):
        assert httpx.get(f"{served.url}/made-up/{number}").status_code == 404
    routes = {text for name, labels in scraped(served) for key, text in labels if key == "route"}
    assert value(scraped(served), "slm_http_responses_total", route="other", status="404") == 20
    assert not any("made-up" in route for route in routes)


def test_every_name_follows_prometheus_conventions_and_has_a_help_text(served: Served) -> None:
    families = list(text_string_to_metric_families(httpx.get(f"{served.url}/metrics", timeout=30).text))
    assert len(families) > 12
    for family in families:
        assert family.name.startswith("slm_") and family.documentation.endswith("."), family
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_unloading_over_http_takes_the_adapters_series_away(served: Served) -> None:
    path = str(write_adapter(served.folder / "guest.gguf", seed=5))
    assert served.post("/lora-adapters", {"name": "guest", "path": path}).status_code == 200
    assert served.chat("Hello", model="guest").status_code == 200
    assert "guest" in adapters_in(scraped(served))
    assert httpx.delete(f"{served.url}/lora-adapters/guest").status_code == 200
    assert "guest" not in adapters_in(scraped(served))
