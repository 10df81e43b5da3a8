"""Checkpoints to GGUF: equal logits, equal token ids, transforms and their inverses."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM

from convert.cli import verify as cli_verify
from convert.model import convert_checkpoint
from convert.publish.inspect import inspect_gguf
from convert.quality.verify import Bounds, verify_model
from convert.quantize.quantize import quantize_file
from convert.source.safetensors_file import to_bfloat16, to_float32
from convert.vocabulary.base.charsmap import apply_charsmap, lower_casing, read_charsmap, write_charsmap
from convert.vocabulary.fast_tokenizer import pre_tokenizer_of
from convert.vocabulary.vocab_source import pre_name
from slm.errors import UnsupportedError, VerificationError
from slm.families.parts.base import PlusOne, RopePermuted, Transposed
from slm.native.llama import ContextParams, open_context, open_model, tokenize
from slm.weights.gguf_reader import read_gguf
from slm.weights.identity import checkpoint_fingerprint
from tests import tiny_checkpoints as tiny
from tests.llama_logits import all_logits


def logits_of(gguf: Path, text: str = tiny.TEXT) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Token ids and logits at every position by llama.cpp."""
    with ExitStack() as stack:
        model = open_model(stack, gguf)
        context = open_context(
            stack, model, ContextParams(n_ctx=128, n_batch=128, n_threads=2, flash_attention=False, exact_cache=True)
        )
        ids = tokenize(model, text, add_special=True, parse_special=True)
        return ids, all_logits(model, context, ids)


