"""BERT and XLM-RoBERTa, the encoders of multilingual-e5, ruri v1 and v2, bge: LayerNorm after each half of a layer.

It knows nothing of files. GGUF has one architecture for both; RoBERTa's positions begin behind the padding token's
row, so the first rows of its table are never used and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from slm.errors import DamagedFileError, UnsupportedError
from slm.families.parts.base import (
    Config,
    FloatArray,
    Metadata,
    TensorRule,
    Transform,
    need,
    positive,
    refuse,
    register,
)
from slm.families.parts.encoder import Encoder


@dataclass(frozen=True)
class RowsDropped(Transform):
    """The table without its first rows, which no position uses."""

    rows: int
    row_wise = False

    def to_gguf(self, tensor: FloatArray) -> FloatArray:
        return np.ascontiguousarray(tensor[self.rows :])

    def to_checkpoint(self, tensor: FloatArray) -> FloatArray:
        return np.concatenate([np.zeros((self.rows, *tensor.shape[1:]), dtype=np.float32), tensor])

    def gguf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] - self.rows, *shape[1:])


# Checkpoint name -> GGUF name of a layer's parts; each has a weight and a bias.
LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


@register
class Bert(Encoder):
    """BertModel, also inside BertForMaskedLM."""

    model_types: ClassVar[tuple[str, ...]] = ("bert",)
    architectures: ClassVar[tuple[str, ...]] = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
    gguf_architecture = "bert"
    prefix = "bert."
    ignored = ("embeddings.position_ids", "embeddings.token_type_ids")
    heads = ("pooler.", "cls.", "lm_head.")

    def layers(self, config: Config) -> int:
        return positive(config, "num_hidden_layers")

    def unused_positions(self, config: Config) -> int:
        """How many rows of the position table no text reaches."""
        return 0

    def rules(self, config: Config) -> list[TensorRule]:
        positions = RowsDropped(self.unused_positions(config))
        rules = [
            TensorRule("embeddings.word_embeddings.weight", "token_embd.weight"),
            TensorRule("embeddings.position_embeddings.weight", "position_embd.weight", positions),
            TensorRule("embeddings.token_type_embeddings.weight", "token_types.weight"),
            TensorRule("embeddings.LayerNorm.weight", "token_embd_norm.weight"),
            TensorRule("embeddings.LayerNorm.bias", "token_embd_norm.bias"),
        ]
        for name, gguf_name in LAYER.items():
            for part in ("weight", "bias"):
                rules.append(TensorRule(f"encoder.layer.{{i}}.{name}.{part}", f"blk.{{i}}.{gguf_name}.{part}"))
        return rules

    def to_metadata(self, config: Config) -> Metadata:
        refuse(config, "hidden_act", lambda v: v in (None, "gelu"), "only gelu")
        refuse(config, "position_embedding_type", lambda v: v in (None, "absolute"), "only learned positions")
        refuse(config, "is_decoder", lambda v: not v, "the runtime's BERT has no causal mask")
        refuse(config, "add_cross_attention", lambda v: not v, "the runtime does not do it")
        positions = positive(config, "max_position_embeddings") - self.unused_positions(config)
        if positions <= 0:
            raise DamagedFileError(
                "the configuration leaves no positions", found=str(config["max_position_embeddings"])
            )
        return {
            "bert.context_length": positions,
            "bert.embedding_length": positive(config, "hidden_size"),
            "bert.block_count": positive(config, "num_hidden_layers"),
            "bert.feed_forward_length": positive(config, "intermediate_size"),
            "bert.attention.head_count": positive(config, "num_attention_heads"),
            "bert.attention.layer_norm_epsilon": float(config.get("layer_norm_eps", 1e-12)),
            "bert.attention.causal": False,
            "tokenizer.ggml.token_type_count": positive(config, "type_vocab_size"),
        }


@register
class XlmRoberta(Bert):
    """XLMRobertaModel and RobertaModel."""

    model_types = ("xlm-roberta", "roberta")
    architectures = ("XLMRobertaModel", "XLMRobertaForMaskedLM", "RobertaModel", "RobertaForMaskedLM")
    prefix = "roberta."

    def unused_positions(self, config: Config) -> int:
        padding = need(config, "pad_token_id")
        if not isinstance(padding, int) or not 0 <= padding < 16:
            raise UnsupportedError(f"'pad_token_id': {padding!r} is not supported: positions begin behind it")
        return padding + 1
