"""Replicas of a server on Ray that are killed under load: what becomes of the requests, and when it is whole again.

It knows the server as an HTTP client and by Ray's word for how many replicas there are (Linux: /proc).
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from serve.bench.load import new_client
from serve.bench.simulated.machines import ClusterLoad, ClusterPlan, on_cluster, ray_processes
from slm.errors import EngineError
from slm.native.ray_cluster import connected
from slm.terminal.console import note

BACK_S = 10.0  # the goal: so long after a kill there are as many replicas again
_REPLICAS = 2
_PATIENCE_S = 120.0
_LOOK_EVERY_S = 0.1
_ENGINE = b"ServeReplica:slm:engine"
_CLEAR = "engine_died"


@dataclass
class _Killing:
    """What is known so far. outcomes: of requests, by "answered", "clear error", or what went wrong."""

    load: ClusterLoad
    client: httpx.AsyncClient
    outcomes: Counter[str] = field(default_factory=Counter)
    back_s: list[float] = field(default_factory=list)
    over: bool = False


def bench_kills(model: Path, adapters: Mapping[str, Path], plan: ClusterPlan, kills: int) -> dict[str, Any]:
    """Kill (SIGKILL) so many replicas, one after the other, while clients ask, every second one for a stream.

    Returns {model, plan, kills, requests, answered, clear_errors, others: {what went wrong: how often}, back_s: of each
    kill, worst_s, goal_s}. back: as many replicas as before are running. Raises EngineError when the server does not
    start, or does not come back.
    """
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as scratch:
        load = ClusterLoad.of(model, adapters, plan, Path(scratch))
        with load.started(on_cluster(_REPLICAS, max(1, plan.cores // _REPLICAS))) as server, connected("ray"):
            found = asyncio.run(_killed(load, server.url, kills))
    counted = found.outcomes
    others = {what: count for what, count in counted.items() if what not in ("answered", "clear error")}
    return {
        "model": model.name, "plan": asdict(plan), "kills": kills, "requests": counted.total(),
        "answered": counted["answered"], "clear_errors": counted["clear error"], "others": others,
        "back_s": found.back_s, "worst_s": max(found.back_s, default=0.0), "goal_s": BACK_S,
    }  # fmt: skip


async def _killed(load: ClusterLoad, url: str, kills: int) -> _Killing:
    async with new_client(url, load.plan.clients + 4) as client:
        run = _Killing(load, client)
        clients = [asyncio.create_task(_client(run, who)) for who in range(load.plan.clients)]
        try:
            for number in range(kills):
                await _until_as_many_more(run)
                victim = (await _until_there(set()))[number % _REPLICAS]
                begun = time.perf_counter()
                os.kill(victim, signal.SIGKILL)
                await _until_there({victim})
                run.back_s.append(round(time.perf_counter() - begun, 2))
                note(f"kill {number + 1} of {kills}: back after {run.back_s[-1]:.1f} s")
            await _until_as_many_more(run)
        finally:
            run.over = True
            await asyncio.gather(*clients, return_exceptions=True)
    return run


async def _until_there(gone: set[int]) -> list[int]:
    """Wait until there are as many replicas, without those, as there should be; their process ids.

    Ray starts a new one when it has seen that one is gone: before that it says that both are running.
    """
    end = time.perf_counter() + _PATIENCE_S
    while len(pids := [pid for pid in ray_processes(_ENGINE) if pid not in gone]) < _REPLICAS or (
        await asyncio.to_thread(_running) < _REPLICAS
    ):
        if time.perf_counter() > end:
            raise EngineError(f"a replica that was killed is not back after {_PATIENCE_S:.0f} s")
        await asyncio.sleep(_LOOK_EVERY_S)
    return pids


async def _until_as_many_more(run: _Killing) -> None:
    """Wait until as many more requests are answered as there are clients."""
    goal, end = run.outcomes["answered"] + run.load.plan.clients, time.perf_counter() + _PATIENCE_S
    while run.outcomes["answered"] < goal:
        if time.perf_counter() > end:
            raise EngineError(f"the server answers nothing for {_PATIENCE_S:.0f} s")
        await asyncio.sleep(_LOOK_EVERY_S)


async def _client(run: _Killing, who: int) -> None:
    number = 0
    while not run.over:
        body = run.load.body(who, number * run.load.plan.clients + who) | {"stream": who % 2 == 0}
        run.outcomes[await outcome_of(run.client, body)] += 1
        number += 1


async def outcome_of(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """What a request came to: "answered", "clear error" (the machine that computed it is gone), or what went wrong."""
    try:
        reply = await client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    if reply.status_code == 200 and _CLEAR not in reply.text:
        whole = "data: [DONE]" in reply.text if body["stream"] else bool(reply.json()["choices"][0]["finish_reason"])
        return "answered" if whole else f"an answer without its end: {reply.text[-100:]}"
    # A stream that breaks off says so and ends as streams end.
    clear = _CLEAR in reply.text and ("data: [DONE]" in reply.text if reply.status_code == 200 else True)
    return "clear error" if clear else f"HTTP {reply.status_code}: {reply.text[:200]}"


def _running() -> int:
    """How many replicas Ray says are running."""
    from ray import serve as ray_serve

    engines = ray_serve.status().applications["slm"].deployments["engine"]
    return sum(count for state, count in engines.replica_states.items() if state == "RUNNING")
