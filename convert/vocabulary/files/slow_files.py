"""Tokenizer files older than `tokenizer.json`, rewritten as the `tokenizer.json` that transformers makes of them.

It knows nothing of GGUF. Files: `vocab.txt` (WordPiece), `vocab.json` with `merges.txt` (byte-level BPE),
`sentencepiece.bpe.model` (XLM-R's unigram). What such a file does not say (how text is split, which tokens are special)
is a property of its tokenizer class: https://github.com/huggingface/transformers, models/*/tokenization_*.py.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.vocabulary.base.pre_tokenizers import pre_tokenizer_of
from convert.vocabulary.files.added import added_tokens
from convert.vocabulary.files.sentencepiece_file import UNIGRAM, read_sentencepiece
from convert.vocabulary.files.tokenizer_json import content
from slm.artifacts import read_json
from slm.errors import DamagedFileError, MissingFileError, UnsupportedError

_BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
_GPT2 = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_QWEN2 = dict.fromkeys(("eos_token", "pad_token"), "<|endoftext|>")
_FAIRSEQ = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
            "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
# Tokenizer class -> the special tokens it has when no file names them.
_WORD_PIECE = dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), _BERT)
_BYTE_LEVEL = {"GPT2Tokenizer": _GPT2, "RobertaTokenizer": _FAIRSEQ, "Qwen2Tokenizer": _QWEN2}
_FAIRSEQ_OFFSET = {"XLMRobertaTokenizer": _FAIRSEQ}
# What transformers takes for a folder that names no class.
_BY_MODEL = {"bert": "BertTokenizer", "gpt2": "GPT2Tokenizer", "roberta": "RobertaTokenizer",
             "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer", "xlm-roberta": "XLMRobertaTokenizer"}  # fmt: skip
# File -> the classes that are known to use it.
_FILES = {"vocab.txt": _WORD_PIECE, "vocab.json": _BYTE_LEVEL, "sentencepiece.bpe.model": _FAIRSEQ_OFFSET}


def named_class(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The tokenizer class by tokenizer_config.json or config.json, without `Fast`; "" where neither names one."""
    return str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "").removesuffix("Fast")


def class_of(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """`named_class`, or the usual one of the model's type; "" if unknown."""
    return named_class(settings, config) or _BY_MODEL.get(str(config.get("model_type")), "")


def find_slow_file(folder: Path) -> Path | None:
    """The folder's file of one of these kinds; None for a folder without."""
    return next((folder / name for name in _FILES if (folder / name).exists()), None)


def default_specials(file: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of the folder's tokenizer class. Raises UnsupportedError for a class that is not known."""
    known, name = _FILES[file.name], class_of(settings, config)
    if name not in known:
        raise UnsupportedError(
            f"'{file}' alone does not say how text is split, its tokenizer class does",
            found=name or "no tokenizer_class in tokenizer_config.json",
            hint=f"Known with {file.name}: {', '.join(known)}. Or save a tokenizer.json: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
        )
    return dict(known[name])


def fast_form(file: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `tokenizer.json`. settings: with the class's default special tokens.

    Raises MissingFileError, DamagedFileError or UnsupportedError.
    """
    make = {"vocab.txt": _word_piece, "vocab.json": _byte_level, "sentencepiece.bpe.model": _fairseq}[file.name]
    fast = {"version": "1.0", "truncation": None, "padding": None, **make(file, settings, config)}
    vocab = fast["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {piece: id_ for id_, (piece, _) in enumerate(vocab)}
    return {**fast, "added_tokens": added_tokens(file.parent, settings, ids)}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"'{path}' is not UTF-8 text: {error}") from error


def _surrounded(before: str, after: str, ids: Mapping[str, int], path: Path) -> dict[str, Any]:
    """A post-processor that puts a token before and one after a text."""
    absent = [token for token in (before, after) if token not in ids]
    if absent:
        raise DamagedFileError(f"'{path}' has no token {absent[0]!r}, which its tokenizer puts around each text")
    single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    for at, token in ((0, before), (2, after)):
        single.insert(at, {"SpecialToken": {"id": token, "type_id": 0}})
    used = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (before, after)}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": used}


def _word_piece(file: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A token a line; the class's options are in tokenizer_config.json."""
    vocab = {token: id_ for id_, token in enumerate(_text(file).removesuffix("\n").split("\n"))}
    named = {name: str(content(settings.get(name))) for name in _BERT}
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": bool(settings.get("tokenize_chinese_chars", True)),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": bool(settings.get("do_lower_case", True)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _surrounded(named["cls_token"], named["sep_token"], vocab, file),
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": named["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def _byte_level(file: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Ids by token in vocab.json, and a merge a line in merges.txt, best first."""
    merges = file.parent / "merges.txt"
    if not merges.exists():
        raise MissingFileError(f"'{file.parent}' has vocab.json but no merges.txt, which belongs to it")
    vocab, kind = read_json(file), class_of(settings, config)
    lines = [line for line in _text(merges).split("\n") if line and not line.startswith("#version")]
    pairs = [line.split(" ") for line in lines]
    wrong = next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2), None)
    if wrong is not None:
        raise DamagedFileError(f"'{merges}' has a line that is not a pair of tokens", found=repr(wrong[:60]))
    splitter = pre_tokenizer_of("qwen2" if kind == "Qwen2Tokenizer" else "gpt-2")
    if kind != "Qwen2Tokenizer":
        splitter["add_prefix_space"] = bool(settings.get("add_prefix_space"))
    around = None
    if kind == "RobertaTokenizer":
        around = _surrounded(str(content(settings["cls_token"])), str(content(settings["sep_token"])), vocab, file)
    return {
        "normalizer": {"type": "NFC"} if kind == "Qwen2Tokenizer" else None,
        "pre_tokenizer": splitter,
        "post_processor": around,
        "decoder": {**pre_tokenizer_of("gpt-2")},
        "model": {"type": "BPE", "vocab": vocab, "merges": pairs},
    }


def _fairseq(file: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """XLM-R: fairseq's four special tokens take the place of SentencePiece's three, so ids are one higher."""
    model = read_sentencepiece(file)
    if model.kind != UNIGRAM or model.byte_fallback:
        raise UnsupportedError(f"'{file}' is not a plain unigram model, as XLM-R's is")
    named = {name: str(content(settings.get(name))) for name in _FAIRSEQ}
    first = [named[name] for name in ("bos_token", "pad_token", "eos_token", "unk_token")]
    pieces = list(zip(model.pieces, model.scores, strict=True))[3:]
    vocab = [*((token, 0.0) for token in first), *pieces, (named["mask_token"], 0.0)]
    ids = {piece: id_ for id_, (piece, _) in enumerate(vocab)}
    charsmap = base64.b64encode(model.charsmap).decode()
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap} if charsmap else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
        "post_processor": _surrounded(named["bos_token"], named["eos_token"], ids, file),
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 3, "byte_fallback": False, "vocab": [list(pair) for pair in vocab]},
    }
