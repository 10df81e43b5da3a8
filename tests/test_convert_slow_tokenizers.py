"""Tokenizer folders without a tokenizer.json: llama.cpp's ids are those of transformers, line by line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from convert.vocabulary.base.proof import MIXED_LINES, special_lines
from convert.vocabulary.vocab_source import read_vocabulary
from slm.errors import DamagedFileError, MissingFileError, UnsupportedError
from tests import tiny_slow_tokenizers as slow
from tests import tiny_tokenizers as tt

MARKERS = {"<|im_start|>": 1200, "<|im_end|>": 1201}
_QWEN = {"added_tokens_decoder": {str(id_): {"content": text, "special": True, "normalized": False, "lstrip": False,
                                             "rstrip": False, "single_word": False}
                                  for text, id_ in MARKERS.items()},
         "additional_special_tokens": list(MARKERS), "tokenizer_class": "Qwen2Tokenizer",
         "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}  # fmt: skip

Theirs = Callable[[Path], Any]
# (folder, transformers' tokenizer, whether it is an embedder's, llama.cpp's kind)
KINDS: dict[str, tuple[Callable[[Path], Path], Theirs, bool, str]] = {
    "vocab.txt, nothing else": (slow.vocab_txt, tf.BertTokenizer.from_pretrained, True, "bert"),
    "vocab.txt, cased": (
        lambda f: slow.vocab_txt(f, do_lower_case=False, tokenizer_class="BertTokenizer"),
        tf.BertTokenizer.from_pretrained, True, "bert",
    ),
    "vocab.txt, accents kept": (
        lambda f: slow.vocab_txt(f, strip_accents=False, tokenizer_class="BertTokenizerFast"),
        tf.BertTokenizer.from_pretrained, True, "bert",
    ),
    "GPT-2": (lambda f: slow.vocab_json(f, "gpt2"), tf.GPT2Tokenizer.from_pretrained, False, "gpt2"),
    "RoBERTa": (lambda f: slow.vocab_json(f, "roberta"), tf.RobertaTokenizer.from_pretrained, True, "gpt2"),
    "Qwen 2 with chat markers": (
        lambda f: slow.vocab_json(f, "qwen2", **_QWEN), tf.Qwen2Tokenizer.from_pretrained, False, "gpt2",
    ),
    "XLM-R": (slow.xlm_roberta_model, tf.XLMRobertaTokenizer.from_pretrained, True, "t5"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    make, theirs, embedder, kind = KINDS[name]
    folder = make(tmp_path / "x")
    tokenizer = theirs(folder)
    with tt.both(folder, embedder=embedder) as (source, found, _):
        assert source.vocabulary.model == kind
        ours, lines = source.encoder(), source.all_lines()
        assert len(lines) > len(source.lines) >= len(MIXED_LINES)
        for line in lines:
            ids = tokenizer(line, add_special_tokens=embedder)["input_ids"]
            assert (ours(line), found(line)) == (ids, ids), line


class LowerCased(SentencePieceBackend):  # type: ignore[misc]
    """SentencePiece by transformers, with T5Tokenizer's `do_lower_case`: not for special tokens."""

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        pieces: list[str] = super()._tokenize(text.lower(), **kwargs)
        return pieces


def by_sentencepiece(folder: Path, kind: type = SentencePieceBackend, name: str = "spiece.model") -> Any:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    keys = [key for key in settings if key.endswith("_token") or key in ("extra_special_tokens", "legacy")]
    tokenizer = kind(vocab_file=str(folder / name), **{key: settings[key] for key in keys})
    path = folder / "added_tokens.json"
    tokenizer.add_tokens(list(json.loads(path.read_text())) if path.exists() else [])
    return tokenizer


