"""What is in a GGUF file: architecture, vocabulary, template, tensor types, adapter, sizes. It opens no native code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convert.quantize import types_written
from convert.vocab import SPECIAL_KEYS
from slm.gguf_reader import read_gguf

# Keys shown under names of their own, or too long to show.
_SHOWN_APART = ("tokenizer.", "adapter.", "slm.")


def inspect_gguf(path: Path | str) -> dict[str, Any]:
    """Describe a GGUF file. Raises the errors of `read_gguf`."""
    file = read_gguf(path)
    metadata, tensors = file.metadata, file.tensors
    by_type: dict[str, int] = {}
    for info in tensors.values():
        by_type[info.type_name] = by_type.get(info.type_name, 0) + info.nbytes
    described: dict[str, Any] = {
        "file": str(path),
        "kind": "adapter" if file.is_adapter else str(metadata.get("general.type", "model")),
        "architecture": file.architecture,
        "name": metadata.get("general.name"),
        "size_bytes": Path(path).stat().st_size,
        "gguf_version": file.version,
        "parameters": int(sum(int(np.prod(info.shape, dtype=np.int64)) for info in tensors.values())),
        "tensors": len(tensors),
        "tensor_types": types_written(file),
        "tensor_type_bytes": by_type,
        "fingerprint": metadata.get("slm.fingerprint"),
        "template": metadata.get("tokenizer.chat_template"),
        "keys": {key: _plain(v) for key, v in metadata.items() if not key.startswith(_SHOWN_APART)},
    }
    if "tokenizer.ggml.tokens" in metadata:
        described["vocabulary"] = _vocabulary(metadata)
    if file.is_adapter:
        described["adapter"] = {
            "type": metadata.get("adapter.type"),
            "alpha": metadata.get("adapter.lora.alpha"),
            "rank": max((t.shape[0] for n, t in tensors.items() if n.endswith(".lora_a")), default=None),
            "modules": sum(name.endswith(".lora_a") for name in tensors),
            "base_fingerprint": metadata.get("slm.base_fingerprint"),
            "lang": metadata.get("slm.lang"),
        }
    return described


def _vocabulary(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    specials = {}
    for name, key in SPECIAL_KEYS.items():
        id_ = metadata.get(key)
        if isinstance(id_, int) and id_ < len(tokens):
            specials[name] = {"id": id_, "token": tokens[id_]}
    return {
        "model": metadata.get("tokenizer.ggml.model"),
        "pre": metadata.get("tokenizer.ggml.pre"),
        "tokens": len(tokens),
        "add_bos": metadata.get("tokenizer.ggml.add_bos_token"),
        "add_eos": metadata.get("tokenizer.ggml.add_eos_token"),
        "specials": specials,
    }


def _plain(value: Any) -> Any:
    """A key's value for JSON; long arrays by their length."""
    if isinstance(value, (list, np.ndarray)):
        return value[:16] if isinstance(value, list) and len(value) <= 16 else f"[{len(value)} items]"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value
