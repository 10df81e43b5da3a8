"""A whole benchmark: servers one at a time, in turns over several rounds, and what comes out.

It knows who is measured and with what load, not how figures are shown.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve.bench.adapters import random_adapters
from serve.bench.peers import Contender, contenders
from serve.bench.process import free_port, peak_rss_mb, running
from serve.bench.report import median_of_rounds, ratios
from serve.bench.servers.overhead import loop_overhead
from serve.bench.servers.scenarios import LoadPlan, run_scenarios
from serve.upstream import UpstreamOptions
from slm.terminal.console import note


@dataclass(frozen=True)
class ServeBenchOptions:
    """How often everybody is measured and how every server is started. binary: of llama-server, if it is a peer."""

    rounds: int = 3
    context: int = 4096
    threads: int = 0
    binary: Path | None = None


def bench_serving(
    model: Path,
    adapters: Mapping[str, Path],
    peers: Sequence[str],
    plan: LoadPlan,
    setup: ServeBenchOptions = ServeBenchOptions(),
) -> dict[str, Any]:
    """Measure ours and the peers. Without adapters random ones of rank 16 are made for the run, as the plan says.

    Returns {model, adapters, plan, rounds, servers: [{name, start_s, peak_rss_mb, scenario: {figures}}],
    ratios: {peer: {figure: times}}, overhead, missing}. Raises EngineError when a server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as scratch:
        files = {name: path.resolve() for name, path in adapters.items()}
        files = files or random_adapters(model, Path(scratch), plan.adapters)
        who, missing = contenders(model, list(files), peers, setup.binary)
        for line in missing:
            note(line)
        taken: dict[str, list[dict[str, Any]]] = {one.name: [] for one in who}
        for number in range(setup.rounds):
            for one in who:
                note(f"round {number + 1} of {setup.rounds}: {one.name}")
                options = UpstreamOptions(
                    model.resolve(),
                    tuple(files.items()),
                    setup.context,
                    setup.threads,
                    plan.clients,
                    port=free_port(),
                )
                taken[one.name].append(_measured(one, options, plan, number))
        overhead = loop_overhead(
            model, files, clients=plan.clients, tokens=plan.tokens, context=setup.context,
            threads=setup.threads, parallel=plan.clients,
        )  # fmt: skip
    servers = [_over_rounds(name, parts) for name, parts in taken.items()]
    return {
        "model": model.name,
        "adapters": list(files) if adapters else [f"random, rank 16 ({name})" for name in files],
        "plan": asdict(plan),
        "rounds": setup.rounds,
        "servers": servers,
        "ratios": {peer["name"]: ratios(servers[0], peer) for peer in servers[1:]},
        "overhead": overhead,
        "missing": missing,
    }


def _measured(contender: Contender, options: UpstreamOptions, plan: LoadPlan, number: int) -> dict[str, Any]:
    with contender.launch(options) as launch, running(launch, options) as server:
        figures = asyncio.run(run_scenarios(server, contender, plan, number))
        return {**figures, "start_s": server.start_s, "peak_rss_mb": peak_rss_mb(server.pid)}


def _over_rounds(name: str, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sizes = [part.pop("peak_rss_mb") for part in parts]
    starts = [part.pop("start_s") for part in parts]
    known = [size for size in sizes if size is not None]
    return {
        "name": name,
        "start_s": round(statistics.median(starts), 2),
        "peak_rss_mb": round(max(known), 1) if known else None,
        **median_of_rounds(parts),
    }
