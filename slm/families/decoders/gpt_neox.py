"""GPT-NeoX (rinna, Pythia): LayerNorm with bias, QKV fused head by head, parallel residual.

It knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from slm.errors import DamagedFileError
from slm.families.parts.base import (
    EMBEDDING,
    HEAD,
    Config,
    Family,
    FloatArray,
    HeadsApart,
    Metadata,
    TensorRule,
    Transform,
    positive,
    refuse,
    register,
    scalar,
)
from slm.families.parts.rope import Rope, read_rope, rope_config, rope_metadata

# The runtime's GELU is the tanh approximation; an exact one differs from it by less than 5e-4.
_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_MODULES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_ATTENTION = ("attention.query_key_value", "attention.dense")


@register
class GptNeox(Family):
    """GPTNeoXForCausalLM."""

    model_types = ("gpt_neox",)
    architectures = ("GPTNeoXForCausalLM",)
    gguf_architecture = "gptneox"
    prefix = "gpt_neox."
    ignored = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")  # buffers of old checkpoints
    aliases = {"lm_head.weight": "embed_out.weight"}  # noqa: RUF012 - a table

    def layers(self, config: Config) -> int:
        return positive(config, "num_hidden_layers")

    def is_tied(self, config: Config) -> bool:
        return False  # in GGUF: this graph always has a head of its own

    def copies(self, config: Config) -> dict[str, str]:
        return {HEAD: EMBEDDING} if config.get("tie_word_embeddings") else {}

    def rules(self, config: Config) -> list[TensorRule]:
        apart = HeadsApart(positive(config, "num_attention_heads"))
        rules = [TensorRule("embed_in.weight", EMBEDDING)]
        rules += [TensorRule(f"final_layer_norm.{part}", f"output_norm.{part}") for part in ("weight", "bias")]
        for name, gguf_name in _MODULES.items():
            transform = apart if name == "attention.query_key_value" else Transform()
            for part in ("weight", "bias"):
                if part == "weight" or name not in _ATTENTION or self._has_bias(config):
                    rules.append(TensorRule(f"layers.{{i}}.{name}.{part}", f"blk.{{i}}.{gguf_name}.{part}", transform))
        return [*rules, TensorRule("embed_out.weight", HEAD)]

    def _has_bias(self, config: Config) -> bool:
        return bool(config.get("attention_bias", True))

    def extra_tensors(self, config: Config) -> dict[str, FloatArray]:
        """Biases of zero where the checkpoint has none: the runtime's graph needs them."""
        if self._has_bias(config):
            return {}
        width = positive(config, "hidden_size")
        return {
            f"blk.{layer}.{name}.bias": np.zeros(size, dtype=np.float32)
            for layer in range(self.layers(config))
            for name, size in (("attn_qkv", 3 * width), ("attn_output", width))
        }

    def rope(self, config: Config) -> Rope:
        return read_rope(config, partial=0.25)  # transformers, GPTNeoXConfig

    def to_metadata(self, config: Config) -> Metadata:
        refuse(config, "hidden_act", lambda v: v is None or v in _GELU, "only gelu")
        width, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
        if width % heads:
            raise DamagedFileError(f"'hidden_size' {width} is not a multiple of 'num_attention_heads' {heads}")
        rope = self.rope(config)
        return {
            "gptneox.context_length": positive(config, "max_position_embeddings"),
            "gptneox.embedding_length": width,
            "gptneox.block_count": self.layers(config),
            "gptneox.feed_forward_length": positive(config, "intermediate_size"),
            "gptneox.attention.head_count": heads,
            "gptneox.attention.layer_norm_epsilon": float(config.get("layer_norm_eps", 1e-5)),
            "gptneox.use_parallel_residual": bool(config.get("use_parallel_residual", True)),
            "gptneox.rope.dimension_count": int(width // heads * rope.partial),
            **rope_metadata(rope, "gptneox", ("linear", "yarn")),
        }

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        def number(key: str, default: float | None = None) -> Any:
            return scalar(metadata, f"gptneox.{key}", default)

        heads, width = int(number("attention.head_count")), int(number("embedding_length"))
        rope = rope_config(metadata, "gptneox", width // heads)
        rope.setdefault("partial_rotary_factor", 1.0)
        return {
            **self.sizes(metadata, shapes),
            "hidden_act": "gelu",
            "layer_norm_eps": round(float(number("attention.layer_norm_epsilon")), 12),
            "use_parallel_residual": bool(number("use_parallel_residual", True)),
            "attention_bias": True,
            "rotary_pct": rope["partial_rotary_factor"],
            "rotary_emb_base": rope["rope_theta"],
            "rope_parameters": rope,
            "tie_word_embeddings": False,
        }
