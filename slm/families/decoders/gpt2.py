"""GPT-2: learned positions, LayerNorm with bias, Conv1D weights kept transposed. It knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.families.parts.base import Config, Family, Metadata, TensorRule, Transposed, positive, refuse, register, scalar


@register
class Gpt2(Family):
    """GPT2LMHeadModel: distilgpt2, rinna's japanese-gpt2 and their relatives."""

    model_types = ("gpt2",)
    architectures = ("GPT2LMHeadModel",)
    gguf_architecture = "gpt2"
    prefix = "transformer."
    ignored = (".attn.bias", ".attn.masked_bias")  # causal masks that old checkpoints keep as buffers

    def layers(self, config: Config) -> int:
        return positive(config, "n_layer")

    def is_tied(self, config: Config) -> bool:
        return bool(config.get("tie_word_embeddings", True))

    def rules(self, config: Config) -> list[TensorRule]:
        rules = [TensorRule("wte.weight", "token_embd.weight"), TensorRule("wpe.weight", "position_embd.weight")]
        pairs = [("ln_f", "output_norm", False), ("h.{i}.ln_1", "blk.{i}.attn_norm", False),
                 ("h.{i}.attn.c_attn", "blk.{i}.attn_qkv", True), ("h.{i}.attn.c_proj", "blk.{i}.attn_output", True),
                 ("h.{i}.ln_2", "blk.{i}.ffn_norm", False), ("h.{i}.mlp.c_fc", "blk.{i}.ffn_up", True),
                 ("h.{i}.mlp.c_proj", "blk.{i}.ffn_down", True)]  # fmt: skip
        for name, gguf_name, conv1d in pairs:
            rules.append(
                TensorRule(f"{name}.weight", f"{gguf_name}.weight", Transposed())
                if conv1d
                else TensorRule(f"{name}.weight", f"{gguf_name}.weight")
            )
            rules.append(TensorRule(f"{name}.bias", f"{gguf_name}.bias"))
        return [*rules, TensorRule("lm_head.weight", "output.weight")]

    def to_metadata(self, config: Config) -> Metadata:
        # llama.cpp's gpt2 graph: tanh-approximated GELU, attention scaled by 1/sqrt(head size), nothing else.
        refuse(config, "activation_function", lambda v: v in (None, "gelu_new", "gelu_pytorch_tanh"), "only gelu_new")
        refuse(config, "scale_attn_weights", lambda v: v in (None, True), "attention is always scaled")
        refuse(config, "scale_attn_by_inverse_layer_idx", lambda v: not v, "the runtime does not do it")
        refuse(config, "add_cross_attention", lambda v: not v, "the runtime does not do it")
        width = positive(config, "n_embd")
        return {
            "gpt2.context_length": positive(config, "n_positions", "n_ctx"),
            "gpt2.embedding_length": width,
            "gpt2.block_count": positive(config, "n_layer"),
            "gpt2.feed_forward_length": int(config.get("n_inner") or 4 * width),
            "gpt2.attention.head_count": positive(config, "n_head"),
            "gpt2.attention.layer_norm_epsilon": float(config.get("layer_norm_epsilon", 1e-5)),
        }

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        width = int(scalar(metadata, "gpt2.embedding_length"))
        inner = int(scalar(metadata, "gpt2.feed_forward_length"))
        positions = int(scalar(metadata, "gpt2.context_length"))
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": shapes["token_embd.weight"][0],
            "n_positions": positions,
            "n_ctx": positions,
            "n_embd": width,
            "n_layer": int(scalar(metadata, "gpt2.block_count")),
            "n_head": int(scalar(metadata, "gpt2.attention.head_count")),
            "n_inner": None if inner == 4 * width else inner,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": round(float(scalar(metadata, "gpt2.attention.layer_norm_epsilon")), 12),
            "tie_word_embeddings": "output.weight" not in shapes,
        }
