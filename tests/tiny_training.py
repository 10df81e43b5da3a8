"""Tiny random checkpoint folders with real tokenizers, and small data to train on, for the training tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

ROOT = Path(__file__).parent.parent
MARKERS = ["<bos>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"]


def corpus() -> list[str]:
    """The sentences of data/en.txt and data/ja.txt."""
    lines = [(ROOT / f"data/{lang}.txt").read_text(encoding="utf-8").splitlines() for lang in ("en", "ja")]
    return [line for part in lines for line in part if line]


def byte_level_tokenizer(*, bos: str | None = None, eos: str | None = "<|endoftext|>") -> Any:
    """A byte-level BPE tokenizer as GPT-2's, with the turn markers as special tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", *MARKERS]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    core.train_from_iterator(corpus(), trainer)
    core.add_special_tokens([AddedToken(text, special=True) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos)


def write_model(folder: Path, family: str, size: int, *, seed: int = 0, **config: Any) -> Path:
    """A random model of two layers; family is gpt2, llama or gemma3.

    Its weights are larger than usual: logits of the usual size could not move far enough to learn anything.
    """
    set_seed(seed)
    config = {"initializer_range": 0.2} | config
    gated = {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    model: Any
    if family == "gpt2":
        plain = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 0}
        model = GPT2LMHeadModel(GPT2Config(**({"vocab_size": size} | plain | config)))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**(gated | config)))
    else:
        window = {"head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**(gated | window | config)))
    model.save_pretrained(folder)
    return folder


def write_checkpoint(folder: Path, family: str = "gpt2", *, seed: int = 0, **config: Any) -> Path:
    """A random model with a byte-level BPE tokenizer."""
    tokenizer = byte_level_tokenizer()
    write_model(folder, family, len(tokenizer), seed=seed, **config)
    tokenizer.save_pretrained(folder)
    return folder


def write_sentencepiece_checkpoint(folder: Path) -> Path:
    """A random GPT-2 with a SentencePiece unigram tokenizer laid out as rinna/japanese-gpt2-small."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(folder / "spiece"), vocab_size=1000, model_type="unigram",
        character_coverage=0.995, pad_id=3, pad_piece="[PAD]", user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"],
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
    more = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "extra_ids": 0}
    config = names | more | {"do_lower_case": True, "additional_special_tokens": [], "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model")).vocab_size()
    return write_model(folder, "gpt2", size, bos_token_id=1, eos_token_id=2)


def conversations(count: int, lang: str = "en") -> list[dict[str, Any]]:
    """Short question-answer pairs that a tiny model can learn."""
    pairs = {"en": ("Where is desk {n}?", "Desk {n} is here."), "ja": ("机{n}はどこですか。", "机{n}はここです。")}
    question, answer = pairs[lang]
    return [
        {
            "lang": lang,
            "messages": [
                {"role": "user", "content": question.format(n=n)},
                {"role": "assistant", "content": answer.format(n=n)},
            ],
        }
        for n in range(count)
    ]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path
