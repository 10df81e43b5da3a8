"""Reads a GGUF file's header strictly: nothing outside the file is believed. It knows nothing of llama.cpp.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
Used to vet a file before it reaches native code, to inspect it and to restore a checkpoint from it.
Opening Gemma's file with its 262,144 tokens takes well under a second.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.artifacts import require_file
from slm.errors import DamagedFileError, UnsupportedError
from slm.weights.checkpoint_files import refuse_pointer

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_KEYS, _MAX_TENSORS, _MAX_NAME, _MAX_ITEMS = 65_536, 65_536, 65_535, 1 << 26
_MAX_DIMS = 4


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its shape in numpy order (slowest first), its ggml type name, where its bytes are."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file: key-values as plain Python values (arrays of numbers as numpy arrays)."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def is_adapter(self) -> bool:
        return self.metadata.get("general.type") == "adapter"

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as stored, (nbytes,) uint8, memory-mapped."""
        info = self.tensors[name]
        return np.memmap(self.path, dtype=np.uint8, mode="r", offset=info.offset, shape=(info.nbytes,))

    def dequantized(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor as float32 in its numpy shape. Raises UnsupportedError for a type gguf-py cannot read."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self.tensors[name]
        try:
            values = dequantize(self.raw(name), GGMLQuantizationType[info.type_name])
        except NotImplementedError as error:
            raise UnsupportedError(f"cannot dequantize {info.type_name} (tensor '{name}' of '{self.path}')") from error
        return np.ascontiguousarray(values, dtype=np.float32).reshape(info.shape)


def _decoded(raw: memoryview) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        # Some vocabularies hold pieces that are not UTF-8; keep the bytes recoverable.
        return str(raw, "utf-8", "surrogateescape")


class _Cursor:
    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int) -> memoryview:
        if count < 0 or self.at + count > len(self.data):
            raise DamagedFileError(f"'{self.path}' is cut off: its header needs more than its {len(self.data):,} bytes")
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        return _decoded(self.take(self.scalar("<Q")))

    def strings(self, count: int) -> list[str]:
        """`count` strings; a vocabulary has hundreds of thousands, so nothing is looked up twice."""
        data, at, end, length = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            start = at + 8
            size = length(data, at)[0] if start <= end else end
            at = start + size
            if at > end:
                self.take(end + 1)  # raises
            found.append(_decoded(data[start:at]))
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        raise DamagedFileError(f"'{self.path}' has a key of unknown type {kind}")

    def array(self) -> Any:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if count > _MAX_ITEMS:
            raise DamagedFileError(f"'{self.path}' claims an array of {count:,} items")
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.take(count * dtype.itemsize), dtype=dtype).copy()
        if kind == _STRING:
            return self.strings(count)
        raise DamagedFileError(f"'{self.path}' has an array of type {kind}, which GGUF does not define")


def read_gguf(path: Path | str) -> GgufFile:
    """Read and check a GGUF header.

    Raises MissingFileError, DamagedFileError (not GGUF, cut off, absurd sizes, tensors outside the file)
    or UnsupportedError (version, byte order, tensor type).
    """
    path = require_file(path)
    refuse_pointer(path)
    if path.stat().st_size < 24:
        raise DamagedFileError(f"'{path}' is not a GGUF file", found=f"{path.stat().st_size} bytes")
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    cursor = _Cursor(path, mapped.data)
    magic = bytes(cursor.take(4))
    if magic != b"GGUF":
        raise DamagedFileError(f"'{path}' is not a GGUF file", found=f"first bytes {magic!r}")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        order = " (big-endian)" if version in (0x02000000, 0x03000000) else ""
        raise UnsupportedError(f"'{path}' is GGUF version {version}{order}; versions 2 and 3 are read")
    tensor_count, key_count = cursor.scalar("<Q"), cursor.scalar("<Q")
    if tensor_count > _MAX_TENSORS or key_count > _MAX_KEYS:
        raise DamagedFileError(f"'{path}' claims {tensor_count:,} tensors and {key_count:,} keys")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string()
        if key in metadata:
            raise DamagedFileError(f"'{path}' has the key '{key[:80]}' twice")
        metadata[key] = cursor.value(cursor.scalar("<I"))
    tensors = _read_infos(cursor, tensor_count, metadata)
    return GgufFile(path, version, metadata, tensors)


@lru_cache(maxsize=1)
def _gguf_constants() -> Any:
    """gguf-py's constants alone: the whole package imports tokenizers and YAML, which nothing here needs."""
    package = importlib.util.find_spec("gguf")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")
    spec = importlib.util.spec_from_file_location("slm_gguf_constants", Path(package.origin).with_name("constants.py"))
    if spec is None or spec.loader is None:
        return importlib.import_module("gguf.constants")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read_infos(cursor: _Cursor, count: int, metadata: dict[str, Any]) -> dict[str, TensorInfo]:
    constants = _gguf_constants()
    path = cursor.path
    infos: list[tuple[str, tuple[int, ...], str, int, int]] = []
    for _ in range(count):
        name = cursor.string()
        dims = cursor.scalar("<I")
        if len(name) > _MAX_NAME or not 0 < dims <= _MAX_DIMS:
            raise DamagedFileError(f"'{path}' has a tensor '{name[:80]}' with {dims} dimensions")
        shape = tuple(reversed([int(cursor.scalar("<Q")) for _ in range(dims)]))
        kind, offset = cursor.scalar("<I"), cursor.scalar("<Q")
        try:
            type_ = constants.GGMLQuantizationType(kind)
        except ValueError as error:
            raise UnsupportedError(f"'{path}' has the tensor '{name[:80]}' of unknown type {kind}") from error
        block, block_bytes = constants.GGML_QUANT_SIZES[type_]
        if shape[-1] == 0 or shape[-1] % block:
            raise DamagedFileError(f"'{path}': rows of '{name[:80]}' ({shape[-1]}) are not whole {type_.name} blocks")
        elements = 1
        for size in shape:
            elements *= size
        infos.append((name, shape, type_.name, offset, elements // block * block_bytes))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment > 1 << 20 or alignment & (alignment - 1):
        raise DamagedFileError(f"'{path}' has an alignment of {alignment}")
    start = (cursor.at + alignment - 1) // alignment * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, type_name, offset, nbytes in infos:
        if start + offset + nbytes > len(cursor.data) or offset % alignment:
            raise DamagedFileError(
                f"'{path}' is cut off: tensor '{name[:80]}' needs bytes up to {start + offset + nbytes:,}",
                found=f"{len(cursor.data):,} bytes",
                hint="Copy or pull the file again.",
            )
        if name in tensors:
            raise DamagedFileError(f"'{path}' has the tensor '{name[:80]}' twice")
        tensors[name] = TensorInfo(name, shape, type_name, start + offset, nbytes)
    return tensors


def main_type(gguf: GgufFile) -> str:
    """The type that most of the file's weight matrices (two dimensions or more) are stored in."""
    counts: dict[str, int] = {}
    for info in gguf.tensors.values():
        if len(info.shape) > 1:
            counts[info.type_name] = counts.get(info.type_name, 0) + 1
    return max(counts, key=lambda name: counts[name]) if counts else "none"
