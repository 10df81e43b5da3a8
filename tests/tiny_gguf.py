"""Tiny random llama models and LoRA adapters as GGUF files, for the serving tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

WIDTH, HEADS, KV_HEADS, LAYERS, FEED = 64, 4, 2, 2, 96
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
LETTERS = ["▁", *(chr(code) for code in range(33, 127))]
MARKERS = ["<|im_start|>", "<|im_end|>"]
TOKENS = SPECIAL + BYTES + LETTERS + MARKERS
BOS, EOS = 1, 2
Matrix = npt.NDArray[np.float32]


def letter(text: str) -> int:
    """Token id of one printable ASCII character."""
    return TOKENS.index("▁" if text == " " else text)


def _vocabulary(writer: Any, template: str | None) -> None:
    kinds = [2, 3, 3] + [6] * 256 + [1] * len(LETTERS) + [3] * len(MARKERS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if template:
        writer.add_chat_template(template)


def write_model(
    path: Path,
    *,
    seed: int = 0,
    template: str | None = None,
    fingerprint: str | None = None,
    context: int = 2048,
    spell: bytes | None = None,
) -> Path:
    """A random two-layer llama that answers in printable ASCII, or one that spells `spell` over and over.

    spell needs distinct bytes: each token's embedding then points at the next byte, whatever came before.
    """
    random = np.random.default_rng(seed)
    size = len(TOKENS)

    def matrix(rows: int, columns: int, scale: float) -> Matrix:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    head = WIDTH // HEADS
    tensors: dict[str, Matrix] = {"token_embd.weight": matrix(size, WIDTH, 1.0)}
    mixing = 0.0 if spell else 0.35
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        tensors[name + "attn_norm.weight"] = np.ones(WIDTH, np.float32)
        tensors[name + "ffn_norm.weight"] = np.ones(WIDTH, np.float32)
        tensors[name + "attn_q.weight"] = matrix(WIDTH, WIDTH, 0.25)
        tensors[name + "attn_k.weight"] = matrix(KV_HEADS * head, WIDTH, 0.25)
        tensors[name + "attn_v.weight"] = matrix(KV_HEADS * head, WIDTH, 0.25)
        tensors[name + "attn_output.weight"] = matrix(WIDTH, WIDTH, mixing)
        tensors[name + "ffn_gate.weight"] = matrix(FEED, WIDTH, 0.2)
        tensors[name + "ffn_up.weight"] = matrix(FEED, WIDTH, 0.2)
        tensors[name + "ffn_down.weight"] = matrix(WIDTH, FEED, mixing)
    tensors["output_norm.weight"] = np.ones(WIDTH, np.float32)
    output = np.zeros((size, WIDTH), np.float32)
    if spell:
        embedding = tensors["token_embd.weight"]
        successors = [len(SPECIAL) + value for value in spell]
        for here, following in zip(successors, successors[1:] + successors[:1], strict=True):
            output[following] += embedding[here]
        output[successors[0]] += embedding[len(SPECIAL) + ord("\n")]  # what a chat prompt ends with
    else:
        output[letter(" ") : letter("~") + 1] = matrix(len(LETTERS), WIDTH, 1.0)
    tensors["output.weight"] = output
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_block_count(LAYERS)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(size)
    if fingerprint:
        writer.add_string("slm.fingerprint", fingerprint)
    _vocabulary(writer, template)
    _save(writer, tensors)
    return path


def write_adapter(
    path: Path,
    *,
    seed: int = 1,
    template: str | None = None,
    lang: str | None = None,
    base_fingerprint: str | None = None,
    architecture: str = "llama",
    width: int = WIDTH,
    rank: int = 4,
    alpha: float = 8.0,
) -> Path:
    """A random LoRA on the attention's and the feed-forward's matrices; two seeds give two different answers."""
    random = np.random.default_rng(1000 + seed)
    kv = KV_HEADS * (WIDTH // HEADS)
    shapes = {"attn_q": (width, width), "attn_k": (kv, width), "attn_v": (kv, width), "ffn_down": (width, FEED)}
    tensors: dict[str, Matrix] = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in shapes.items():
            full = f"blk.{layer}.{name}.weight"
            tensors[full + ".lora_a"] = (random.standard_normal((rank, columns)) * 0.3).astype(np.float32)
            tensors[full + ".lora_b"] = (random.standard_normal((rows, rank)) * 0.3).astype(np.float32)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    if template:
        writer.add_string("tokenizer.chat_template", template)
    if lang:
        writer.add_string("slm.lang", lang)
    if base_fingerprint:
        writer.add_string("slm.base_fingerprint", base_fingerprint)
    _save(writer, tensors)
    return path


def _save(writer: Any, tensors: dict[str, Matrix]) -> None:
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
