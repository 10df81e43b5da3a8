"""Tiny checkpoints that look like published Japanese models: the structure of their files, not their weights.

What is copied is what decides a conversion: the normalizers, pre-tokenizers, decoders, special tokens and flags of
tokenizer.json, the class and settings of tokenizer_config.json, and config.json's fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers as tf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from convert.vocabulary.base.pre_tokenizers import SPLITS
from convert.vocabulary.files.sentencepiece_file import SentencePieceModel, read_sentencepiece
from tests import tiny_checkpoints as tiny
from tests import tiny_slow_tokenizers as slow
from tests import tiny_tokenizers as tt

_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip


@dataclass(frozen=True)
class LookAlike:
    """make: writes the folder. kind: GGUF's kind of vocabulary. bos: whether a text begins with one."""

    make: Callable[[Path], Path]
    kind: str
    bos: bool


def _unigram(folder: Path, **options: Any) -> SentencePieceModel:
    """A unigram of ours with byte fallback, nothing rewritten and every space kept."""
    path = folder.parent / f"{folder.name}-model"
    own: dict[str, Any] = {"byte_fallback": True, "normalization_rule_name": "identity",
                           "remove_extra_whitespaces": False, **options}  # fmt: skip
    return read_sentencepiece(tt.sentencepiece(path, **own) / "spiece.model")


def _surrounded(tokenizer: Tokenizer, single: str) -> None:
    used = [(token, tokenizer.token_to_id(token)) for token in single.split() if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=used)


def _finish(folder: Path, config: Any, model: Any) -> Path:
    tiny._shake(model(config)).save_pretrained(folder)
    return folder


def llm_jp(folder: Path, version: int) -> Path:
    """llm-jp v2 (names ending in |LLM-jp, an end of document after each text) and v3 (<s> before it).

    Special tokens, runs of spaces, the newline and the bytes come first, all with the score -80.
    """
    model = _unigram(folder)
    names = {2: ["<unk>", "<s>", "</s>", "<mask>", "<pad>", "<CLS>", "<SEP>", "<EOD>"],
             3: ["<unk>", "<s>", "</s>", "<MASK|LLM-jp>", "<PAD|LLM-jp>", "<CLS|LLM-jp>", "<SEP|LLM-jp>",
                 "<EOD|LLM-jp>"]}[version]  # fmt: skip
    special = [f"{name[:-1]}|LLM-jp>" if version == 2 else name for name in names]
    first = [*special, *("▁" * n for n in range(24, 0, -1)), "\n", *_BYTES]
    pairs = zip(model.pieces, model.scores, model.types, strict=True)
    pieces = [(piece, score) for piece, score, kind in pairs if kind == 1 and piece not in first]
    tokenizer = Tokenizer(models.Unigram([*((piece, -80.0) for piece in first), *pieces], 0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"(?<!\n)^"), "▁"), normalizers.Replace(Regex(" "), "▁")]
    )
    tokenizer.decoder = decoders.Sequence([
        decoders.ByteFallback(), decoders.Replace(Regex("▁"), " "), decoders.Fuse(),
        decoders.Replace(Regex(r"(?<!\n)^ "), ""),
    ])  # fmt: skip
    tokenizer.add_special_tokens(special)
    _surrounded(tokenizer, f"$A {special[-1]}" if version == 2 else "<s> $A")
    eos = special[-1] if version == 2 else "</s>"
    tt.save(folder, tokenizer, unk_token=special[0], bos_token=special[1], eos_token=eos, pad_token=special[4],
            cls_token=special[5], sep_token=special[6], mask_token=special[3], extra_ids=0, sp_model_kwargs={},
            clean_up_tokenization_spaces=False, tokenizer_class="PreTrainedTokenizerFast")  # fmt: skip
    config = tf.LlamaConfig(vocab_size=tokenizer.get_vocab_size() + 10, bos_token_id=1, tie_word_embeddings=False,
                            eos_token_id=tokenizer.token_to_id(eos), **_SMALL)  # fmt: skip
    return _finish(folder, config, tf.LlamaForCausalLM)


