"""Rotary positions: what config.json says of them, and how GGUF says it. It knows nothing of tensors of weights.

Formulas: transformers, modeling_rope_utils.py; what the runtime makes of the keys: llama.cpp, src/llama-context.cpp and
ggml/src/ggml-cpu/ops.cpp (`rope_yarn`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.errors import DamagedFileError, UnsupportedError
from slm.families.parts.base import Config, FloatArray, Metadata, scalar

# Llama 3.x publishes these three with every size; a GGUF keeps only the resulting factors.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Tensors of divisors of the rotary frequencies, which restoring turns into configuration.
RUNTIME_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_KINDS = {"su": "longrope"}  # Phi-3's first name for it
_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}  # the runtime's, which no key changes for the families here


@dataclass(frozen=True)
class Rope:
    """Base frequency, the rotated share of a head, the kind of scaling (default: none) and its numbers."""

    theta: float
    partial: float
    kind: str
    scaling: Mapping[str, Any]
    context: int  # max_position_embeddings

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number of the scaling. Raises DamagedFileError."""
        value = self.scaling.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise DamagedFileError(f"the RoPE scaling's '{name}' is {value!r}, not a positive number")
        return float(value)

    @property
    def original(self) -> float:
        """The context length before scaling."""
        return self.number("original_max_position_embeddings", self.context)


