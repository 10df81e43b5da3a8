"""The server on Ray beside `slm serve` on the same cores, and the service times that the simulation is built on.

Every run is a process with a Ray of its own. It knows the servers as an HTTP client, not how figures are shown.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve.bench.adapters import random_adapters
from serve.bench.load import Outcome, ask, closed_loop, new_client, quantile, tokens_per_second
from serve.bench.peers import end_tokens
from serve.bench.process import Server, free_port, running
from serve.bench.prompts import conversation
from serve.bench.simulated.fleet import EngineLoad, FleetLoad, ServiceTimes, most_machines, simulate
from serve.upstream import Launch, UpstreamOptions
from slm.errors import DamagedFileError, EngineError, MissingFileError
from slm.native.process import child_environment, cpu_seconds
from slm.terminal.console import note

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
GOALS = {"throughput": 0.85, "ttft_more_ms": 30.0, "halves": 1.0}
_STEPS = (1, 2, 4, 8)
_ENTRANCE = (b"ServeReplica:slm:entrance", b"ProxyActor")
_LANGUAGES = ("en", "ja")


@dataclass(frozen=True)
class ClusterPlan:
    """How much load: clients of each replica, tokens of an answer, seconds of a run. cores: of one large engine."""

    clients: int = 8
    tokens: int = 64
    seconds: float = 20.0
    cores: int = 2
    context: int = 4096


@dataclass(frozen=True)
class ClusterRun:
    """A run under load. entrance_s: processor seconds of Ray's proxy and our entrance for each answer."""

    name: str
    clients: int
    requests: int
    failed: int
    tokens_per_s: float
    answers_per_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    answer_p95_s: float
    first_share: float
    entrance_s: float
    error: str = ""


