"""Writes GGUF files as a stream: header, key-values and tensor infos first, then one tensor after another.

It knows nothing of checkpoints. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from convert.safetensors_file import to_bfloat16
from slm.errors import InputError

ALIGNMENT = 32
# general.file_type, llama.cpp include/llama.h `llama_ftype`
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_GGML_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30}
_ARRAY_KINDS = {"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "uint64": 10}
_STRING, _ARRAY = 8, 9
_Q8_BLOCK = 32


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written: its name, numpy shape, ggml type (F32, F16, BF16, Q8_0) and its pieces of rows."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    pieces: Iterable[npt.NDArray[np.float32]]

    @property
    def nbytes(self) -> int:
        elements = int(np.prod(self.shape, dtype=np.int64))
        sizes = {"F32": 4 * elements, "F16": 2 * elements, "BF16": 2 * elements}
        return sizes.get(self.type_name, elements // _Q8_BLOCK * 34)


def tensor_type(file_type: str, name: str, shape: tuple[int, ...]) -> str:
    """The ggml type of a tensor in a file of `file_type` (f32, f16, bf16, q8_0).

    Vectors and the tables of positions and token types stay F32: they cost nothing and the runtime adds them in F32.
    A row that is not whole Q8_0 blocks stays F16.
    """
    if file_type == "f32" or len(shape) < 2 or name in ("position_embd.weight", "token_types.weight"):
        return "F32"
    if file_type == "q8_0" and shape[-1] % _Q8_BLOCK:
        return "F16"
    return {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}[file_type]


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


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
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(_string(item) for item in value)
    raise InputError(f"a key-value of type {type(value).__name__} cannot be written to GGUF")


def _encode(piece: npt.NDArray[np.float32], type_name: str) -> npt.NDArray[Any]:
    if type_name == "F32":
        return np.ascontiguousarray(piece, dtype=np.float32)
    if type_name == "BF16":
        return to_bfloat16(piece)
    if type_name == "F16":
        with np.errstate(over="ignore"):
            half = piece.astype(np.float16)
        if not np.isfinite(half).all():
            raise InputError(
                "a weight is too large for f16", found=f"{float(np.abs(piece).max()):g}", hint="Use --type bf16 or f32."
            )
        return half
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return np.asarray(quantize(np.ascontiguousarray(piece), GGMLQuantizationType[type_name]))


def write_gguf(file: BinaryIO, metadata: Mapping[str, Any], tensors: list[OutTensor]) -> Iterator[int]:
    """Write a whole file; yields the number of data bytes written so far, after each piece.

    Python values become GGUF types: bool, int (u32), float (f32), str, list of str, numpy arrays. Raises InputError
    for a weight that does not fit into f16 (with the tensor's name).
    """
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_string(key) + _value(value))
    offset = 0
    for tensor in tensors:
        dims = tuple(reversed(tensor.shape))
        file.write(_string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        file.write(struct.pack("<IQ", _GGML_TYPES[tensor.type_name], offset))
        offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    written = 0
    for tensor in tensors:
        start = written
        for piece in tensor.pieces:
            try:
                data = _encode(piece, tensor.type_name)
            except InputError as error:
                raise InputError(f"'{tensor.name}': {error.what}", found=error.found, hint=error.hint) from error
            file.write(data.tobytes())
            written += data.nbytes
            yield written
        if written - start != tensor.nbytes:
            raise AssertionError(f"{tensor.name}: {written - start} bytes written, {tensor.nbytes} announced")
        padding = -tensor.nbytes % ALIGNMENT
        file.write(b"\0" * padding)
        written += padding
    yield written
