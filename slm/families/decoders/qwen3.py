"""Qwen 3: RMSNorm on each head of Q and K instead of biases. It knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.families.decoders.qwen2 import qwen_caveats
from slm.families.parts.base import Config, Metadata, positive, refuse, register
from slm.families.parts.gated import GatedDecoder


@register
class Qwen3(GatedDecoder):
    """Qwen3ForCausalLM."""

    model_types = ("qwen3",)
    architectures = ("Qwen3ForCausalLM",)
    gguf_architecture = "qwen3"
    norms = GatedDecoder.norms | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}

    def head_size(self, config: Config) -> int:
        return 128 if config.get("head_dim") is None else positive(config, "head_dim")  # transformers, Qwen3Config

    def to_metadata(self, config: Config) -> Metadata:
        refuse(config, "attention_bias", lambda v: not v, "the runtime has no bias on the attention's output")
        return super().to_metadata(config)

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        own = {"attention_bias": False, "use_sliding_window": False, "sliding_window": None}
        return {**super().to_config(metadata, shapes), **own}

    def caveats(self, config: Config) -> list[str]:
        return qwen_caveats(config, self.gguf_architecture)
