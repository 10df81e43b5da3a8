"""The reliability checks of scripts/soak_serve.py, small, on a tiny model."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import pytest

from scripts.soak_serve import CHECKS, mutate, soak
from scripts.soak_target import Sizes, flat, target
from tests.tiny_gguf import write_model

# Bounds are wider here: in seconds the KV store is still filling, and the machine may be busy with other tests.
SMALL = Sizes(
    requests=100, connections=60, kills=2, mutations=40, adapters=4, rounds=3, tokens=24, slow_readers=3, probe_s=1.0,
    growth=1.5, recovery_s=20.0, slowdown=4.0,
)  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_the_server_holds(name: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    rows = asyncio.run(soak(model, [name], SMALL, threads=1, context=2048))
    assert rows and [row for row in rows if not row.ok] == []


def test_a_name_that_is_no_utf8_is_refused_in_words(tmp_path: Path) -> None:
    """Found by the mutations: the error quoted the name, and the answer could not be encoded."""

    async def post() -> httpx.Response:
        async with target(write_model(tmp_path / "tiny.gguf"), connections=1, threads=1, context=256) as on:
            damaged = on.folder / "damaged.gguf"
            damaged.write_bytes((on.folder / "en.gguf").read_bytes().replace(b"blk.0.attn_q", b"blk.0.\x80ttn_q"))
            return await on.load("damaged", damaged)

    reply = asyncio.run(post())
    assert reply.status_code == 400 and "\\udc80ttn_q" in reply.json()["error"]["message"]


def test_growing_memory_is_found() -> None:
    before = {"server": 100.0, "engine": 200.0}
    assert [row.ok for row in flat(before, {"server": 104.0, "engine": 211.0}, 1.05, "x")] == [True, False]


def test_mutations_differ_and_repeat_with_their_seed() -> None:
    data = bytes(range(256)) * 40
    made = [mutate(data, random.Random(seed)) for seed in range(50)]
    assert made == [mutate(data, random.Random(seed)) for seed in range(50)]
    assert len(set(made)) > 40
