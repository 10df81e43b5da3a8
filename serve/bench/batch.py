"""`slm generate --batch` beside the best that our server does under load, on the same questions and adapters.

It knows both as a user does: the one as a command, the other by HTTP.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve.bench.adapters import random_adapters
from serve.bench.load import new_client
from serve.bench.peers import Contender, contenders
from serve.bench.process import free_port, running
from serve.bench.prompts import conversation
from serve.bench.servers.run import ServeBenchOptions
from serve.bench.servers.scenarios import LANGUAGES, LoadPlan, Session, full_length_of, loop
from serve.upstream import UpstreamOptions
from slm.errors import EngineError
from slm.native.process import child_environment
from slm.native.threads import without_settling
from slm.terminal.console import note

GOAL = 0.95  # of the server's best
# How many clients may be best for a server is not known beforehand: so many times those that were asked for.
_CLIENTS = (1, 2, 4)
_AS_LONG = 2  # a batch begins and ends with slots that are not full: it runs so many times as long as a loop


def bench_batch(
    model: Path, adapters: Mapping[str, Path], plan: LoadPlan, setup: ServeBenchOptions
) -> dict[str, Any]:  # fmt: skip
    """Measure both in turns. Without adapters two random ones of rank 16 are made for the run.

    Returns {model, adapters, plan, rounds, server: [{clients, tokens_per_s}], best_tokens_per_s, batch: {tokens_per_s,
    lines, failed}, ratio, goal}: medians over the rounds, tokens generated per second. Raises EngineError when one of
    them does not start.
    """
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as scratch:
        files = {name: path.resolve() for name, path in adapters.items()} or random_adapters(model, Path(scratch))
        ours = contenders(model, list(files), ())[0][0]
        loops: dict[int, list[float]] = {times * plan.clients: [] for times in _CLIENTS}
        batches: list[dict[str, Any]] = []
        for number in range(setup.rounds):
            note(f"round {number + 1} of {setup.rounds}: the server, with {', '.join(map(str, loops))} clients")
            options = UpstreamOptions(
                model.resolve(), tuple(files.items()), setup.context, setup.threads, plan.clients, port=free_port()
            )
            with ours.launch(options) as launch, running(launch, options) as server:
                for clients, found in loops.items():
                    found.append(asyncio.run(_loop(server.url, ours, replace(plan, clients=clients), number)))
            best = max(found[-1] for found in loops.values())
            lines = max(8 * plan.clients, math.ceil(_AS_LONG * best * plan.seconds / plan.tokens))
            note(f"round {number + 1} of {setup.rounds}: a batch of {lines} requests")
            first = 1 + (2 * number + 1) * 1_000_000
            path = Path(scratch) / f"{number}.jsonl"
            path.write_text("".join(_lines(ours, plan, len(files), range(first, first + lines))), encoding="utf-8")
            batches.append(_batch(options, path))
    server_rows = [{"clients": n, "tokens_per_s": round(statistics.median(found), 2)} for n, found in loops.items()]
    best_rate = max(row["tokens_per_s"] for row in server_rows)
    rate = statistics.median(one["completion_tokens_per_s"] for one in batches)
    return {
        "model": model.name,
        "adapters": list(files) if adapters else [f"random, rank 16 ({name})" for name in files],
        "plan": {"clients": plan.clients, "tokens": plan.tokens, "seconds": plan.seconds},
        "rounds": setup.rounds,
        "server": server_rows,
        "best_tokens_per_s": best_rate,
        "batch": {
            "tokens_per_s": rate,
            "lines": sum(one["lines"] for one in batches),
            "failed": sum(one["failed"] for one in batches),
        },
        "ratio": round(rate / best_rate, 3) if best_rate else None,
        "goal": GOAL,
    }


async def _loop(url: str, contender: Contender, plan: LoadPlan, number: int) -> float:
    """Tokens per second of a closed loop over the adapters, after a warm-up that is not counted."""
    async with new_client(url, plan.clients + 4) as client:
        session = Session(client, contender, plan, await full_length_of(client, contender))
        await asyncio.gather(*(session.ask(conversation("en", 0), n, 8) for n in range(plan.adapters)))
        found = await loop(session, 1 + 2 * number * 1_000_000 + plan.clients * 10_000, plan.adapters)
    if found["failed"]:
        raise EngineError(f"{found['failed']} of {found['requests']} requests failed", found=found["error"])
    return float(found["tokens_per_s"])


def _lines(contender: Contender, plan: LoadPlan, adapters: int, numbers: range) -> list[str]:
    """The requests of the loop as lines of a batch."""
    lines = []
    for number in numbers:
        body = {
            "messages": conversation(LANGUAGES[number % len(LANGUAGES)], number), "max_tokens": plan.tokens,
            "temperature": 0, **contender.fields(number % adapters), **contender.full_length,
        }  # fmt: skip
        row = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return lines


def _batch(options: UpstreamOptions, path: Path) -> dict[str, Any]:
    """The figures that the command reports of a batch."""
    argv = [sys.executable, "-m", "slm_cli", "generate", str(options.model), "--batch", str(path)]
    argv += ["-o", str(path.with_suffix(".out")), "--context", str(options.context), "--json"]
    argv += ["--threads", str(options.threads), "--parallel", str(options.parallel)]
    for name, file in options.adapters:
        argv += ["--adapter", f"{name}={file}"]
    environment = without_settling({**os.environ, "PYTHONPATH": child_environment()["PYTHONPATH"]})
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise EngineError(f"the batch ended with code {done.returncode}", found=done.stderr.strip()[-300:])
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
