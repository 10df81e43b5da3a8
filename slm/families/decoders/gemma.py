"""Gemma and Gemma 2: norms of 1 + weight, a head always tied; Gemma 2 adds soft caps, more norms, a sliding window.

It knows nothing of files. The runtime scales the embedding by sqrt(width) itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.families.parts.base import Config, Metadata, PlusOne, positive, refuse, register, scalar
from slm.families.parts.gated import GatedDecoder

_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # the published values


@register
class Gemma(GatedDecoder):
    """GemmaForCausalLM."""

    model_types = ("gemma",)
    architectures = ("GemmaForCausalLM",)
    gguf_architecture = "gemma"
    norm = PlusOne()
    rope_kinds = ("linear",)
    activation_names = ("hidden_act", "hidden_activation")
    activations = ("gelu", "gelu_pytorch_tanh")  # the published files say gelu where the tanh approximation is meant

    def is_tied(self, config: Config) -> bool:
        return bool(config.get("tie_word_embeddings", True))

    def head_size(self, config: Config) -> int:
        return 256 if config.get("head_dim") is None else positive(config, "head_dim")  # transformers, GemmaConfig

    def to_metadata(self, config: Config) -> Metadata:
        refuse(config, "attention_bias", lambda v: not v, "the runtime does not do it")
        refuse(config, "use_bidirectional_attention", lambda v: not v, "only causal models")
        refuse(config, "tie_word_embeddings", lambda v: v is not False, "the runtime takes the embedding as the head")
        return super().to_metadata(config)

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return {**super().to_config(metadata, shapes), "attention_bias": False}


def alternating(layers: int, period: int) -> list[str]:
    """`layer_types` where every `period`-th layer sees the whole context."""
    return ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)]


@register
class Gemma2(Gemma):
    """Gemma2ForCausalLM."""

    model_types = ("gemma2",)
    architectures = ("Gemma2ForCausalLM",)
    gguf_architecture = "gemma2"
    norms = {  # noqa: RUF012 - a table
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }

    def to_metadata(self, config: Config) -> Metadata:
        layers, heads = self.layers(config), positive(config, "num_attention_heads")
        scale = _attention_scale(layers, positive(config, "hidden_size"), heads, self.head_size(config))
        refuse(config, "query_pre_attn_scalar", lambda v: (256 if v is None else v) == scale, f"it must be {scale}")
        refuse(config, "layer_types", lambda v: v in (None, alternating(layers, 2)), "every other layer slides")
        caps = dict(_CAPS)
        for name in caps:
            # Absent means the published value; null means no cap, which the runtime's graph cannot do.
            value = config.get(name, caps[name])
            refuse({name: value}, name, lambda v: isinstance(v, (int, float)) and v > 0, "the runtime always caps")
            caps[name] = float(value)
        return {
            **super().to_metadata(config),
            **{f"gemma2.{name}": value for name, value in caps.items()},
            "gemma2.attention.sliding_window": positive({"sliding_window": 4096, **config}, "sliding_window"),
        }

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        config = super().to_config(metadata, shapes)
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        return {
            **config,
            "query_pre_attn_scalar": _attention_scale(layers, config["hidden_size"], heads, config["head_dim"]),
            "layer_types": alternating(layers, 2),
            "sliding_window": int(scalar(metadata, "gemma2.attention.sliding_window", 4096)),
            **{name: float(scalar(metadata, f"gemma2.{name}", value)) for name, value in _CAPS.items()},
        }


def _attention_scale(layers: int, width: int, heads: int, head_size: int) -> int:
    """llama.cpp tells the 27B by its layers and scales its attention by width / heads (src/models/gemma2.cpp)."""
    return width // heads if layers == 46 else head_size
