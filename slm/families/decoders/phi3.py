"""Phi-3 and Phi-4 mini: fused QKV and fused gate and up, partly rotated heads, long RoPE. It knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.families.parts.base import Config, Metadata, positive, register, scalar
from slm.families.parts.gated import GatedDecoder, window_caveat
from slm.families.parts.rope import Rope, read_rope


@register
class Phi3(GatedDecoder):
    """Phi3ForCausalLM."""

    model_types = ("phi3",)
    architectures = ("Phi3ForCausalLM",)
    gguf_architecture = "phi3"
    own_head_size = False
    rope_kinds = ("longrope",)
    weights = {  # noqa: RUF012 - a table
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }

    def rope(self, config: Config) -> Rope:
        rope = read_rope(config)
        if rope.kind == "yarn" and "long_factor" in rope.scaling:  # an early name of it (transformers, Phi3Config)
            return Rope(rope.theta, rope.partial, "longrope", rope.scaling, rope.context)
        return rope

    def rotated(self, config: Config) -> int:
        return int(self.head_size(config) * self.rope(config).partial)

    def to_metadata(self, config: Config) -> Metadata:
        metadata = super().to_metadata(config)
        metadata["phi3.rope.scaling.original_context_length"] = int(self.rope(config).original)
        metadata["phi3.attention.sliding_window"] = int(config.get("sliding_window") or 0)
        return metadata

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        config = super().to_config(metadata, shapes)
        original = int(scalar(metadata, "phi3.rope.scaling.original_context_length", config["max_position_embeddings"]))
        window = int(scalar(metadata, "phi3.attention.sliding_window", 0))
        return {**config, "original_max_position_embeddings": original, "sliding_window": window or None}

    def caveats(self, config: Config) -> list[str]:
        context = positive(config, "max_position_embeddings")
        return super().caveats(config) + window_caveat(config.get("sliding_window"), context, self.gguf_architecture)
