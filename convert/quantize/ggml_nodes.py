"""Looks at the nodes of ggml's compute graph while llama.cpp runs it: matrix products, their weights and inputs.

It knows nothing of importance matrices. The layout is ggml's `struct ggml_tensor` (ggml/include/ggml.h) of the
pinned llama.cpp; `check_layout` compares it with the library before anything is believed.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.errors import EngineError

_OBJECT_BYTES = 32  # sizeof(struct ggml_object), which ggml_tensor_overhead() adds
_F32 = 0


class GgmlNode(ctypes.Structure):
    """A tensor of the graph: ne (elements) and nb (bytes between elements) by dimension, the fastest first."""


GgmlNode._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GgmlNode) * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64), ("extra", ctypes.c_void_p), ("padding", ctypes.c_char * 8),
]  # fmt: skip


@lru_cache(maxsize=1)
def matrix_products() -> tuple[int, int]:
    """The numbers of the operations MUL_MAT and MUL_MAT_ID (by expert). Raises EngineError for another layout."""
    from slm.native.llama import library

    ggml: Any = library()._lib
    ggml.ggml_tensor_overhead.restype = ctypes.c_size_t
    ggml.ggml_op_name.restype = ctypes.c_char_p
    if ggml.ggml_tensor_overhead() != ctypes.sizeof(GgmlNode) + _OBJECT_BYTES:
        raise EngineError(
            "this llama.cpp lays out its tensors differently",
            found=f"{ggml.ggml_tensor_overhead()} bytes a tensor, {ctypes.sizeof(GgmlNode) + _OBJECT_BYTES} known",
            hint="Install the version of llama-cpp-python that constraints.txt names.",
        )
    names = [ggml.ggml_op_name(number) for number in range(64)]
    return names.index(b"MUL_MAT"), names.index(b"MUL_MAT_ID")


def is_float32(node: GgmlNode) -> bool:
    """Whether the tensor holds float32 values."""
    return int(node.type) == _F32


def values(node: GgmlNode, dtype: Any = np.float32) -> npt.NDArray[Any]:
    """The tensor's memory as an array of four dimensions, the slowest first; valid only inside the callback."""
    shape, strides = tuple(node.ne)[::-1], tuple(node.nb)[::-1]
    span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
    memory = (ctypes.c_char * span).from_address(node.data)
    view: npt.NDArray[Any] = np.ndarray(shape, dtype=dtype, buffer=memory, strides=strides)
    return view
