"""PEFT adapters of every decoder family: llama.cpp computes what PEFT computes, on 512 positions a variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families as tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from convert.adapter import convert_adapter
from convert.model import convert_checkpoint

Base = tuple[Path, Path]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    """(checkpoint folder, its f32 GGUF) of a family, made once."""
    root, made = tmp_path_factory.mktemp("bases"), {}

    def get(family: str) -> Base:
        if family not in made:
            folder = tiny.MAKE[family](root / family)
            convert_checkpoint(folder, root / f"{family}.gguf", "f32", verify=False)
            made[family] = (folder, root / f"{family}.gguf")
        return made[family]

    return get


def modules(model: Any) -> list[str]:
    """The names of every matrix an adapter usually changes: all but the embeddings and the head."""
    kinds = ("Linear", "Conv1D")
    return sorted(n for n, m in model.named_modules() if type(m).__name__ in kinds and not n.endswith("lm_head"))


def write_adapter(base: Path, out: Path, settings: Callable[[list[str]], dict[str, Any]]) -> Path:
    """An adapter with random factors, saved by PEFT. settings: LoraConfig's from the matrices' names."""
    model = tiny.load(base)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings(modules(model))))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(out)
    return out


def assert_equals_peft(base: Base, folder: Path, adapter: Path) -> None:
    ids = tiny.sequences(tiny.vocabulary_of(base[0]))
    reference = PeftModel.from_pretrained(tiny.load(base[0]), str(folder)).eval()
    expected = tiny.reference_logits(reference, ids)
    with reference.disable_adapter():
        plain = tiny.reference_logits(reference, ids[:1])
    assert abs(plain - expected[:1]).max() > 0.1 * abs(expected).max(), "the adapter must change something"
    tiny.assert_equal_logits(tiny.runtime_logits(base[1], ids, adapter), expected)


VARIANTS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "plain": lambda names: {"target_modules": names, "r": 4, "lora_alpha": 6},
    "rsLoRA": lambda names: {"target_modules": names, "r": 3, "lora_alpha": 2, "use_rslora": True},
    "patterns": lambda names: {
        "target_modules": names, "r": 4, "lora_alpha": 4,
        "rank_pattern": {names[0]: 2, names[1].split(".", 2)[-1]: 6},
        "alpha_pattern": {names[-1]: 8, names[2].split(".")[-1]: 3},
    },
    "patterns under rsLoRA": lambda names: {
        "target_modules": names[:3], "r": 4, "lora_alpha": 4, "use_rslora": True,
        "rank_pattern": {names[0]: 2}, "alpha_pattern": {names[1]: 1},
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", tiny.MAKE)
def test_an_adapter_computes_in_llama_cpp_what_it_computes_in_peft(
    family: str, variant: str, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of(family)
    folder = write_adapter(base[0], tmp_path / "adapter", VARIANTS[variant])
    convert_adapter(folder, tmp_path / "a.gguf")
    assert_equals_peft(base, folder, tmp_path / "a.gguf")