def read_rope(config: Config, theta: float = 10_000.0, partial: float = 1.0) -> Rope:
    """`rope_parameters` (transformers 5), or `rope_theta`, `rope_scaling` and their like (before).

    theta, partial: the family's own values where the configuration is silent. Raises DamagedFileError.
    """
    parts = [config.get("rope_scaling") or {}, config.get("rope_parameters") or {}]
    if not all(isinstance(part, Mapping) for part in parts):
        raise DamagedFileError("the configuration's RoPE parameters are not an object")
    both: dict[str, Any] = {**parts[0], **parts[1]}
    kind = str(both.get("rope_type") or both.get("type") or "default")
    if config.get("original_max_position_embeddings") is not None:  # Phi-3 keeps it outside, where it takes precedence
        both["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    both["rope_theta"] = both.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or theta
    for name in ("partial_rotary_factor", "rotary_pct"):
        if both.get("partial_rotary_factor") is None:
            both["partial_rotary_factor"] = config.get(name)
    context = config.get("max_position_embeddings")
    rope = Rope(0.0, 0.0, _KINDS.get(kind, kind), both, context if isinstance(context, int) else 0)
    return Rope(rope.number("rope_theta"), rope.number("partial_rotary_factor", partial), rope.kind, both, rope.context)


def rope_metadata(rope: Rope, architecture: str, kinds: tuple[str, ...]) -> Metadata:
    """The GGUF keys of the base frequency and the scaling. Raises UnsupportedError for a kind not in `kinds`."""
    metadata: Metadata = {f"{architecture}.rope.freq_base": rope.theta}
    scaling = f"{architecture}.rope.scaling"
    if rope.kind != "default" and rope.kind not in kinds:
        raise UnsupportedError(
            f"RoPE scaling '{rope.kind}' is not supported for {architecture}", hint=f"Supported: {', '.join(kinds)}."
        )
    if rope.kind == "linear":
        metadata |= {f"{scaling}.type": "linear", f"{scaling}.factor": rope.number("factor")}
    elif rope.kind == "yarn":
        metadata |= {f"{scaling}.type": "yarn", f"{scaling}.factor": rope.number("factor")}
        metadata[f"{scaling}.original_context_length"] = int(rope.original)
        # The runtime multiplies the attention factor by YaRN's own one.
        more = _yarn_attention(rope) / _yarn_scale(rope.number("factor"))
        if not math.isclose(more, 1.0, rel_tol=1e-9):
            metadata[f"{scaling}.attn_factor"] = more
    elif rope.kind == "longrope":
        metadata[f"{scaling}.original_context_length"] = int(rope.original)
        metadata[f"{scaling}.attn_factor"] = _longrope_attention(rope)
    return metadata


def rope_tensors(rope: Rope, rotated: int) -> dict[str, FloatArray]:
    """The GGUF tensors of divisors of the rotary frequencies, each (rotated / 2,) float32."""
    if rope.kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(rope.theta, rotated, {**LLAMA3, **rope.scaling})}
    if rope.kind != "longrope":
        return {}
    tensors = {}
    for name in ("long", "short"):
        try:
            factors = np.array(rope.scaling.get(f"{name}_factor"), dtype=np.float32)
        except (TypeError, ValueError):
            factors = np.zeros(0, dtype=np.float32)
        if factors.shape != (rotated // 2,) or not np.isfinite(factors).all() or not (factors > 0).all():
            raise DamagedFileError(f"the RoPE scaling's '{name}_factor' is not {rotated // 2} positive numbers")
        tensors[f"rope_factors_{name}.weight"] = factors
    return tensors


def rope_config(metadata: Metadata, architecture: str, head_size: int) -> dict[str, Any]:
    """`rope_parameters` of config.json from GGUF's keys; the inverse of `rope_metadata` and `rope_tensors`.

    metadata: with the tensors of RUNTIME_TENSORS that the file has. Raises UnsupportedError for what no configuration
    says.
    """
    theta = float(scalar(metadata, f"{architecture}.rope.freq_base", 10_000.0))
    rotated = int(scalar(metadata, f"{architecture}.rope.dimension_count", head_size))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if rotated != head_size:
        rope["partial_rotary_factor"] = rotated / head_size
    scaling = f"{architecture}.rope.scaling"
    kind = str(metadata.get(f"{scaling}.type", "none"))
    long, short, llama3 = (metadata.get(name) for name in reversed(RUNTIME_TENSORS))
    if long is not None and short is not None:
        attention = float(scalar(metadata, f"{scaling}.attn_factor", 1.0))
        rope |= {"rope_type": "longrope", "long_factor": long.tolist(), "short_factor": short.tolist(),
                 "original_max_position_embeddings": int(scalar(metadata, f"{scaling}.original_context_length")),
                 "attention_factor": attention}  # fmt: skip
    elif llama3 is not None:
        known = {**LLAMA3, "factor": float(np.max(llama3))}
        if llama3.shape != (rotated // 2,) or not np.allclose(llama3_factors(theta, rotated, known), llama3, rtol=1e-4):
            raise UnsupportedError("the file's rope_freqs are not those of Llama 3, so no configuration says them")
        rope |= {"rope_type": "llama3", **known}
    elif kind in ("linear", "yarn"):
        factor = float(scalar(metadata, f"{scaling}.factor"))
        rope |= {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            rope["original_max_position_embeddings"] = int(scalar(metadata, f"{scaling}.original_context_length"))
            if f"{scaling}.attn_factor" in metadata:
                more = float(scalar(metadata, f"{scaling}.attn_factor"))
                rope["attention_factor"] = more * _yarn_scale(factor)
    elif kind != "none":
        raise UnsupportedError(f"RoPE scaling '{kind}' is not restored", hint="Supported: linear, llama3, yarn.")
    return rope


def llama3_factors(theta: float, head_size: int, scaling: Mapping[str, Any]) -> FloatArray:
    """Divisors of the head_size/2 rotary frequencies under Llama 3's scaling, (head_size/2,) float32.

    Formula: transformers, modeling_rope_utils.py, `_compute_llama3_parameters`.
    """
    rope = Rope(theta, 1.0, "llama3", scaling, 0)
    factor, old = rope.number("factor"), rope.original
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    factors = []
    for index in range(0, head_size, 2):
        wavelength = 2 * math.pi * theta ** (index / head_size)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def _yarn_scale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1


def _yarn_attention(rope: Rope) -> float:
    """The factor on cosine and sine under YaRN. Raises UnsupportedError for what no GGUF key says."""
    for name, value in _BETAS.items():
        if rope.number(name, value) != value:
            raise UnsupportedError(f"YaRN with '{name}' {rope.scaling[name]} is not supported: the runtime has {value}")
    if rope.scaling.get("truncate") is False:
        raise UnsupportedError("YaRN without truncation is not supported: the runtime truncates")
    if rope.scaling.get("attention_factor") is not None:
        return rope.number("attention_factor")
    factor = rope.number("factor")
    if rope.scaling.get("mscale") and rope.scaling.get("mscale_all_dim"):
        return _yarn_scale(factor, rope.number("mscale")) / _yarn_scale(factor, rope.number("mscale_all_dim"))
    return _yarn_scale(factor)


def _longrope_attention(rope: Rope) -> float:
    if rope.scaling.get("attention_factor") is not None:
        return rope.number("attention_factor")
    factor = rope.number("factor", rope.context / rope.original)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rope.original))
