"""Adapter GGUF -> PEFT LoRA folder that adds to the base's checkpoint what the runtime adds to its GGUF.

The inverse of `convert.lora.adapter`: the same names and shapes by the family's table, B's rows in the checkpoint's
order again. Factors come back bit by bit. The one alpha of the file is PEFT's for all modules, so what a PEFT folder
said by rsLoRA or an alpha of some modules' own comes back as the same update in other words.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.lora.adapter_config import invocation_tokens
from convert.output.version import converter_version
from convert.source.checkpoint import Checkpoint, read_checkpoint
from convert.source.safetensors_file import SafetensorsWriter
from slm.artifacts import new_folder
from slm.errors import DamagedFileError, InputError, MismatchError, UnsupportedError
from slm.families.parts.base import EMBEDDING, HEAD, FloatArray
from slm.families.parts.encoder import Encoder
from slm.families.targets import adapted_layers, keeps_columns_first
from slm.terminal.console import note
from slm.weights.checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from slm.weights.gguf_reader import GgufFile, read_gguf
from slm.weights.identity import BASE_FINGERPRINT, BASE_WEIGHTS, check_same_base, text_of

_FACTOR = re.compile(r"(.+)\.lora_([ab])")
_PLACES = ("blk.", EMBEDDING, HEAD)
_OWN_BASE = "Name the adapter's own base."


@dataclass(frozen=True)
class PeftFactors:
    """The LoRA of one module as PEFT keeps it: A (r, in), B (out, r); of an embedding A (r, tokens), B (width, r)."""

    gguf_name: str
    module: str
    a: FloatArray
    b: FloatArray

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def tensors(self) -> dict[str, FloatArray]:
        """By the names that PEFT saves them under (an embedding's are parameters, the others modules)."""
        place = f"base_model.model.{self.module}.lora_"
        if self.gguf_name == EMBEDDING:
            return {f"{place}embedding_A": self.a, f"{place}embedding_B": self.b}
        return {f"{place}A.weight": self.a, f"{place}B.weight": self.b}


def restore_adapter(file: Path | str, out: Path | str, base: Path | str) -> dict[str, Any]:
    """Write the PEFT folder `out` from an adapter GGUF and its base's checkpoint folder; returns its manifest.

    Raises UnsupportedError for what no PEFT folder of this base can say, MismatchError for another base than the file
    names or fits, DamagedFileError.
    """
    source = read_gguf(file)
    if not source.is_adapter:
        raise InputError(f"'{source.path}' is a model, not an adapter", hint="A model is restored without a base.")
    kind = source.metadata.get("adapter.type")
    if kind != "lora":
        raise UnsupportedError(f"'{source.path}' is an adapter of the kind '{kind}', not a LoRA")
    checkpoint = read_checkpoint(base)
    names = {"fingerprint": BASE_FINGERPRINT, "weights": BASE_WEIGHTS}
    told = {name: value for name, key in names.items() if (value := text_of(source.metadata, key))}
    check_same_base(source.path, {"base": told}, checkpoint.folder)
    architecture = checkpoint.family.gguf_architecture
    if source.architecture != architecture:
        raise MismatchError(
            f"'{source.path}' is an adapter of a {source.architecture} model, and '{base}' is {architecture}",
            hint=_OWN_BASE,
        )
    factors = _read_factors(source, checkpoint)
    settings = _settings(source, checkpoint, factors)
    if not told:
        note(f"taking {checkpoint.folder} as the base of '{source.path.name}', which names none")
    with new_folder(out, "adapter") as (folder, manifest):
        (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        _write_weights(folder / ADAPTER_WEIGHTS, factors)
        if template := text_of(source.metadata, "tokenizer.chat_template"):
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8", errors="replace")
        manifest.update(
            made_by="restore",
            converter=converter_version(),
            base={"path": str(checkpoint.folder.resolve()), **told},
            lang=text_of(source.metadata, "slm.lang"),
            source={"file": source.path.name, "name": text_of(source.metadata, "general.name")},
        )
        return dict(manifest)


def _read_factors(source: GgufFile, checkpoint: Checkpoint) -> list[PeftFactors]:
    """Every pair of the file, in the order of the base's own weights."""
    pairs: dict[str, dict[str, FloatArray]] = {}
    for name in source.tensors:
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise UnsupportedError(f"'{source.path}' has the tensor '{name[:80]}', which is no factor of a LoRA")
        pairs.setdefault(match[1], {})[match[2]] = _finite(source, name)
    if not pairs:
        raise DamagedFileError(f"'{source.path}' has no LoRA weights")
    shapes = {planned.gguf_name: planned.shape for planned in checkpoint.plan()}
    # Tables of positions and of token types are looked up as well, and the runtime has no place for an adapter there.
    places = [name for name in checkpoint.family.modules(checkpoint.config) if name.startswith(_PLACES)]
    if strays := sorted(pairs.keys() - set(places)):
        raise MismatchError(
            f"'{source.path}' changes '{strays[0][:80]}', where '{checkpoint.folder}' has no place for an adapter",
            hint=_OWN_BASE,
        )
    if EMBEDDING in pairs and HEAD not in shapes:
        # The runtime would apply the pair to the embedding and to the head alike; PEFT has no word for that.
        raise UnsupportedError(f"'{source.path}' changes the token embedding, which is the head of its base as well")
    return [_one(source, name, pairs[name], shapes[name], checkpoint) for name in places if name in pairs]


def _one(
    source: GgufFile, gguf_name: str, pair: Mapping[str, FloatArray], shape: tuple[int, ...], checkpoint: Checkpoint
) -> PeftFactors:
    if set(pair) != {"a", "b"}:
        raise DamagedFileError(f"'{source.path}' has only one of lora_a and lora_b for '{gguf_name}'")
    rule, module = checkpoint.family.modules(checkpoint.config)[gguf_name]
    a, b = pair["a"], pair["b"]
    if gguf_name == EMBEDDING and a.ndim == 2:  # looked up by token in GGUF: A is (tokens, r)
        a, shape = np.ascontiguousarray(a.T), shape[::-1]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != shape:
        raise MismatchError(
            f"'{source.path}' does not fit '{checkpoint.folder}' at '{gguf_name}'",
            found=f"A {a.shape}, B {b.shape}; the weight is {shape} (out, in)",
            hint=_OWN_BASE,
        )
    return PeftFactors(gguf_name, module, a, rule.transform.lora_b_to_checkpoint(b))


def _finite(source: GgufFile, name: str) -> FloatArray:
    values = source.dequantized(name)
    if not np.isfinite(values).all():
        raise DamagedFileError(f"the tensor '{name}' of '{source.path}' has NaN or infinite values")
    return values


def _settings(source: GgufFile, checkpoint: Checkpoint, factors: Sequence[PeftFactors]) -> dict[str, Any]:
    """adapter_config.json: alpha / r of each module is the scale that the runtime gives it."""
    alpha = source.metadata.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not alpha > 0 or not math.isfinite(alpha):
        raise DamagedFileError(f"'{source.path}' has no positive number as adapter.lora.alpha", found=repr(alpha)[:40])
    family, config = checkpoint.family, checkpoint.config
    rank = Counter(one.rank for one in factors).most_common(1)[0][0]
    targets, layers = adapted_layers(family, config, [one.gguf_name for one in factors])
    tokens = source.metadata.get("adapter.alora.invocation_tokens")
    activated = {"alora_invocation_tokens": tokens.tolist() if isinstance(tokens, np.ndarray) else tokens}
    is_activated = bool(invocation_tokens(activated, checkpoint.vocabulary_rows))
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION" if isinstance(family, Encoder) else "CAUSAL_LM",
        "base_model_name_or_path": str(checkpoint.folder.resolve()),
        "r": rank,
        # The number as it was before it became a float32: 0.1, and not 0.10000000149.
        "lora_alpha": float(str(np.float32(alpha))),
        "rank_pattern": {re.escape(one.module): one.rank for one in factors if one.rank != rank},
        "target_modules": sorted(targets),
        "layers_to_transform": layers,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": keeps_columns_first(family, config),
        "inference_mode": True,
        **(activated if is_activated else {}),
    }


def _write_weights(path: Path, factors: Sequence[PeftFactors]) -> None:
    tensors = {name: tensor for one in factors for name, tensor in one.tensors().items()}
    with path.open("wb") as file:
        writer = SafetensorsWriter(file, {name: tensor.shape for name, tensor in tensors.items()}, "F32")
        for tensor in tensors.values():
            writer.write(iter([tensor]))
