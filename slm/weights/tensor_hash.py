"""The hash of each tensor of a safetensors file, whatever file it lies in.

The same tensors have the same hashes in other shards, in another order and beside other metadata. It knows nothing of
what a hash is used for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

_BLOCK = 1 << 20
_MAX_HEADER = 100_000_000  # the reference implementation's own bound


def tensor_hashes(path: Path) -> dict[str, str]:
    """{tensor: SHA-256 of its dtype, shape and bytes}; {} where the header is not sound."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        head = file.read(length) if length <= min(_MAX_HEADER, size) else b""
        tensors: dict[str, str] = {}
        begin = len(start) + len(head)
        at = 0
        for first, last, name, said in _spans(head):
            if not at <= first <= last <= size - begin:
                return {}
            file.seek(begin + first)
            tensors[name] = _read(file, last - first, hashlib.sha256(said)).hexdigest()
            at = last
    return tensors


def hash_of(tensors: Mapping[str, str]) -> str:
    """One SHA-256 of all tensors' names and hashes, independent of their order."""
    digest = hashlib.sha256()
    for name, one in sorted(tensors.items()):
        digest.update(f"{name}\0{one}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _spans(head: bytes) -> list[tuple[int, int, str, bytes]]:
    """(first byte, byte behind the last, name, dtype and shape) of each tensor in the order of the file."""
    try:
        header = json.loads(head)
        return sorted(
            (int(info["data_offsets"][0]), int(info["data_offsets"][1]), name, f"{info['dtype']}{shape}".encode())
            for name, info in header.items()
            if name != "__metadata__" and (shape := [int(width) for width in info["shape"]]) is not None
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return []


def _read(file: BinaryIO, count: int, digest: hashlib._Hash) -> hashlib._Hash:
    """Feed the next `count` bytes to the digest."""
    while count > 0 and (block := file.read(min(count, _BLOCK))):
        digest.update(block)
        count -= len(block)
    return digest
