"""Single nodes of a ggml graph, computed by the library that llama.cpp runs on. For tests of its kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from slm.native.llama import library

Floats = npt.NDArray[np.float32]
_MEMORY = 64 << 20
_pointer = ctypes.c_void_p


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", _pointer), ("no_alloc", ctypes.c_bool)]


def _function(name: str, result: Any, *arguments: Any) -> Any:
    found = library()._lib[name]  # an object of its own: llama_cpp's declarations stay as they are
    found.restype, found.argtypes = result, arguments
    return found


@contextmanager
def _context(*, no_alloc: bool = False) -> Iterator[int]:
    memory = ctypes.create_string_buffer(_MEMORY)
    parameters = _InitParams(_MEMORY, ctypes.cast(memory, _pointer), no_alloc)
    handle = _function("ggml_init", _pointer, _InitParams)(parameters)
    try:
        yield handle
    finally:
        _function("ggml_free", None, _pointer)(handle)


def _new_tensor(context: int, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    """A tensor of `shape`, the fastest dimension first."""
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    make = _function("ggml_new_tensor", _pointer, _pointer, ctypes.c_int, ctypes.c_int, _pointer)
    tensor: int = make(context, int(kind), len(shape), sizes)
    return tensor


def _tensor(context: int, kind: GGMLQuantizationType, shape: tuple[int, ...], data: npt.NDArray[Any]) -> int:
    """The same with these bytes."""
    tensor = _new_tensor(context, kind, shape)
    raw = np.ascontiguousarray(data)
    assert _function("ggml_nbytes", ctypes.c_size_t, _pointer)(tensor) == raw.nbytes
    ctypes.memmove(_function("ggml_get_data", _pointer, _pointer)(tensor), raw.ctypes.data, raw.nbytes)
    return tensor


def _computed(context: int, node: int, threads: int, shape: tuple[int, ...]) -> Floats:
    graph = _function("ggml_new_graph", _pointer, _pointer)(context)
    _function("ggml_build_forward_expand", None, _pointer, _pointer)(graph, node)
    compute = _function("ggml_graph_compute_with_ctx", ctypes.c_int, _pointer, _pointer, ctypes.c_int)
    assert compute(context, graph, threads) == 0
    address = _function("ggml_get_data", _pointer, _pointer)(node)
    values = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    found: Floats = np.ctypeslib.as_array(values).reshape(shape).copy()
    return found


@contextmanager
def _laid_out(kind: GGMLQuantizationType, weights: npt.NDArray[Any], width: int) -> Iterator[int]:
    """Weights in a buffer of the kind for which llama.cpp lays some types out anew when it loads a model."""
    backend = _function("ggml_backend_cpu_reg", _pointer)()
    device = _function("ggml_backend_reg_dev_get", _pointer, _pointer, ctypes.c_size_t)(backend, 0)
    ask = _function("ggml_backend_reg_get_proc_address", _pointer, _pointer, ctypes.c_char_p)
    extra = ask(backend, b"ggml_backend_dev_get_extra_bufts")
    kinds = ctypes.CFUNCTYPE(ctypes.POINTER(_pointer), _pointer)(extra)(device)  # up to one that is null
    name_of = _function("ggml_backend_buft_name", ctypes.c_char_p, _pointer)
    repacked = next(one for one in takewhile(bool, kinds) if name_of(one) == b"CPU_REPACK")
    with _context(no_alloc=True) as context:
        tensor = _new_tensor(context, kind, (width, len(weights)))
        allocate = _function("ggml_backend_alloc_ctx_tensors_from_buft", _pointer, _pointer, _pointer)
        buffer = allocate(context, repacked)
        raw = np.ascontiguousarray(weights)
        size = ctypes.c_size_t
        put = _function("ggml_backend_tensor_set", None, _pointer, _pointer, size, size)
        put(tensor, raw.ctypes.data, 0, raw.nbytes)
        try:
            yield tensor
        finally:
            _function("ggml_backend_buffer_free", None, _pointer)(buffer)


def product(
    kind: GGMLQuantizationType, weights: npt.NDArray[Any], activations: Floats, *, threads: int = 1,
    laid_out: bool = False,
) -> Floats:  # fmt: skip
    """activations (rows, width) times weights (columns, packed width) of a type: (rows, columns).

    laid_out: with the weights as llama.cpp lays them out when it loads a model, eight rows side by side."""
    rows, width = activations.shape
    with ExitStack() as stack:
        context = stack.enter_context(_context())
        if laid_out:
            left = stack.enter_context(_laid_out(kind, weights, width))
        else:
            left = _tensor(context, kind, (width, len(weights)), weights)
        right = _tensor(context, GGMLQuantizationType.F32, (width, rows), activations)
        node = _function("ggml_mul_mat", _pointer, _pointer, _pointer, _pointer)(context, left, right)
        return _computed(context, node, threads, (rows, len(weights)))


def gelu(values: Floats, gate: Floats | str | None = None, *, threads: int = 1) -> Floats:
    """GELU of values (rows, width), times a gate: (rows, width) itself, or "behind" or "before" for the other half of
    the values."""
    rows, width = values.shape
    with _context() as context:
        given = _tensor(context, GGMLQuantizationType.F32, (width, rows), values)
        if isinstance(gate, str):
            name, tensors, width = {"behind": "ggml_geglu", "before": "ggml_geglu_swapped"}[gate], [given], width // 2
        elif gate is None:
            name, tensors = "ggml_gelu", [given]
        else:
            name, tensors = "ggml_geglu_split", [given, _tensor(context, GGMLQuantizationType.F32, (width, rows), gate)]
        node = _function(name, _pointer, *[_pointer] * (1 + len(tensors)))(context, *tensors)
        return _computed(context, node, threads, (rows, width))


def attention(
    queries: Floats, keys: npt.NDArray[Any], values: npt.NDArray[Any], mask: npt.NDArray[np.float16] | None,
    *, sinks: Floats | None = None, numbers: tuple[float, float, float] = (1.0, 0.0, 0.0), threads: int = 1,
) -> Floats:  # fmt: skip
    """queries (heads, tokens, width), keys and values (key heads, cells, width), mask (tokens, cells): (tokens, heads,
    width of the values). numbers: scale, ALiBi's largest bias, cap of the scores."""
    heads, tokens, _ = queries.shape
    kinds = {np.dtype(np.float16): GGMLQuantizationType.F16, np.dtype(np.float32): GGMLQuantizationType.F32}
    with _context() as context:
        q, k, v = (
            _tensor(context, kinds[one.dtype], tuple(reversed(one.shape)), one) for one in (queries, keys, values)
        )
        seen = None if mask is None else _tensor(context, GGMLQuantizationType.F16, tuple(reversed(mask.shape)), mask)
        real = [ctypes.c_float] * 3
        make = _function("ggml_flash_attn_ext", _pointer, *[_pointer] * 5, *real)
        node = make(context, q, k, v, seen, *numbers)
        if sinks is not None:
            add = _function("ggml_flash_attn_ext_add_sinks", None, _pointer, _pointer)
            add(node, _tensor(context, GGMLQuantizationType.F32, sinks.shape, sinks))
        return _computed(context, node, threads, (tokens, heads, values.shape[2]))
