"""Refuses GGUF models that would end the process inside llama.cpp, before they get there.

`slm.weights.gguf_reader` proves that sizes and offsets hold; this proves what llama.cpp only asserts or divides by. It
knows nothing of what a sound model computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convert.source.malformed import reading
from convert.vocabulary.base.vocab import from_metadata
from slm.errors import DamagedFileError
from slm.families import known_architectures
from slm.weights.gguf_reader import GgufFile

_MAX_LAYERS = 512  # llama.cpp, src/llama-hparams.h, LLAMA_MAX_LAYERS
_POSITIVE = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
_WHOLE = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count")
_LARGEST = 1 << 24


def vet_model(file: GgufFile) -> None:
    """Raise DamagedFileError for a model that llama.cpp would abort on."""
    name, what = file.architecture, f"the header of '{file.path}'"
    for key in (*_POSITIVE, *_WHOLE):
        value = file.metadata.get(f"{name}.{key}")
        if value is not None:
            _check_number(value, f"{name}.{key}", what, 1 if key in _POSITIVE else 0)
    rotated = file.metadata.get(f"{name}.rope.dimension_count", 0)
    if isinstance(rotated, int) and rotated % 2:
        raise DamagedFileError(f"{what} has an impossible value for {name}.rope.dimension_count", found=str(rotated))
    layers = file.metadata.get(f"{name}.block_count")
    if not isinstance(layers, int) or layers > min(_MAX_LAYERS, len(file.tensors)):
        raise DamagedFileError(f"{what} claims {layers} layers", found=f"{len(file.tensors)} tensors")
    _check_heads(file, what)
    with reading(what):
        from_metadata(file.metadata).check()


def _check_heads(file: GgufFile, what: str) -> None:
    """The attention's matrices have a row for each number of each head; llama.cpp's graphs only assert it.

    Looked at for the families of this package: others may keep more in these matrices.
    """
    name = file.architecture
    if name not in known_architectures():
        return
    numbers = [file.metadata.get(f"{name}.attention.{key}") for key in ("head_count", "head_count_kv")]
    heads, groups = (numbers[0], numbers[0] if numbers[1] is None else numbers[1])
    width = file.metadata.get(f"{name}.embedding_length")
    if not (isinstance(heads, int) and isinstance(groups, int) and isinstance(width, int)):
        return  # a number for each layer, or an error that llama.cpp reports itself
    key = file.metadata.get(f"{name}.attention.key_length", width // heads)
    value = file.metadata.get(f"{name}.attention.value_length", width // heads)
    if file.metadata.get(f"{name}.rope.dimension_count", 0) > key:
        raise DamagedFileError(f"{what} rotates more than the {key} numbers of a head")
    expected = {"attn_q": heads * key, "attn_k": groups * key, "attn_v": groups * value,
                "attn_qkv": heads * key + groups * (key + value)}  # fmt: skip
    for part, rows in expected.items():
        tensor = file.tensors.get(f"blk.0.{part}.weight")
        if tensor is not None and tensor.shape[0] != rows:
            raise DamagedFileError(
                f"{what} does not fit its weights: {heads} heads, {groups} of keys, sizes {key} and {value}",
                found=f"{tensor.shape[0]} rows in '{tensor.name}', not {rows}",
            )


def _check_number(value: Any, key: str, what: str, least: int) -> None:
    """A number, or an array of one for each layer, within what any model has."""
    values = value if isinstance(value, np.ndarray) else np.array([value])
    whole = values.dtype.kind in "iu" and values.size
    if not whole or int(values.min()) < min(least, 0 if values.size > 1 else least) or int(values.max()) > _LARGEST:
        raise DamagedFileError(f"{what} has an impossible value for {key}", found=str(value)[:60])
