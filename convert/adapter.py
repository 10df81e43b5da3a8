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

from convert.checkpoint import Checkpoint, read_checkpoint
from convert.families.base import FloatArray
from convert.safetensors_file import Entry, read_header
from convert.vocab_source import chat_template, read_json
from convert.writer import OutTensor, write_gguf
from slm.artifacts import MANIFEST, checkpoint_fingerprint, new_file, read_manifest, require_folder
from slm.errors import DamagedFileError, InputError, MismatchError, MissingFileError, UnsupportedError
from slm.gguf_reader import read_gguf

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_MERGE = "Merge it into its base instead: slm merge --base BASE --adapter DIR -o OUT, then convert OUT."
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")
# Initializations that move the base's own weights, so that the adapter does not fit the original base.
_MOVED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Factors:
    """The LoRA of one weight: its GGUF name, A (r, in) and B (out, r), B in GGUF's row order with the scale folded."""

    gguf_name: str
    a: FloatArray
    b: FloatArray


def is_adapter_folder(folder: Path | str) -> bool:
    """Whether a folder is a PEFT adapter."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def convert_adapter(folder: Path | str, out: Path | str, base: Path | str | None = None) -> dict[str, Any]:
    """Write the adapter GGUF `out` from a PEFT folder; returns {file, architecture, rank, alpha, modules, ...}.

    base: the base's checkpoint folder; default: the one the adapter's manifest or adapter_config.json names. Raises
    UnsupportedError (with the way out) for what the runtime cannot load, MismatchError for another base.
    """
    folder = require_folder(folder)
    if not is_adapter_folder(folder):
        raise MissingFileError(f"'{folder}' has no {ADAPTER_CONFIG}, so it is not a PEFT adapter")
    settings = read_json(folder / ADAPTER_CONFIG)
    _check_kind(settings)
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    checkpoint = read_checkpoint(_base_folder(folder, base, settings, manifest))
    fingerprint = checkpoint_fingerprint(checkpoint.folder)
    expected = (manifest.get("base") or {}).get("fingerprint")
    if isinstance(expected, str) and expected != fingerprint:
        raise MismatchError(
            f"the adapter '{folder}' was trained on another base than '{checkpoint.folder}'",
            found=f"fingerprint {fingerprint[:12]}, the adapter's base has {expected[:12]}",
            hint="Name its base with --base.",
        )
    alpha = runtime_alpha(settings)
    factors = read_factors(folder, settings, checkpoint, alpha)
    keys: dict[str, Any] = {
        "general.architecture": checkpoint.family.gguf_architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
        "general.name": folder.resolve().name,
        "general.file_type": 0,
        "slm.base_fingerprint": fingerprint,
    }
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
        "rank": max(one.a.shape[0] for one in factors),
        "alpha": float(alpha),
        "modules": len(factors),
        "size_bytes": Path(out).stat().st_size,
        "base_fingerprint": fingerprint,
        "lang": keys.get("slm.lang"),
        "has_template": bool(template),
    }


def _base_folder(
    folder: Path, base: Path | str | None, settings: Mapping[str, Any], manifest: Mapping[str, Any]
) -> Path:
    if base is not None:
        return require_folder(base)
    for named in ((manifest.get("base") or {}).get("path"), settings.get("base_model_name_or_path")):
        if isinstance(named, str) and named and (Path(named) / "config.json").is_file():
            return Path(named)
    raise MissingFileError(
        f"the base of the adapter '{folder}' is not where it says",
        found=str(settings.get("base_model_name_or_path") or "no name"),
        hint="Give the base's checkpoint folder with --base.",
    )


def _check_kind(settings: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for every kind of adapter whose effect a LoRA GGUF cannot hold."""
    kind = str(settings.get("peft_type", "?"))
    if kind != "LORA":
        raise UnsupportedError(f"a '{kind}' adapter is not supported", hint=f"Supported: LORA. {_MERGE}")
    reasons = {
        "use_dora": "DoRA rescales the base's weights",
        "modules_to_save": "it replaces whole modules",
        "trainable_token_indices": "it changes single tokens' embeddings",
        "lora_bias": "it trains biases",
        "layer_replication": "it repeats layers of the base",
        "target_parameters": "it adapts bare parameters",
        "alora_invocation_tokens": "it is active only after certain tokens",
        "use_bdlora": "its factors are block-diagonal",
        "use_qalora": "it pools its input",
        "kasa_config": "it changes the base's weights",
        "monteclora_config": "it samples its weights",
        "arrow_config": "it routes between adapters",
    }
    for name, why in reasons.items():
        if settings.get(name):
            raise UnsupportedError(f"an adapter with '{name}' cannot be a LoRA file: {why}", hint=_MERGE)
    if settings.get("bias", "none") != "none":
        raise UnsupportedError(f"an adapter with bias '{settings['bias']}' cannot be a LoRA file", hint=_MERGE)
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVED_BASE):
        raise UnsupportedError(f"an adapter initialized by '{start}' does not fit the original base", hint=_MERGE)


