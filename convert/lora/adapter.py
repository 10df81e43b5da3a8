"""PEFT LoRA folder -> adapter GGUF that computes what PEFT computes. It knows nothing of how adapters are served.

The runtime adds scale x alpha / r x B(A x) to a weight's output, r being B's inner dimension (llama.cpp,
src/llama-graph.cpp, `build_lora_mm`). PEFT scales by alpha / r, or alpha / sqrt(r) under rsLoRA, with a rank and an
alpha of their own for some modules; what the one alpha of the file cannot say is folded into B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.lora.adapter_config import MERGE, check_kind, invocation_tokens, module_scale, runtime_alpha
from convert.output.writer import OutTensor, write_gguf
from convert.source.checkpoint import Checkpoint, PlannedTensor, read_checkpoint
from convert.source.safetensors_file import TensorEntry, read_header
from convert.vocabulary.vocab_source import chat_template
from slm.artifacts import MANIFEST, new_file, read_json, read_manifest, require_folder
from slm.errors import DamagedFileError, InputError, MismatchError, MissingFileError, UnsupportedError
from slm.families.parts.base import EMBEDDING, HEAD, FloatArray
from slm.weights.adapter_origin import named_base
from slm.weights.checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, refuse_adapted, refuse_pointers
from slm.weights.gguf_reader import read_gguf
from slm.weights.identity import BASE_FINGERPRINT, BASE_WEIGHTS, check_named_base, check_same_base

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(.+)\.lora_(?:([AB])(?:\.[^.]+)?\.weight|embedding_([AB])(?:\.[^.]+)?)$")
_PIECE_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Factors:
    """The LoRA of one weight: its GGUF name, A (r, in) and B (out, r), B in GGUF's row order with the scale folded.

    The token embedding's A is (tokens, r): the runtime looks its rows up (llama-graph.cpp, `build_inp_embd`).
    """

    gguf_name: str
    a: FloatArray
    b: FloatArray


def is_adapter_folder(folder: Path | str) -> bool:
    """Whether a folder is a PEFT adapter."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def convert_adapter(folder: Path | str, out: Path | str, base: Path | str | None = None) -> dict[str, Any]:
    """Write the adapter GGUF `out` from a PEFT folder; returns {file, architecture, rank, alpha, modules, ...}.

    base: the base's checkpoint folder; default: the one the adapter's manifest or adapter_config.json names. Raises
    UnsupportedError (with the way out) for what the runtime cannot load, MismatchError for another base than the
    adapter names (where that one is here).
    """
    folder = require_folder(folder)
    if not is_adapter_folder(folder):
        raise MissingFileError(f"'{folder}' has no {ADAPTER_CONFIG}, so it is not a PEFT adapter")
    refuse_pointers(folder)
    refuse_adapted(folder)
    settings = read_json(folder / ADAPTER_CONFIG)
    check_kind(settings)
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    checkpoint = read_checkpoint(_base_folder(folder, base))
    identity = check_same_base(folder, manifest, checkpoint.folder)
    alpha = runtime_alpha(settings)
    try:
        factors = read_factors(folder, settings, checkpoint, alpha)
    except UnsupportedError:  # another base's own embedding, saved along, looks like one that was replaced
        check_named_base(folder, manifest, checkpoint.folder, identity)
        raise
    check_named_base(folder, manifest, checkpoint.folder, identity)
    keys: dict[str, Any] = {
        "general.architecture": checkpoint.family.gguf_architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
        "general.name": folder.resolve().name,
        "general.file_type": 0,
        **identity.keys(BASE_FINGERPRINT, BASE_WEIGHTS),
    }
    tokens = invocation_tokens(settings, checkpoint.vocabulary_rows)
    if tokens:
        keys["adapter.alora.invocation_tokens"] = np.array(tokens, dtype=np.uint32)
    template = chat_template(folder)
    if template:
        keys["tokenizer.chat_template"] = template
    if isinstance(manifest.get("lang"), str):
        keys["slm.lang"] = manifest["lang"]
    tensors = []
    for one in factors:
        tensors.append(OutTensor(f"{one.gguf_name}.lora_a", one.a.shape, "F32", [one.a]))
        tensors.append(OutTensor(f"{one.gguf_name}.lora_b", one.b.shape, "F32", [one.b]))
    with new_file(out) as temporary:
        with temporary.open("wb") as file:
            for _ in write_gguf(file, keys, tensors):
                pass
        read_gguf(temporary)
    return {
        "file": str(out),
        "architecture": checkpoint.family.gguf_architecture,
        "rank": max(one.b.shape[1] for one in factors),
        "alpha": float(alpha),
        "modules": len(factors),
        "size_bytes": Path(out).stat().st_size,
        "base_fingerprint": identity.fingerprint,
        "lang": keys.get("slm.lang"),
        "has_template": bool(template),
        "invocation_tokens": tokens,
    }


