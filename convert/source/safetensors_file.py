"""Reads and writes safetensors files tensor by tensor, without torch. It knows nothing of models.

Format: https://huggingface.co/docs/safetensors - 8 bytes header length (little-endian), a JSON header, the data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from slm.artifacts import require_file
from slm.errors import DamagedFileError, UnsupportedError
from slm.weights.checkpoint_files import refuse_pointer
from slm.weights.empty_tensors import refuse_empty

_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
          "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
_FLOATS = ("F32", "F16", "BF16")
_MAX_HEADER = 100_000_000  # the reference implementation's own bound


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its shape, its safetensors dtype, and where its bytes are."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Rows [start, stop) of the tensor (all of a scalar) as float32. Raises UnsupportedError for integers."""
        if self.dtype not in _FLOATS:
            raise UnsupportedError(
                f"the tensor '{self.name}' of '{self.path}' is {self.dtype}", hint="Weights must be F32, F16 or BF16."
            )
        rows = self.shape[0] if self.shape else 1
        first, last = start, rows if stop is None else min(stop, rows)
        row_bytes = self.nbytes // rows
        count, offset = (last - first) * row_bytes, self.offset + first * row_bytes
        piece = np.fromfile(self.path, dtype=np.uint8, count=count, offset=offset)  # not mapped: it would count as ours
        if piece.size != count:
            raise DamagedFileError(f"'{self.path}' became shorter while it was read")
        shape = (last - first, *self.shape[1:]) if self.shape else ()
        return to_float32(piece, self.dtype).reshape(shape)


def to_float32(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Bytes of F32, F16 or BF16 as a float32 array (of F32: the same memory); bf16 is the upper half of a float32."""
    values: npt.NDArray[np.float32]
    if dtype == "BF16":
        values = (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = raw.view(np.float32) if dtype == "F32" else raw.view(np.float16).astype(np.float32)
    return values


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """float32 -> bf16 bits, rounded to nearest even. Values must not be NaN."""
    bits: npt.NDArray[np.uint32] = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    bits = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    upper: npt.NDArray[np.uint16] = bits.astype(np.uint16)
    return upper


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file, every offset checked. Raises MissingFileError or DamagedFileError."""
    path = require_file(path)
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            raise DamagedFileError(
                f"'{path}' is not a whole safetensors file",
                found=f"{size:,} bytes, header length {length:,}",
                hint="Copy or download the file again.",
            )
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"the header of '{path}' is not JSON") from error
    if not isinstance(header, dict):
        raise DamagedFileError(f"the header of '{path}' is not a JSON object")
    entries = {}
    for name, info in header.items():
        if name != "__metadata__":
            entries[name] = _entry(path, name, info, 8 + length, size)
    refuse_empty(path, {name: entry.shape for name, entry in entries.items()})
    return entries


def _entry(path: Path, name: str, info: Any, base: int, size: int) -> TensorEntry:
    try:
        dtype, shape = info["dtype"], tuple(info["shape"])
        begin, end = info["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise DamagedFileError(f"the header of '{path}' describes the tensor '{name[:80]}' wrongly") from error
    if not whole or not isinstance(dtype, str) or dtype not in _SIZES:
        raise DamagedFileError(f"the header of '{path}' describes the tensor '{name[:80]}' wrongly")
    elements = 1
    for extent in shape:
        elements *= extent
    if end - begin != elements * _SIZES[dtype] or base + end > size:
        raise DamagedFileError(
            f"the tensor '{name[:80]}' of '{path}' does not fit into the file",
            found=f"shape {shape}, bytes {begin:,} to {end:,} of {size - base:,}",
            hint="Copy or download the file again.",
        )
    return TensorEntry(name, path, dtype, shape, base + begin, end - begin)


class SafetensorsWriter:
    """Writes one safetensors file: all shapes first, then the data piece by piece in the same order."""

    def __init__(self, file: BinaryIO, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
        self._file, self._dtype = file, dtype
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in shapes.items():
            nbytes = int(np.prod(shape, dtype=np.int64)) * _SIZES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
            offset += nbytes
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        file.write(struct.pack("<Q", len(raw)) + raw)

    def write(self, pieces: Iterator[npt.NDArray[np.float32]]) -> int:
        """Write the next tensor's pieces; returns the bytes written."""
        written = 0
        for piece in pieces:
            data = to_bfloat16(piece) if self._dtype == "BF16" else np.ascontiguousarray(piece, dtype=np.float32)
            self._file.write(data.tobytes())
            written += data.nbytes
        return written
