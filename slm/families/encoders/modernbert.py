"""ModernBERT, the encoder of ruri v3 and modernbert-ja: RoPE, GeGLU, a window in two layers of three.

It knows nothing of files.
"""

from __future__ import annotations

from typing import Any

from slm.errors import UnsupportedError
from slm.families.parts.base import Config, Metadata, TensorRule, positive, refuse, register
from slm.families.parts.encoder import Encoder


def _thetas(config: Config) -> tuple[float, float]:
    """Bases of the rotary frequencies, (full, sliding): transformers 5's `rope_parameters`, or the two keys before."""
    both: dict[str, Any] = config.get("rope_parameters") or {}
    bases = []
    for kind, old, default in (("full_attention", "global_rope_theta", 160_000.0),
                               ("sliding_attention", "local_rope_theta", 10_000.0)):  # fmt: skip
        own = both.get(kind) or {}
        if own.get("rope_type", "default") != "default":
            raise UnsupportedError(f"RoPE scaling '{own['rope_type']}' is not supported for ModernBERT")
        bases.append(float(own.get("rope_theta") or config.get(old) or default))
    return bases[0], bases[1]


def _every(config: Config) -> int:
    """Each how many layers one attends to the whole text, the first one included."""
    layers = positive(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    if kinds is None:
        return int(config.get("global_attn_every_n_layers") or 3)
    for every in range(1, layers + 1):
        if list(kinds) == ["sliding_attention" if i % every else "full_attention" for i in range(layers)]:
            return every
    raise UnsupportedError("the order of windowed and full layers is not one the runtime knows", found=str(kinds)[:120])


@register
class ModernBert(Encoder):
    """ModernBertModel, also inside ModernBertForMaskedLM."""

    model_types = ("modernbert",)
    architectures = ("ModernBertModel", "ModernBertForMaskedLM")
    gguf_architecture = "modern-bert"
    prefix = "model."
    heads = ("head.", "decoder.")

    def layers(self, config: Config) -> int:
        return positive(config, "num_hidden_layers")

    def rules(self, config: Config) -> list[TensorRule]:
        return [
            TensorRule("embeddings.tok_embeddings.weight", "token_embd.weight"),
            TensorRule("embeddings.norm.weight", "token_embd_norm.weight"),
            TensorRule("final_norm.weight", "output_norm.weight"),
            TensorRule("layers.{i}.attn_norm.weight", "blk.{i}.attn_norm.weight"),
            TensorRule("layers.{i}.attn.Wqkv.weight", "blk.{i}.attn_qkv.weight"),
            TensorRule("layers.{i}.attn.Wo.weight", "blk.{i}.attn_output.weight"),
            TensorRule("layers.{i}.mlp_norm.weight", "blk.{i}.ffn_norm.weight"),
            TensorRule("layers.{i}.mlp.Wi.weight", "blk.{i}.ffn_up.weight"),
            TensorRule("layers.{i}.mlp.Wo.weight", "blk.{i}.ffn_down.weight"),
        ]

    def expanded(self, config: Config) -> list[tuple[TensorRule, str, str]]:
        # The embedding is normalized already, so the first layer has no norm before its attention.
        return [entry for entry in super().expanded(config) if entry[2] != "blk.0.attn_norm.weight"]

    def to_metadata(self, config: Config) -> Metadata:
        refuse(config, "hidden_activation", lambda v: v in (None, "gelu"), "only gelu")
        for name in ("norm_bias", "attention_bias", "mlp_bias"):
            refuse(config, name, lambda v: not v, "the runtime's ModernBERT has no biases")
        full, sliding = _thetas(config)
        return {
            "modern-bert.vocab_size": positive(config, "vocab_size"),
            "modern-bert.context_length": positive(config, "max_position_embeddings"),
            "modern-bert.embedding_length": positive(config, "hidden_size"),
            "modern-bert.block_count": positive(config, "num_hidden_layers"),
            "modern-bert.feed_forward_length": positive(config, "intermediate_size"),
            "modern-bert.attention.head_count": positive(config, "num_attention_heads"),
            "modern-bert.attention.layer_norm_epsilon": float(config.get("norm_eps", 1e-5)),
            "modern-bert.attention.sliding_window": positive(config, "local_attention"),
            "modern-bert.attention.sliding_window_pattern": _every(config),
            "modern-bert.attention.causal": False,
            "modern-bert.rope.freq_base": full,
            "modern-bert.rope.freq_base_swa": sliding,
        }
