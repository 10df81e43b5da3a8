"""Reliability of `slm serve` by hand: many connections, a killed engine, damaged adapters, slow readers, leaks.

Prints a table of what was found beside what is allowed, and exits 1 when a check failed. Linux only: it reads /proc.
Memory is judged after a warm-up that has filled the cache of conversations (--cache-mb, small for that reason).
The defaults take about half an hour on 2 cores; tests/test_serve_soak.py runs the same checks small.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

_TURNS = 3
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.soak_target import Sizes, SoakCheck, Target, flat, load_beside, target  # noqa: E402
from serve.bench.adapters import write_random_adapter  # noqa: E402
from serve.bench.load import Outcome, quantile  # noqa: E402
from serve.bench.prompts import conversation  # noqa: E402


async def disconnects(on: Target, sizes: Sizes, seed: int = 0) -> list[SoakCheck]:
    """Many connections at once, half of which go away at a random moment."""
    rng = random.Random(seed)

    async def many(requests: int) -> tuple[list[Outcome], int]:
        gate = asyncio.Semaphore(sizes.connections)
        left = 0

        async def one(leaves_after: float | None) -> Outcome | None:
            nonlocal left
            async with gate:
                work = asyncio.create_task(on.chat(rng.choice(("en", "ja", "auto", "base")), sizes.tokens))
                done, _ = await asyncio.wait({work}, timeout=leaves_after)
                if done:
                    return work.result()
                left += 1
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                return None

        plans = [rng.expovariate(1.0) if rng.random() < 0.5 else None for _ in range(requests)]
        results = await asyncio.gather(*map(one, plans))
        return [one for one in results if one is not None], left

    await many(max(sizes.connections, sizes.requests // 2))  # the warm-up: as many at once as later, and every context
    before = on.memory()
    outcomes, left = await many(sizes.requests)
    last = await on.chat("en", 4)
    lost = [one for one in outcomes if one.error and not (one.told and "HTTP 429" in one.error)]
    busy = sum("HTTP 429" in one.error for one in outcomes)
    found = f"{len(outcomes) - len(lost) - busy} whole, {left} left, {busy} refused as busy, {len(lost)} lost"
    return [
        SoakCheck(
            f"{sizes.requests} requests, {sizes.connections} at once",
            found + (f" ({lost[0].error})" if lost else ""), "none lost", not lost,
        ),
        SoakCheck("the next request", last.error or f"{last.ended - last.started:.2f} s", "an answer", not last.error),
        *flat(before, on.memory(), sizes.growth, "after disconnects"),
    ]  # fmt: skip


async def kills(on: Target, sizes: Sizes, seed: int = 0) -> list[SoakCheck]:
    """The engine is killed under load, again and again."""
    rng = random.Random(seed)
    ready: list[float] = []
    answered: list[float] = []
    async with load_beside(on, 8, sizes.tokens) as outcomes:
        for _ in range(sizes.kills):
            await asyncio.sleep(rng.uniform(0.5, 1.5))
            pid = on.engine_pid()
            assert pid is not None
            restarts, killed = await on.restarts(), time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            while await on.restarts() in (None, restarts):
                if time.perf_counter() - killed > 60:
                    return [SoakCheck("the engine killed under load", "down for 60 s", "it comes back", False)]
                await asyncio.sleep(0.01)
            ready.append(time.perf_counter() - killed)
            while (await on.chat("en", 1)).error:
                await asyncio.sleep(0.01)
            answered.append(time.perf_counter() - killed)
    unclear = [one for one in outcomes if one.error and not one.told]
    told = sum(one.told for one in outcomes)
    whole = sum(not one.error for one in outcomes)
    found = f"{whole} whole, {told} with a clear error, {len(unclear)} without"
    times = (
        f"median {quantile(ready, 0.5):.2f} s, worst {max(ready):.2f} s; "
        f"next answer: median {quantile(answered, 0.5):.2f} s, worst {max(answered):.2f} s"
    )
    return [
        SoakCheck(
            f"requests while the engine is killed {sizes.kills} times",
            found + (f" ({unclear[0].error})" if unclear else ""),
            "an answer or a clear error", not unclear and whole > 0,
        ),
        SoakCheck("the engine is back after", times, f"under {sizes.recovery_s:g} s", max(ready) < sizes.recovery_s),
    ]  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy: bits flipped, cut off, a field set to an absurd number, or a piece put in or taken out."""
    how = rng.randrange(4)
    if how == 0:
        changed = bytearray(data)
        reach = min(len(data), rng.choice([64, 1024, len(data)]))
        for _ in range(rng.choice([1, 3, 20])):
            changed[rng.randrange(reach)] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if how == 1:
        return data[: rng.choice([0, 7, 24, rng.randrange(len(data)), len(data) - 1])]
    at = rng.randrange(min(len(data) - 8, rng.choice([32, 400, 4000])))
    if how == 2:
        absurd = rng.choice([0, 1, 2**24, 2**31, 2**32, 2**40, 2**63, 2**64 - 1, len(data), 2 * len(data)])
        return data[:at] + struct.pack("<Q", absurd) + data[at + 8 :]
    piece = rng.choice([b"", rng.randbytes(40), bytes(64), data[at : at + 64] * 2])
    return data[:at] + piece + data[at + rng.choice([0, 64]) :]


