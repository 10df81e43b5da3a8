"""PEFT adapters to GGUF: what llama.cpp computes with them is what PEFT computes; the rest is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from convert.lora.adapter import convert_adapter
from convert.model import convert_checkpoint
from convert.quality.verify import verify_model
from slm.errors import DamagedFileError, InputError, MismatchError, MissingFileError, SlmError, UnsupportedError
from slm.native.llama import ContextParams, open_adapter, open_context, open_model, set_adapters, tokenize
from slm.weights.gguf_reader import read_gguf
from slm.weights.identity import checkpoint_fingerprint
from tests import tiny_checkpoints as tiny
from tests import tiny_families
from tests.llama_logits import all_logits

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASES = {"gpt2": tiny.gpt2, "llama": tiny.llama, "gemma3": tiny.gemma3}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """{family: (checkpoint folder, its f32 GGUF)}."""
    root = tmp_path_factory.mktemp("bases")
    made = {}
    for name, make in BASES.items():
        folder = make(root / name)
        convert_checkpoint(folder, root / f"{name}.gguf", "f32")
        made[name] = (folder, root / f"{name}.gguf")
    return made


def peft_folder(base: Path, out: Path, **settings: Any) -> Path:
    """An adapter with random A and B, saved by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    tiny_families.with_random_factors(model).save_pretrained(out)
    return out


