"""The names of quantized types, what they need, and which tensors could not have the type meant for them.

It knows nothing of how a file is quantized. A file type (Q4_K_M) is a recipe that gives tensors several types.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from slm.errors import UnknownNameError
from slm.weights.gguf_reader import GgufFile

FLOAT_TYPES = ("f32", "f16", "bf16")
# llama.cpp include/llama.h, `llama_ftype`
QUANTIZED_TYPES = {
    "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
    "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "q2_k_s": 21,
    "iq3_xs": 22, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq3_m": 27, "iq2_s": 28, "iq2_m": 29,
    "iq4_xs": 30, "iq1_m": 31, "tq1_0": 36, "tq2_0": 37,
}  # fmt: skip
_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
# src/llama-quant.cpp, `tensor_requires_imatrix`, and the file types whose recipe gives some tensor such a type
TENSOR_NEEDS_IMATRIX = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"})
NEEDS_IMATRIX = TENSOR_NEEDS_IMATRIX | {"iq2_m", "iq3_xs", "q2_k_s"}
_SMALL_BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl")
_SUPER_BLOCK, _BLOCK = 256, 32


def type_name(name: str) -> str:
    """The known type a user means, whatever the case. Raises UnknownNameError."""
    name = _ALIASES.get(name.lower(), name.lower())
    if name not in QUANTIZED_TYPES and name not in FLOAT_TYPES:
        raise UnknownNameError("type", name, [*FLOAT_TYPES, *QUANTIZED_TYPES])
    return name


def file_type_of(name: str) -> int:
    """llama.cpp's number of a quantized file type."""
    return QUANTIZED_TYPES[name]


@lru_cache(maxsize=1)
def _tensor_types() -> dict[str, tuple[int, int]]:
    """ggml type in lower case -> (number, values a block), of the types a weight may have."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    unfit = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")
    return {
        kind.name.lower(): (kind.value, GGML_QUANT_SIZES[kind][0])
        for kind in GGMLQuantizationType
        if kind.name not in unfit
    }


def tensor_type_id(kind: str) -> int:
    """ggml's number of a tensor type (q6_K, iq4_xs, f16 ...), whatever the case. Raises UnknownNameError."""
    if kind.lower() not in _tensor_types():
        raise UnknownNameError("tensor type", kind, _tensor_types(), hint="A file type such as q4_k_m is a mixture.")
    return _tensor_types()[kind.lower()][0]


def block_of(kind: str) -> int:
    """How many values of a row share a block in a tensor type."""
    return _tensor_types()[kind.lower()][1]


def fallbacks(name: str, overrides: Mapping[str, str], before: GgufFile, after: GgufFile) -> dict[str, int]:
    """How many matrices got which type because their rows are not whole blocks of the type meant for them.

    K and most IQ types have blocks of 256 values. llama.cpp gives other rows a type with blocks of 32, else F16
    (src/llama-quant.cpp, `tensor_type_fallback`).
    """
    usual = _BLOCK if name in _SMALL_BLOCKS else _SUPER_BLOCK
    counted: dict[str, int] = {}
    for tensor, info in after.tensors.items():
        width, kind = info.shape[-1], info.type_name
        if len(info.shape) < 2 or (kind == before.tensors[tensor].type_name and width % _BLOCK == 0):
            continue  # a vector, or a matrix that is never quantized
        if width % (block_of(overrides[tensor]) if tensor in overrides else usual):
            counted[kind] = counted.get(kind, 0) + 1
    return dict(sorted(counted.items(), key=lambda pair: -pair[1]))
