"""What a reliability run of `slm serve` is made of: the server under test, a load beside, and lines of a table.

It knows nothing of what is checked. Linux only: it reads /proc.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from serve.bench.adapters import write_random_adapter
from serve.bench.load import Outcome, ask, new_client
from serve.bench.peers import ours_launch
from serve.bench.process import Server, free_port, running
from serve.bench.prompts import conversation
from serve.upstream import UpstreamOptions
from slm.native.process import children_of, status_mb


@dataclass(frozen=True)
class SoakCheck:
    """One line of the table."""

    what: str
    found: str
    allowed: str
    ok: bool


@dataclass(frozen=True)
class Sizes:
    """How much of everything. growth: memory after a check by memory before it, see `flat`; cache_mb: `--cache-ram`."""

    requests: int = 1000
    connections: int = 300
    kills: int = 20
    mutations: int = 1000
    adapters: int = 24
    rounds: int = 20
    tokens: int = 32
    slow_readers: int = 6
    probe_s: float = 15.0
    growth: float = 1.05
    recovery_s: float = 2.0
    slowdown: float = 1.5
    cache_mb: int = 32


class Target:
    """A server under test with two adapters, en and ja, and a folder that it loads others from."""

    def __init__(self, server: Server, client: httpx.AsyncClient, model: Path, folder: Path) -> None:
        self.server, self.client, self.model, self.folder = server, client, model, folder
        self._number = 0

    def engine_pid(self) -> int | None:
        """The process that holds the model: the largest one that the server has started."""
        children = [(status_mb(pid) or 0.0, pid) for pid in children_of(self.server.pid)]
        return max(children)[1] if children else None

    def memory(self) -> dict[str, float]:
        """Resident megabytes of the server and of its engine."""
        engine = self.engine_pid()
        sizes = {"server": status_mb(self.server.pid), "engine": status_mb(engine) if engine else None}
        return {name: size for name, size in sizes.items() if size is not None}

    async def restarts(self) -> int | None:
        """How often the engine was started again, by /health; None while it is not ready."""
        reply = await self.client.get("/health")
        return int(reply.json()["restarts"]) if reply.status_code == 200 else None

    async def chat(self, adapter: str, tokens: int) -> Outcome:
        """One streamed request with a question that was not asked before."""
        self._number += 1
        turns = conversation("ja" if adapter == "ja" else "en", self._number)
        body = {"messages": turns, "model": adapter, "max_tokens": tokens, "temperature": 0}
        return await ask(self.client, body)

    async def load(self, name: str, path: Path) -> httpx.Response:
        """POST /lora-adapters."""
        return await self.client.post("/lora-adapters", json={"name": name, "path": str(path)})

    async def unload(self, name: str) -> httpx.Response:
        """DELETE /lora-adapters/NAME."""
        return await self.client.delete(f"/lora-adapters/{name}")


@asynccontextmanager
async def target(
    model: Path, *, connections: int, threads: int = 0, context: int = 4096, cache_mb: int = 32
) -> AsyncIterator[Target]:
    """`slm serve` with two random adapters, as long as the block lasts.

    cache_mb: what it may keep of conversations. It is small, so that the warm-up of a check fills it.
    """
    with tempfile.TemporaryDirectory(prefix="slm-soak-") as scratch:
        folder = Path(scratch)
        names = ("en", "ja")
        for seed, name in enumerate(names):
            write_random_adapter(model, folder / f"{name}.gguf", seed=seed)
        adapters = tuple((name, folder / f"{name}.gguf") for name in names)
        options = UpstreamOptions(model.resolve(), adapters, context, threads, port=free_port())
        extra = ["--adapters-dir", scratch, "--cache-ram", str(cache_mb)]
        with running(ours_launch(options, extra), options) as server:
            async with new_client(server.url, connections + 8) as client:
                yield Target(server, client, model, folder)


@asynccontextmanager
async def load_beside(on: Target, clients: int, tokens: int) -> AsyncIterator[list[Outcome]]:
    """`clients` clients that ask again and again during the block; the list is complete after it."""
    outcomes: list[Outcome] = []
    stop = asyncio.Event()

    async def one(number: int) -> None:
        while not stop.is_set():
            outcomes.append(await on.chat(("en", "ja")[number % 2], tokens))
            if outcomes[-1].error:
                await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(one(number)) for number in range(clients)]
    try:
        yield outcomes
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def flat(before: dict[str, float], after: dict[str, float], growth: float, when: str) -> list[SoakCheck]:
    """Memory after beside memory before, for each process: resident pages, when no request is under way.

    `before` is taken after a warm-up of the same kind, when the cache of conversations is full and the allocator has
    seen its peak: what grows from then on grows with every request.
    """
    return [
        SoakCheck(
            f"memory of the {name}, {when}", f"{before[name]:.0f} -> {after[name]:.0f} MB",
            f"at most {growth - 1:+.0%}", after[name] <= before[name] * growth,
        )
        for name in before
    ]  # fmt: skip
