"""What is in a GGUF file: architecture, vocabulary, template, tensor types, adapter, sizes. It opens no native code."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from convert.quantize.quantize import types_written
from convert.vocabulary.base.vocab import SPECIAL_KEYS
from slm.weights.gguf_reader import read_gguf
from slm.weights.identity import BASE_FINGERPRINT, FINGERPRINT, text_of

# Token types, llama.cpp include/llama.h.
_TYPE_NAMES = {1: "normal", 2: "unknown", 3: "control", 4: "user_defined", 5: "unused", 6: "byte"}
# Keys shown under names of their own, or too long to show.
_SHOWN_APART = ("tokenizer.", "adapter.", "slm.")


def inspect_gguf(path: Path | str) -> dict[str, Any]:
    """Describe a GGUF file. Raises the errors of `read_gguf`."""
    file = read_gguf(path)
    metadata, tensors = file.metadata, file.tensors
    by_type: dict[str, int] = {}
    for info in tensors.values():
        by_type[info.type_name] = by_type.get(info.type_name, 0) + info.nbytes
    parameters = sum(math.prod(info.shape) for info in tensors.values())
    described: dict[str, Any] = {
        "file": str(path),
        "kind": "adapter" if file.is_adapter else str(metadata.get("general.type", "model")),
        "architecture": file.architecture,
        "name": text_of(metadata, "general.name"),
        "size_bytes": Path(path).stat().st_size,
        "header_bytes": min((info.offset for info in tensors.values()), default=Path(path).stat().st_size),
        "context_length": _plain(metadata.get(f"{file.architecture}.context_length")),
        "gguf_version": file.version,
        "parameters": parameters,
        "bits_per_weight": round(8 * sum(by_type.values()) / parameters, 3) if parameters else None,
        "tensors": len(tensors),
        "tensor_types": types_written(file),
        "tensor_type_bytes": by_type,
        "fingerprint": text_of(metadata, FINGERPRINT),
        "template": text_of(metadata, "tokenizer.chat_template"),
        "keys": {key: _plain(v) for key, v in metadata.items() if not key.startswith(_SHOWN_APART)},
    }
    if isinstance(metadata.get("tokenizer.ggml.tokens"), list):
        described["vocabulary"] = _vocabulary(metadata)
    if file.is_adapter:
        described["adapter"] = {
            "type": text_of(metadata, "adapter.type"),
            "alpha": _plain(metadata.get("adapter.lora.alpha")),
            "rank": max((t.shape[0] for n, t in tensors.items() if n.endswith(".lora_a")), default=None),
            "modules": sum(name.endswith(".lora_a") for name in tensors),
            "base_fingerprint": text_of(metadata, BASE_FINGERPRINT),
            "lang": text_of(metadata, "slm.lang"),
        }
    return described


def _vocabulary(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    specials = {}
    for name, key in SPECIAL_KEYS.items():
        id_ = metadata.get(key)
        if isinstance(id_, int) and 0 <= id_ < len(tokens):
            specials[name] = {"id": id_, "token": tokens[id_]}
    types = metadata.get("tokenizer.ggml.token_type")
    counts = Counter(np.asarray(types).tolist()) if isinstance(types, np.ndarray) else Counter()
    return {
        "model": text_of(metadata, "tokenizer.ggml.model"),
        "pre": text_of(metadata, "tokenizer.ggml.pre"),
        "tokens": len(tokens),
        "token_types": {_TYPE_NAMES.get(kind, str(kind)): count for kind, count in counts.most_common()},
        "merges": len(metadata.get("tokenizer.ggml.merges", [])),
        "add_bos": _plain(metadata.get("tokenizer.ggml.add_bos_token")),
        "add_eos": _plain(metadata.get("tokenizer.ggml.add_eos_token")),
        "specials": specials,
    }


def list_tensors(path: Path | str) -> list[dict[str, Any]]:
    """Every tensor in the file's order: {name, type, shape (slowest first), size_bytes}."""
    return [
        {"name": info.name, "type": info.type_name, "shape": list(info.shape), "size_bytes": info.nbytes}
        for info in read_gguf(path).tensors.values()
    ]


def _plain(value: Any) -> Any:
    """A key's value for JSON; long arrays by their length."""
    if isinstance(value, (list, np.ndarray)):
        items = value.tolist() if isinstance(value, np.ndarray) else value
        return [_plain(item) for item in items] if len(items) <= 16 else f"[{len(items)} items]"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value
