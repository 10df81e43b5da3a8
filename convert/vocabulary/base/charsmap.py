"""SentencePiece's precompiled character map: read it, apply it, and write one that lower-cases as well.

It knows nothing of vocabularies. Keys and replacements are bytes; those that are not UTF-8 are lone surrogates here
(`surrogateescape`). Format: 4 bytes size, a double array (darts-clone, 32-bit units), then the
replacements, each ended by a zero byte; a leaf's value is the offset of its replacement. Units as read by llama.cpp,
src/llama-vocab.cpp, `xcda_array_view`: label in bits 0-7, has-leaf bit 8, offset from bit 10 (bit 9: times 256),
bit 31 set in values.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from slm.errors import DamagedFileError

_LEAF, _VALUE, _BLOCK = 1 << 8, 1 << 31, 256
_LONGEST = 32  # characters; the longest sequence of nmt_nfkc_cf has 18
_CHUNK, _MAX_NODES = 4096, 1 << 21
_OPEN_BLOCKS = 8  # how many recent blocks are searched for room: a few more bytes for much less time


def read_charsmap(data: bytes) -> dict[str, str]:
    """Every (sequence -> replacement) of a character map. Raises DamagedFileError."""
    if not data:
        return {}
    size = struct.unpack("<I", data[:4])[0] if len(data) >= 4 else -1
    if size <= 0 or size % 4 or 4 + size > len(data):
        raise DamagedFileError("the tokenizer's character map is damaged")
    units = np.frombuffer(data, dtype="<u4", count=size // 4, offset=4).astype(np.int64)
    pool = data[4 + size :]
    mapping: dict[str, str] = {}
    level: list[tuple[int, bytes]] = [(0, b"")]
    labels = np.arange(1, 256, dtype=np.int64)
    while level:
        following: list[tuple[int, bytes]] = []
        for first in range(0, len(level), _CHUNK):
            nodes = level[first : first + _CHUNK]
            at = np.array([place for place, _ in nodes], dtype=np.int64)
            unit = units[at]
            base = at ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6))
            if (base | 0xFF).max() >= len(units):
                # llama.cpp looks up every byte there and ends the process outside the array (`get_node`).
                raise DamagedFileError("the tokenizer's character map is damaged")
            for index in np.flatnonzero(unit & _LEAF):
                start = int(units[base[index]]) & (_VALUE - 1)
                end = pool.find(b"\0", start)
                if start > len(pool) or end < 0:
                    raise DamagedFileError("the tokenizer's character map is damaged")
                key = nodes[index][1].decode("utf-8", "surrogateescape")
                mapping[key] = pool[start:end].decode("utf-8", "surrogateescape")
            places = base[:, None] ^ labels
            fits = (units[places] & (_VALUE | 0xFF)) == labels
            rows, columns = np.nonzero(fits)
            for place, row, column in zip(places[fits].tolist(), rows.tolist(), columns.tolist(), strict=True):
                following.append((place, nodes[row][1] + bytes([column + 1])))
        level = following
        if len(following) > _MAX_NODES or (following and len(following[0][1]) > 4 * _LONGEST):
            raise DamagedFileError("the tokenizer's character map is damaged")
    return mapping


def apply_charsmap(mapping: Mapping[str, str], text: str) -> str:
    """The text with each longest known sequence replaced, as SentencePiece does."""
    out, at = [], 0
    while at < len(text):
        for size in range(min(_LONGEST, len(text) - at), 0, -1):
            replacement = mapping.get(text[at : at + size])
            if replacement is not None:
                out.append(replacement)
                at += size
                break
        else:
            out.append(text[at])
            at += 1
    return "".join(out)


def lower_casing(mapping: Mapping[str, str]) -> dict[str, str]:
    """The map that does `apply(text.lower())` in one step.

    Single letters follow Python's `str.lower`; the one rule that looks at neighbours (final sigma) is left out.
    """

    def lowered(text: str) -> str:
        return apply_charsmap(mapping, text.lower())

    folded = {key: value if key.lower() == key else lowered(key) for key, value in mapping.items()}
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        if letter.lower() != letter:
            folded[letter] = lowered(letter)
    for key in mapping:
        upper = key[0].upper()
        if len(key) > 1 and len(upper) == 1 and upper.lower() == key[0]:
            folded.setdefault(upper + key[1:], lowered(key))
    return folded


class _DoubleArray:
    """Places the nodes of a trie; a node's children stay inside one block of 256 units, since labels are xor-ed."""

    def __init__(self) -> None:
        self.units: list[int] = []
        self.taken: list[int] = []  # per block: bit set of occupied places
        self.bases: list[int] = []  # per block: bit set of bases in use; two nodes must not share one
        self.open_block()

    def open_block(self) -> None:
        self.units += [0] * _BLOCK
        self.taken.append(0)
        self.bases.append(0)

    def place(self, labels: list[int]) -> int:
        """A base such that base ^ label is free for every label."""
        while True:
            for block in range(len(self.taken) - 1, max(-1, len(self.taken) - 1 - _OPEN_BLOCKS), -1):
                taken, bases = self.taken[block], self.bases[block]
                if taken.bit_count() + len(labels) > _BLOCK:
                    continue
                for low in range(_BLOCK):
                    if not bases >> low & 1 and not any(taken >> (low ^ label) & 1 for label in labels):
                        self.bases[block] |= 1 << low
                        for label in labels:
                            self.taken[block] |= 1 << (low ^ label)
                        return block * _BLOCK + low
            self.open_block()


def write_charsmap(mapping: Mapping[str, str]) -> bytes:
    """The binary form of a character map; `read_charsmap` is its inverse."""
    pool, offsets = bytearray(), {}
    for replacement in mapping.values():
        if replacement not in offsets:
            offsets[replacement] = len(pool)
            pool += replacement.encode("utf-8", "surrogateescape") + b"\0"
    trie: dict[int, Any] = {}
    for key, replacement in mapping.items():
        node = trie
        raw = key.encode("utf-8", "surrogateescape")
        if not raw or 0 in raw:
            continue
        for byte in raw:
            node = node.setdefault(byte, {})
        node[0] = offsets[replacement]
    # Equal subtrees are kept once: nmt_nfkc has 225,000 sequences, most of which end alike.
    known: dict[tuple[tuple[int, int], ...], int] = {}
    nodes: list[tuple[tuple[int, int], ...]] = []

    def share(node: dict[int, Any]) -> int:
        shape = tuple((label, share(child) if label else child) for label, child in sorted(node.items()))
        if shape not in known:
            known[shape] = len(nodes)
            nodes.append(shape)
        return known[shape]

    array = _DoubleArray()
    array.taken[0] |= 1  # the root
    bases: dict[int, int] = {}
    waiting = [(0, share(trie))]
    for at, index in waiting:  # grows while it is read: breadth first
        if index not in bases:
            base = bases[index] = array.place([label for label, _ in nodes[index]])
            for label, child in nodes[index]:
                array.units[base ^ label] = label if label else _VALUE | child
                if label:
                    waiting.append((base ^ label, child))
        base = bases[index]
        array.units[at] |= (at ^ base) << 10 | (_LEAF if nodes[index][0][0] == 0 else 0)
    units = np.array(array.units, dtype="<u4").tobytes()
    return struct.pack("<I", len(units)) + units + bytes(pool)
