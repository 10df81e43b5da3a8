"""Sound inputs of the conversion and seeded mutations of them, for the damaged-input tests.

Pure: a mutation is a function of (seed, number) alone, so that a failing case can be made again.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

ABSURD: list[Any] = [
    -1, 0, 1, 3, 2**31 - 1, 2**31, 2**32 + 5, 2**53, 2**63, 10**30, -(2**40), 1e308, 0.5, True, None, "", "x", [],
    {}, [[]], "\ud800", "9" * 400, float("nan"), float("inf"), {"a": {"a": {}}}, [1] * 50,
]  # fmt: skip


def nodes(value: Any, trail: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every part of a JSON value, long lists and tables thinned out."""
    found = [trail]
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, child in items[:40] + items[40::97]:
        found += nodes(child, (*trail, key))
    return found


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
    value = json.loads(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        trail = rng.choice(nodes(value)[1:] or [()])
        if not trail:
            break  # nothing is left to change
        parent = value
        try:
            for key in trail[:-1]:
                parent = parent[key]
            how = rng.randrange(5)
            if how == 0:
                del parent[trail[-1]]
            elif how == 1 and isinstance(parent, dict):
                parent[rng.choice(list(parent))] = parent.pop(trail[-1])
            elif how == 2 and isinstance(parent, list):
                parent.extend([parent[trail[-1]]] * rng.choice([1, 100]))
            else:
                parent[trail[-1]] = rng.choice(ABSURD)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier mutation took it away
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    reach = len(changed) if rng.random() < 0.3 else min(len(changed), rng.choice([64, 512, 4096, 20_000]))
    for _ in range(rng.choice([1, 1, 3, 20])):
        changed[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[
        : rng.choice([0, 1, 7, 8, 9, rng.randrange(len(data)), len(data) - 1, rng.randrange(min(2000, len(data)))])
    ]


def _splice(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data)), rng.randrange(1, 200)
    middle = rng.choice([b"", rng.randbytes(size), b"\0" * size, b"[" * 20_000, data[at : at + size] * 2])
    return data[:at] + middle + data[at + rng.choice([0, size]) :]


def _absurd_numbers(data: bytes, rng: random.Random) -> bytes:
    """An 8-byte field of the first kilobytes replaced by an absurd number: counts and offsets of binary files."""
    at = rng.randrange(max(1, min(len(data) - 8, rng.choice([32, 400, 4000]))))
    number = rng.choice([2**63, 2**64 - 1, 2**40, 2**32, 2**31, 2**24, 0, 1, len(data), len(data) * 2])
    return data[:at] + struct.pack("<Q", number) + data[at + 8 :]


def _safetensors_header(data: bytes, rng: random.Random) -> bytes:
    """The JSON header changed and its length put right, so that what lies behind the length is tested too."""
    size = struct.unpack("<Q", data[:8])[0]
    header = _mutate_json(data[8 : 8 + size], rng)
    if rng.random() < 0.2:
        header = b"[" * rng.choice([10, 100_000])
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def _not_a_number(data: bytes, rng: random.Random) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    at = 8 + size + 4 * rng.randrange((len(data) - 8 - size) // 4)
    return data[:at] + struct.pack("<f", rng.choice([float("nan"), float("inf"), -float("inf")])) + data[at + 4 :]


def _shard_index(_: bytes, rng: random.Random) -> bytes:
    outside = [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        "",
        ".",
        "a/../../x",
        "C:\\x",
        "all.safetensors\0",
        "x" * 5000,
    ]
    name = rng.choice([*outside, "all.safetensors", "config.json", 7, None, ["all.safetensors"]])
    other = rng.choice([name, "all.safetensors"])
    index: Any = {"weight_map": {"model.norm.weight": name, "lm_head.weight": other}}
    return json.dumps(rng.choice([index, index, {"weight_map": name}, [index], {}])).encode()


Mutation = Callable[[bytes, random.Random], bytes]
BINARY: list[Mutation] = [_flip, _truncate, _splice, _absurd_numbers]
TEXT: list[Mutation] = [_mutate_json, _mutate_json, _mutate_json, _flip, _truncate, _splice]
# File of a checkpoint folder -> its mutations.
OF_CHECKPOINT: dict[str, list[Mutation]] = {
    "model.safetensors": [_safetensors_header, _safetensors_header, _not_a_number, *BINARY],
    "config.json": TEXT,
    "tokenizer.json": TEXT,
    "tokenizer_config.json": TEXT,
    "model.safetensors.index.json": [_shard_index],
    "spiece.model": BINARY,
}


def _gguf_value(data: bytes, rng: random.Random) -> bytes:
    """One known key's value or type changed in place: what llama.cpp would believe."""
    keys = [b"embedding_length", b"block_count", b"head_count", b"feed_forward_length", b"context_length", b"tokens",
            b"token_type", b"merges", b"scores", b"bos_token_id", b"eos_token_id", b"dimension_count", b"vocab_size",
            b"add_bos_token", b"tokenizer.ggml.model", b"general.architecture", b"pre", b"key_length"]  # fmt: skip
    key = rng.choice(keys)
    at = data.find(key)
    if at < 0:
        return _absurd_numbers(data, rng)
    at += len(key)
    if rng.random() < 0.3:
        return data[:at] + struct.pack("<I", rng.randrange(14)) + data[at + 4 :]
    value = rng.choice([0, 1, 3, 7, 2**31 - 1, 2**31, 2**32 - 1, 64 * 3])
    return data[: at + 4] + struct.pack("<I", value) + data[at + 8 :]


OF_GGUF: list[Mutation] = [_gguf_value, _gguf_value, _gguf_value, *BINARY]


def damaged(data: bytes, mutations: list[Mutation], seed: int) -> tuple[str, bytes]:
    """(the mutation's name, the damaged bytes) of a sound file."""
    rng = random.Random(seed)
    mutation = rng.choice(mutations)
    return mutation.__name__, mutation(data, rng)


def sources(folder: Path) -> list[tuple[Path, str]]:
    """Every (checkpoint folder, file in it) under a folder that the mutations know; the index needs no original."""
    found = []
    for checkpoint in sorted(path for path in folder.iterdir() if path.is_dir()):
        for name in OF_CHECKPOINT:
            if (checkpoint / name).exists() or name.endswith(".index.json"):
                found.append((checkpoint, name))
    return found
