"""float32 rows -> the bytes of a ggml type, with ggml's own vectorized routines. It knows nothing of files.

numpy turns float32 into float16 one value at a time (200 million a second here, ggml 6,000 million), and gguf-py's
Q8_0 takes several passes; both give the same bytes as ggml, which `tests/test_convert_writer.py` proves.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.source.safetensors_file import to_bfloat16
from slm.errors import InputError

GGML_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30}  # ggml/include/ggml.h, `ggml_type`
Q8_BLOCK, Q8_BYTES = 32, 34  # a float16 scale and 32 signed bytes
_F16_INFINITY = 0x7C00


def encoded_bytes(type_name: str, elements: int) -> int:
    """How many bytes so many values take."""
    sizes = {"F32": 4 * elements, "F16": 2 * elements, "BF16": 2 * elements}
    return sizes.get(type_name, elements // Q8_BLOCK * Q8_BYTES)


def encode(piece: npt.NDArray[np.float32], type_name: str) -> npt.NDArray[Any]:
    """Whole rows of finite float32 values in one of GGML_TYPES, as an array of the bytes to be written.

    Raises InputError for a value that is too large for float16.
    """
    piece = np.ascontiguousarray(piece, dtype=np.float32)
    if type_name == "F32":
        return piece
    if type_name == "BF16":
        return to_bfloat16(piece)
    if type_name == "F16":
        return _float16(piece)
    rows, width = piece.reshape(-1, piece.shape[-1]).shape
    out = np.empty(encoded_bytes(type_name, piece.size), dtype=np.uint8)
    _ggml().ggml_quantize_chunk(GGML_TYPES[type_name], piece.ctypes.data, out.ctypes.data, 0, rows, width, None)
    return out


def _float16(piece: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    half = np.empty(piece.shape, dtype=np.float16)
    _ggml().ggml_cpu_fp32_to_fp16(piece.ctypes.data, half.ctypes.data, piece.size)
    bits = half.view(np.uint16)
    if ((bits & _F16_INFINITY) == _F16_INFINITY).any():
        raise InputError(
            "a weight is too large for f16", found=f"{float(np.abs(piece).max()):g}", hint="Use --type bf16 or f32."
        )
    return half


@lru_cache(maxsize=1)
def _ggml() -> Any:
    """The shared library that llama.cpp's bindings loaded, with the two routines declared."""
    import ctypes

    from slm.native.llama import library

    handle = library()._lib
    handle.ggml_cpu_fp32_to_fp16.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    handle.ggml_cpu_fp32_to_fp16.restype = None
    handle.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    handle.ggml_quantize_chunk.restype = ctypes.c_size_t
    return handle
