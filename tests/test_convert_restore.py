"""GGUF back to a checkpoint: equal weights, no warning in transformers, equal token ids."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert.model import convert_checkpoint
from convert.quality.verify import verify_model
from convert.restore import restore_checkpoint
from convert.vocabulary.base.proof import MIXED_LINES
from slm.errors import DamagedFileError, InputError, MissingFileError, UnknownNameError, UnsupportedError
from slm.weights.gguf_reader import read_gguf
from tests import tiny_checkpoints as tiny
from tests import tiny_families as families
from tests.test_convert_families import LINEAR, LONG, YARN

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500_000.0}  # fmt: skip
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "gpt2": tiny.gpt2,
    "llama": tiny.llama,
    "llama, tied, with biases": lambda f: tiny.llama(f, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama with llama3 scaling": lambda f: tiny.llama(f, rope_parameters=LLAMA3),
    "gemma3": tiny.gemma3,
    "gemma3, untied": lambda f: families.write(f, "gemma3", tie_word_embeddings=False),
    "mistral": lambda f: families.write(f, "mistral", head_dim=32),
    "qwen2": lambda f: families.write(f, "qwen2"),
    "qwen2 with YaRN and its own attention factor": lambda f: families.write(
        f, "qwen2", tie_word_embeddings=True, rope_parameters={**YARN, "attention_factor": 1.7}
    ),
    "qwen3, linear": lambda f: families.write(f, "qwen3", rope_parameters=LINEAR),
    "gemma": lambda f: families.write(f, "gemma"),
    "gemma2": lambda f: families.write(f, "gemma2"),
    "phi3": lambda f: families.write(f, "phi3"),
    "phi3, tied, three quarters rotated": lambda f: families.write(
        f, "phi3", tie_word_embeddings=True, partial_rotary_factor=0.75, num_attention_heads=2
    ),
    "phi3 with longrope": lambda f: families.write(
        f, "phi3", rope_parameters=LONG, max_position_embeddings=1024, original_max_position_embeddings=256
    ),
    "gpt_neox": lambda f: families.write(f, "gpt_neox"),
    "gpt_neox as rinna's": lambda f: families.write(f, "gpt_neox", use_parallel_residual=False, rotary_pct=1.0),
}
SAME_GRAPH = {"mistral": "llama"}  # restored as the family whose graph the file has


@pytest.mark.parametrize("family", FAMILIES)
def test_converting_and_restoring_gives_the_same_weights_tokens_and_logits(family: str, tmp_path: Path) -> None:
    source = FAMILIES[family](tmp_path / "source")
    convert_checkpoint(source, tmp_path / "m.gguf", "f32")
    manifest = restore_checkpoint(tmp_path / "m.gguf", tmp_path / "back")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert set(before) == set(after)
    for name, weight in before.items():
        if "norm" in name and family.startswith("gemma"):  # 1 + w - 1 rounds
            assert np.abs(weight - after[name]).max() < 1e-6
        else:
            assert (weight == after[name]).all(), name
    [kinds] = [[json.loads((f / "config.json").read_text())["model_type"] for f in (source, tmp_path / "back")]]
    assert kinds[1] == SAME_GRAPH.get(kinds[0], kinds[0])
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    one, other = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "back")
    for line in MIXED_LINES:
        assert one(line)["input_ids"] == other(line)["input_ids"]
        decoded = other.decode(other(line, add_special_tokens=False)["input_ids"])
        assert decoded in (line, unicodedata.normalize("NFC", line) if "qwen" in family else line)
    ids = torch.tensor([one(tiny.TEXT)["input_ids"]])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(source)(ids).logits
        assert torch.allclose(model(ids).logits, expected, atol=1e-4)
    assert manifest["kind"] == "checkpoint"
    assert json.loads((tmp_path / "back/manifest.json").read_text()) == manifest


def test_a_restored_checkpoint_converts_to_the_same_tensors(tmp_path: Path) -> None:
    convert_checkpoint(tiny.gemma3(tmp_path / "source"), tmp_path / "one.gguf", "q8_0")
    restore_checkpoint(tmp_path / "one.gguf", tmp_path / "back")
    convert_checkpoint(tmp_path / "back", tmp_path / "two.gguf", "f32")
    one, two = read_gguf(tmp_path / "one.gguf"), read_gguf(tmp_path / "two.gguf")
    assert list(one.tensors) == list(two.tensors)
    for name in one.tensors:
        assert np.allclose(one.dequantized(name), two.dequantized(name), atol=1e-6)


def test_bf16_halves_the_folder(tmp_path: Path) -> None:
    convert_checkpoint(tiny.llama(tmp_path / "source"), tmp_path / "m.gguf", "f32")
    restore_checkpoint(tmp_path / "m.gguf", tmp_path / "back", dtype="bf16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert model.dtype == torch.bfloat16
    size = (tmp_path / "back/model.safetensors").stat().st_size
    assert size < 0.6 * (tmp_path / "source/model.safetensors").stat().st_size


def test_a_file_without_a_template_gets_the_one_its_markers_call_for(tmp_path: Path) -> None:
    convert_checkpoint(tiny.gemma3(tmp_path / "source"), tmp_path / "m.gguf", "f16")
    assert restore_checkpoint(tmp_path / "m.gguf", tmp_path / "a")["template"] == "gemma"
    assert AutoTokenizer.from_pretrained(tmp_path / "a").chat_template.startswith("{{ bos_token }}")
    ends = json.loads((tmp_path / "a/generation_config.json").read_text())["eos_token_id"]
    assert ends == [1, 5]  # <eos> and <end_of_turn>
    assert restore_checkpoint(tmp_path / "m.gguf", tmp_path / "b", chat_template="alpaca")["template"] == "alpaca"
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages }}")
    assert restore_checkpoint(tmp_path / "m.gguf", tmp_path / "c", chat_template=str(own))["template"] is None
    assert (tmp_path / "c/chat_template.jinja").read_text() == "{{ messages }}"
    with pytest.raises(UnknownNameError, match="alpaca, chatml, gemma"):
        restore_checkpoint(tmp_path / "m.gguf", tmp_path / "d", chat_template="nope")
    assert not (tmp_path / "d").exists()


def test_damaged_and_foreign_files_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    convert_checkpoint(tiny.llama(tmp_path / "source"), tmp_path / "m.gguf", "f32")
    whole = (tmp_path / "m.gguf").read_bytes()
    bad = tmp_path / "bad.gguf"
    cases = {
        "cut off": (whole[: len(whole) // 2], DamagedFileError),
        "cut in its header": (whole[:500], DamagedFileError),
        "random bytes": (np.random.default_rng(0).bytes(4096), DamagedFileError),
        "another architecture": (whole.replace(b"llama", b"mamba", 1), UnsupportedError),
        "a lost tensor": (whole.replace(b"blk.1.ffn_up.weight", b"blk.7.ffn_up.weight", 1), DamagedFileError),
        "not a number": (whole[:-32] + b"\xff" * 32, DamagedFileError),
    }
    for what, (content, error) in cases.items():
        bad.write_bytes(content)
        with pytest.raises(error):
            restore_checkpoint(bad, tmp_path / "out")
        assert not list(tmp_path.glob("*out*")), what
    with pytest.raises(MissingFileError):
        restore_checkpoint(tmp_path / "absent.gguf", tmp_path / "out")


def test_a_folder_that_is_not_ours_is_left_untouched(tmp_path: Path) -> None:
    convert_checkpoint(tiny.llama(tmp_path / "source"), tmp_path / "m.gguf", "f32")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="left untouched"):
        restore_checkpoint(tmp_path / "m.gguf", tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


@pytest.mark.real
def test_smollm2_restored_and_converted_back_is_the_same_model(
    pulled_model: Callable[[str], Path], tmp_path: Path
) -> None:
    gguf = pulled_model("smollm2-135m-instruct")
    restore_checkpoint(gguf, tmp_path / "back")
    convert_checkpoint(tmp_path / "back", tmp_path / "again.gguf", "f32")
    against_checkpoint = verify_model(tmp_path / "again.gguf", tmp_path / "back", max_tokens=128)
    assert against_checkpoint["ok"], against_checkpoint["broken"]
    original, again = read_gguf(gguf), read_gguf(tmp_path / "again.gguf")
    assert original.metadata["tokenizer.ggml.tokens"] == again.metadata["tokenizer.ggml.tokens"]
    assert original.metadata["tokenizer.chat_template"] == again.metadata["tokenizer.chat_template"]
    for name in original.tensors:
        assert (original.dequantized(name) == again.dequantized(name)).all(), name
    with_original = verify_model(gguf, tmp_path / "again.gguf", max_tokens=128)
    assert with_original["token_ids"]["lines_different"] == 0
    assert with_original["overall"]["top1_agreement"] > 0.8  # activations are rounded to 8 bits on one side only