def difference(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def assert_equal_logits(folder: Path, gguf: Path, bound: float = 1e-3) -> None:
    ids, found = logits_of(gguf)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    assert len(ids) > 10
    assert difference(found, expected) < bound
    # Random models have near ties; the token chosen must be the best one up to the difference just measured.
    chosen = np.take_along_axis(expected, found.argmax(-1)[:, None], axis=-1)[:, 0]
    assert (expected.max(-1) - chosen <= 2 * np.abs(found - expected).max()).all()


FAMILIES = {
    "gpt2 with byte-level BPE": lambda f: tiny.gpt2(f),
    "gpt2 with a unigram vocabulary as rinna's": lambda f: tiny.gpt2(f, unigram=True),
    "llama": lambda f: tiny.llama(f),
    "llama with tied head and biases": lambda f: tiny.llama(
        f, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama with linear RoPE scaling": lambda f: tiny.llama(
        f, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    ),
    "llama with llama3 RoPE scaling": lambda f: tiny.llama(
        f,
        rope_parameters={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 10_000.0,
        },
    ),
    "llama in bf16": lambda f: tiny.llama(f, dtype=torch.bfloat16),
    "gemma3": lambda f: tiny.gemma3(f),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_checkpoint_has_the_logits_of_transformers_at_every_position(family: str, tmp_path: Path) -> None:
    folder = FAMILIES[family](tmp_path / "source")
    [result] = convert_checkpoint(folder, tmp_path / "out.gguf", "f32")
    assert result["tokenizer_lines_proven"] >= 14
    assert_equal_logits(folder, tmp_path / "out.gguf")
    assert read_gguf(tmp_path / "out.gguf").metadata["slm.fingerprint"] == checkpoint_fingerprint(folder)


def test_a_tied_head_is_not_written(tmp_path: Path) -> None:
    convert_checkpoint(tiny.gpt2(tmp_path / "gpt2"), tmp_path / "out.gguf", "f32")
    assert "output.weight" not in read_gguf(tmp_path / "out.gguf").tensors


def test_one_reading_gives_a_ladder_of_types_and_says_what_was_written(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny", width=256)
    results = convert_checkpoint(folder, tmp_path / "ladder", ["F16", "bf16", "Q8_0", "q4_0", "Q4_K_M"])
    assert [r["type"] for r in results] == ["f16", "bf16", "q8_0", "q4_0", "q4_k_m"]
    kinds = [set(r["tensor_types"]) for r in results]
    assert [k >= {t} for k, t in zip(kinds, ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K"], strict=True)] == [True] * 5
    ids, exact = logits_of(tmp_path / "ladder/tiny-f16.gguf")
    for result, bound in zip(results[1:], (0.15, 0.15, 1.0, 1.0), strict=True):
        found_ids, found = logits_of(Path(result["file"]))
        assert found_ids == ids
        assert difference(found, exact) < bound, result["type"]
    assert not list(tmp_path.glob("ladder/.*"))


def test_rows_that_are_not_whole_superblocks_are_reported_with_the_type_they_got(tmp_path: Path) -> None:
    [source] = convert_checkpoint(tiny.llama(tmp_path / "tiny"), tmp_path / "f32.gguf", "f32")
    result = quantize_file(source["file"], tmp_path / "q.gguf", "Q4_K_M")
    assert "Q4_K" not in result["tensor_types"]  # rows of 64 and 96 values
    assert {"Q5_0"} <= set(result["tensor_types"])


def test_the_chat_template_and_the_special_ids_are_in_the_file(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    convert_checkpoint(folder, tmp_path / "out.gguf", "f16")
    described = inspect_gguf(tmp_path / "out.gguf")
    assert described["template"] == "{{ messages[0].content }}"
    assert described["vocabulary"]["specials"]["eos"] == {"id": 0, "token": "<|endoftext|>"}
    assert described["vocabulary"]["pre"] == "smollm"


def test_verify_finds_two_equal_models_equal_and_two_different_ones_different(tmp_path: Path) -> None:
    one, other = tiny.llama(tmp_path / "one"), tiny.llama(tmp_path / "other", seed=1)
    convert_checkpoint(one, tmp_path / "one.gguf", "f32")
    same = verify_model(tmp_path / "one.gguf", one)
    assert same["ok"], same["broken"]
    assert same["bounds_for"] == "f32"
    assert same["token_ids"]["lines_different"] == 0
    different = verify_model(tmp_path / "one.gguf", other)
    assert not different["ok"]
    assert len(different["broken"]) == 3
    strict = verify_model(tmp_path / "one.gguf", tmp_path / "one.gguf", bounds=Bounds(0.0, 1.0, 0.0))
    assert strict["ok"], strict["broken"]


def test_the_verify_command_exits_with_1_when_a_bound_is_broken(tmp_path: Path) -> None:
    one = tiny.llama(tmp_path / "one")
    convert_checkpoint(one, tmp_path / "one.gguf", "f16")
    text = Path(__file__).parent.parent / "data" / "ja.txt"
    arguments = [str(tmp_path / "one.gguf"), "--against", str(one), "--text", f"ja={text}", "--json"]
    arguments += ["--max-tokens", "300"]
    good = CliRunner().invoke(cli_verify.verify, arguments)
    assert good.exit_code == 0
    assert json.loads(good.stdout)["by_language"]["ja"]["tokens"] > 10
    assert CliRunner().invoke(cli_verify.verify, [*arguments, "--max-relative", "1e-12"]).exit_code == 1


# --- tokenizers


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_pre_tokenizer_is_known_by_its_structure(pre: str) -> None:
    step = pre_tokenizer_of(pre)
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    assert pre_name(steps, pre == "llama-bpe") == pre


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_a_vocabulary_trained_with_a_published_regex_is_proven(pre: str, tmp_path: Path) -> None:
    folder = tiny.gpt2(tmp_path / "tiny")
    regex = pre_tokenizer_of(pre)["pretokenizers"][0]["pattern"]["Regex"]
    from tokenizers import Regex

    steps = [
        pre_tokenizers.Split(Regex(regex), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tiny.byte_level_tokenizer(folder, pre_tokenizers.Sequence(steps))
    convert_checkpoint(folder, tmp_path / "out.gguf", "f16")
    expected = "dbrx" if pre == "llama-bpe" else pre  # its merges are not ignored
    assert read_gguf(tmp_path / "out.gguf").metadata["tokenizer.ggml.pre"] == expected


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tiny.gpt2(tmp_path / "tiny")
    steps = [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tiny.byte_level_tokenizer(folder, pre_tokenizers.Sequence(steps))
    with pytest.raises(UnsupportedError, match=r"Punctuation.*qwen2"):
        convert_checkpoint(folder, tmp_path / "out.gguf", "f16")


def test_a_tokenizer_that_llama_cpp_reads_differently_stops_the_conversion(tmp_path: Path) -> None:
    folder = tiny.gpt2(tmp_path / "tiny")
    path = folder / "tokenizer.json"
    fast = json.loads(path.read_text("utf-8"))
    fast["added_tokens"][1]["rstrip"] = True  # swallows the space after it; the runtime has no such rule
    fast["added_tokens"][1]["content"] = "fox"
    path.write_text(json.dumps(fast), encoding="utf-8")
    with pytest.raises(VerificationError, match="differs from its source on"):
        convert_checkpoint(folder, tmp_path / "out.gguf", "f16")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_unigram_vocabulary_lower_cases_as_its_tokenizer_does(tmp_path: Path) -> None:
    import sentencepiece

    folder = tiny.gpt2(tmp_path / "tiny", unigram=True)
    convert_checkpoint(folder, tmp_path / "out.gguf", "f16")
    processor = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
    with ExitStack() as stack:
        model = open_model(stack, tmp_path / "out.gguf", vocab_only=True)
        for text in ("The OFFICE", "ＴＨＥ Ｏｆｆｉｃｅ", "Ｑuick　FOX  請求書\nÀ È Ü"):
            ids = tokenize(model, text, add_special=True, parse_special=True)
            assert ids == processor.encode(text.lower())


def test_a_unigram_vocabulary_with_byte_pieces_keeps_newlines(tmp_path: Path) -> None:
    import sentencepiece

    folder = tiny.gpt2(tmp_path / "tiny")
    (folder / "tokenizer.json").unlink()
    text = tmp_path / "corpus.txt"
    text.write_text("\n".join(tiny.CORPUS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=390, model_type="unigram", byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    # Characters outside ASCII fall back to several bytes, which the runtime cannot do: not provable on mixed text.
    convert_checkpoint(folder, tmp_path / "out.gguf", "f16", verify=False)
    processor = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
    with ExitStack() as stack:
        model = open_model(stack, tmp_path / "out.gguf", vocab_only=True)
        for line in ("the office\nsends\tthe fox", "前日\n\nまでに", "a~b\n"):
            assert tokenize(model, line, add_special=False, parse_special=False) == processor.encode(line)


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.text(max_size=5), min_size=1, max_size=40))
@settings(max_examples=15, deadline=None)
def test_a_character_map_survives_writing_and_reading(mapping: dict[str, str]) -> None:
    clean = {k: v for k, v in mapping.items() if "\0" not in k + v}
    if clean:
        assert read_charsmap(write_charsmap(clean)) == clean


def test_folding_lower_case_into_a_character_map_equals_lowering_first() -> None:
    mapping = {"Ａ": "A", "ａ": "a", "e\u0301": "é", "㍿": "株式会社"}
    folded = lower_casing(mapping)
    for text in ("ＡａABC", "E\u0301 e\u0301 ÀÉ", "㍿ İ ǅ"):
        assert apply_charsmap(folded, text) == apply_charsmap(mapping, text.lower())


# --- transforms


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_every_transform_has_an_inverse(heads: int, half: int, columns: int) -> None:
    tensor = np.arange(heads * half * 2 * columns, dtype=np.float32).reshape(heads * half * 2, columns)
    for transform in (RopePermuted(heads), Transposed(), PlusOne()):
        there = transform.to_gguf(tensor)
        assert there.shape == transform.gguf_shape(tensor.shape)
        assert (transform.to_checkpoint(there) == tensor).all()
    a = np.arange(columns * 3, dtype=np.float32).reshape(3, columns)
    b = np.arange(heads * half * 6, dtype=np.float32).reshape(-1, 3)
    permuted = RopePermuted(heads)
    assert (permuted.to_gguf(b @ a) == permuted.lora_b(b) @ a).all()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_bf16_is_rounded_as_torch_rounds_it(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    expected = torch.from_numpy(array.copy()).to(torch.bfloat16).float().numpy()
    assert (to_float32(to_bfloat16(array).view(np.uint8), "BF16") == expected).all()
