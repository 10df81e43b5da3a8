"""Merging: PEFT's own result to the bit, exact sums of several adapters, and vocabularies that grew."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm.errors import DamagedFileError, InputError, MismatchError, UnsupportedError
from tests.path_joints import PathJoints
from tests.tiny_training import write_checkpoint
from train.adapter.combine import combine
from train.adapter.merge import merge
from train.base import has_columns_first, load_model, load_tokenizer, target_modules

FAMILIES = ["gpt2", "llama", "gemma3"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "trained tokens": {"trainable_token_indices": [3, 5]},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    tied = write_checkpoint(folder / "tied", "llama", tie_word_embeddings=True)
    return {family: write_checkpoint(folder / family, family) for family in FAMILIES} | {"tied": tied}


def adapter(base: Path, folder: Path, *, seed: int = 0, tokens: tuple[str, ...] = (), **config: Any) -> Path:
    """A PEFT adapter with random factors of some size; with new tokens it keeps the embedding and a tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokens:
        tokenizer.add_tokens(list(tokens))
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    chosen: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": target_modules(model.config, "attention")}
    chosen |= {"fan_in_fan_out": has_columns_first(model.config), "task_type": "CAUSAL_LM"}
    wrapped = get_peft_model(model, LoraConfig(**(chosen | config)))
    with torch.no_grad():
        for parameter in (p for p in wrapped.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        if tokens:
            weights = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
            for weight in weights.values():
                weight[-len(tokens) :] = torch.randn(len(tokens), weight.shape[1], generator=generator)
    wrapped.save_pretrained(folder, save_embedding_layers=bool(tokens))
    if tokens:
        tokenizer.save_pretrained(folder)
    return folder


def pefts_merge(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """What PEFT itself makes of an adapter without new tokens."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged: dict[str, torch.Tensor] = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    return merged


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_adapter_gives_pefts_own_merge_to_the_bit(
    family: str, kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = adapter(bases[family], tmp_path / "a", **KINDS[kind])
    merged = load_model(merge(bases[family], folder, tmp_path / "merged").output).state_dict()
    expected, base = pefts_merge(bases[family], folder), load_model(bases[family]).state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    assert any(not torch.equal(merged[name], base[name]) for name in merged)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_update_is_the_scale_times_b_a(rslora: bool, bases: dict[str, Path], tmp_path: Path) -> None:
    """Against the formula of the papers (arXiv 2106.09685, 2312.03732) in double precision, not against a library."""
    from safetensors.torch import load_file

    folder = adapter(bases["llama"], tmp_path / "a", use_rslora=rslora)
    factors = load_file(folder / "adapter_model.safetensors")
    merged = load_model(merge(bases["llama"], folder, tmp_path / "merged").output).state_dict()
    base = load_model(bases["llama"]).state_dict()
    scale = 8 / (math.sqrt(4) if rslora else 4)
    seen = 0
    for name in (key.removesuffix(".lora_A.weight") for key in factors if key.endswith("lora_A.weight")):
        update = scale * factors[f"{name}.lora_B.weight"].double() @ factors[f"{name}.lora_A.weight"].double()
        weight = f"{name.removeprefix('base_model.model.')}.weight"
        assert torch.allclose(merged[weight].double(), base[weight].double() + update, atol=1e-6, rtol=0)
        seen += 1
    assert seen == 8  # four matrices in each of two layers


@pytest.fixture(scope="module")
def pair(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[Any]]:
    """A base, a LoRA and a DoRA adapter of different ranks, and what PEFT makes of each."""
    folder = tmp_path_factory.mktemp("pair")
    made = [
        adapter(bases["llama"], folder / "en", seed=1, r=4),
        adapter(bases["llama"], folder / "ja", seed=2, r=8, use_dora=True, target_modules=["q_proj", "up_proj"]),
    ]
    return bases["llama"], made, [pefts_merge(bases["llama"], one) for one in made]


@settings(max_examples=8, deadline=None)
@given(st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
def test_several_adapters_add_their_whole_updates_each_by_its_weight(
    pair: tuple[Path, list[Path], list[Any]], weights: tuple[float, float]
) -> None:
    base, adapters, merged = pair
    start = load_model(base).state_dict()
    made = combine(base, list(zip(adapters, weights, strict=True))).state_dict()
    assert made.keys() == start.keys()
    for name, tensor in start.items():
        exact = tensor.double() + sum(
            weight * (one[name].double() - tensor.double()) for weight, one in zip(weights, merged, strict=True)
        )
        # One unit in the last place: the sum in another order may fall on the other side of a rounding.
        torch.testing.assert_close(made[name], exact.float(), rtol=2**-23, atol=1e-15, msg=name)


def test_the_manifest_and_the_command_name_every_adapter_with_its_weight(
    pair: tuple[Path, list[Path], list[Any]], tmp_path: Path
) -> None:
    from scripts.merge_lora import main
    from train.cli.train import merge as command

    base, adapters, _ = pair
    named = [item for one in adapters for item in ("--adapter", str(one))] + ["--weight", "0.7", "--weight", "0.3"]
    arguments = ["--base", str(base), *named, "-o", str(tmp_path / "command")]
    said = CliRunner().invoke(command, [*arguments, "--json"], obj=PathJoints())
    assert said.exit_code == 0, said.output
    manifest = json.loads((tmp_path / "command" / "manifest.json").read_text())
    assert [(Path(one["path"]).name, one["weight"]) for one in manifest["adapters"]] == [("en", 0.7), ("ja", 0.3)]
    script = CliRunner().invoke(main, ["--base", str(base), *named, "--output_dir", str(tmp_path / "script")])
    assert script.exit_code == 0, script.output
    twin = merge(base, adapters, tmp_path / "function", [0.7, 0.3])
    assert twin.fingerprint == json.loads(said.stdout)["fingerprint"]
    assert twin.fingerprint == json.loads((tmp_path / "script" / "manifest.json").read_text())["fingerprint"]


@pytest.mark.parametrize("family", ["llama", "tied", "gpt2"])
def test_new_tokens_come_with_their_rows_and_leave_the_others_as_they_were(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[family]
    folder = adapter(base, tmp_path / "a", tokens=("<tool>", "<|end|>"))
    result = merge(base, folder, tmp_path / "merged")
    model, tokenizer = load_model(result.output), load_tokenizer(result.output)
    rows = load_model(base).get_input_embeddings().weight
    table = model.get_input_embeddings().weight
    assert len(table) == len(rows) + 2 == len(tokenizer) and torch.equal(table[:-2], rows)
    ids = torch.tensor([tokenizer("Desk <tool> is here.<|end|>").input_ids])
    assert {len(rows), len(rows) + 1} <= set(ids[0].tolist())
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    start.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(start, folder)(ids).logits
        assert torch.allclose(model.eval()(ids).logits, adapted, atol=1e-4)


def test_new_tokens_of_several_adapters_get_the_mean_of_their_rows(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["tied"]
    one = adapter(base, tmp_path / "one", seed=1, tokens=("<a>",))
    two = adapter(base, tmp_path / "two", seed=2, tokens=("<a>", "<b>"))
    plain = adapter(base, tmp_path / "plain", seed=3)
    result = merge(base, [one, two, plain], tmp_path / "merged", [3.0, 1.0, 0.5])
    made = load_model(result.output).get_input_embeddings().weight
    size = len(load_model(base).get_input_embeddings().weight)
    first, second = (load_model(merge(base, part, tmp_path / f"{part.name}-alone").output) for part in (one, two))
    rows = first.get_input_embeddings().weight[size], second.get_input_embeddings().weight[size:]
    assert len(made) == size + 2 == len(load_tokenizer(result.output))
    assert torch.allclose(made[size], 0.75 * rows[0] + 0.25 * rows[1][0], atol=1e-7)
    assert torch.equal(made[size + 1], rows[1][1])
    with pytest.raises(MismatchError, match="add up to nothing"):
        merge(base, [one, two], tmp_path / "none", [1.0, -1.0])


@pytest.mark.parametrize("weights", [[1.0], [1e300]])
def test_what_is_no_number_is_never_merged(weights: list[float], bases: dict[str, Path], tmp_path: Path) -> None:
    folder = adapter(bases["llama"], tmp_path / "a")
    if weights == [1.0]:
        tensors = load_file(folder / "adapter_model.safetensors")
        next(iter(tensors.values())).fill_(float("nan"))
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamagedFileError, match="holds NaN or infinite numbers"):
        merge(bases["llama"], folder, tmp_path / "merged", weights)
    assert not (tmp_path / "merged").exists()


def test_adapters_that_do_not_belong_together_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]
    one = adapter(base, tmp_path / "one", tokens=("<a>",))
    other = adapter(base, tmp_path / "other", tokens=("<b>",))
    with pytest.raises(MismatchError, match="different tokens"):
        merge(base, [one, other], tmp_path / "m")
    foreign = adapter(bases["tied"], tmp_path / "foreign")
    (foreign / "manifest.json").write_text('{"kind": "adapter", "base": {"fingerprint": "another"}}')
    with pytest.raises(MismatchError, match="trained on another base"):
        merge(base, [one, foreign], tmp_path / "m")
    with pytest.raises(InputError, match="2 adapters and 1 weights"):
        merge(base, [one, other], tmp_path / "m", [1.0])
    with pytest.raises(InputError, match="not a number"):
        merge(base, [one], tmp_path / "m", [float("nan")])
    with pytest.raises(InputError, match="named twice"):
        merge(base, [one, one], tmp_path / "m", [0.5, 0.5])
    drawn = Path(shutil.copytree(one, tmp_path / "drawn"))
    config = json.loads((drawn / "adapter_config.json").read_text()) | {"init_lora_weights": "pissa_niter_4"}
    (drawn / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="randomized PiSSA"):
        merge(base, [drawn], tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"]])
def test_a_tied_model_whose_head_alone_is_adapted_is_untied_by_one_and_by_several(
    targets: list[str], bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["tied"]
    head = adapter(base, tmp_path / "head", seed=1, target_modules=targets)
    inner = adapter(base, tmp_path / "inner", seed=2)
    ids = torch.tensor([[5, 6, 7, 8]])
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    alone = load_model(merge(base, head, tmp_path / "alone").output)
    with torch.no_grad():
        assert torch.allclose(alone.eval()(ids).logits, PeftModel.from_pretrained(start, head)(ids).logits, atol=1e-4)
    both = load_model(merge(base, [head, inner], tmp_path / "both", [1.0, 0.0]).output)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(both.state_dict()[name], tensor), name