def _metaspace(folder: Path) -> tuple[Tokenizer, dict[str, int]]:
    """A unigram as transformers turns a Llama-class model file into: no normalizer, spaces by Metaspace, unsplit."""
    model = _unigram(folder, add_dummy_prefix=False, pad_id=3,
                     user_defined_symbols=["<|user|>", "<|assistant|>", "\n"],
                     control_symbols=["<sep>", "<mask>", "<cls>"])  # fmt: skip
    pieces = list(zip(model.pieces, model.scores, strict=True))
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([p for p, kind in zip(model.pieces, model.types, strict=True) if kind in (2, 3)])
    tokenizer.add_tokens([p for p, kind in zip(model.pieces, model.types, strict=True) if kind == 4])
    return tokenizer, {piece: id_ for id_, (piece, _) in enumerate(pieces)}


_SARASHINA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "legacy": False,
              "cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>", "tokenizer_class": "LlamaTokenizer",
              "add_prefix_space": False, "add_dummy_prefix_space": False, "do_lower_case": False}  # fmt: skip


def sarashina(folder: Path) -> Path:
    """sarashina2.2: a unigram under LlamaTokenizer, no prefix, no BOS, chat markers among the pieces."""
    tokenizer, ids = _metaspace(folder)
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    tt.save(folder, tokenizer, **_SARASHINA, add_bos_token=False, add_eos_token=False, chat_template=template)
    config = tf.LlamaConfig(vocab_size=len(ids), bos_token_id=1, eos_token_id=2, pad_token_id=3, rope_theta=500_000.0,
                            head_dim=16, tie_word_embeddings=False, **_SMALL)  # fmt: skip
    return _finish(folder, config, tf.LlamaForCausalLM)


def sarashina_model_file(folder: Path) -> Path:
    """sarashina2: the unigram's model file alone under LlamaTokenizer."""
    _unigram(folder, add_dummy_prefix=False, pad_id=3)
    folder.mkdir(parents=True)
    (folder.parent / f"{folder.name}-model" / "spiece.model").rename(folder / "tokenizer.model")
    settings = {**_SARASHINA, "cls_token": None, "sep_token": None, "mask_token": None, "add_bos_token": False}
    slow.settings_of(folder, **settings)
    size = len(read_sentencepiece(folder / "tokenizer.model").pieces)
    config = tf.LlamaConfig(vocab_size=size, bos_token_id=1, eos_token_id=2, pad_token_id=3,
                            tie_word_embeddings=False, **_SMALL)  # fmt: skip
    return _finish(folder, config, tf.LlamaForCausalLM)


def ruri(folder: Path) -> Path:
    """ruri v3 and modernbert-ja: sarashina's tokenizer with <s> and </s> around a text, ModernBERT."""
    tokenizer, ids = _metaspace(folder)
    _surrounded(tokenizer, "<s> $A </s>")
    settings = {**_SARASHINA, "cls_token": "<s>", "sep_token": "</s>"}
    tt.save(folder, tokenizer, **settings, add_bos_token=True, add_eos_token=True)
    sizes = {name: value for name, value in _SMALL.items() if name not in ("num_key_value_heads", "num_hidden_layers")}
    config = tf.ModernBertConfig(vocab_size=len(ids), num_hidden_layers=4, local_attention=8, pad_token_id=3,
                                 bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, **sizes)  # fmt: skip
    return _finish(folder, config, tf.ModernBertModel)


