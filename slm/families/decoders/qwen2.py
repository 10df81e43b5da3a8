"""Qwen 2 and 2.5 (TinySwallow): biases on Q, K and V, rows in the checkpoint's own order. It knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.families.parts.base import Config, Metadata, positive, register
from slm.families.parts.gated import GatedDecoder, window_caveat


def qwen_caveats(config: Config, runtime: str) -> list[str]:
    """The sliding window of the layers from `max_window_layers` on, where it is switched on."""
    if not config.get("use_sliding_window") or config.get("max_window_layers", 28) >= config["num_hidden_layers"]:
        return []
    return window_caveat(config.get("sliding_window", 4096), positive(config, "max_position_embeddings"), runtime)


@register
class Qwen2(GatedDecoder):
    """Qwen2ForCausalLM."""

    model_types = ("qwen2",)
    architectures = ("Qwen2ForCausalLM",)
    gguf_architecture = "qwen2"
    own_head_size = False

    def biased(self, config: Config) -> tuple[str, ...]:
        return ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return {**super().to_config(metadata, shapes), "use_sliding_window": False, "sliding_window": None}

    def caveats(self, config: Config) -> list[str]:
        return qwen_caveats(config, self.gguf_architecture)
