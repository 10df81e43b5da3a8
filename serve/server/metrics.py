"""What the server counts, for Prometheus (`GET /metrics`): requests, tokens and times by adapter, the engine's state.

A request is measured by wrapping the sink its events go to, so the engine's loop is not touched. It knows nothing of
HTTP requests' contents. Series exist only for adapters that are loaded and the reader: no client can make up new ones.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from contextlib import suppress
from dataclasses import replace

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from serve.child.messages import Stats
from serve.engine.events import Event, Sink, Ticket
from serve.engine.served import Observed
from slm.errors import ContextOverflowError, EngineError, SlmError
from slm.joints import Finish
from slm.native.process import resident_bytes

# Seconds. A small model on a laptop answers its first token in tenths of a second and a long prompt in a minute.
_FIRST_TOKEN = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_BETWEEN = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_WHOLE = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BASE = "base"
_STATS_S = 2.0  # how long a scrape waits for the engine, which may be in the middle of a step


class _Registry(CollectorRegistry):
    """Without the `_created` series, which double the number of series and which nothing here reads."""

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class Metrics:
    """The counts of one server, in a registry of its own. Thread-safe. reader: who answers beside base and adapters."""

    def __init__(self, engine: Observed, reader: str | None = None) -> None:
        self._engine = engine
        self._always = {_BASE} | ({reader} if reader else set())
        self._registry = _Registry()
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._asker = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._asked: Future[Stats] | None = None

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"slm_{name}", help, ("adapter", *labels), registry=self._registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"slm_{name}_seconds", help, ("adapter",), registry=self._registry, buckets=buckets)

        self.requests = counter("requests", "Answers by outcome: ok, cancelled, error, rejected.", "outcome")
        self.prompt = counter("prompt_tokens", "Tokens of prompts, with those found in the prefix cache.")
        self.cached = counter("cached_prompt_tokens", "Prompt tokens found in the prefix cache.")
        self.generated = counter("generated_tokens", "Tokens generated.")
        self.first = histogram("time_to_first_token", "From the request to the first text.", _FIRST_TOKEN)
        self.between = histogram("inter_token", "Between two pieces of text of an answer.", _BETWEEN)
        self.whole = histogram("request_duration", "From the request to the answer's end.", _WHOLE)
        self._by_adapter = (
            self.requests, self.prompt, self.cached, self.generated, self.first, self.between, self.whole,
        )  # fmt: skip
        self._responses = Counter(
            "slm_http_responses", "Responses by route and status (0: none was sent).", ("route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(self)

    def responded(self, route: str, status: int) -> None:
        """Count one HTTP response."""
        self._responses.labels(route, str(status)).inc()

    def rejected(self, model: object) -> None:
        """Count a request that was turned away before an adapter was chosen. model: what it asked for."""
        self.requests.labels(self._known(model) or "", "rejected").inc()

    def measured(self, begin: Callable[[Sink], Ticket], adapter: str | None) -> Callable[[Sink], Ticket]:
        """`begin`, with the request it starts being measured. adapter: who will answer, None for the base."""

        def begun(sink: Sink) -> Ticket:
            watch = _Watch(self, adapter or _BASE, sink)
            try:
                ticket = begin(watch.take)
            except BaseException as error:
                watch.end(_outcome(error))
                raise

            def cancel() -> None:
                watch.end("cancelled")
                ticket.cancel()

            return replace(ticket, cancel=cancel)

        return begun

    def text(self) -> bytes:
        """Everything in Prometheus' text format. Waits for the engine at most two seconds."""
        self._forget_unloaded()
        return generate_latest(self._registry)

    def series_of(self, adapter: str) -> str | None:
        """The label for an adapter's figures, or None when it is not loaded."""
        name = self._known(adapter)
        if name is not None and name not in self._seen:
            self._forget_unloaded()
            self._seen.add(name)
        return name

    def ended(self, name: str, outcome: str, seconds: float, finish: Finish | None) -> None:
        """Count one measured request. If its adapter has been unloaded by now, the next scrape forgets it again."""
        self._seen.add(name)
        self.requests.labels(name, outcome).inc()
        self.whole.labels(name).observe(seconds)
        if finish:
            self.prompt.labels(name).inc(finish.prompt_tokens)
            self.cached.labels(name).inc(finish.cached_tokens)
            self.generated.labels(name).inc(finish.completion_tokens)

    def collect(self) -> Iterator[Metric]:
        """The engine's state at this moment (called by the registry). What cannot be told is left out."""
        engine = self._engine
        yield _gauge("engine_up", "Whether the engine is ready to answer.", int(engine.state == "ready"))
        yield CounterMetricFamily("slm_engine_restarts", "Times the engine was started again.", value=engine.restarts)
        yield _gauge("adapters_loaded", "Adapters that can be asked.", len(engine.adapters()))
        if stats := self._stats():
            yield _gauge("requests_running", "Answers being generated.", stats.running)
            yield _gauge("requests_waiting", "Requests that wait for a slot.", stats.waiting)
            yield _gauge("contexts_open", "Contexts of llama.cpp that are open.", stats.contexts)
            drafted, accepted = "Tokens tried because the same had followed before.", "Drafted tokens that were right."
            yield CounterMetricFamily("slm_drafted_tokens", drafted, value=stats.drafted)
            yield CounterMetricFamily("slm_accepted_tokens", accepted, value=stats.accepted)
        memory = GaugeMetricFamily("slm_resident_memory_bytes", "Resident memory by process.", labels=["process"])
        for process, pid in (("server", os.getpid()), ("engine", engine.pid)):
            if (size := resident_bytes(pid)) is not None:
                memory.add_metric([process], size)
        yield memory

    def _stats(self) -> Stats | None:
        """The engine's own figures; None while it is starting or too busy. One question at a time."""
        if self._engine.state != "ready":
            return None
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = self._asker.submit(self._engine.stats)
            asked = self._asked
        with suppress(NotInTime, SlmError):
            return asked.result(_STATS_S)
        return None

    def _known(self, model: object) -> str | None:
        name = str(model)
        return name if name in self._always or any(name == a.name for a in self._engine.adapters()) else None

    def _forget_unloaded(self) -> None:
        loaded = {adapter.name for adapter in self._engine.adapters()} | self._always
        for name in list(self._seen - loaded):
            self._seen.discard(name)
            for family in self._by_adapter:
                family.remove_by_labels({"adapter": name})


