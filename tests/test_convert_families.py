"""Every decoder family: logits equal to transformers', tensors named and ordered right, adapters equal to PEFT's."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from convert.model import convert_checkpoint
from convert.restore import restore_checkpoint
from convert.source.safetensors_file import read_header
from slm.errors import DamagedFileError, SlmError, UnsupportedError
from slm.families import family_of_config
from slm.families.parts.base import HeadsApart
from slm.native.llama import open_model, tokenize
from slm.weights.gguf_reader import read_gguf
from tests import tiny_checkpoints
from tests import tiny_families as tiny

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox, parallel, a quarter rotated": ("gpt_neox", {}),
    "gpt_neox as rinna's: sequential, all rotated": (
        "gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0, "rotary_emb_base": 5000},
    ),
    "gpt_neox without attention biases": ("gpt_neox", {"attention_bias": False}),
    "gpt_neox, tied": ("gpt_neox", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "mistral with heads of their own size, tied": ("mistral", {"head_dim": 32, "tie_word_embeddings": True}),
    "mistral with YaRN": ("mistral", {"rope_parameters": YARN}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, in bf16, in shards": (
        "qwen2", {"tie_word_embeddings": True, "dtype": torch.bfloat16, "shard": "50KB"},
    ),
    "qwen2 with YaRN": ("qwen2", {"rope_parameters": YARN}),
    "qwen2 with YaRN and an attention factor": ("qwen2", {"rope_parameters": {**YARN, "attention_factor": 1.7}}),
    "qwen2 with YaRN and mscale": ("qwen2", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "qwen3, in f16, with spare rows": ("qwen3", {"dtype": torch.float16, "spare": 13}),
    "qwen3, tied, linear": ("qwen3", {"tie_word_embeddings": True, "rope_parameters": LINEAR}),
    "gemma": ("gemma", {}),
    "gemma2 with a window and soft caps": ("gemma2", {}),
    "phi3": ("phi3", {}),
    "phi3, tied, three quarters rotated": (
        "phi3", {"tie_word_embeddings": True, "partial_rotary_factor": 0.75, "num_attention_heads": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_converted_checkpoint_has_the_logits_of_transformers(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    folder = tiny.write(tmp_path / "source", family, **options)
    [result] = convert_checkpoint(folder, tmp_path / "out.gguf", "f32")
    assert result["tokenizer_lines_proven"] >= 14
    ids = tiny.sequences(tiny.vocabulary_of(folder))
    tiny.assert_equal_logits(
        tiny.runtime_logits(tmp_path / "out.gguf", ids), tiny.reference_logits(tiny.load(folder), ids)
    )
    tied = options.get("tie_word_embeddings") or family in ("gemma", "gemma2")
    assert ("output.weight" in read_gguf(tmp_path / "out.gguf").tensors) == (not tied or family == "gpt_neox")


def test_a_sharded_checkpoint_is_read_from_all_its_files(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "many", "qwen2", shard="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    convert_checkpoint(folder, tmp_path / "many.gguf", "f32")
    convert_checkpoint(tiny.write(tmp_path / "one", "qwen2"), tmp_path / "one.gguf", "f32")
    many, one = read_gguf(tmp_path / "many.gguf"), read_gguf(tmp_path / "one.gguf")
    assert list(many.tensors) == list(one.tensors)
    assert all((many.dequantized(name) == one.dequantized(name)).all() for name in one.tensors)


LONG = {"rope_type": "longrope", "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 8.0, 9.0, 11.0],
        "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]}  # fmt: skip


@pytest.mark.parametrize("length", [120, 300])
@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_longrope_takes_the_factors_of_the_context(family: str, length: int, tmp_path: Path) -> None:
    # A context is a multiple of 256 tokens, so that is the shortest original length.
    own: dict[str, Any] = {"max_position_embeddings": 1024, "original_max_position_embeddings": 256}
    if family == "phi3":
        folder = tiny.write(tmp_path / "source", family, rope_parameters=LONG, **own)
    else:
        folder = tiny_checkpoints.llama(tmp_path / "source", rope_parameters=LONG, **own)
    [result] = convert_checkpoint(folder, tmp_path / "out.gguf", "f32")
    assert [c for c in result["caveats"] if "longer than 256 tokens" in c]
    ids = tiny.sequences(tiny.vocabulary_of(folder), length=length)
    found = tiny.runtime_logits(tmp_path / "out.gguf", ids, context=256 if length <= 256 else 512)
    tiny.assert_equal_logits(found, tiny.reference_logits(tiny.load(folder), ids))


@pytest.mark.parametrize("family", ["mistral", "phi3", "qwen2"])
def test_a_window_the_runtime_has_not_is_told_and_harms_nothing_within_it(family: str, tmp_path: Path) -> None:
    window: dict[str, Any] = {"sliding_window": 100}
    if family == "qwen2":
        window |= {"use_sliding_window": True, "max_window_layers": 1}
    folder = tiny.write(tmp_path / "source", family, **window)
    [result] = convert_checkpoint(folder, tmp_path / "out.gguf", "f32")
    assert [c for c in result["caveats"] if "equal up to 100 tokens" in c]
    ids = tiny.sequences(tiny.vocabulary_of(folder), length=100)
    tiny.assert_equal_logits(
        tiny.runtime_logits(tmp_path / "out.gguf", ids), tiny.reference_logits(tiny.load(folder), ids)
    )
    wide = tiny.write(tmp_path / "wide", family, **{**window, "sliding_window": 256})
    assert not [c for c in convert_checkpoint(wide, tmp_path / "wide.gguf", "f32")[0]["caveats"] if "equal up to" in c]


@pytest.mark.parametrize("family", ["phi3", "mistral"])  # "llamafied" ones are the same tokenizer in another graph
def test_phi3s_special_tokens_swallow_white_space_whatever_the_folder_is_called(family: str, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "my-model", family)
    text = (folder / "tokenizer.json").read_text("utf-8")
    for old, new in (("<pad>", "<|endoftext|>"), ("<eos>", "</s>"), ("<bos>", "<s>"), ("<start_of_turn>", "<|user|>")):
        text = text.replace(f'"{old}"', f'"{new}"')
    fast = json.loads(text)
    spaces = [token["content"] for token in fast["added_tokens"] if not token["special"]]  # Phi-3 has none
    fast["added_tokens"] = [token for token in fast["added_tokens"] if token["special"]]
    fast["model"]["vocab"] = {token: i for token, i in fast["model"]["vocab"].items() if token not in spaces}
    for token in fast["added_tokens"]:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    (folder / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    convert_checkpoint(folder, tmp_path / "out.gguf", "f16")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with ExitStack() as stack:
        model = open_model(stack, tmp_path / "out.gguf", vocab_only=True)
        for line in ("<|user|>  the office", "<|user|>\nthe fox</s>  runs", "<s> a <|endoftext|> b"):
            expected = tokenizer.encode(line, add_special_tokens=False).ids
            assert tokenize(model, line, add_special=False, parse_special=True) == expected
    assert restore_checkpoint(tmp_path / "out.gguf", tmp_path / "back")["tokenizer_lines_proven"] > 20
    back = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    line = "<|user|>  the office</s>\n<|user|>\nfox"
    assert back.encode(line, add_special_tokens=False).ids == tokenizer.encode(line, add_special_tokens=False).ids


def test_another_vocabulary_in_a_folder_called_phi3_is_loaded(tmp_path: Path) -> None:
    for family in ("phi3", "qwen2"):
        folder = tiny.write(tmp_path / family / "my-Phi-3-model", family)
        convert_checkpoint(folder, tmp_path / f"{family}.gguf", "f16")
        assert read_gguf(tmp_path / f"{family}.gguf").metadata["general.name"] == "my-Phi 3-model"


# --- refused

PARTLY = {"rope_parameters": {"partial_rotary_factor": 0.5}}
FEW = {"rope_parameters": {**LONG, "long_factor": [1.0]}}
NO_NUMBER = {"rope_scaling": {"type": "linear", "factor": "x"}}
REFUSED: dict[str, tuple[str, dict[str, Any], type[SlmError], str]] = {
    "part of a head rotated": ("qwen2", PARTLY, UnsupportedError, "partial_rotary"),
    "heads of their own size": ("qwen2", {"head_dim": 32}, UnsupportedError, "head_dim"),
    "a bias on the output": ("qwen3", {"attention_bias": True}, UnsupportedError, "attention_bias"),
    "dynamic scaling": ("mistral", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedError,
                        r"dynamic.*linear, llama3, yarn, longrope"),
    "llama3 scaling elsewhere": ("qwen2", {"rope_scaling": {"rope_type": "llama3"}}, UnsupportedError, "llama3"),
    "YaRN's betas": ("qwen2", {"rope_scaling": {**YARN, "beta_fast": 8}}, UnsupportedError, "beta_fast"),
    "YaRN untruncated": ("qwen2", {"rope_scaling": {**YARN, "truncate": False}}, UnsupportedError, "truncat"),
    "no factor": ("qwen2", {"rope_scaling": {"rope_type": "linear"}}, DamagedFileError, "factor"),
    "a factor that is no number": ("qwen2", NO_NUMBER, DamagedFileError, "factor"),
    "scaling that is no object": ("qwen2", {"rope_scaling": [1]}, DamagedFileError, "RoPE"),
    "too few long factors": ("phi3", FEW, DamagedFileError, "long_factor"),
    "an exact GELU": ("gemma2", {"hidden_activation": "gelu_exact"}, UnsupportedError, "hidden_activation"),
    "Gemma 2 without a cap": ("gemma2", {"attn_logit_softcapping": None}, UnsupportedError, "attn_logit_softcapping"),
    "Gemma 2's other scale": ("gemma2", {"query_pre_attn_scalar": 99}, UnsupportedError, "query_pre_attn_scalar"),
    "Gemma 2's other layers": ("gemma2", {"layer_types": ["full_attention"] * 4}, UnsupportedError, "layer_types"),
    "K/V heads that do not divide": ("mistral", {"num_key_value_heads": 3}, DamagedFileError, "num_key_value_heads"),
    "another activation": ("gpt_neox", {"hidden_act": "relu"}, UnsupportedError, "hidden_act"),
    "no width": ("gpt_neox", {"hidden_size": None}, DamagedFileError, "hidden_size"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_runtime_would_compute_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    family, changes, error, match = REFUSED[case]
    folder = tiny.write(tmp_path / "source", family)
    config = json.loads((folder / "config.json").read_text())
    if "rope_scaling" in changes:
        config.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(error, match=match):
        convert_checkpoint(folder, tmp_path / "out.gguf", "f16")
    assert not list(tmp_path.glob("*out*"))


def test_an_untied_gemma_is_refused_because_the_runtime_ties_it(tmp_path: Path) -> None:
    for family in ("gemma", "gemma2"):
        folder = tiny.write(tmp_path / family, family, tie_word_embeddings=False)
        with pytest.raises(UnsupportedError, match=r"tie_word_embeddings.*takes the embedding as the head"):
            convert_checkpoint(folder, tmp_path / "out.gguf", "f16")


def test_a_value_that_is_not_a_number_is_refused_with_its_tensors_name(tmp_path: Path) -> None:
    for family, name in (
        ("gpt_neox", "query_key_value.weight"),
        ("phi3", "gate_up_proj.weight"),
        ("gemma2", "norm.weight"),
    ):
        folder = tiny.write(tmp_path / family, family, dtype=torch.bfloat16)
        entry = next(e for n, e in read_header(folder / "model.safetensors").items() if n.endswith(name))
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(entry.offset)
            file.write(b"\x80\x7f")  # infinity in bf16
        with pytest.raises(DamagedFileError, match=f"{entry.name}.*infinite"):
            convert_checkpoint(folder, tmp_path / "out.gguf", "f16")
        assert not list(tmp_path.glob("*out*"))


# --- properties of the tables


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_taking_heads_apart_and_back_is_the_identity(heads: int, size: int, columns: int, rank: int) -> None:
    apart = HeadsApart(heads)
    weight = np.arange(heads * 3 * size * columns, dtype=np.float32).reshape(-1, columns)
    there = apart.to_gguf(weight)
    assert (apart.to_checkpoint(there) == weight).all()
    assert (apart.to_gguf(apart.to_checkpoint(weight)) == weight).all()
    # Row d of head h of part p (q, k, v) lies at (p, h, d) in GGUF.
    for head in range(heads):
        for part in range(3):
            before, after = (head * 3 + part) * size, (part * heads + head) * size
            assert (there[after : after + size] == weight[before : before + size]).all()
    bias = weight[:, 0]
    assert (apart.to_gguf(bias) == there[:, 0]).all()
    b, a = weight[:, :1].repeat(rank, 1), np.ones((rank, columns), dtype=np.float32)
    assert (apart.to_gguf(b @ a) == apart.lora_b(b) @ a).all()


CONFIG = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "n_embd": 64, "n_head": 4}


@given(st.sampled_from(sorted(tiny.MAKE)), st.booleans(), st.booleans(), st.integers(1, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_every_name_of_a_table_leads_to_its_own_gguf_name_and_to_no_other(
    family: str, tied: bool, biased: bool, layers: int, data: st.DataObject
) -> None:
    names = {"gemma3": "gemma3_text"}
    config = {**CONFIG, "model_type": names.get(family, family), "num_hidden_layers": layers, "n_layer": layers,
              "tie_word_embeddings": tied, "attention_bias": biased, "mlp_bias": biased}  # fmt: skip
    found = family_of_config(config)
    table = found.expanded(config)
    assert len({gguf for _, _, gguf in table}) == len({name for _, name, _ in table}) == len(table)
    rule, name, gguf_name = data.draw(st.sampled_from(table))
    assert found.rule_for(name, config) == (rule, gguf_name)
    assert found.rule_for(name.removeprefix(found.prefix), config) == (rule, gguf_name)
    with pytest.raises(UnsupportedError):
        found.rule_for(name + "x", config)
    number = re.search(r"\.(\d+)\.", name)
    if number:
        with pytest.raises(UnsupportedError):
            found.rule_for(name.replace(number[0], f".{layers}.", 1), config)
