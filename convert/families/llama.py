"""Llama and what shares its graph (SmolLM2, TinyLlama): RoPE, grouped K/V heads, SwiGLU. It knows nothing of files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.families.base import (
    Config,
    Family,
    FloatArray,
    Metadata,
    RopePermuted,
    Rule,
    positive,
    refuse,
    register,
    scalar,
)
from slm.errors import DamagedFileError, UnsupportedError

# Llama 3.x publishes these three with every size; a GGUF keeps only the resulting factors.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _rope(config: Config) -> tuple[float, dict[str, Any]]:
    """(theta, scaling) out of `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (before)."""
    both = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(both.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = str(both.get("rope_type") or both.get("type") or "default")
    return theta, {**both, "rope_type": kind}


def _head_size(config: Config) -> int:
    return int(config.get("head_dim") or positive(config, "hidden_size") // positive(config, "num_attention_heads"))


def llama3_factors(theta: float, head_size: int, scaling: Mapping[str, Any]) -> FloatArray:
    """Divisors of the head_size/2 rotary frequencies under Llama 3's scaling, (head_size/2,) float32.

    Formula: transformers, modeling_rope_utils.py, `_compute_llama3_parameters`.
    """
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    old = float(scaling["original_max_position_embeddings"])
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


@register
class Llama(Family):
    """LlamaForCausalLM."""

    model_types = ("llama",)
    architectures = ("LlamaForCausalLM",)
    gguf_architecture = "llama"
    prefix = "model."
    ignored = (".rotary_emb.inv_freq",)

    def layers(self, config: Config) -> int:
        return positive(config, "num_hidden_layers")

    def rules(self, config: Config) -> list[Rule]:
        heads = positive(config, "num_attention_heads")
        q, k = RopePermuted(heads), RopePermuted(int(config.get("num_key_value_heads") or heads))
        rules = [
            Rule("embed_tokens.weight", "token_embd.weight"),
            Rule("norm.weight", "output_norm.weight"),
            Rule("layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight"),
            Rule("layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight"),
            Rule("layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", q),
            Rule("layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight", k),
            Rule("layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight"),
            Rule("layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight"),
            Rule("layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight"),
            Rule("layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight"),
            Rule("layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight"),
        ]
        if config.get("attention_bias"):
            rules += [
                Rule("layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias", q),
                Rule("layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias", k),
                Rule("layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias"),
                Rule("layers.{i}.self_attn.o_proj.bias", "blk.{i}.attn_output.bias"),
            ]
        if config.get("mlp_bias"):
            names = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
            rules += [Rule(f"layers.{{i}}.mlp.{a}.bias", f"blk.{{i}}.{b}.bias") for a, b in names.items()]
        return [*rules, Rule("lm_head.weight", "output.weight")]

    def to_metadata(self, config: Config) -> Metadata:
        refuse(config, "hidden_act", lambda v: v in (None, "silu"), "only silu")
        heads, size = positive(config, "num_attention_heads"), _head_size(config)
        theta, scaling = _rope(config)
        metadata: Metadata = {
            "llama.vocab_size": positive(config, "vocab_size"),
            "llama.context_length": positive(config, "max_position_embeddings"),
            "llama.embedding_length": positive(config, "hidden_size"),
            "llama.block_count": positive(config, "num_hidden_layers"),
            "llama.feed_forward_length": positive(config, "intermediate_size"),
            "llama.attention.head_count": heads,
            "llama.attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
            "llama.attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
            "llama.attention.key_length": size,
            "llama.attention.value_length": size,
            "llama.rope.dimension_count": size,
            "llama.rope.freq_base": theta,
        }
        if scaling["rope_type"] == "linear":
            metadata["llama.rope.scaling.type"] = "linear"
            metadata["llama.rope.scaling.factor"] = float(scaling["factor"])
        elif scaling["rope_type"] not in ("default", "llama3"):
            raise UnsupportedError(
                f"RoPE scaling '{scaling['rope_type']}' is not supported", hint="Supported: linear, llama3."
            )
        return metadata

    def extra_tensors(self, config: Config) -> dict[str, FloatArray]:
        theta, scaling = _rope(config)
        if scaling["rope_type"] != "llama3":
            return {}
        return {"rope_freqs.weight": llama3_factors(theta, _head_size(config), {**_LLAMA3, **scaling})}

    def runtime_tensors(self) -> tuple[str, ...]:
        return ("rope_freqs.weight",)

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        if int(metadata.get("llama.expert_count", 0) or 0):
            raise UnsupportedError("a mixture of experts is not restored")
        heads = int(scalar(metadata, "llama.attention.head_count"))
        width = int(scalar(metadata, "llama.embedding_length"))
        size = int(scalar(metadata, "llama.attention.key_length", width // heads))
        theta = float(scalar(metadata, "llama.rope.freq_base", 10_000.0))
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
        kind = str(metadata.get("llama.rope.scaling.type", "none"))
        if kind == "linear":
            rope.update(rope_type="linear", factor=float(scalar(metadata, "llama.rope.scaling.factor")))
        elif kind != "none":
            raise UnsupportedError(f"RoPE scaling '{kind}' is not restored", hint="Supported: linear, llama3.")
        factors = metadata.get("rope_freqs.weight")  # put here by the restorer
        if factors is not None:
            llama3 = {**_LLAMA3, "factor": float(np.max(factors))}
            if factors.shape != (size // 2,) or not np.allclose(
                llama3_factors(theta, size, llama3), factors, rtol=1e-4
            ):
                raise UnsupportedError("the file's rope_freqs are not those of Llama 3, so no configuration says them")
            rope.update(rope_type="llama3", **llama3)
        if "token_embd.weight" not in shapes:
            raise DamagedFileError("the GGUF file lacks the tensor 'token_embd.weight'")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": shapes["token_embd.weight"][0],
            "hidden_size": width,
            "intermediate_size": int(scalar(metadata, "llama.feed_forward_length")),
            "num_hidden_layers": int(scalar(metadata, "llama.block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": int(scalar(metadata, "llama.attention.head_count_kv", heads)),
            "head_dim": size,
            "hidden_act": "silu",
            "max_position_embeddings": int(scalar(metadata, "llama.context_length")),
            "rms_norm_eps": round(float(scalar(metadata, "llama.attention.layer_norm_rms_epsilon")), 12),
            "rope_theta": theta,
            "rope_parameters": rope,
            "attention_bias": "blk.0.attn_q.bias" in shapes,
            "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
            "tie_word_embeddings": "output.weight" not in shapes,
        }