class _Watch:
    """One request under way: passes its events on and notes when they came.

    It asks the engine nothing: events may come while the engine holds its lock.
    """

    def __init__(self, metrics: Metrics, adapter: str, sink: Sink) -> None:
        self._metrics, self._sink = metrics, sink
        self._name = metrics.series_of(adapter)
        self._began = time.perf_counter()
        self._last = 0.0
        self._lock = threading.Lock()
        self._over = False

    def take(self, event: Event) -> None:
        """The sink the engine sees."""
        now = time.perf_counter()
        if isinstance(event, Finish):
            self.end("cancelled" if event.reason == "cancelled" else "ok", event)
        elif isinstance(event, SlmError):
            self.end(_outcome(event))
        else:
            if self._name is not None:
                times = self._metrics.between if self._last else self._metrics.first
                times.labels(self._name).observe(now - (self._last or self._began))
            self._last = now
        self._sink(event)

    def end(self, outcome: str, finish: Finish | None = None) -> None:
        """Count the request, once: whatever comes first is how it ended."""
        with self._lock:
            if self._over:
                return
            self._over = True
        if self._name is not None:
            self._metrics.ended(self._name, outcome, time.perf_counter() - self._began, finish)


def install_metrics(app: FastAPI, metrics: Metrics) -> None:
    """GET /metrics."""

    @app.get("/metrics", include_in_schema=False)
    def scrape() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _gauge(name: str, help: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"slm_{name}", help, value=value)


def _outcome(error: BaseException) -> str:
    """Ours is an error, the client's a rejection: a prompt that is too long, a name that nothing carries."""
    theirs = isinstance(error, SlmError) and not isinstance(error, EngineError)
    return "rejected" if theirs or isinstance(error, ContextOverflowError) else "error"