async def mutations(on: Target, sizes: Sizes, seed: int = 0) -> list[SoakCheck]:
    """Damaged adapters are posted; what loads is asked, too."""
    rng = random.Random(seed)
    sound = on.folder / "sound.gguf"
    write_random_adapter(on.model, sound, seed=9, rank=1)
    data, path = sound.read_bytes(), on.folder / ".mutated.gguf"  # hidden from the watch
    pid, statuses, wrong = on.engine_pid(), dict[int, int](), []
    for number in range(sizes.mutations):
        path.write_bytes(mutate(data, rng))
        reply = await on.load("mutated", path)
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        if reply.status_code >= 500:
            wrong.append(f"mutation {number} of seed {seed}: HTTP {reply.status_code}: {reply.text[:200]}")
        if reply.status_code == 200:
            answer = await on.chat("mutated", 2)
            if answer.error and on.engine_pid() != pid:
                wrong.append(f"mutation {number} of seed {seed}: {answer.error}")
            await on.unload("mutated")
    last = await on.chat("en", 4)
    counts = ", ".join(f"{count} x HTTP {status}" for status, count in sorted(statuses.items()))
    return [
        SoakCheck(f"{sizes.mutations} damaged adapters", "; ".join([counts, *wrong[:3]]), "200 or 4xx", not wrong),
        SoakCheck("the engine meanwhile", f"pid {pid} -> {on.engine_pid()}", "the same", pid == on.engine_pid()),
        SoakCheck("the next request", last.error or "an answer", "an answer", not last.error),
    ]


async def rewrites(on: Target, sizes: Sizes) -> list[SoakCheck]:
    """A file in the watched folder is written over in place, as `cp` does, while it is loaded again and again."""
    path = on.folder / "rewritten.gguf"
    write_random_adapter(on.model, path, seed=9)
    data, statuses = path.read_bytes(), dict[int, int]()
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            path.write_bytes(data)

    writer = asyncio.create_task(asyncio.to_thread(rewrite))
    try:
        for _ in range(sizes.mutations // 20):
            status = (await on.load("again", path)).status_code
            statuses[status] = statuses.get(status, 0) + 1
    finally:
        stop.set()
        await writer
    last = await on.chat("en", 4)
    counts = ", ".join(f"{count} x HTTP {status}" for status, count in sorted(statuses.items()))
    return [
        SoakCheck("a file loaded while it is written over", counts, "200 or 4xx", all(s < 500 for s in statuses)),
        SoakCheck("the next request", last.error or "an answer", "an answer", not last.error),
    ]


async def slow_readers(on: Target, sizes: Sizes) -> list[SoakCheck]:
    """Short requests beside long answers whose readers are fast, then beside ones that read next to nothing."""
    long_tokens = 8 * sizes.tokens

    async def probe(into: list[Outcome]) -> None:
        end, most = time.perf_counter() + sizes.probe_s / _TURNS, len(into) + 3
        while time.perf_counter() < end or len(into) < most:
            into.append(await on.chat("ja", 4))

    beside_fast, beside_slow, read = list[Outcome](), list[Outcome](), list[bool]()
    await on.chat("ja", 4)
    for _ in range(_TURNS):  # by turns, so that another load of the machine falls on both
        async with load_beside(on, sizes.slow_readers, long_tokens):
            await asyncio.sleep(0.3)
            await probe(beside_fast)
        stop = asyncio.Event()
        readers = [asyncio.create_task(_read_slowly(on, long_tokens, stop)) for _ in range(sizes.slow_readers)]
        await asyncio.sleep(0.3)
        await probe(beside_slow)
        stop.set()
        read += await asyncio.gather(*readers)
    failed = [one.error for one in (*beside_fast, *beside_slow) if one.error]
    usual, hindered = (
        quantile([one.ended - one.started for one in part if not one.error], 0.5) or float("inf")
        for part in (beside_fast, beside_slow)
    )
    return [
        SoakCheck(
            f"a short request beside {sizes.slow_readers} slow readers",
            "; ".join([f"{hindered:.2f} s, beside fast ones {usual:.2f} s", *failed[:1]]),
            f"at most {sizes.slowdown:g} times", not failed and hindered <= sizes.slowdown * usual + 0.05,
        ),
        SoakCheck("the slow readers' streams", f"{sum(read)} of {len(read)} opened", "all", all(read)),
    ]  # fmt: skip


async def _read_slowly(on: Target, tokens: int, stop: asyncio.Event) -> bool:
    """Open one stream after another on a socket with the smallest buffer and read a byte a second."""
    host, port = on.server.url.removeprefix("http://").rsplit(":", 1)
    turns = conversation("en", random.randrange(1 << 30))
    asked = {"messages": turns, "model": "en", "max_tokens": tokens, "stream": True}
    body = json.dumps(asked).encode()
    opened = False
    while not stop.is_set():
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        raw.setblocking(False)
        with contextlib.closing(raw):
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, (host, int(port)))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            await loop.sock_sendall(raw, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            opened = (await loop.sock_recv(raw, 12)) == b"HTTP/1.1 200" or opened
            for _ in range(10):
                if stop.is_set():
                    break
                await loop.sock_recv(raw, 1)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stop.wait(), 1.0)
    return opened


