"""Adapter folders as other trainers leave them: new tokens by their rows, empty tensors, names that fit nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert.lora.adapter import convert_adapter
from slm.errors import DamagedFileError, MismatchError
from tests.test_train_merge import adapter, bases
from train.adapter.merge import merge
from train.adapter.opened import check_adapter, load_with_adapter
from train.adapter.sample import open_generator
from train.base import load_model, load_tokenizer

__all__ = ["bases"]  # a fixture
WEIGHTS = "adapter_model.safetensors"


def with_trained_tokens(base: Path, folder: Path, added: int, trained: list[int]) -> Path:
    """An adapter that trains only the rows of new tokens, saved without the whole embedding."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    old = len(tokenizer)
    tokenizer.add_tokens([f"<new{n}>" for n in range(added)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(
        r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices=[old + n for n in trained]
    )
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in wrapped.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "tied"])
def test_new_tokens_saved_by_their_rows_merge_as_peft_does_after_resizing(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[family]
    old = len(load_model(base).get_input_embeddings().weight)
    folder = with_trained_tokens(base, tmp_path / "a", 2, [0, 1])
    made = load_model(merge(base, folder, tmp_path / "m").output).get_input_embeddings().weight
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    start.resize_token_embeddings(old + 2, mean_resizing=False)
    expected = PeftModel.from_pretrained(start, folder).merge_and_unload().get_input_embeddings().weight
    assert len(made) == old + 2 and torch.equal(made, expected)
    assert len(load_tokenizer(tmp_path / "m")) == old + 2
    assert next(open_generator(base, folder).stream("Where?"), None) is not None


def test_new_tokens_that_nobody_trained_get_the_mean_of_the_known_rows(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["tied"]
    rows = load_model(base).get_input_embeddings().weight
    folder = with_trained_tokens(base, tmp_path / "a", 3, [1])
    made = load_model(merge(base, folder, tmp_path / "m").output).get_input_embeddings().weight
    assert len(made) == len(rows) + 3 and torch.equal(made[: len(rows)], rows)
    assert torch.allclose(made[len(rows)], rows.mean(dim=0)) and torch.equal(made[-1], made[len(rows)])
    assert not torch.allclose(made[len(rows) + 1], made[-1])


def test_a_trained_token_far_beyond_the_base_is_another_models(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = with_trained_tokens(bases["llama"], tmp_path / "a", 1, [0])
    settings = folder / "adapter_config.json"
    old = len(load_model(bases["llama"]).get_input_embeddings().weight)
    settings.write_text(settings.read_text().replace(f"{old}\n", "151665\n"))
    assert "151665" in settings.read_text()
    with pytest.raises(MismatchError, match="trains token 151,665"):
        merge(bases["llama"], folder, tmp_path / "m")


def test_tensors_that_were_saved_empty_are_named_with_how_it_comes(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = adapter(bases["llama"], tmp_path / "a")
    tensors = load_file(folder / WEIGHTS)
    some = dict.fromkeys(list(tensors)[:2], torch.zeros(0))
    for broken, count in ((dict.fromkeys(tensors, torch.zeros(0)), len(tensors)), (tensors | some, 2)):
        save_file(broken, folder / WEIGHTS, metadata={"format": "pt"})
        says = rf"saved tensors .* are empty .*{count} of {len(tensors)}.*ZeRO-3.*zero_to_fp32"
        for read in (
            lambda: check_adapter(folder, bases["llama"]),
            lambda: merge(bases["llama"], folder, tmp_path / "m"),
            lambda: open_generator(bases["llama"], folder),
            lambda: convert_adapter(folder, tmp_path / "a.gguf", bases["llama"]),
        ):
            with pytest.raises(DamagedFileError, match=says):
                read()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("base_model.model.", "base_model.model._orig_mod.", "torch.compile"),
        (".model.layers.", ".model.language_model.layers.", "with images"),
        ("layers.1.", "layers.7.", "Give the base"),
    ],
)
def test_tensors_that_have_no_place_in_the_base_are_not_left_out(
    old: str, new: str, says: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = adapter(bases["llama"], tmp_path / "a")
    tensors = {name.replace(old, new): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(MismatchError, match=f"have no place there.*none for .*{says}"):
        merge(bases["llama"], folder, tmp_path / "m")


def test_a_file_with_half_of_an_adapter_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = adapter(bases["llama"], tmp_path / "a")
    tensors = load_file(folder / WEIGHTS)
    save_file(dict(list(tensors.items())[:3]), folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(MismatchError, match=f"none for {len(tensors) - 3} of the model's"):
        load_with_adapter(bases["llama"], folder)
