"""Kinds of adapters and of training them: PiSSA, DoRA, LoRA+ and NEFTune, held against PEFT's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_runs import adapter, asked, base, data, no_picture, same
from tests.tiny_training import write_checkpoint
from train.adapter.fresh import add_adapter, initial_factors, return_to_initial, save_adapter
from train.adapter.opened import load_with_adapter
from train.base import load_model
from train.run.history import read_history
from train.run.lora import TrainResult, train_sft

__all__ = ["base", "data", "no_picture"]  # fixtures


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.tensor([[5, 6, 7, 8, 9, 10]])).logits
    return result


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_pissa_adapter_fits_the_untouched_base_as_pefts_own_conversion_does(
    family: str, rslora: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    base, kept = write_checkpoint(tmp_path / "base", family), []
    real = save_adapter

    def save(model: Any, *arguments: Any) -> None:
        kept.append(logits(model))
        real(model, *arguments)

    monkeypatch.setattr("train.run.lora.save_adapter", save)
    train_sft(asked(base, data, tmp_path / "a", pissa=True, rslora=rslora, max_steps=6))
    loaded = PeftModel.from_pretrained(load_model(base), str(tmp_path / "a")).eval()
    assert (logits(load_model(base).eval()) - kept[0]).abs().max() > 0.1
    assert torch.allclose(logits(loaded), kept[0], atol=1e-4)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == 8 and config["init_lora_weights"] is True and config["use_rslora"] is rslora


def test_a_fresh_pissa_adapter_is_pefts_and_changes_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    options = asked(base, data, tmp_path / "a", pissa=True, targets="qv")
    ours = add_adapter(load_model(base), options).eval()
    set_seed(0)
    settings: Any = {"r": 4, "lora_alpha": 32.0, "init_lora_weights": "pissa_niter_16"}
    theirs = get_peft_model(load_model(base), LoraConfig(target_modules=["q_proj", "v_proj"], **settings)).eval()
    for (name, one), (_, two) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    assert torch.allclose(logits(ours), logits(load_model(base).eval()), atol=1e-4)


def test_a_pissa_run_goes_on_from_its_own_beginning_where_the_decomposition_comes_out_otherwise(
    base: Path, data: Path, tmp_path: Path
) -> None:
    first = add_adapter(load_model(base), asked(base, data, tmp_path / "a", pissa=True))
    other = add_adapter(load_model(base), asked(base, data, tmp_path / "a", pissa=True, seed=7))
    start = initial_factors(first)
    mine = initial_factors(other)
    assert any(not torch.equal(mine[name], start[name]) for name in start)
    assert return_to_initial(other, start).keys() == start.keys()
    for (name, one), (_, two) in zip(first.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5), name


def test_dora_equals_pefts_after_reloading_and_has_magnitudes(base: Path, data: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    train_sft(asked(base, data, tmp_path / "a", dora=True))
    assert any("lora_magnitude_vector" in name for name in adapter(tmp_path / "a"))
    theirs = logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a").eval())
    assert torch.allclose(logits(load_with_adapter(base, tmp_path / "a")), theirs, atol=1e-6)


def test_with_lora_plus_b_learns_faster_than_a_as_in_pefts_optimizer(base: Path, data: Path, tmp_path: Path) -> None:
    steady: dict[str, Any] = {"schedule": "constant", "warmup_fraction": 0.0, "max_steps": 1, "learning_rate": 1e-3}
    moved = {}
    for ratio in (1.0, 16.0):
        train_sft(asked(base, data, tmp_path / f"r{ratio}", lora_plus=ratio, **steady))
        moved[ratio] = adapter(tmp_path / f"r{ratio}")
    for name, plain in moved[1.0].items():
        if "lora_B" in name:  # it starts at zero, and Adam's first step is the learning rate
            assert plain.abs().max() == pytest.approx(1e-3, rel=1e-2)
            assert moved[16.0][name].abs().max() == pytest.approx(16e-3, rel=1e-2), name
        else:
            assert torch.equal(plain, moved[16.0][name])


def test_neftune_changes_training_and_not_the_measuring(base: Path, data: Path, tmp_path: Path) -> None:
    results: list[TrainResult] = []
    for name, alpha in (("plain", 0.0), ("noisy", 10.0)):
        results.append(train_sft(asked(base, data, tmp_path / name, neftune=alpha, eval_every=0, max_steps=3)))
    assert not same(tmp_path / "plain", tmp_path / "noisy")
    # Packed and padded rows go through other kernels.
    assert results[0].held_out_loss_before == pytest.approx(results[1].held_out_loss_before, rel=1e-6)
    # What was measured in the run is what the saved adapter gives without any noise.
    again = train_sft(asked(base, data, tmp_path / "measured", neftune=10.0, eval_every=1, max_steps=3))
    assert again.held_out_loss_after <= results[1].held_out_loss_after
    records = read_history(tmp_path / "measured" / "run" / "history.jsonl")
    last = [record["held_out_loss"] for record in records if "held_out" in record][-1]
    assert last == results[1].held_out_loss_after
