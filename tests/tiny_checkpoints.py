"""Tiny random checkpoints of each family with tokenizers trained on the spot, for the conversion tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog and runs back to the office.",
    "Working hours are from nine to six, with one hour for lunch.",
    "Please send the invoice to accounting before Friday.",
    "def main(): return [x ** 2 for x in range(10)]",
    "吾輩は猫である。名前はまだ無い。",
    "今日は天気がいいので、散歩に行きましょう。",
    "請求書は金曜日までに経理へ送ってください。",
    "会議室の予約は、前日までにお願いします。カタカナもあります。",
] * 4
TEXT = "The office sends 請求書 to the fox, 今日は天気"


def _shake(model: Any, seed: int = 0) -> Any:
    """Random weights everywhere: norms and biases of a fresh model are ones and zeros, which hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            center = weight.clone() if "norm" in name or ".ln_" in name else torch.zeros_like(weight)
            weight.copy_(center + 0.15 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def _finish(folder: Path, **settings: Any) -> None:
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    )


def byte_level_tokenizer(folder: Path, pre: Any = None, size: int = 400) -> Tokenizer:
    """A byte-level BPE with <|endoftext|> and two chat markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _finish(folder, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    return tokenizer


def spm_tokenizer(folder: Path) -> int:
    """A SentencePiece BPE of Gemma's kind: no space prefix, byte fallback, literal white-space tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*special, *(f"<0x{value:02X}>" for value in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = json.loads(tokenizer.to_str())
    fast["added_tokens"] = [t for t in fast["added_tokens"] if not t["content"].startswith("<0x")]
    size = len(fast["model"]["vocab"])
    for offset, content in enumerate(["\n", "\n\n", "  ", "\t"]):
        fast["added_tokens"].append(
            {"id": size + offset, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": False}
        )  # fmt: skip
        fast["model"]["vocab"][content] = size + offset
    fast["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")
    _finish(folder, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    return size + 4


def unigram_tokenizer(folder: Path) -> int:
    """A SentencePiece unigram as rinna's: spiece.model alone, nmt_nfkc, a space prefix, `do_lower_case`."""
    import sentencepiece

    text = folder.parent / f"{folder.name}-corpus.txt"
    text.write_text("\n".join(line.lower() for line in CORPUS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=160, model_type="unigram",
        user_defined_symbols=["[PAD]", "[CLS]", "[SEP]", "[MASK]"], pad_id=-1, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]",
                "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "do_lower_case": True, **specials})
    )
    return sentencepiece.SentencePieceProcessor(str(folder / "spiece.model")).vocab_size()


def gpt2(folder: Path, *, unigram: bool = False, seed: int = 0) -> Path:
    """A 2-layer GPT-2 of width 64."""
    folder.mkdir(parents=True)
    size = unigram_tokenizer(folder) if unigram else byte_level_tokenizer(folder).get_vocab_size()
    config = GPT2Config(vocab_size=size, n_positions=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=1,
                        eos_token_id=2 if unigram else 0)  # fmt: skip
    _shake(GPT2LMHeadModel(config), seed).save_pretrained(folder)
    return folder


def llama(folder: Path, *, seed: int = 0, width: int = 64, dtype: Any = torch.float32, **settings: Any) -> Path:
    """A 2-layer llama with grouped K/V heads and Llama 3's scaling unless told otherwise."""
    folder.mkdir(parents=True)
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    size = byte_level_tokenizer(folder, digits).get_vocab_size()
    options: dict[str, Any] = {"tie_word_embeddings": False, "max_position_embeddings": 256, **settings}
    config = LlamaConfig(vocab_size=size, hidden_size=width, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0,
                         **options)  # fmt: skip
    _shake(LlamaForCausalLM(config), seed).to(dtype).save_pretrained(folder)
    return folder


def gemma3(folder: Path, *, seed: int = 0) -> Path:
    """A 7-layer Gemma 3, so that a global layer and sliding ones are in it, with a window shorter than the text."""
    folder.mkdir(parents=True)
    size = spm_tokenizer(folder)
    config = Gemma3TextConfig(vocab_size=size, hidden_size=64, intermediate_size=96, num_hidden_layers=7,
                              num_attention_heads=4, num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32,
                              sliding_window=8, max_position_embeddings=256)  # fmt: skip
    _shake(Gemma3ForCausalLM(config), seed).save_pretrained(folder)
    return folder