def swallow(folder: Path) -> Path:
    """Swallow: Llama 2's SentencePiece BPE, extended with Japanese pieces whose scores go on downwards."""
    options: dict[str, Any] = {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False}
    path = folder.parent / f"{folder.name}-model"
    model = read_sentencepiece(tt.sentencepiece(path, normalization_rule_name="identity", **options) / "spiece.model")
    ids = {piece: id_ for id_, piece in enumerate(model.pieces)}
    words = ["会議", "会議室", "請求", "請求書", "経理", "金曜日", "ください", "ました", "東京", "日本", "日本語"]
    for word in [*"".join(words), *words]:
        ids.setdefault(word, len(ids))
    merges = [(word[:cut], word[cut:]) for word in sorted(ids, key=ids.__getitem__) for cut in range(1, len(word))
              if word[:cut] in ids and word[cut:] in ids]  # fmt: skip
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    _surrounded(tokenizer, "<s> $A")
    named = {name: {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False,
                    "single_word": False}
             for name, text in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))}  # fmt: skip
    tt.save(folder, tokenizer, add_bos_token=True, add_eos_token=False, legacy=False, pad_token=None,
            sp_model_kwargs={}, tokenizer_class="LlamaTokenizer", **named)  # fmt: skip
    config = tf.LlamaConfig(vocab_size=len(ids), bos_token_id=1, eos_token_id=2, pad_token_id=0, rms_norm_eps=1e-5,
                            tie_word_embeddings=False, **_SMALL)  # fmt: skip
    return _finish(folder, config, tf.LlamaForCausalLM)


def tiny_swallow(folder: Path) -> Path:
    """TinySwallow, which is Qwen 2.5: tied head, many rows without a token, markers that are special and some not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLITS["qwen2"][0]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(tt.LINES + tt.EXTRA, trainer)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tt.save(folder, tokenizer, add_bos_token=False, bos_token=None, eos_token="<|im_end|>", unk_token=None,
            pad_token="<|endoftext|>", additional_special_tokens=special[1:], chat_template=template,
            tokenizer_class="Qwen2Tokenizer")  # fmt: skip
    eos = tokenizer.token_to_id("<|im_end|>")
    assert eos is not None
    config = tf.Qwen2Config(vocab_size=tokenizer.get_vocab_size() + 60, bos_token_id=eos - 2, eos_token_id=eos,
                            sliding_window=None, use_sliding_window=False, max_window_layers=21,
                            rope_theta=1_000_000.0, tie_word_embeddings=True, **_SMALL)  # fmt: skip
    return _finish(folder, config, tf.Qwen2ForCausalLM)


def rinna_gpt2(folder: Path) -> Path:
    """rinna/japanese-gpt2-small: spiece.model under T5Tokenizer, lower-cased."""
    slow.rinna(folder)
    size = len(read_sentencepiece(folder / "spiece.model").pieces)
    config = tf.GPT2Config(vocab_size=size, n_positions=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=1,
                           eos_token_id=2)  # fmt: skip
    return _finish(folder, config, tf.GPT2LMHeadModel)


def rinna_neox(folder: Path) -> Path:
    """rinna/japanese-gpt-neox-3.6b: byte fallback, no prefix, every space kept, whole heads rotated, no parallelism."""
    tt.sentencepiece(folder, byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
                     remove_extra_whitespaces=False, pad_id=3, pad_piece="[PAD]")  # fmt: skip
    slow.settings_of(folder, eos_token="</s>", unk_token="<unk>", pad_token="[PAD]", bos_token="<s>", extra_ids=0,
                     additional_special_tokens=[], sp_model_kwargs={}, do_lower_case=False,
                     tokenizer_class="T5Tokenizer")  # fmt: skip
    size = len(read_sentencepiece(folder / "spiece.model").pieces)
    sizes = {name: value for name, value in _SMALL.items() if name != "num_key_value_heads"}
    config = tf.GPTNeoXConfig(vocab_size=size, bos_token_id=2, eos_token_id=3, rotary_pct=1.0,
                              use_parallel_residual=False, **sizes)  # fmt: skip
    return _finish(folder, config, tf.GPTNeoXForCausalLM)


LOOK_ALIKES: dict[str, LookAlike] = {
    "llm-jp v2": LookAlike(lambda f: llm_jp(f, 2), "t5", False),
    "llm-jp v3": LookAlike(lambda f: llm_jp(f, 3), "t5", True),
    "sarashina2.2": LookAlike(sarashina, "t5", False),
    "sarashina2, model file": LookAlike(sarashina_model_file, "t5", False),
    "Swallow": LookAlike(swallow, "llama", True),
    "TinySwallow": LookAlike(tiny_swallow, "gpt2", False),
    "rinna GPT-2": LookAlike(rinna_gpt2, "t5", False),
    "rinna GPT-NeoX": LookAlike(rinna_neox, "t5", False),
}