async def reloads(on: Target, sizes: Sizes, seed: int = 0) -> list[SoakCheck]:
    """Adapters are loaded, asked and unloaded in a loop, beside a load on others."""
    rng = random.Random(seed)
    files = {f"a{number}": on.folder / f"a{number}.gguf" for number in range(sizes.adapters)}
    for number, path in enumerate(files.values()):
        write_random_adapter(on.model, path, seed=100 + number)
    refused: list[str] = []
    asked: list[Outcome] = []

    async def one_round() -> None:
        for name, path in files.items():
            reply = await on.load(name, path)
            if reply.status_code != 200:
                refused.append(f"HTTP {reply.status_code}: {reply.text[:200]}")
        asked.extend([await on.chat(name, 4) for name in rng.sample(list(files), min(4, len(files)))])
        for name in files:
            reply = await on.unload(name)
            if reply.status_code != 200:
                refused.append(f"HTTP {reply.status_code}: {reply.text[:200]}")

    async with load_beside(on, 4, sizes.tokens) as outcomes:
        for _ in range(max(2, sizes.rounds // 4)):  # the warm-up
            await one_round()
        before = on.memory()
        for _ in range(sizes.rounds):
            await one_round()
        after = on.memory()
    failed = [one.error for one in (*outcomes, *asked) if one.error]
    found = f"{len(outcomes) + len(asked)} answers, {len(failed)} failed, {len(refused)} loads or unloads refused"
    return [
        SoakCheck(
            f"{sizes.adapters} adapters loaded and unloaded {sizes.rounds} times",
            "; ".join([found, *failed[:1], *refused[:1]]), "none", not failed and not refused,
        ),
        *flat(before, after, sizes.growth, "after reloads"),
    ]  # fmt: skip


CHECKS = {
    "disconnects": disconnects, "kills": kills, "mutations": mutations, "rewrites": rewrites,
    "slow_readers": slow_readers, "reloads": reloads,
}  # fmt: skip


async def soak(model: Path, names: Sequence[str], sizes: Sizes, **options: Any) -> list[SoakCheck]:
    """Run the named checks, each against a server of its own."""
    rows: list[SoakCheck] = []
    for name in names:
        async with target(model, connections=sizes.connections, cache_mb=sizes.cache_mb, **options) as on:
            started = time.perf_counter()
            try:
                rows += await CHECKS[name](on, sizes)
            except (httpx.HTTPError, OSError) as error:
                await asyncio.sleep(1)
                how = f"{type(error).__name__} {error}; exit code of the server: {on.server.exit_code()}"
                found = f"{how}; it said: {on.server.last_words()[:300]}"
                rows.append(SoakCheck(f"{name}: the server answers", found, "it does", False))
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="GGUF file or catalog name")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    for name in ("requests", "connections", "kills", "mutations", "adapters", "rounds", "tokens", "cache_mb"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Sizes, name))
    values = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server under test is ended, too
    named, only = values.pop("model"), values.pop("only")
    from rich.table import Table

    from slm.models.catalog import model_path
    from slm.terminal.console import out

    model = Path(named) if Path(named).exists() else model_path(named)
    rows = asyncio.run(soak(model, only, Sizes(**values)))
    table = Table("check", "found", "allowed", "")
    for row in rows:
        table.add_row(row.what, row.found, row.allowed, "ok" if row.ok else "FAILED")
    out().print(table)
    sys.exit(not all(row.ok for row in rows))


if __name__ == "__main__":
    main()
