"""PEFT adapters of every decoder family: llama.cpp computes what PEFT computes, on 512 positions a variant."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file

from convert.lora.adapter import convert_adapter
from convert.model import convert_checkpoint
from convert.quality.verify import verify_model
from serve.adapters.registry import vet_adapter, vet_base
from slm.errors import DamagedFileError, MismatchError, UnsupportedError
from slm.weights.gguf_reader import read_gguf
from tests import tiny_families as tiny
from train.adapter.merge import merge

Base = tuple[Path, Path]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    """(checkpoint folder, its f32 GGUF) of a family, made once."""
    root, made = tmp_path_factory.mktemp("bases"), {}

    def get(family: str) -> Base:
        if family not in made:
            folder = {**tiny.MAKE, **tiny.MORE}[family](root / family)
            convert_checkpoint(folder, root / f"{family}.gguf", "f32", verify=False)
            made[family] = (folder, root / f"{family}.gguf")
        return made[family]

    return get


def modules(model: Any) -> list[str]:
    """The names of every matrix an adapter usually changes: all but the embeddings and the head."""
    kinds = ("Linear", "Conv1D")
    return sorted(n for n, m in model.named_modules() if type(m).__name__ in kinds and not n.endswith("lm_head"))


def write_adapter(base: Path, out: Path, settings: Callable[[list[str]], dict[str, Any]], added: int = 0) -> Path:
    """An adapter with random factors, saved by PEFT. settings: LoraConfig's from the matrices' names."""
    model = tiny.load(base)
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings(modules(model))))
    tiny.with_random_factors(model).save_pretrained(out)
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


UNTIED = [name for name in tiny.MAKE if name not in ("gpt2", "gemma", "gemma2", "gemma3")]


@pytest.mark.parametrize("variant", ["plain", "rsLoRA"])
@pytest.mark.parametrize("family", [*UNTIED, "gemma3, untied", "gpt2, untied", "gpt_neox, tied"])
def test_an_adapter_of_the_embedding_and_of_the_head_computes_what_it_computes_in_peft(
    family: str, variant: str, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of(family)
    model = tiny.load(base[0])
    names = {id(m): n for n, m in model.named_modules()}
    ends = [names[id(m)] for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    folder = write_adapter(
        base[0], tmp_path / "adapter",
        lambda names: {**VARIANTS[variant](names), "target_modules": [names[0], *ends], "rank_pattern": {ends[0]: 2}},
    )  # fmt: skip
    convert_adapter(folder, tmp_path / "a.gguf")
    tensors = read_gguf(tmp_path / "a.gguf").tensors
    vocabulary = tiny.vocabulary_of(base[0])
    assert tensors["token_embd.weight.lora_a"].shape == (vocabulary, 2)
    assert tensors["output.weight.lora_b"].shape[0] == vocabulary
    assert_equals_peft(base, folder, tmp_path / "a.gguf")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_an_activated_lora_acts_from_its_invocation_tokens_on_as_in_peft(
    family: str, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base, invocation = base_of(family), [11, 12, 13]
    folder = write_adapter(
        base[0], tmp_path / "adapter",
        lambda names: {**VARIANTS["plain"](names), "alora_invocation_tokens": invocation},
    )  # fmt: skip
    assert convert_adapter(folder, tmp_path / "a.gguf")["invocation_tokens"] == invocation
    assert read_gguf(tmp_path / "a.gguf").metadata["adapter.alora.invocation_tokens"].tolist() == invocation
    start = 70
    ids = [[*one[:start], *invocation, *one[start:-3]] for one in tiny.sequences(tiny.vocabulary_of(base[0]))]
    reference = PeftModel.from_pretrained(tiny.load(base[0]), str(folder)).eval()
    expected = tiny.reference_logits(reference, ids)
    found = tiny.runtime_logits(base[1], ids, tmp_path / "a.gguf", adapter_from=start)
    tiny.assert_equal_logits(found, expected)
    always = tiny.runtime_logits(base[1], ids, tmp_path / "a.gguf")
    assert abs(always - expected).max() > 0.1 * abs(expected).max()
    with pytest.raises(UnsupportedError, match="activated LoRA"):
        verify_model(base[1], base[0], adapter=tmp_path / "a.gguf", peft=folder)
    with pytest.raises(UnsupportedError, match=r"activated LoRA.*llama-server"):
        vet_adapter("alora", tmp_path / "a.gguf", vet_base(base[1]))


def test_invocation_tokens_that_are_no_tokens_are_refused(base_of: Callable[[str], Base], tmp_path: Path) -> None:
    base = base_of("llama")
    folder = write_adapter(base[0], tmp_path / "adapter", VARIANTS["plain"])
    for wrong in ([10**6], [-1], ["a"], 5):
        change_settings(folder, alora_invocation_tokens=wrong)
        with pytest.raises(DamagedFileError, match="alora_invocation_tokens"):
            convert_adapter(folder, tmp_path / "a.gguf")


def change_settings(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_pattern_that_is_none_is_refused(base_of: Callable[[str], Base], tmp_path: Path) -> None:
    folder = write_adapter(base_of("llama")[0], tmp_path / "adapter", VARIANTS["plain"])
    change_settings(folder, alpha_pattern={"(": 3})
    with pytest.raises(DamagedFileError, match="alpha_pattern"):
        convert_adapter(folder, tmp_path / "a.gguf")


# --- what a LoRA file cannot hold, and whether the way out leads out


LLAMA_TIED = "llama, tied"
WAYS_OUT: dict[str, tuple[str, int, dict[str, Any], str]] = {
    "DoRA": ("qwen2", 0, {"target_modules": ["q_proj"], "use_dora": True}, "use_dora"),
    "whole modules": ("phi3", 0, {"target_modules": ["qkv_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save"),
    "a tied embedding": (LLAMA_TIED, 0, {"target_modules": ["q_proj", "embed_tokens"]}, "one tensor"),
    "a tied head": (LLAMA_TIED, 0, {"target_modules": ["q_proj", "lm_head"]}, "one tensor"),
    "GPT-2's tied embedding": ("gpt2", 0, {"target_modules": ["c_attn", "wte"]}, "one tensor"),
    "GPT-2's positions": ("gpt2", 0, {"target_modules": ["c_attn", "wpe"]}, "no place"),
    "single tokens": ("gpt_neox", 0, {"target_modules": ["dense"], "trainable_token_indices": [1, 7]}, "trainable"),
    "added tokens": ("mistral", 3, {"target_modules": ["q_proj"]}, "3 tokens more"),
    "added tokens, tied": (LLAMA_TIED, 3, {"target_modules": ["q_proj"]}, "3 tokens more"),
    "added tokens, trained": (
        "qwen3", 2, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, "modules_to_save",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WAYS_OUT)
def test_what_is_refused_names_merging_and_the_merged_checkpoint_converts_to_the_same_model(
    case: str, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    family, added, settings, match = WAYS_OUT[case]
    base = base_of(family)[0]
    folder = write_adapter(base, tmp_path / "adapter", lambda _: settings, added)
    with pytest.raises(UnsupportedError, match=rf"{match}.*slm merge"):
        convert_adapter(folder, tmp_path / "a.gguf")
    assert not list(tmp_path.glob("*a.gguf*"))
    merge(base, folder, tmp_path / "merged")
    convert_checkpoint(tmp_path / "merged", tmp_path / "merged.gguf", "f32")
    model = tiny.load(base)
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added)
    expected = PeftModel.from_pretrained(model, str(folder)).eval()
    ids = tiny.sequences(tiny.vocabulary_of(tmp_path / "merged"))
    found = tiny.runtime_logits(tmp_path / "merged.gguf", ids)
    tiny.assert_equal_logits(found, tiny.reference_logits(expected, ids))


def test_a_whole_weight_among_the_factors_is_refused_unless_it_is_the_bases_own(
    base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of("qwen2")[0]
    folder = write_adapter(base, tmp_path / "adapter", lambda _: {"target_modules": ["q_proj"]})
    path = folder / "adapter_model.safetensors"
    factors, own = load_file(path), load_file(base / "model.safetensors")
    head = own["lm_head.weight"]
    save_file({**factors, "base_model.model.lm_head.weight": head}, path)
    convert_adapter(folder, tmp_path / "a.gguf")
    wrong = {"base_model.model.lm_head.weight": (head * 1.01, "replaces the whole weight"),
             "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias": (head[0], "cannot be a LoRA"),
             "base_model.model.score.weight": (head, "cannot be a LoRA")}  # fmt: skip
    for name, (weight, match) in wrong.items():
        save_file({**factors, name: weight}, path)
        with pytest.raises(UnsupportedError, match=rf"{match}.*slm merge"):
            convert_adapter(folder, tmp_path / "b.gguf")
    assert not list(tmp_path.glob("*b.gguf*"))


def test_the_engine_refuses_an_embedding_adapter_on_a_tied_model_which_would_end_the_process(
    base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of("llama")
    folder = write_adapter(base[0], tmp_path / "adapter", lambda _: {"target_modules": ["embed_tokens"]})
    convert_adapter(folder, tmp_path / "a.gguf")
    vet_adapter("fits", tmp_path / "a.gguf", vet_base(base[1]))
    gguf = base_of(LLAMA_TIED)[1]
    blind = replace(vet_base(gguf), fingerprint=None, weights=None)
    with pytest.raises(MismatchError, match="model's head as well"):
        vet_adapter("tied", tmp_path / "a.gguf", blind)
