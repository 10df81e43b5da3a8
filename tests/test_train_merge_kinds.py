"""Adapters of other kinds than LoRA: folded as PEFT folds them, or refused for the true reason and never by a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM

from convert.lora.adapter import convert_adapter
from slm.errors import UnsupportedError
from tests.tiny_training import write_checkpoint
from train.adapter.merge import merge

QV = ["q_proj", "v_proj"]
FOLDED: dict[str, Callable[[], Any]] = {
    "ia3": lambda: IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: LoHaConfig(target_modules=QV, r=4),
    "lokr": lambda: LoKrConfig(target_modules=QV, r=4),
    "vera": lambda: VeraConfig(target_modules=["q_proj"], r=8),
    "hra": lambda: HRAConfig(target_modules=QV, r=4),
    "norms": lambda: LNTuningConfig(target_modules=["input_layernorm"]),
    "tokens": lambda: TrainableTokensConfig(token_indices=[3, 5]),
}
BESIDE_THE_PROMPT: dict[str, Callable[[], Any]] = {
    "PROMPT_TUNING": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "PREFIX_TUNING": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("kinds") / "base", "llama")


def saved(base: Path, folder: Path, config: Any, **changes: Any) -> Path:
    """An adapter of this configuration with random numbers added; `changes` to its adapter_config.json."""
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in wrapped.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("kind", FOLDED)
def test_every_kind_that_changes_weights_is_folded_as_peft_folds_it(kind: str, base: Path, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / "a", FOLDED[kind]())
    merge(base, folder, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    untouched = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert any(not torch.equal(found[name], tensor) for name, tensor in untouched.items())


@pytest.mark.parametrize("kind", BESIDE_THE_PROMPT)
def test_what_stands_beside_the_prompt_is_in_no_weights_and_nobody_says_to_merge_it(
    kind: str, base: Path, tmp_path: Path
) -> None:
    folder = saved(base, tmp_path / "a", BESIDE_THE_PROMPT[kind]())
    for refused in (
        lambda: merge(base, folder, tmp_path / "merged"),
        lambda: convert_adapter(folder, tmp_path / "a.gguf", base),
    ):
        with pytest.raises(UnsupportedError, match=kind) as error:
            refused()
        assert "Train a LoRA" in error.value.hint and "slm merge" not in str(error.value)


@pytest.mark.parametrize("start", ["lora_ga", "corda", "loftq", "pissa_niter_4"])
def test_an_adapter_whose_beginning_moved_the_base_untold_is_not_folded_into_the_untouched_one(
    start: str, base: Path, tmp_path: Path
) -> None:
    folder = saved(base, tmp_path / "a", LoraConfig(r=4, target_modules=QV), init_lora_weights=start)
    for refused in (
        lambda: merge(base, folder, tmp_path / "merged"),
        lambda: convert_adapter(folder, tmp_path / "a.gguf", base),
    ):
        with pytest.raises(UnsupportedError, match="was not turned into a LoRA") as error:
            refused()
        assert "slm merge" not in str(error.value)
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_peft_refuses_tells_its_reason(base: Path, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / "a", LoraConfig(r=4, target_modules=QV, lora_bias=True))
    for weights in ([], [0.5]):
        with pytest.raises(UnsupportedError, match="the base layer has no bias"):
            merge(base, folder, tmp_path / "merged", weights)
    assert not (tmp_path / "merged").exists()
