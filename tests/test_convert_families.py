"""Every decoder family: logits equal to transformers', tensors named and ordered right, adapters equal to PEFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_families as tiny
import torch

from convert.model import convert_checkpoint
from slm.gguf_reader import read_gguf

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox, parallel, a quarter rotated": ("gpt_neox", {}),
    "gpt_neox as rinna's: sequential, all rotated": (
        "gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0, "rotary_emb_base": 5000},
    ),
    "gpt_neox without attention biases": ("gpt_neox", {"attention_bias": False}),
    "gpt_neox, tied": ("gpt_neox", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "mistral with heads of their own size, tied": ("mistral", {"head_dim": 32, "tie_word_embeddings": True}),
    "mistral with YaRN": ("mistral", {"rope_parameters": YARN}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, in bf16, in shards": (
        "qwen2", {"tie_word_embeddings": True, "dtype": torch.bfloat16, "shard": "50KB"},
    ),
    "qwen2 with YaRN": ("qwen2", {"rope_parameters": YARN}),
    "qwen2 with YaRN and an attention factor": ("qwen2", {"rope_parameters": {**YARN, "attention_factor": 1.7}}),
    "qwen2 with YaRN and mscale": ("qwen2", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "qwen3, in f16, with spare rows": ("qwen3", {"dtype": torch.float16, "spare": 13}),
    "qwen3, tied, linear": ("qwen3", {"tie_word_embeddings": True, "rope_parameters": LINEAR}),
    "gemma": ("gemma", {}),
    "gemma2 with a window and soft caps": ("gemma2", {}),
    "phi3": ("phi3", {}),
    "phi3, tied, three quarters rotated": (
        "phi3", {"tie_word_embeddings": True, "partial_rotary_factor": 0.75, "num_attention_heads": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_converted_checkpoint_has_the_logits_of_transformers(case: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    folder = tiny.write(tmp_path / "source", family, **settings)
    [result] = convert_checkpoint(folder, tmp_path / "out.gguf", "f32")
    assert result["tokenizer_lines_proven"] >= 14
    ids = tiny.sequences(tiny.vocabulary_of(folder))
    tiny.assert_equal_logits(tiny.runtime_logits(tmp_path / "out.gguf", ids), tiny.reference_logits(tiny.load(folder), ids))
    tied = settings.get("tie_word_embeddings") or family in ("gemma", "gemma2")
    assert ("output.weight" in read_gguf(tmp_path / "out.gguf").tensors) == (not tied or family == "gpt_neox")
