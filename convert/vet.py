"""Refuses GGUF models that would end the process inside llama.cpp, before they get there.

`slm.gguf_reader` proves that sizes and offsets hold; this proves what llama.cpp only asserts or divides by. It knows
nothing of what a sound model computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convert.malformed import reading
from convert.vocab import from_metadata
from slm.errors import DamagedFileError
from slm.gguf_reader import GgufFile

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
    layers = file.metadata.get(f"{name}.block_count")
    if not isinstance(layers, int) or layers > min(_MAX_LAYERS, len(file.tensors)):
        raise DamagedFileError(f"{what} claims {layers} layers", found=f"{len(file.tensors)} tensors")
    with reading(what):
        from_metadata(file.metadata).check()


def _check_number(value: Any, key: str, what: str, least: int) -> None:
    """A number, or an array of one for each layer, within what any model has."""
    values = value if isinstance(value, np.ndarray) else np.array([value])
    whole = values.dtype.kind in "iu" and values.size
    if not whole or int(values.min()) < min(least, 0 if values.size > 1 else least) or int(values.max()) > _LARGEST:
        raise DamagedFileError(f"{what} has an impossible value for {key}", found=str(value)[:60])