def bench_cluster_runs(model: Path, adapters: Mapping[str, Path], plan: ClusterPlan) -> dict[str, Any]:
    """Measure one machine and Ray on it. Without adapters two random ones are made.

    Returns {model, plan, runs: [ClusterRun], costs, times: {engine, entrance_s, tokens}, checks}. Raises EngineError
    when a server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as scratch:
        load = ClusterLoad.of(model, adapters, plan, Path(scratch))
        runs = [
            load.run("slm serve", ["serve", "--threads", str(plan.cores)], plan.clients),
            load.run("ray, 1 replica", on_cluster(1, plan.cores), plan.clients),
        ]
        small = max(1, plan.cores // 2)
        with load.started(on_cluster(1, small)) as server:
            name = f"ray, 1 replica of {small} core"
            curve = [load.measured(name, server, n) for n in _steps(plan.clients)]
            same = [load.measured(f"{name}, 1 adapter", server, n, most=1) for n in _steps(plan.clients)]
        with load.started(on_cluster(2, small)) as server:
            pair = load.measured(f"ray, 2 replicas of {small} core", server, plan.clients)
            both = load.measured(f"ray, 2 replicas of {small} core", server, 2 * plan.clients)
    times = ServiceTimes(_rows(curve), curve[-1].entrance_s, float(plan.tokens), _rows(same))
    checks = [_check(curve[-1], times, 1, plan.cores), _check(both, times, 2, plan.cores)]
    return {
        "model": model.name, "plan": asdict(plan), "runs": [asdict(one) for one in (*runs, *curve, *same, pair, both)],
        "costs": costs_of(runs[0], runs[1], pair), "times": asdict(times), "checks": checks,
    }  # fmt: skip


def costs_of(alone: ClusterRun, one: ClusterRun, pair: ClusterRun) -> dict[str, float]:
    """What Ray costs for as many clients on as many cores: {throughput: of one replica beside `slm serve`,
    ttft_more_ms: of the median time to first token, halves: throughput of two replicas of half the cores beside one}.
    """
    return {
        "throughput": round(one.tokens_per_s / alone.tokens_per_s, 3),
        "ttft_more_ms": round(1000 * (one.ttft_p50_s - alone.ttft_p50_s), 1),
        "halves": round(pair.tokens_per_s / one.tokens_per_s, 3),
    }


def simulated(times: ServiceTimes, clients: int, entrances: Sequence[int]) -> dict[str, Any]:
    """Throughput and p95 for 1 to 1,000 machines, for each number of entrances, and where these are the limit."""
    rows: list[FleetLoad] = []
    for count in entrances:
        rows += [simulate(times, machines, clients, entrances=count) for machines in SIZES]
    limits = {str(count): round(most_machines(times, clients, count), 1) for count in entrances}
    return {"loads": [asdict(row) for row in rows], "most_machines": limits, "times": asdict(times)}


def times_of_file(path: Path) -> ServiceTimes:
    """What `slm bench cluster --json` measured. Raises MissingFileError, DamagedFileError."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["times"]
        curves = [_read_rows(told["engine"]), _read_rows(told.get("one_adapter", ()))]
        times = ServiceTimes(curves[0], float(told["entrance_s"]), float(told["tokens"]), curves[1])
    except FileNotFoundError as error:
        raise MissingFileError(
            f"there is no file '{path}'", hint="Make one with: slm bench cluster --json > times.json"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(
            f"'{path}' holds no measured service times", found=str(error)[:80],
            hint="Make one with: slm bench cluster --json > times.json",
        ) from error  # fmt: skip
    rows = (*times.engine, *times.one_adapter)
    figures = [times.entrance_s, times.tokens, *(value for row in rows for value in (row.clients, row.answers_per_s))]
    if not times.engine or not all(math.isfinite(value) and value > 0 for value in figures):
        raise DamagedFileError(f"'{path}' holds service times that are not above 0")
    return times


def _read_rows(told: Iterable[Mapping[str, Any]]) -> tuple[EngineLoad, ...]:
    rows = [EngineLoad(int(row["clients"]), float(row["answers_per_s"]), float(row["first_share"])) for row in told]
    return tuple(sorted(rows, key=lambda row: row.clients))


def _check(real: ClusterRun, times: ServiceTimes, machines: int, cores: int) -> dict[str, Any]:
    """A run beside its simulation. On one computer the entrance takes its time from the engines' cores."""
    small = max(1, cores // 2)
    spare = cores - machines * small
    taken = max(0.0, real.answers_per_s * times.entrance_s - spare)
    speed = max(0.1, 1.0 - taken / (machines * small))
    guess = simulate(times, machines, real.clients // machines, speed=speed)
    return {
        "machines": machines, "clients": real.clients,
        "measured_tokens_per_s": real.tokens_per_s, "simulated_tokens_per_s": guess.tokens_per_s,
        "measured_answer_p95_s": real.answer_p95_s, "simulated_answer_p95_s": guess.answer_p95_s,
    }  # fmt: skip


def _rows(curve: Sequence[ClusterRun]) -> tuple[EngineLoad, ...]:
    return tuple(EngineLoad(one.clients, one.answers_per_s, one.first_share) for one in curve)


def _steps(clients: int) -> list[int]:
    return sorted({min(step, clients) for step in (*_STEPS, clients)})


def on_cluster(replicas: int, cores: int) -> list[str]:
    """The command, but for its model, of a server on Ray."""
    return ["cluster", "serve", "--replicas", str(replicas), "--cores", str(cores)]


@dataclass
class ClusterLoad:
    """Servers of one model, and the requests that each of them gets."""

    model: Path
    adapters: Mapping[str, str]
    plan: ClusterPlan
    fixed: dict[str, Any]
    number: int = 0

    @classmethod
    def of(cls, model: Path, adapters: Mapping[str, Path], plan: ClusterPlan, scratch: Path) -> ClusterLoad:
        """Without adapters two random ones are made in a folder."""
        files = dict(adapters) or random_adapters(model, scratch)
        fixed = {"logit_bias": {str(id): -100 for id in end_tokens(model)}}
        return cls(model.resolve(), {name: str(path.resolve()) for name, path in files.items()}, plan, fixed)

    def run(self, name: str, command: Sequence[str], clients: int) -> ClusterRun:
        with self.started(command) as server:
            return self.measured(name, server, clients)

    @contextmanager
    def started(self, command: Sequence[str]) -> Iterator[Server]:
        """A server by a command of ours, until the block ends. Raises EngineError when it does not start."""
        port = free_port()
        options = UpstreamOptions(self.model, (), self.plan.context, 0, self.plan.clients, port=port)
        argv = [sys.executable, "-m", "slm_cli", *command, str(self.model), "--port", str(port)]
        argv += ["--context", str(self.plan.context), "--parallel", str(self.plan.clients)]
        for name, path in self.adapters.items():
            argv += ["--adapter", f"{name}={path}"]
        launch = Launch(argv, {"PYTHONPATH": child_environment()["PYTHONPATH"]}, "/health")
        with running(launch, options) as server:
            yield server

    def body(self, who: int, number: int, most: int | None = None) -> dict[str, Any]:
        """A client's question of that number. most: how many of the adapters are asked; None: all."""
        names = list(self.adapters)[:most]
        return {
            "messages": conversation(_LANGUAGES[who % 2], number), "max_tokens": self.plan.tokens, "temperature": 0,
            "model": names[who % len(names)], **self.fixed,
        }  # fmt: skip

    def measured(self, name: str, server: Server, clients: int, most: int | None = None) -> ClusterRun:
        """One closed loop, after a warm-up that is not counted."""
        note(f"{name}: {clients} clients for {self.plan.seconds:g} s")
        self.number += 1
        return asyncio.run(self._measured(name, server, clients, most))

    async def _measured(self, name: str, server: Server, clients: int, most: int | None) -> ClusterRun:
        plan, first = self.plan, self.number * 100_000
        async with new_client(server.url, clients + 4) as client:

            async def send(who: int, n: int) -> Outcome:
                return await ask(client, self.body(who, first + n * clients + who, most))

            warm = [send(who, 10_000) for who in range(2 * len(self.adapters))]
            if failed := [one.error for one in await asyncio.gather(*warm) if one.error]:
                raise EngineError(f"'{name}' does not answer", found=failed[0])
            used = _entrance_seconds()
            outcomes, begin, end = await closed_loop(send, clients=clients, seconds=plan.seconds)
            used = _entrance_seconds() - used
        whole = [one for one in outcomes if not one.error and one.first is not None]
        if not whole:
            raise EngineError(f"'{name}' answered nothing", found=outcomes[0].error if outcomes else "")
        ttft = [one.ttft or 0.0 for one in whole]
        spans = [one.ended - one.started for one in whole]
        speed = tokens_per_second(outcomes, begin, end)
        if round(speed / plan.tokens, 4) <= 0:  # nothing can be divided by it
            raise EngineError(f"'{name}' answered nothing within {plan.seconds:g} s", hint="Give more --seconds.")
        failed_words = next((one.error for one in outcomes if one.error), "")
        return ClusterRun(
            name, clients, len(outcomes), len(outcomes) - len(whole), round(speed, 1), round(speed / plan.tokens, 4),
            round(quantile(ttft, 0.5) or 0.0, 4), round(quantile(ttft, 0.95) or 0.0, 4),
            round(quantile(spans, 0.95) or 0.0, 4),
            round(sum(ttft) / sum(spans), 4), round(used / len(outcomes), 5), failed_words,
        )  # fmt: skip


def _entrance_seconds() -> float:
    """Processor seconds that the entrances and Ray's proxies of this computer have used so far; 0 outside of Linux."""
    return sum(cpu_seconds(pid) or 0.0 for pid in ray_processes(*_ENTRANCE))


def ray_processes(*kinds: bytes) -> list[int]:
    """Ids of Ray's processes on this computer with one of these in their names; none outside of Linux.

    What stands between "ray::" and that changes, and a process that is changing its name is missed.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if name.startswith(b"ray::") and any(kind in name for kind in kinds):
            found.append(int(folder.name))
    return sorted(found)
