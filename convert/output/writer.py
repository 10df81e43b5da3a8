"""Writes GGUF files as a stream: header, key-values and tensor infos first, then one tensor after another.

It knows nothing of checkpoints. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.
What is meant to be written is noted as checksums, so that it can be compared with what the disk gives back.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from convert.output.encode import GGML_TYPES, Q8_BLOCK, encode, encoded_bytes
from slm.errors import InputError, VerificationError

ALIGNMENT = 32
# general.file_type, llama.cpp include/llama.h `llama_ftype`
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_ARRAY_KINDS = {"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "uint64": 10}
_STRING, _ARRAY = 8, 9
_BLOCK = 1 << 22
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written: its name, numpy shape, ggml type (F32, F16, BF16, Q8_0) and its pieces of rows."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    pieces: Iterable[npt.NDArray[np.float32]]

    @property
    def nbytes(self) -> int:
        return encoded_bytes(self.type_name, int(np.prod(self.shape, dtype=np.int64)))


@dataclass
class Ledger:
    """What was meant to be written: the CRC-32 of the header and of each tensor's bytes, with their places."""

    parts: list[tuple[str, int, int, int]] = field(default_factory=list)  # name, offset, bytes, CRC-32
    size: int = 0

    def check(self, path: Path) -> None:
        """Read the file back and compare. Raises VerificationError that names the first part that differs."""
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != self.size:
                raise _differs("the file's length")
            block = memoryview(bytearray(_BLOCK))
            for name, offset, nbytes, expected in self.parts:
                file.seek(offset)
                found, left = 0, nbytes
                while left:
                    count = file.readinto(block[: min(left, _BLOCK)])
                    if not count:
                        raise _differs(name)
                    found, left = zlib.crc32(block[:count], found), left - count
                if found != expected:
                    raise _differs(name)


def _differs(name: str) -> VerificationError:
    return VerificationError(
        f"what is read back for {name} differs from what was written",
        hint="Nothing was left behind. Is the disk full or failing? Try another folder with -o.",
    )


def tensor_type(file_type: str, name: str, shape: tuple[int, ...]) -> str:
    """The ggml type of a tensor in a file of `file_type` (f32, f16, bf16, q8_0).

    Vectors and the tables of positions and token types stay F32: they cost nothing and the runtime adds them in F32.
    A row that is not whole Q8_0 blocks stays F16.
    """
    if file_type == "f32" or len(shape) < 2 or name in ("position_embd.weight", "token_types.weight"):
        return "F32"
    if file_type == "q8_0" and shape[-1] % Q8_BLOCK:
        return "F16"
    return {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}[file_type]


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return _LENGTH.pack(len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, (bool, np.bool_)):
        return struct.pack("<I?", 7, bool(value))
    if isinstance(value, (int, np.integer)):
        if int(value) > 0xFFFFFFFF:
            return struct.pack("<IQ", 10, int(value))
        return struct.pack("<II", 4, int(value)) if value >= 0 else struct.pack("<Ii", 5, int(value))
    if isinstance(value, (float, np.floating)):
        return struct.pack("<If", 6, float(value))
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, np.ndarray):
        kind = _ARRAY_KINDS[value.dtype.name]
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + value.tobytes()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    raise InputError(f"a key-value of type {type(value).__name__} cannot be written to GGUF")


def _header(metadata: Mapping[str, Any], tensors: list[OutTensor]) -> bytes:
    parts = [b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for tensor in tensors:
        dims = tuple(reversed(tensor.shape))
        parts.append(_string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        parts.append(struct.pack("<IQ", GGML_TYPES[tensor.type_name], offset))
        offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    header = b"".join(parts)
    return header + b"\0" * (-len(header) % ALIGNMENT)


def write_gguf(
    file: BinaryIO, metadata: Mapping[str, Any], tensors: list[OutTensor], ledger: Ledger | None = None
) -> Iterator[int]:
    """Write a whole file; yields the number of data bytes written so far: 0 after the header, then after each piece.

    At the first yield the file has its header and its full length, so a reader of headers finds it whole.
    Python values become GGUF types: bool, int (u32), float (f32), str, list of str, numpy arrays. `ledger` is filled
    for `Ledger.check`. Raises InputError for a weight that does not fit into f16 (with the tensor's name).
    """
    ledger = Ledger() if ledger is None else ledger
    header = _header(metadata, tensors)
    file.write(header)
    file.truncate(len(header) + sum(t.nbytes + -t.nbytes % ALIGNMENT for t in tensors))
    file.flush()
    ledger.parts.append(("the header", 0, len(header), zlib.crc32(header)))
    start, written = len(header), 0
    del header
    yield 0
    for tensor in tensors:
        begin, checksum = written, 0
        for piece in tensor.pieces:
            try:
                data = encode(piece, tensor.type_name)
            except InputError as error:
                raise InputError(f"'{tensor.name}': {error.what}", found=error.found, hint=error.hint) from error
            raw = data.reshape(-1).view(np.uint8).data
            file.write(raw)
            checksum = zlib.crc32(raw, checksum)
            written += data.nbytes
            yield written
        if written - begin != tensor.nbytes:
            raise AssertionError(f"{tensor.name}: {written - begin} bytes written, {tensor.nbytes} announced")
        ledger.parts.append((f"'{tensor.name}'", start + begin, tensor.nbytes, checksum))
        padding = -tensor.nbytes % ALIGNMENT
        file.write(b"\0" * padding)
        written += padding
    ledger.size = start + written
    yield written
