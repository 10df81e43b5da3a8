"""Llama and what shares its graph (SmolLM2, TinyLlama): RoPE, grouped K/V heads, SwiGLU. It knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from convert.families.base import Config, Metadata, RopePermuted, Transform, positive, register, scalar
from convert.families.gated import GatedDecoder
from convert.families.rope import LLAMA3, llama3_factors
from slm.errors import DamagedFileError, UnsupportedError


@register
class Llama(GatedDecoder):
    """LlamaForCausalLM."""

    model_types = ("llama",)
    architectures: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM", "LLaMAForCausalLM")
    gguf_architecture = "llama"
    rope_kinds = ("linear", "llama3", "yarn", "longrope")

    def biased(self, config: Config) -> tuple[str, ...]:
        attention = [name for name in self.weights if name.startswith("self_attn.") and config.get("attention_bias")]
        return (*attention, *(name for name in self.weights if name.startswith("mlp.") and config.get("mlp_bias")))

    def transforms(self, config: Config) -> dict[str, Transform]:
        return {
            "self_attn.q_proj": RopePermuted(positive(config, "num_attention_heads")),
            "self_attn.k_proj": RopePermuted(self.kv_heads(config)),
        }

    def to_metadata(self, config: Config) -> Metadata:
        metadata = {"llama.vocab_size": positive(config, "vocab_size"), **super().to_metadata(config)}
        if self.rope(config).kind == "longrope":
            metadata["llama.rope.scaling.type"] = "longrope"  # only then does this graph look for the factors
        return metadata

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
            llama3 = {**LLAMA3, "factor": float(np.max(factors))}
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
