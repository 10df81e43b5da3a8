"""Tokenizer folders without a tokenizer.json: vocab.txt, vocab.json with merges.txt, SentencePiece model files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from convert.vocabulary.base.pre_tokenizers import SPLITS
from tests import tiny_tokenizers as tt

FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]


def settings_of(folder: Path, **settings: Any) -> Path:
    """Write tokenizer_config.json; without settings there is none."""
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def vocab_txt(folder: Path, **settings: Any) -> Path:
    """BERT's file alone, with or without a tokenizer_config.json."""
    lower = bool(settings.get("do_lower_case", True))
    tt.word_piece(folder, lower=lower, strip_accents=settings.get("strip_accents"))
    fast = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").unlink()
    by_id = sorted(fast["model"]["vocab"], key=fast["model"]["vocab"].__getitem__)
    (folder / "vocab.txt").write_text("\n".join(by_id) + "\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return settings_of(folder, **settings)


def vocab_json(folder: Path, model_type: str, **settings: Any) -> Path:
    """Byte-level BPE as GPT-2's, RoBERTa's or Qwen 2's: vocab.json and merges.txt."""
    folder.mkdir(parents=True)
    special = {"roberta": [*FAIRSEQ, "<mask>"]}.get(model_type, ["<|endoftext|>"])
    tokenizer = Tokenizer(models.BPE())
    regex = SPLITS["qwen2" if model_type == "qwen2" else "gpt-2"][0]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(tt.LINES + tt.EXTRA, trainer)
    fast = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(fast["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(pair) for pair in fast["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return settings_of(folder, **settings)


def xlm_roberta_model(folder: Path, **settings: Any) -> Path:
    """XLM-R's sentencepiece.bpe.model: a unigram, in spite of its name, whose ids are one higher in the tokenizer."""
    tt.sentencepiece(folder)
    (folder / "spiece.model").rename(folder / "sentencepiece.bpe.model")
    (folder / "config.json").write_text('{"model_type": "xlm-roberta", "pad_token_id": 1}')
    return settings_of(folder, **settings)


def rinna(folder: Path, **settings: Any) -> Path:
    """rinna/japanese-gpt2-*: spiece.model under T5Tokenizer, lower-cased, with BERT's names among its pieces."""
    tt.sentencepiece(folder, lower=True, small_map=True, control_symbols=["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return settings_of(folder, **{
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]", "extra_ids": 0, "sp_model_kwargs": {},
        "additional_special_tokens": [], "bos_token": "<s>", "cls_token": "[CLS]", "sep_token": "[SEP]",
        "mask_token": "[MASK]", "do_lower_case": True, "tokenizer_class": "T5Tokenizer", **settings,
    })  # fmt: skip


def llama_model(folder: Path, added: dict[str, int] | None = None, **settings: Any) -> Path:
    """Llama's tokenizer.model alone, with tokens that a fine-tune has added."""
    options: dict[str, Any] = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    tt.sentencepiece(folder, remove_extra_whitespaces=False, **options)
    (folder / "spiece.model").rename(folder / "tokenizer.model")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    base = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    return settings_of(folder, **base, **settings)
