"""Tiny random checkpoints of every decoder family, and how their logits are compared with llama.cpp's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf

from slm.native.llama import (
    ContextParams,
    library,
    open_adapter,
    open_context,
    open_model,
    set_adapters,
    vocab_size,
)
from tests import tiny_checkpoints as tiny
from tests.llama_logits import all_logits

Logits = np.ndarray[Any, Any]
LENGTH, COUNT = 128, 4  # 512 positions
WINDOW = 16  # of the families that have one; shorter than a sequence

_GATED = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
_NEOX = {name: value for name, value in _GATED.items() if name != "num_key_value_heads"}
# (configuration, model, tokenizer, settings)
_KINDS: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    "gpt_neox": (tf.GPTNeoXConfig, tf.GPTNeoXForCausalLM, "bpe", _NEOX),
    "mistral": (tf.MistralConfig, tf.MistralForCausalLM, "spm", {**_GATED, "sliding_window": None}),
    "qwen2": (tf.Qwen2Config, tf.Qwen2ForCausalLM, "bpe", _GATED),
    "qwen3": (tf.Qwen3Config, tf.Qwen3ForCausalLM, "bpe", {**_GATED, "head_dim": 32}),
    "gemma": (tf.GemmaConfig, tf.GemmaForCausalLM, "spm", {**_GATED, "head_dim": 32}),
    "gemma2": (
        tf.Gemma2Config, tf.Gemma2ForCausalLM, "spm",
        {**_GATED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW, "num_hidden_layers": 4,
         "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    ),
    "gpt2": (tf.GPT2Config, tf.GPT2LMHeadModel, "bpe", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gemma3": (
        tf.Gemma3TextConfig, tf.Gemma3ForCausalLM, "spm",
        {**_GATED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW, "num_hidden_layers": 7},
    ),
    "phi3": (tf.Phi3Config, tf.Phi3ForCausalLM, "spm", {**_GATED, "original_max_position_embeddings": 256}),
}  # fmt: skip


def write(
    folder: Path, family: str, *, seed: int = 0, dtype: Any = torch.float32, shard: str = "5GB", spare: int = 0,
    **settings: Any,
) -> Path:  # fmt: skip
    """A random model. shard: how large a file may get; spare: embedding rows beyond the tokenizer's tokens."""
    folder.mkdir(parents=True)
    config, model, kind, own = _KINDS[family]
    size = tiny.spm_tokenizer(folder) if kind == "spm" else tiny.byte_level_tokenizer(folder).get_vocab_size()
    ids = {"bos_token_id": 2, "eos_token_id": 1} if kind == "spm" else {"bos_token_id": 0, "eos_token_id": 0}
    made = model(config(**{**own, **ids, "pad_token_id": None, "vocab_size": size + spare, **settings}))
    tiny._shake(made, seed).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


MAKE: dict[str, Callable[[Path], Path]] = {
    "llama": tiny.llama,
    **{name: partial(write, family=name) for name in _KINDS},
}
# Where the head is tied otherwise than usual in the family.
MORE: dict[str, Callable[[Path], Path]] = {
    "llama, tied": lambda folder: tiny.llama(folder, tie_word_embeddings=True),
    "gpt_neox, tied": lambda folder: write(folder, "gpt_neox", tie_word_embeddings=True),
    "gpt2, untied": lambda folder: write(folder, "gpt2", tie_word_embeddings=False),
    "gemma3, untied": lambda folder: write(folder, "gemma3", tie_word_embeddings=False),
}


def sequences(vocabulary: int, seed: int = 7, length: int = LENGTH) -> list[list[int]]:
    """Random token ids, each sequence `length` long."""
    rows: list[list[int]] = np.random.default_rng(seed).integers(0, vocabulary, (COUNT, length)).tolist()
    return rows


def vocabulary_of(folder: Path) -> int:
    return int(tf.AutoConfig.from_pretrained(folder).vocab_size)


def runtime_logits(
    gguf: Path, ids: Sequence[Sequence[int]], adapter: Path | None = None, context: int = LENGTH, adapter_from: int = 0
) -> Logits:
    """(sequences, positions, vocabulary) by llama.cpp, without its f16 shortcuts.

    adapter_from: the position from which on the adapter is active, as a runtime does with an activated LoRA.
    """
    with ExitStack() as stack:
        model = open_model(stack, gguf)
        params = ContextParams(context, context, n_threads=1, flash_attention=False, exact_cache=True)
        handle = open_context(stack, model, params)
        active = [] if adapter is None else [(open_adapter(stack, model, adapter), 1.0)]
        rows = []
        for one in ids:
            set_adapters(handle, [] if adapter_from else active)
            before = all_logits(model, handle, list(one[: adapter_from or len(one)]))
            set_adapters(handle, active)
            rows.append(np.stack([*before, *decode_rest(model, handle, one, len(before))]))
        return np.stack(rows)


def decode_rest(model: Any, context: Any, ids: Sequence[int], start: int) -> list[Logits]:
    """Logits of the positions from `start` on, on top of the cells that hold those before."""
    lib, width, count = library(), vocab_size(model), len(ids) - start
    if not count:
        return []
    batch = lib.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for index in range(count):
        batch.token[index], batch.pos[index] = ids[start + index], start + index
        batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
    assert lib.llama_decode(context, batch) == 0
    lib.llama_batch_free(batch)
    rows = [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), shape=(width,)) for i in range(count)]
    return [row.copy() for row in rows]


def reference_logits(model: Any, ids: Sequence[Sequence[int]]) -> Logits:
    """The same by transformers (or PEFT)."""
    with torch.no_grad():
        return np.asarray(model(torch.tensor(ids)).logits.float().numpy())


def with_random_factors(model: Any) -> Any:
    """A model of PEFT's with random A and B; what else it trains (whole modules, single tokens) moves a little."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
            elif weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def load(folder: Path) -> Any:
    return tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def assert_equal_logits(found: Logits, expected: Logits, bound: float = 1e-2, tie: float = 2e-3) -> None:
    """Close everywhere, and the same best token at every position where the reference itself has a clear one.

    bound: on the largest difference, in units of the largest reference logit. A position is a tie when the
    reference's best two logits are closer than `tie` of that; there may be few of them.
    """
    assert found.shape == expected.shape
    scale = float(np.abs(expected).max())
    worst = float(np.abs(found - expected).max()) / scale
    assert worst < bound, f"largest relative difference {worst:.2e}"
    best = np.sort(expected, axis=-1)
    clear = best[..., -1] - best[..., -2] > tie * scale
    assert clear.mean() > 0.9
    same = found.argmax(-1) == expected.argmax(-1)
    assert same[clear].all(), f"{(~same & clear).sum()} of {clear.sum()} clear positions differ"
