"""Gemma 3, text only: norms around each block, q/k norms, five sliding-window layers to a global one.

It knows nothing of files. The runtime scales the embedding by sqrt(width) itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.families.base import Config, Family, Metadata, PlusOne, Rule, positive, refuse, register, scalar
from slm.errors import UnsupportedError

_PATTERN = 6  # every sixth layer sees the whole context


def _rope(config: Config) -> tuple[float, float, dict[str, Any]]:
    """(theta of global layers, theta of sliding layers, scaling of the global ones)."""
    parameters = config.get("rope_parameters") or {}
    full = {**(config.get("rope_scaling") or {}), **(parameters.get("full_attention") or {})}
    sliding = parameters.get("sliding_attention") or {}
    return (
        float(full.get("rope_theta") or config.get("rope_theta") or 1_000_000.0),
        float(sliding.get("rope_theta") or config.get("rope_local_base_freq") or 10_000.0),
        full,
    )


def _pattern(config: Config) -> int:
    """How many layers make one period of sliding and global layers. Raises UnsupportedError if there is none."""
    layers = positive(config, "num_hidden_layers")
    types = config.get("layer_types")
    if not types:
        return int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or _PATTERN)
    first = types.index("full_attention") + 1 if "full_attention" in types else layers + 1
    # A model shorter than one period does not tell it; the usual one says the same.
    period = _PATTERN if first > layers and layers < _PATTERN else first
    if list(types) != ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)]:
        raise UnsupportedError("'layer_types' is not a regular pattern of sliding and global layers")
    return period


@register
class Gemma3(Family):
    """Gemma3ForCausalLM (gemma3_text)."""

    model_types = ("gemma3_text",)
    architectures = ("Gemma3ForCausalLM",)
    gguf_architecture = "gemma3"
    prefix = "model."
    ignored = (".rotary_emb.inv_freq",)

    def layers(self, config: Config) -> int:
        return positive(config, "num_hidden_layers")

    def is_tied(self, config: Config) -> bool:
        return bool(config.get("tie_word_embeddings", True))

    def rules(self, config: Config) -> list[Rule]:
        one = PlusOne()
        norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
                 "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
                 "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}  # fmt: skip
        weights = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
                   "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
                   "mlp.down_proj": "ffn_down"}  # fmt: skip
        return [
            Rule("embed_tokens.weight", "token_embd.weight"),
            Rule("norm.weight", "output_norm.weight", one),
            *(Rule(f"layers.{{i}}.{a}.weight", f"blk.{{i}}.{b}.weight", one) for a, b in norms.items()),
            *(Rule(f"layers.{{i}}.{a}.weight", f"blk.{{i}}.{b}.weight") for a, b in weights.items()),
            Rule("lm_head.weight", "output.weight"),
        ]

    def to_metadata(self, config: Config) -> Metadata:
        refuse(config, "hidden_activation", lambda v: v in (None, "gelu_pytorch_tanh"), "only gelu_pytorch_tanh")
        refuse(config, "attn_logit_softcapping", lambda v: not v, "the runtime does not do it")
        refuse(config, "use_bidirectional_attention", lambda v: not v, "only causal models")
        refuse(config, "attention_bias", lambda v: not v, "the runtime does not do it")
        size = int(config.get("head_dim") or 256)
        refuse(config, "query_pre_attn_scalar", lambda v: v in (None, size), "it must equal head_dim")
        theta, local, scaling = _rope(config)
        metadata: Metadata = {
            "gemma3.context_length": int(config.get("max_position_embeddings") or 131_072),
            "gemma3.embedding_length": positive(config, "hidden_size"),
            "gemma3.block_count": positive(config, "num_hidden_layers"),
            "gemma3.feed_forward_length": positive(config, "intermediate_size"),
            "gemma3.attention.head_count": positive(config, "num_attention_heads"),
            "gemma3.attention.head_count_kv": positive(config, "num_key_value_heads"),
            "gemma3.attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
            "gemma3.attention.key_length": size,
            "gemma3.attention.value_length": size,
            "gemma3.attention.sliding_window": positive(config, "sliding_window"),
            "gemma3.attention.sliding_window_pattern": _pattern(config),
            "gemma3.rope.freq_base": theta,
            "gemma3.rope.freq_base_swa": local,
        }
        if config.get("final_logit_softcapping"):
            metadata["gemma3.final_logit_softcapping"] = float(config["final_logit_softcapping"])
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind == "linear":
            metadata["gemma3.rope.scaling.type"] = "linear"
            metadata["gemma3.rope.scaling.factor"] = float(scaling["factor"])
        elif kind != "default":
            raise UnsupportedError(f"RoPE scaling '{kind}' is not supported for Gemma 3", hint="Supported: linear.")
        return metadata

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        layers = int(scalar(metadata, "gemma3.block_count"))
        # A file without the keys has the published values: llama.cpp's own defaults (src/models/gemma3.cpp).
        period = int(scalar(metadata, "gemma3.attention.sliding_window_pattern", _PATTERN))
        full: dict[str, Any] = {
            "rope_type": "default",
            "rope_theta": float(scalar(metadata, "gemma3.rope.freq_base", 1_000_000.0)),
        }
        local = float(scalar(metadata, "gemma3.rope.freq_base_swa", 10_000.0))
        kind = str(metadata.get("gemma3.rope.scaling.type", "none"))
        if kind == "linear":
            full.update(rope_type="linear", factor=float(scalar(metadata, "gemma3.rope.scaling.factor")))
        elif kind != "none":
            raise UnsupportedError(f"RoPE scaling '{kind}' is not restored for Gemma 3")
        if layers == 62:
            # llama.cpp scales 27B's attention by width / heads instead; no other size does (src/models/gemma3.cpp).
            raise UnsupportedError("Gemma 3 27B is not restored")
        size = int(scalar(metadata, "gemma3.attention.key_length"))
        softcap = metadata.get("gemma3.final_logit_softcapping")
        return {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "vocab_size": shapes["token_embd.weight"][0],
            "hidden_size": int(scalar(metadata, "gemma3.embedding_length")),
            "intermediate_size": int(scalar(metadata, "gemma3.feed_forward_length")),
            "num_hidden_layers": layers,
            "num_attention_heads": int(scalar(metadata, "gemma3.attention.head_count")),
            "num_key_value_heads": int(scalar(metadata, "gemma3.attention.head_count_kv")),
            "head_dim": size,
            "query_pre_attn_scalar": size,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": int(scalar(metadata, "gemma3.context_length")),
            "rms_norm_eps": round(float(scalar(metadata, "gemma3.attention.layer_norm_rms_epsilon")), 12),
            "sliding_window": int(scalar(metadata, "gemma3.attention.sliding_window")),
            "layer_types": ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)],
            "rope_theta": full["rope_theta"],
            "rope_local_base_freq": local,
            "rope_parameters": {
                "full_attention": full,
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
            },
            "final_logit_softcapping": None if softcap is None else float(softcap),
            "attn_logit_softcapping": None,
            "attention_bias": False,
            "tie_word_embeddings": "output.weight" not in shapes,
        }
