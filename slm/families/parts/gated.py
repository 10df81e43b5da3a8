"""What Llama, Mistral, Qwen, Gemma and Phi-3 share: RMSNorm, rotary positions, grouped K/V heads, a gated feed-forward.

A family of this kind says only where it differs. It knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from slm.errors import DamagedFileError, UnsupportedError
from slm.families.parts.base import (
    EMBEDDING,
    HEAD,
    Config,
    Family,
    FloatArray,
    Metadata,
    TensorRule,
    Transform,
    positive,
    refuse,
    scalar,
)
from slm.families.parts.rope import RUNTIME_TENSORS, Rope, read_rope, rope_config, rope_metadata, rope_tensors

_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_WEIGHTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def window_caveat(window: object, context: int, runtime: str) -> list[str]:
    """A sentence for a sliding window that the runtime's graph does not have, unless no text is longer than it."""
    if not isinstance(window, int) or isinstance(window, bool) or window <= 0 or window >= context:
        return []
    return [
        f"the model attends to the last {window:,} tokens only, llama.cpp's '{runtime}' to all of them: "
        f"answers are equal up to {window:,} tokens of context"
    ]


class GatedDecoder(Family):
    """A decoder whose tensors are named as Llama's."""

    prefix = "model."
    ignored = (".rotary_emb.inv_freq",)
    norms: ClassVar[dict[str, str]] = _NORMS
    norm: ClassVar[Transform] = Transform()
    weights: ClassVar[dict[str, str]] = _WEIGHTS
    rope_kinds: ClassVar[tuple[str, ...]] = ("linear", "yarn")
    activation_names: ClassVar[tuple[str, ...]] = ("hidden_act",)
    activations: ClassVar[tuple[str, ...]] = ("silu",)  # the runtime's is the last one
    own_head_size: ClassVar[bool] = True  # whether head_dim may differ from hidden_size / num_attention_heads

    def layers(self, config: Config) -> int:
        return positive(config, "num_hidden_layers")

    def rope(self, config: Config) -> Rope:
        return read_rope(config)

    def head_size(self, config: Config) -> int:
        """Values a head. Raises DamagedFileError or UnsupportedError."""
        width, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
        if config.get("head_dim") is None and width % heads:
            raise DamagedFileError(f"'hidden_size' {width} is not a multiple of 'num_attention_heads' {heads}")
        size = width // heads if config.get("head_dim") is None else positive(config, "head_dim")
        if not self.own_head_size:
            refuse(config, "head_dim", lambda v: v is None or v * heads == width, f"heads must have {width // heads}")
        return size

    def rotated(self, config: Config) -> int:
        """How many values of a head are rotated: all of them, unless a family says otherwise."""
        size, share = self.head_size(config), self.rope(config).partial
        refuse({"partial_rotary_factor": share}, "partial_rotary_factor", lambda v: v == 1, "whole heads are rotated")
        return size

    def biased(self, config: Config) -> tuple[str, ...]:
        """The modules that have a bias."""
        return ()

    def transforms(self, config: Config) -> dict[str, Transform]:
        """The modules whose rows GGUF orders differently."""
        return {}

    def rules(self, config: Config) -> list[TensorRule]:
        biased, transforms = self.biased(config), self.transforms(config)
        rules = [
            TensorRule("embed_tokens.weight", EMBEDDING),
            TensorRule("norm.weight", "output_norm.weight", self.norm),
        ]
        rules += [
            TensorRule(f"layers.{{i}}.{a}.weight", f"blk.{{i}}.{b}.weight", self.norm) for a, b in self.norms.items()
        ]
        for name, gguf_name in self.weights.items():
            transform = transforms.get(name, Transform())
            rules.append(TensorRule(f"layers.{{i}}.{name}.weight", f"blk.{{i}}.{gguf_name}.weight", transform))
            if name in biased:
                rules.append(TensorRule(f"layers.{{i}}.{name}.bias", f"blk.{{i}}.{gguf_name}.bias", transform))
        return [*rules, TensorRule("lm_head.weight", HEAD)]

    def to_metadata(self, config: Config) -> Metadata:
        for name in self.activation_names:
            refuse(config, name, lambda v: v is None or v in self.activations, f"only {self.activations[-1]}")
        name, heads, size = self.gguf_architecture, positive(config, "num_attention_heads"), self.head_size(config)
        return {
            f"{name}.context_length": positive(config, "max_position_embeddings"),
            f"{name}.embedding_length": positive(config, "hidden_size"),
            f"{name}.block_count": self.layers(config),
            f"{name}.feed_forward_length": positive(config, "intermediate_size"),
            f"{name}.attention.head_count": heads,
            f"{name}.attention.head_count_kv": self.kv_heads(config),
            f"{name}.attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
            f"{name}.attention.key_length": size,
            f"{name}.attention.value_length": size,
            f"{name}.rope.dimension_count": self.rotated(config),
            **rope_metadata(self.rope(config), name, self.rope_kinds),
        }

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        def number(key: str, default: float | None = None) -> Any:
            return scalar(metadata, f"{self.gguf_architecture}.{key}", default)

        if int(number("expert_count", 0)):
            raise UnsupportedError("a mixture of experts is not restored")
        if EMBEDDING not in shapes:
            raise DamagedFileError(f"the GGUF file lacks the tensor '{EMBEDDING}'")
        heads, width = int(number("attention.head_count")), int(number("embedding_length"))
        size = int(number("attention.key_length", width // heads))
        if not self.own_head_size and size * heads != width:
            raise UnsupportedError(f"heads of {size} values in a {self.gguf_architecture} model are not restored")
        rope = rope_config(metadata, self.gguf_architecture, size)
        config = {
            **self.sizes(metadata, shapes),
            "num_key_value_heads": int(number("attention.head_count_kv", heads)),
            self.activation_names[-1]: self.activations[-1],
            "rms_norm_eps": round(float(number("attention.layer_norm_rms_epsilon")), 12),
            "rope_theta": rope["rope_theta"],
            "rope_parameters": rope,
            "tie_word_embeddings": HEAD not in shapes,
        }
        return {**config, "head_dim": size} if self.own_head_size else config

    def runtime_tensors(self) -> tuple[str, ...]:
        return RUNTIME_TENSORS

    def caveats(self, config: Config) -> list[str]:
        rope = self.rope(config)
        if rope.kind != "longrope" or rope.original >= rope.context:
            return []
        return [
            f"llama.cpp takes the long RoPE factors when its context is longer than {int(rope.original):,} tokens, "
            "the checkpoint's own code when the text is: for shorter texts open a context up to that length"
        ]

    def kv_heads(self, config: Config) -> int:
        """Heads of keys and values, a divisor of the query heads. Raises DamagedFileError."""
        heads = positive(config, "num_attention_heads")
        kv = heads if config.get("num_key_value_heads") is None else positive(config, "num_key_value_heads")
        if heads % kv:
            raise DamagedFileError(f"'num_attention_heads' {heads} is not a multiple of 'num_key_value_heads' {kv}")
        return kv

    def extra_tensors(self, config: Config) -> dict[str, FloatArray]:
        return rope_tensors(self.rope(config), self.rotated(config))