def assert_equals_peft(base: Path, gguf: Path, folder: Path, adapter: Path) -> None:
    with ExitStack() as stack:
        model = open_model(stack, gguf)
        context = open_context(
            stack, model, ContextParams(n_ctx=64, n_batch=64, n_threads=2, flash_attention=False, exact_cache=True)
        )
        ids = tokenize(model, tiny.TEXT, add_special=True, parse_special=True)
        plain = all_logits(model, context, ids)
        set_adapters(context, [(open_adapter(stack, model, adapter), 1.0)])
        found = all_logits(model, context, ids)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    scale = np.abs(expected).max()
    assert np.abs(plain - expected).max() / scale > 0.1, "the adapter must change something"
    assert np.abs(found - expected).max() / scale < 1e-2
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.95


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2's Conv1D, square and not": (
        "gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "GPT-2's attention alone": ("gpt2", {"target_modules": ["c_attn"], "lora_alpha": 16}),
    "every llama matrix": ("llama", {"target_modules": LLAMA, "r": 4, "lora_alpha": 8}),
    "llama's Q and K, permuted": ("llama", {"target_modules": ["q_proj", "k_proj"]}),
    "llama's untied head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "rsLoRA": ("llama", {"target_modules": LLAMA, "use_rslora": True, "r": 9, "lora_alpha": 3}),
    "rank and alpha patterns": (
        "llama",
        {"target_modules": LLAMA, "r": 4, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
         "alpha_pattern": {"down_proj": 1, "model.layers.0.self_attn.v_proj": 32}},
    ),
    "patterns under rsLoRA": (
        "llama",
        {"target_modules": LLAMA, "r": 4, "use_rslora": True, "rank_pattern": {"k_proj": 2},
         "alpha_pattern": {"o_proj": 2}},
    ),
    "every gemma matrix": ("gemma3", {"target_modules": LLAMA, "r": 3}),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_computes_in_llama_cpp_what_it_computes_in_peft(
    variant: str, bases: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    family, settings = VARIANTS[variant]
    base, gguf = bases[family]
    folder = peft_folder(base, tmp_path / "adapter", **settings)
    result = convert_adapter(folder, tmp_path / "a.gguf")
    assert result["architecture"] == family
    assert_equals_peft(base, gguf, folder, tmp_path / "a.gguf")


def test_verify_compares_an_adapter_on_its_base_with_peft(bases: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    base, gguf = bases["llama"]
    folder = peft_folder(base, tmp_path / "adapter", target_modules=LLAMA)
    convert_adapter(folder, tmp_path / "a.gguf")
    result = verify_model(gguf, base, adapter=tmp_path / "a.gguf", peft=folder)
    assert result["ok"], result["broken"]
    with pytest.raises(InputError, match="belong together"):
        verify_model(gguf, base, adapter=tmp_path / "a.gguf")


def test_an_adapter_file_says_its_base_template_and_language(
    bases: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    base, _ = bases["llama"]
    folder = peft_folder(base, tmp_path / "ja_sft", target_modules=["q_proj"])
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    manifest = {"kind": "adapter", "lang": "ja", "base": {"fingerprint": checkpoint_fingerprint(base)}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    convert_adapter(folder, tmp_path / "a.gguf", base)
    keys = read_gguf(tmp_path / "a.gguf").metadata
    assert keys["slm.base_fingerprint"] == checkpoint_fingerprint(base)
    assert (keys["slm.lang"], keys["tokenizer.chat_template"]) == ("ja", "{{ messages }}")
    assert (keys["general.name"], keys["general.type"]) == ("ja_sft", "adapter")


def refused(folder: Path, error: type[SlmError], match: str, base: Path | None = None) -> None:
    out = folder.parent / "refused.gguf"
    with pytest.raises(error, match=match):
        convert_adapter(folder, out, base)
    assert not list(folder.parent.glob("*refused*"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"use_dora": True, "target_modules": ["q_proj"]}, "use_dora.*slm merge"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save.*slm merge"),
        ({"trainable_token_indices": [1, 2], "target_modules": ["q_proj"]}, "trainable_token_indices.*slm merge"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "pissa.*slm merge"),
    ],
)
def test_what_a_lora_file_cannot_hold_is_refused_with_the_way_out(
    settings: dict[str, Any], match: str, bases: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = peft_folder(bases["llama"][0], tmp_path / "adapter", **settings)
    refused(folder, UnsupportedError, match)


def test_an_adapter_on_a_tied_head_is_refused(bases: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    folder = peft_folder(bases["gpt2"][0], tmp_path / "adapter", target_modules=["lm_head"])
    refused(folder, UnsupportedError, "slm merge")


def test_an_adapter_of_another_base_is_refused(bases: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    base, _ = bases["llama"]
    folder = peft_folder(base, tmp_path / "adapter", target_modules=LLAMA)
    wider = tiny.llama(tmp_path / "wider", width=128)
    refused(folder, MismatchError, "does not fit its base at 'model.layers.0", wider)
    refused(folder, MismatchError, "is not part of its base", bases["gpt2"][0])
    (folder / "manifest.json").write_text(json.dumps({"kind": "adapter", "base": {"fingerprint": "0" * 64}}))
    refused(folder, MismatchError, "trained on another base")


def test_a_base_that_is_not_there_is_asked_for(bases: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    folder = peft_folder(bases["llama"][0], tmp_path / "adapter", target_modules=["q_proj"])
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "nowhere/model"}))
    refused(folder, MissingFileError, "nowhere/model.*--base")


def test_damaged_adapters_are_refused(bases: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    base, _ = bases["llama"]
    good = peft_folder(base, tmp_path / "good", target_modules=["q_proj"])
    weights = load_file(good / "adapter_model.safetensors")
    name = next(n for n in weights if "lora_A" in n)
    nan = {n: np.full_like(w, np.nan) if n == name else w for n, w in weights.items()}
    half = {n: w for n, w in weights.items() if n != name}
    for changed, error, match in ((nan, InputError, "NaN"), (half, DamagedFileError, "only one of")):
        folder = tmp_path / "changed"
        shutil.copytree(good, folder, dirs_exist_ok=True)
        save_file(changed, folder / "adapter_model.safetensors")
        refused(folder, error, match, base)
    (good / "adapter_model.safetensors").write_bytes(b"\0" * 50)
    refused(good, DamagedFileError, "safetensors", base)
    (good / "adapter_model.safetensors").unlink()
    refused(good, MissingFileError, r"adapter_model\.safetensors", base)
    refused(base, MissingFileError, r"adapter_config\.json")