def _base_folder(folder: Path, base: Path | str | None) -> Path:
    if base is not None:
        return require_folder(base)
    named = named_base(folder)
    if named.folder is None:
        raise MissingFileError(
            f"the base of the adapter '{folder}' is not where it says, or cannot be read",
            found=named.fault,
            hint="Give its base with --base: a checkpoint folder, a GGUF file or a model's name.",
        )
    return named.folder


def read_factors(folder: Path, settings: Mapping[str, Any], checkpoint: Checkpoint, alpha: float) -> list[Factors]:
    """Every LoRA pair of the folder, checked against the base. Raises the errors `convert_adapter` names."""
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise MissingFileError(
            f"'{folder}' has no {ADAPTER_WEIGHTS}", hint="Save it with safe serialization (save_pretrained does)."
        )
    base = {planned.gguf_name: planned for planned in checkpoint.plan()}
    sides: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in read_header(folder / ADAPTER_WEIGHTS).items():
        match = _FACTOR.match(name.removeprefix(_PREFIX))
        if match is None:
            _check_copy(name, entry, checkpoint, base)  # PEFT saves an adapted embedding or head along
        else:
            sides.setdefault(match[1], {})[match[2] or match[3]] = entry
    if not sides:
        raise DamagedFileError(f"'{folder}' has no LoRA weights")
    return [_one(module, pair, settings, checkpoint, base, alpha) for module, pair in sorted(sides.items())]


def _check_copy(name: str, entry: TensorEntry, checkpoint: Checkpoint, base: Mapping[str, PlannedTensor]) -> None:
    """Raise UnsupportedError unless a whole weight among the adapter's is the base's own."""
    bare = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
    try:
        found = checkpoint.family.rule_for(bare, checkpoint.config)
    except UnsupportedError:
        raise UnsupportedError(f"the adapter tensor '{name}' cannot be a LoRA file's", hint=MERGE) from None
    planned = base.get(EMBEDDING if found is None else found[1])  # a head without a rule is the embedding
    if planned is None:
        raise UnsupportedError(f"the adapter tensor '{name}' cannot be a LoRA file's", hint=MERGE)
    own = planned.entry
    if entry.shape[1:] == own.shape[1:] and entry.shape[0] > own.shape[0]:
        more = entry.shape[0] - own.shape[0]
        raise UnsupportedError(f"the adapter has {more:,} tokens more than its base ('{name}')", hint=MERGE)
    step = max(1, _PIECE_ELEMENTS // math.prod(own.shape[1:]))
    if entry.shape != own.shape or not all(
        np.array_equal(entry.read(i, i + step), own.read(i, i + step)) for i in range(0, own.shape[0], step)
    ):
        raise UnsupportedError(f"the adapter replaces the whole weight '{bare}'", hint=MERGE)


def _one(
    module: str,
    pair: Mapping[str, TensorEntry],
    settings: Mapping[str, Any],
    checkpoint: Checkpoint,
    base: Mapping[str, PlannedTensor],
    alpha: float,
) -> Factors:
    if set(pair) != {"A", "B"}:
        raise DamagedFileError(f"the adapter has only one of lora_A and lora_B for '{module}'")
    a, b = (_finite(pair[side].read(), pair[side].name) for side in "AB")
    try:
        found = checkpoint.family.rule_for(f"{module}.weight", checkpoint.config)
    except UnsupportedError as error:
        raise MismatchError(
            f"the adapter's module '{module}' is not part of its base '{checkpoint.folder}'",
            hint="Name the adapter's own base with --base.",
        ) from error
    gguf_name = EMBEDDING if found is None else found[1]
    if gguf_name == EMBEDDING and HEAD not in base:
        # One tensor in GGUF: the runtime would apply the pair to the embedding and to the head alike.
        raise UnsupportedError(
            f"the adapter changes '{module}', but the base's embedding and head are one tensor", hint=MERGE
        )
    if found is None or gguf_name == "position_embd.weight" or gguf_name not in base:
        raise UnsupportedError(f"the adapter changes '{module}', where the runtime has no place for one", hint=MERGE)
    shape = base[gguf_name].shape
    # An embedding's pair is looked up by token: A is (r, tokens), B (width, r).
    expected = shape[::-1] if gguf_name == EMBEDDING else shape
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != expected:
        raise MismatchError(
            f"the adapter does not fit its base at '{module}'",
            found=f"A {a.shape}, B {b.shape}; the weight is {expected} (out, in)",
            hint="Name the adapter's own base with --base.",
        )
    rank = int(a.shape[0])
    factor = module_scale(settings, module, rank) * rank / alpha
    if not math.isclose(factor, 1.0, rel_tol=1e-12):
        b = b * np.float32(factor)
    if gguf_name == EMBEDDING:
        return Factors(gguf_name, np.ascontiguousarray(a.T), np.ascontiguousarray(b))
    return Factors(gguf_name, np.ascontiguousarray(a), np.ascontiguousarray(found[0].transform.lora_b(b)))


def _finite(values: FloatArray, name: str) -> FloatArray:
    if not np.isfinite(values).all():
        raise InputError(
            f"the adapter tensor '{name}' has NaN or infinite values", hint="The training has diverged; train it again."
        )
    return values
