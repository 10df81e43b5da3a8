"""Gemma 3, text only: norms around each block, q/k norms, five sliding-window layers to a global one.

It knows nothing of files. The runtime scales the embedding by sqrt(width) itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.errors import UnsupportedError
from slm.families.decoders.gemma import Gemma2, alternating
from slm.families.parts.base import Config, Metadata, PlusOne, positive, refuse, register, scalar
from slm.families.parts.gated import GatedDecoder
from slm.families.parts.rope import Rope, read_rope

_PATTERN = 6  # every sixth layer sees the whole context


def _sliding_theta(config: Config) -> float:
    """The base frequency of the sliding layers."""
    sliding = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    return float(sliding.get("rope_theta") or config.get("rope_local_base_freq") or 10_000.0)


def _pattern(config: Config) -> int:
    """How many layers make one period of sliding and global layers. Raises UnsupportedError if there is none."""
    layers = positive(config, "num_hidden_layers")
    types = config.get("layer_types")
    if not types:
        return int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or _PATTERN)
    first = types.index("full_attention") + 1 if "full_attention" in types else layers + 1
    # A model shorter than one period does not tell it; the usual one says the same.
    period = _PATTERN if first > layers and layers < _PATTERN else first
    if list(types) != alternating(layers, period):
        raise UnsupportedError("'layer_types' is not a regular pattern of sliding and global layers")
    return period


@register
class Gemma3(GatedDecoder):
    """Gemma3ForCausalLM (gemma3_text)."""

    model_types = ("gemma3_text",)
    architectures = ("Gemma3ForCausalLM",)
    gguf_architecture = "gemma3"
    norms = Gemma2.norms | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
    norm = PlusOne()
    rope_kinds = ("linear",)
    activation_names = ("hidden_activation",)
    activations = ("gelu_pytorch_tanh",)

    def is_tied(self, config: Config) -> bool:
        return bool(config.get("tie_word_embeddings", True))

    def head_size(self, config: Config) -> int:
        return 256 if config.get("head_dim") is None else positive(config, "head_dim")  # transformers, Gemma3TextConfig

    def rope(self, config: Config) -> Rope:
        """Of the global layers."""
        full = (config.get("rope_parameters") or {}).get("full_attention")
        return read_rope({**config, "rope_parameters": full}, theta=1_000_000.0)

    def to_metadata(self, config: Config) -> Metadata:
        refuse(config, "attn_logit_softcapping", lambda v: not v, "the runtime does not do it")
        refuse(config, "use_bidirectional_attention", lambda v: not v, "only causal models")
        refuse(config, "attention_bias", lambda v: not v, "the runtime does not do it")
        size = self.head_size(config)
        refuse(config, "query_pre_attn_scalar", lambda v: v in (None, size), "it must equal head_dim")
        metadata: Metadata = {
            **super().to_metadata({"max_position_embeddings": 131_072, **config}),
            "gemma3.attention.sliding_window": positive(config, "sliding_window"),
            "gemma3.attention.sliding_window_pattern": _pattern(config),
            "gemma3.rope.freq_base_swa": _sliding_theta(config),
        }
        if config.get("final_logit_softcapping"):
            metadata["gemma3.final_logit_softcapping"] = float(config["final_logit_softcapping"])
        return metadata

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        # A file without the keys has the published values: llama.cpp's own defaults (src/models/gemma3.cpp).
        metadata = {"gemma3.rope.freq_base": 1_000_000.0, **metadata}
        config = super().to_config(metadata, shapes)
        layers = config["num_hidden_layers"]
        period = int(scalar(metadata, "gemma3.attention.sliding_window_pattern", _PATTERN))
        if layers == 62:
            # llama.cpp scales 27B's attention by width / heads instead; no other size does (src/models/gemma3.cpp).
            raise UnsupportedError("Gemma 3 27B is not restored")
        local = float(scalar(metadata, "gemma3.rope.freq_base_swa", 10_000.0))
        softcap = metadata.get("gemma3.final_logit_softcapping")
        return {
            **config,
            "query_pre_attn_scalar": config["head_dim"],
            "sliding_window": int(scalar(metadata, "gemma3.attention.sliding_window")),
            "layer_types": alternating(layers, period),
            "rope_local_base_freq": local,
            "rope_parameters": {
                "full_attention": config["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
            },
            "final_logit_softcapping": None if softcap is None else float(softcap),
            "attn_logit_softcapping": None,
            "attention_bias": False,
        }