MODEL_FILES: dict[str, tuple[Callable[[Path], Path], type, str, str]] = {
    "rinna's T5Tokenizer, lower-casing": (slow.rinna, LowerCased, "spiece.model", "t5"),
    "Llama's": (slow.llama_model, SentencePieceBackend, "tokenizer.model", "llama"),
    "Llama's with added tokens": (
        lambda f: slow.llama_model(f, {"<|im_start|>": 1900, "<|im_end|>": 1901}, legacy=True),
        SentencePieceBackend, "tokenizer.model", "llama",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_sentencepiece_model_file_gives_the_ids_of_transformers(name: str, tmp_path: Path) -> None:
    make, kind, file, gguf_kind = MODEL_FILES[name]
    folder = make(tmp_path / "x")
    tokenizer = by_sentencepiece(folder, kind, file)
    with tt.both(folder) as (source, found, _):
        assert source.vocabulary.model == gguf_kind
        ours, lines = source.encoder(), source.all_lines()
        assert len(lines) > len(source.lines)
        for line in lines:
            ids = tokenizer(line, add_special_tokens=False)["input_ids"]
            assert (ours(line), found(line)) == (ids, ids), line


def test_what_a_fine_tune_added_to_a_model_file_is_one_token(tmp_path: Path) -> None:
    folder = slow.llama_model(tmp_path / "x", {"<|im_start|>": 1900, "東京タワー": 1901}, legacy=True,
                              additional_special_tokens=["<|im_start|>"])  # fmt: skip
    source = read_vocabulary(folder, {})
    assert source.vocabulary.tokens[1900:] == ["<|im_start|>", "東京タワー"]
    assert source.vocabulary.types[1900:] == [3, 4]  # control, user-defined
    assert set(special_lines(source.vocabulary.tokens, [1900, 1901])) <= set(source.all_lines())


def test_where_transformers_puts_no_space_after_a_special_token_it_is_said(tmp_path: Path) -> None:
    source = read_vocabulary(slow.llama_model(tmp_path / "x", legacy=False), {})
    assert source.special_ids == []
    assert any("after a special token" in caveat for caveat in source.caveats)


def _without(name: str, make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        make(folder)
        (folder / name).unlink()
        return folder

    return made


def _with(name: str, text: str, make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        make(folder)
        (folder / name).write_text(text)
        return folder

    return made


def _gpt2(folder: Path) -> Path:
    return slow.vocab_json(folder, "gpt2")


_JAPANESE = '{"tokenizer_class": "BertJapaneseTokenizer"}'


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda f: slow.vocab_txt(f, tokenizer_class="MPNetTokenizer"), UnsupportedError, "MPNetTokenizer"),
        (lambda f: slow.vocab_txt(f, word_tokenizer_type="mecab"), UnsupportedError, "dictionary"),
        (lambda f: slow.vocab_txt(f, tokenizer_class="BertJapaneseTokenizer"), UnsupportedError, "dictionary"),
        (_with("config.json", _JAPANESE, slow.vocab_txt), UnsupportedError, "dictionary"),
        (lambda f: slow.vocab_txt(f, tokenize_chinese_chars=False), UnsupportedError, "Chinese"),
        (_with("vocab.txt", "a\nb\n", slow.vocab_txt), DamagedFileError, "CLS"),
        (_without("merges.txt", _gpt2), MissingFileError, "merges.txt"),
        (_with("merges.txt", "a b c\n", _gpt2), DamagedFileError, "not a pair"),
        (_with("merges.txt", "zz qq\n", _gpt2), DamagedFileError, "loaded"),
        (_with("added_tokens.json", '{"x": -5}', _gpt2), DamagedFileError, "impossible id"),
        (_with("added_tokens.json", '{"x": 99999999999}', _gpt2), DamagedFileError, "impossible id"),
        (lambda f: slow.vocab_json(f, "gpt2", add_prefix_space=True), UnsupportedError, "add_prefix_space"),
        (lambda f: slow.rinna(f, tokenizer_class="AlbertTokenizer"), UnsupportedError, "AlbertTokenizer"),
        (lambda f: slow.xlm_roberta_model(f, tokenizer_class="CamembertTokenizer"), UnsupportedError, "Camembert"),
        (_with("sentencepiece.bpe.model", "not a model", slow.xlm_roberta_model), DamagedFileError, "whole"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_or_is_not_known_is_refused(
    make: Callable[[Path], Path], error: type[Exception], match: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(error, match=match):
        read_vocabulary(folder, config, embedder=config.get("model_type") == "bert").encoder()


# --- SentencePiece BPE that changes the text first


def _bpe(folder: Path, rules: dict[str, str], **options: Any) -> Path:
    folder.mkdir(parents=True)
    lines = ["{}\t{}".format(*(" ".join(f"{ord(c):X}" for c in side) for side in rule)) for rule in rules.items()]
    (folder / "rules.tsv").write_text("\n".join(lines) + "\n")
    own: dict[str, Any] = {"normalization_rule_name": "user_defined", "remove_extra_whitespaces": False,
                           "normalization_rule_tsv": str(folder / "rules.tsv"), **options}  # fmt: skip
    return tt.sentencepiece(folder, model_type="bpe", byte_fallback=True, **own)


def test_a_character_map_that_leaves_ordinary_text_alone_is_told_and_let_through(tmp_path: Path) -> None:
    with tt.both(_bpe(tmp_path / "x", {"\u2126": "Ω", "\ufb05": "st"})) as (source, found, _):
        assert source.vocabulary.model == "llama"
        assert any("rare characters" in caveat for caveat in source.caveats)
        expected = source.encoder()
        assert [found(line) for line in source.all_lines()] == [expected(line) for line in source.all_lines()]
        assert found("\u2126") != expected("\u2126")  # what the caveat says


@pytest.mark.parametrize(
    ("rules", "options", "match"),
    [
        ({"！": "!", "Ａ": "A"}, {}, "character map.*'！' to '!'|character map.*'Ａ' to 'A'"),
        ({"\u2126": "Ω"}, {"remove_extra_whitespaces": True}, "drops spaces"),
    ],
)
def test_a_bpe_that_changes_ordinary_text_is_refused_with_the_reason(
    rules: dict[str, str], options: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=match):
        read_vocabulary(_bpe(tmp_path / "x", rules, **options), {})
