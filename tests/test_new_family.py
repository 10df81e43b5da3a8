"""A model family is one file: with it and nothing else a checkpoint converts, trains and its adapter converts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from peft import PeftModel
from safetensors.numpy import load_file

from convert.lora.adapter import convert_adapter
from convert.lora.restore import restore_adapter
from convert.model import convert_checkpoint
from convert.restore import restore_checkpoint
from slm.errors import DamagedFileError, UnsupportedError
from slm.families.parts import base
from slm.families.targets import decoder_families, keeps_columns_first, linear_layers
from tests import tiny_checkpoints, tiny_families
from tests.tiny_packs import tiny
from tests.tiny_training import conversations, write_jsonl
from train.base import read_config, target_modules
from train.config import TrainOptions
from train.run.lora import train_sft

_GATED = {
    "qv": {"q_proj", "v_proj"},
    "attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "all": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}
# What transformers names the layers of each family (models/*/modeling_*.py).
LAYERS: dict[str, dict[str, set[str]]] = {
    "gpt2": {
        "qv": {"c_attn"},
        "attention": {"c_attn", "attn.c_proj"},
        "all": {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"},
    },
    "gpt_neox": {
        "qv": {"query_key_value"},
        "attention": {"query_key_value", "dense"},
        "all": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    },
    "phi3": {
        "qv": {"qkv_proj"},
        "attention": {"qkv_proj", "o_proj"},
        "all": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    },
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _GATED),
}


@pytest.mark.parametrize("model_type", sorted(decoder_families()))
def test_a_preset_names_the_layers_of_each_family_once_in_every_decoder_layer(model_type: str) -> None:
    model = tiny(model_type, layers=3)
    names = [name for name, _ in model.named_modules()]
    for preset, wanted in LAYERS[model_type].items():
        found = target_modules(model.config, preset)
        assert set(found) == wanted
        for target in found:
            assert sum(name.endswith(f".{target}") for name in names) == 3, target


def test_only_gpt2_keeps_its_columns_first() -> None:
    families = decoder_families()
    assert [n for n in families if keeps_columns_first(families[n], tiny(n).config.to_dict())] == ["gpt2"]


def test_what_cannot_be_trained_is_refused_with_what_can(tmp_path: Path) -> None:
    for model_type in ("bert", "mamba", ["llama"], None):
        (tmp_path / "config.json").write_text(f'{{"model_type": {json.dumps(model_type)}}}')
        with pytest.raises(UnsupportedError, match="Supported: gemma, gemma2, gemma3_text, gpt2, gpt_neox, llama"):
            read_config(tmp_path)


def test_a_configuration_without_what_the_table_needs_is_told() -> None:
    with pytest.raises(DamagedFileError, match="num_attention_heads"):
        linear_layers(decoder_families()["gpt_neox"], {}, "all")


SEED_OSS = '''
"""Seed-OSS: Qwen 2's biases, the norm before the feed-forward network under another name."""

from slm.families.parts.base import register
from slm.families.parts.gated import GatedDecoder


@register
class SeedOss(GatedDecoder):
    model_types = ("seed_oss",)
    architectures = ("SeedOssForCausalLM",)
    gguf_architecture = "seed_oss"
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"}

    def biased(self, config):
        return ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

    def to_config(self, metadata, shapes):
        return {**super().to_config(metadata, shapes), "attention_bias": True, "attention_out_bias": False}
'''


@pytest.fixture
def seed_oss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The family's file, imported as one of slm/families/decoders is; a checkpoint of it."""
    monkeypatch.setattr(base, "_FAMILIES", list(base.families()))
    file = tmp_path / "seed_oss.py"
    file.write_text(SEED_OSS)
    spec = importlib.util.spec_from_file_location("seed_oss", file)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    folder = tmp_path / "base"
    folder.mkdir()
    size = tiny_checkpoints.byte_level_tokenizer(folder).get_vocab_size()
    settings: dict[str, Any] = {
        "vocab_size": size, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0,
        "eos_token_id": 0, "pad_token_id": None, "attention_dropout": 0.0, "residual_dropout": 0.0,
    }  # fmt: skip
    model = transformers.SeedOssForCausalLM(transformers.SeedOssConfig(**settings))
    tiny_checkpoints._shake(model).save_pretrained(folder)
    return folder


def test_one_file_is_a_family_that_converts_is_restored_and_trains(seed_oss: Path, tmp_path: Path) -> None:
    convert_checkpoint(seed_oss, tmp_path / "base.gguf", "f32")
    ids = tiny_families.sequences(tiny_families.vocabulary_of(seed_oss))
    model = tiny_families.load(seed_oss)
    reference = tiny_families.reference_logits(model, ids)
    tiny_families.assert_equal_logits(tiny_families.runtime_logits(tmp_path / "base.gguf", ids), reference)
    restore_checkpoint(tmp_path / "base.gguf", tmp_path / "restored")
    restored = tiny_families.reference_logits(tiny_families.load(tmp_path / "restored"), ids)
    tiny_families.assert_equal_logits(restored, reference, bound=1e-5)

    data = write_jsonl(tmp_path / "data.jsonl", conversations(24))
    options = TrainOptions(
        seed_oss, (data,), tmp_path / "adapter", rank=4, max_steps=12, learning_rate=1e-2, eval_fraction=0.2,
        template="chatml", threads=1,
    )  # fmt: skip
    result = train_sft(options)
    assert result.held_out_loss_after < result.held_out_loss_before
    convert_adapter(tmp_path / "adapter", tmp_path / "adapter.gguf", base=seed_oss)
    restore_adapter(tmp_path / "adapter.gguf", tmp_path / "back", seed_oss)
    factors, back = (load_file(tmp_path / one / "adapter_model.safetensors") for one in ("adapter", "back"))
    assert factors.keys() == back.keys() and all((back[name] == factor).all() for name, factor in factors.items())
    adapted = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    found = tiny_families.runtime_logits(tmp_path / "base.gguf", ids, tmp_path / "adapter.gguf")
    tiny_families.assert_equal_logits(found, tiny_families.reference_logits(adapted, ids))


def test_without_its_file_the_family_is_unknown(
    seed_oss: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_FAMILIES", [f for f in base.families() if f.gguf_architecture != "seed_oss"])
    with pytest.raises(UnsupportedError, match="seed_oss"):
        convert_checkpoint(seed_oss, tmp_path / "base.gguf")
    with pytest.raises(UnsupportedError, match="seed_oss"):
        read_config(seed_oss)