def _number(settings: Mapping[str, Any], name: str) -> float:
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0 or not math.isfinite(value):
        raise DamagedFileError(f"'{name}' of the adapter's configuration is {value!r}, not a positive number")
    return float(value)


def runtime_alpha(settings: Mapping[str, Any]) -> float:
    """The alpha of the file: such that alpha / r is PEFT's scale for the modules without a pattern of their own."""
    alpha = _number(settings, "lora_alpha")
    return alpha * math.sqrt(_number(settings, "r")) if settings.get("use_rslora") else alpha


def module_scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's scale of one module (peft/tuners/lora/layer.py, `update_layer`): alpha / r or alpha / sqrt(r)."""
    alphas = settings.get("alpha_pattern") or {}
    # peft/utils/other.py, `get_pattern_key`: a pattern matches a whole name or its end after a dot.
    key = next((k for k in alphas if re.match(rf"(.*\.)?({k})$", module)), None)
    alpha = _number(settings, "lora_alpha") if key is None else _number(alphas, key)
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def read_factors(folder: Path, settings: Mapping[str, Any], checkpoint: Checkpoint, alpha: float) -> list[Factors]:
    """Every LoRA pair of the folder, checked against the base. Raises the errors `convert_adapter` names."""
    if not (folder / _WEIGHTS).exists():
        raise MissingFileError(
            f"'{folder}' has no {_WEIGHTS}", hint="Save it with safe serialization (save_pretrained does)."
        )
    sides: dict[str, dict[str, Entry]] = {}
    for name, entry in read_header(folder / _WEIGHTS).items():
        if name.endswith(".base_layer.weight") and _is_the_base(name, entry, checkpoint):
            continue  # PEFT saves the adapted head's own weight along
        match = _FACTOR.match(name.removeprefix(_PREFIX))
        if match is None:
            raise UnsupportedError(f"the adapter tensor '{name}' cannot be a LoRA file's", hint=_MERGE)
        sides.setdefault(match["module"], {})[match["side"]] = entry
    if not sides:
        raise DamagedFileError(f"'{folder}' has no LoRA weights")
    return [_one(module, pair, settings, checkpoint, alpha) for module, pair in sorted(sides.items())]


def _is_the_base(name: str, entry: Entry, checkpoint: Checkpoint) -> bool:
    own = checkpoint.entries.get(name.removeprefix(_PREFIX).replace(".base_layer.weight", ".weight"))
    return own is not None and own.shape == entry.shape and bool(np.array_equal(own.read(), entry.read()))


def _one(
    module: str, pair: Mapping[str, Entry], settings: Mapping[str, Any], checkpoint: Checkpoint, alpha: float
) -> Factors:
    if set(pair) != {"A", "B"}:
        raise DamagedFileError(f"the adapter has only one of lora_A and lora_B for '{module}'")
    a, b = (_finite(pair[side].read(), pair[side].name) for side in "AB")
    family, config = checkpoint.family, checkpoint.config
    try:
        found = family.rule_for(f"{module}.weight", config)
    except UnsupportedError as error:
        raise MismatchError(
            f"the adapter's module '{module}' is not part of its base '{checkpoint.folder}'",
            hint="Name the adapter's own base with --base.",
        ) from error
    if found is None:
        raise UnsupportedError(f"the adapter changes '{module}', which is tied to the embedding", hint=_MERGE)
    rule, gguf_name = found
    if gguf_name == "token_embd.weight" or gguf_name == "position_embd.weight":
        raise UnsupportedError(f"the adapter changes the embedding '{module}'", hint=_MERGE)
    names = {f"{module}.weight", f"{module}.weight".removeprefix(family.prefix)}
    entry = next((checkpoint.entries[n] for n in names if n in checkpoint.entries), None)
    if entry is None:
        raise MismatchError(f"the base '{checkpoint.folder}' has no weight '{module}'")
    shape = rule.transform.gguf_shape(entry.shape)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != shape:
        raise MismatchError(
            f"the adapter does not fit its base at '{module}'",
            found=f"A {a.shape}, B {b.shape}; the weight is {shape} (out, in)",
            hint="Name the adapter's own base with --base.",
        )
    rank = int(a.shape[0])
    factor = module_scale(settings, module, rank) * rank / alpha
    if not math.isclose(factor, 1.0, rel_tol=1e-12):
        b = b * np.float32(factor)
    return Factors(gguf_name, np.ascontiguousarray(a), np.ascontiguousarray(rule.transform.lora_b(b)))


def _finite(values: FloatArray, name: str) -> FloatArray:
    if not np.isfinite(values).all():
        raise InputError(
            f"the adapter tensor '{name}' has NaN or infinite values", hint="The training has diverged; train it again."
        )
    return values
