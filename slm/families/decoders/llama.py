"""Llama and what shares its graph (SmolLM2, TinyLlama): RoPE, grouped K/V heads, SwiGLU. It knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from slm.families.parts.base import Config, Metadata, RopePermuted, Transform, positive, register
from slm.families.parts.gated import GatedDecoder


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

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        biases = {"attention_bias": "blk.0.attn_q.bias" in shapes, "mlp_bias": "blk.0.ffn_gate.bias" in shapes}
        return {**super().to_config(metadata, shapes), **biases}
