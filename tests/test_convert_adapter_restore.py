"""Adapter files back to PEFT folders: every factor to the bit, for every family; the rest is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModel

from convert.cli.convert import restore
from convert.lora.adapter import convert_adapter
from convert.lora.restore import restore_adapter
from convert.output.writer import OutTensor, write_gguf
from slm.artifacts import read_manifest
from slm.errors import DamagedFileError, InputError, MismatchError, SlmError, UnsupportedError
from slm.weights.gguf_reader import read_gguf
from slm.weights.identity import BASE_FINGERPRINT, BASE_WEIGHTS, checkpoint_fingerprint
from tests import test_convert_encoders as encoders
from tests import tiny_checkpoints
from tests import tiny_families as tiny
from tests.path_joints import PathJoints
from tests.test_convert_family_adapters import LLAMA_TIED, UNTIED, VARIANTS, Base, base_of, write_adapter
from train.base import target_modules

__all__ = ["base_of"]  # a fixture
WEIGHTS = "adapter_model.safetensors"
Tensors = dict[str, np.ndarray[Any, Any]]


def factors(folder: Path) -> Tensors:
    return {name: tensor for name, tensor in load_file(folder / WEIGHTS).items() if ".lora_" in name}


def file_tensors(path: Path) -> Tensors:
    file = read_gguf(path)
    return {name: file.dequantized(name) for name in file.tensors}


def same_bits(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(tensor, right[name]) for name, tensor in left.items())


def settings_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "adapter_config.json").read_text()))


def around(folder: Path, base: Path, root: Path) -> Path:
    """The folder converted and restored; proven to convert to the same file again."""
    convert_adapter(folder, root / "once.gguf", base)
    restore_adapter(root / "once.gguf", root / "restored", base)
    convert_adapter(root / "restored", root / "twice.gguf", base)
    once, twice = (read_gguf(root / name) for name in ("once.gguf", "twice.gguf"))
    assert same_bits(file_tensors(once.path), file_tensors(twice.path))
    keys = [{name: str(value) for name, value in file.metadata.items() if "name" not in name} for file in (once, twice)]
    assert keys[0] == keys[1]
    return root / "restored"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", tiny.MAKE)
def test_an_adapter_comes_back_from_its_file(
    family: str, variant: str, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of(family)[0]
    folder = write_adapter(base, tmp_path / "adapter", VARIANTS[variant])
    restored = around(folder, base, tmp_path)
    if "patterns" not in variant:  # where B has a scale in it, it is the update that comes back
        assert same_bits(factors(folder), factors(restored))
    ids = tiny.sequences(tiny.vocabulary_of(base))
    found, expected = (
        tiny.reference_logits(PeftModel.from_pretrained(tiny.load(base), str(one)).eval(), ids)
        for one in (restored, folder)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(abs(expected).max()))


@pytest.mark.parametrize("family", [*UNTIED, "gemma3, untied", "gpt2, untied", "gpt_neox, tied"])
def test_an_adapter_of_the_embedding_and_of_the_head_comes_back_to_the_bit(
    family: str, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of(family)[0]
    model = tiny.load(base)
    names = {id(m): n for n, m in model.named_modules()}
    ends = [names[id(m)] for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    folder = write_adapter(
        base, tmp_path / "adapter",
        lambda names: {"target_modules": [names[0], *ends], "r": 4, "rank_pattern": {ends[0]: 2}},
    )  # fmt: skip
    restored = around(folder, base, tmp_path)
    assert same_bits(factors(folder), factors(restored))
    PeftModel.from_pretrained(tiny.load(base), str(restored))
    assert set(ends) < set(settings_of(restored)["target_modules"])


ENCODERS = {
    "bert": encoders.bert, "roberta": encoders.roberta, "xlm-roberta": encoders.xlm_roberta,
    "modernbert": encoders.modernbert,
}  # fmt: skip


def embedder_adapter(base: Path, folder: Path, targets: list[str]) -> Path:
    """A LoRA of the bare encoder, as `slm train reader` makes it, with random factors."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="FEATURE_EXTRACTION")
    model = get_peft_model(AutoModel.from_pretrained(base, dtype=torch.float32), config)
    tiny.with_random_factors(model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ENCODERS)
def test_an_adapter_of_an_encoder_comes_back_to_the_bit(family: str, tmp_path: Path) -> None:
    base = ENCODERS[family](tmp_path / "base")
    targets = target_modules(AutoConfig.from_pretrained(base), "all")
    restored = around(embedder_adapter(base, tmp_path / "adapter", targets), base, tmp_path)
    assert same_bits(factors(tmp_path / "adapter"), factors(restored))
    settings = settings_of(restored)
    assert settings["task_type"] == "FEATURE_EXTRACTION"
    assert (sorted(settings["target_modules"]), settings["layers_to_transform"]) == (sorted(targets), None)


def test_whole_names_stand_where_an_ending_would_find_another_module(tmp_path: Path) -> None:
    """BERT's feed-forward `output.dense` is an ending of `attention.output.dense`; layer numbers that PEFT misreads."""
    base = encoders.bert(tmp_path / "bert")
    own = [f"encoder.layer.{number}.output.dense" for number in range(2)]
    restored = around(embedder_adapter(base, tmp_path / "adapter", own), base, tmp_path)
    assert settings_of(restored)["target_modules"] == own
    assert same_bits(factors(tmp_path / "adapter"), factors(restored))
    check_loads(AutoModel.from_pretrained(base), restored)
    base = encoders.modernbert(tmp_path / "modern")
    (tmp_path / "other").mkdir()
    restored = around(embedder_adapter(base, tmp_path / "second", ["layers.1.attn.Wo"]), base, tmp_path / "other")
    assert settings_of(restored)["target_modules"] == ["layers.1.attn.Wo"]
    check_loads(AutoModel.from_pretrained(base), restored)


def check_loads(model: Any, folder: Path) -> None:
    """PEFT adapts the very modules that the folder has factors for."""
    wrapped = PeftModel.from_pretrained(model, str(folder))
    adapted = {name.rpartition(".lora_A")[0] for name, _ in wrapped.named_parameters() if ".lora_A" in name}
    assert adapted == {name.rpartition(".lora_A")[0] for name in factors(folder) if ".lora_A" in name}


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_layers_of_an_adapter_of_some_are_named(
    family: str, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base = base_of(family)[0]
    targets = target_modules(AutoConfig.from_pretrained(base), "attention")
    folder = write_adapter(
        base, tmp_path / "adapter", lambda _: {"target_modules": targets, "layers_to_transform": [1], "r": 3}
    )
    settings = settings_of(around(folder, base, tmp_path))
    assert (sorted(settings["target_modules"]), settings["layers_to_transform"]) == (sorted(targets), [1])
    uneven = write_adapter(
        base, tmp_path / "uneven", lambda names: {"target_modules": [names[0], names[-1]], "lora_alpha": 0.1}
    )
    (tmp_path / "again").mkdir()
    restored = around(uneven, base, tmp_path / "again")
    assert settings_of(restored)["lora_alpha"] == 0.1, "not the float32 that is nearest to it"
    check_loads(tiny.load(base), restored)


def test_template_language_base_and_invocation_tokens_come_back(base_of: Callable[[str], Base], tmp_path: Path) -> None:
    base = base_of("qwen2")[0]
    folder = write_adapter(
        base, tmp_path / "adapter", lambda names: {"target_modules": names, "alora_invocation_tokens": [11, 12]}
    )
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    fingerprint = checkpoint_fingerprint(base)
    told = {"kind": "adapter", "lang": "ja", "base": {"fingerprint": fingerprint}}
    (folder / "manifest.json").write_text(json.dumps(told))
    restored = around(folder, base, tmp_path)
    assert (restored / "chat_template.jinja").read_text() == "{{ messages }}"
    manifest = read_manifest(restored)
    assert (manifest["lang"], manifest["base"]["fingerprint"]) == ("ja", fingerprint)
    assert settings_of(restored)["alora_invocation_tokens"] == [11, 12]
    assert settings_of(restored)["base_model_name_or_path"] == manifest["base"]["path"] == str(base)


# --- what is refused


def changed(path: Path, out: Path, keys: dict[str, Any], tensors: Callable[[Tensors], Tensors] = dict) -> Path:
    """The file with other keys (None: without) and tensors."""
    file = read_gguf(path)
    kept = {key: value for key, value in (file.metadata | keys).items() if value is not None}
    written = [OutTensor(name, one.shape, "F32", [one]) for name, one in tensors(file_tensors(path)).items()]
    with out.open("wb") as stream:
        for _ in write_gguf(stream, kept, written):
            pass
    return out


@pytest.fixture(scope="module")
def whole(base_of: Callable[[str], Base], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    folder = write_adapter(base_of("llama")[0], root / "adapter", VARIANTS["plain"])
    convert_adapter(folder, root / "a.gguf")
    return root / "a.gguf"


Q = "blk.0.attn_q.weight.lora_"
DAMAGES: dict[str, tuple[dict[str, Any], Callable[[Tensors], Tensors], type[SlmError], str]] = {
    "no adapter": ({"general.type": "model"}, dict, InputError, "is a model, not an adapter"),
    "another kind": ({"adapter.type": "control"}, dict, UnsupportedError, "of the kind 'control'"),
    "another architecture": ({"general.architecture": "gemma3"}, dict, MismatchError, "adapter of a gemma3 model"),
    "no alpha": ({"adapter.lora.alpha": None}, dict, DamagedFileError, "adapter.lora.alpha"),
    "alpha of 0": ({"adapter.lora.alpha": 0.0}, dict, DamagedFileError, "adapter.lora.alpha"),
    "tokens that are none": (
        {"adapter.alora.invocation_tokens": np.array([10**6], np.uint32)}, dict, DamagedFileError, "invocation_tokens",
    ),
    "a whole weight": ({}, lambda t: {**t, "token_embd.weight": t[f"{Q}b"]}, UnsupportedError, "no factor of a LoRA"),
    "nothing": ({}, lambda t: {}, DamagedFileError, "no LoRA weights"),
    "half a pair": ({}, lambda t: {n: v for n, v in t.items() if n != f"{Q}a"}, DamagedFileError, "only one of"),
    "a stray": (
        {}, lambda t: {n.replace("blk.1.", "blk.9."): v for n, v in t.items()}, MismatchError, "has no place for",
    ),
    "another width": ({}, lambda t: {**t, f"{Q}a": t[f"{Q}a"][:, :-1]}, MismatchError, "does not fit"),
    "no number": ({}, lambda t: {**t, f"{Q}a": t[f"{Q}a"] * np.nan}, DamagedFileError, "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_come_back_is_refused_by_name(
    damage: str, whole: Path, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    keys, tensors, error, says = DAMAGES[damage]
    file = changed(whole, tmp_path / "b.gguf", keys, tensors)
    with pytest.raises(error, match=says):
        restore_adapter(file, tmp_path / "restored", base_of("llama")[0])
    assert not (tmp_path / "restored").exists()


def test_an_adapter_of_another_base_is_refused_and_one_that_names_none_is_noted(
    whole: Path, base_of: Callable[[str], Base], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_checkpoints.llama(tmp_path / "other", seed=9)
    with pytest.raises(MismatchError, match=r"trained on another base than .*Give the one it was trained on"):
        restore_adapter(whole, tmp_path / "restored", other)
    nameless = changed(whole, tmp_path / "b.gguf", {BASE_FINGERPRINT: None, BASE_WEIGHTS: None})
    restore_adapter(nameless, tmp_path / "restored", other)
    assert "as the base of 'b.gguf', which names none" in capsys.readouterr().err
    tied = base_of(LLAMA_TIED)[0]
    widths = {name: tiny.load(tied).get_input_embeddings().weight.shape[axis] for axis, name in enumerate(("n", "w"))}
    pair = {
        "token_embd.weight.lora_a": np.ones((widths["n"], 2), np.float32),
        "token_embd.weight.lora_b": np.ones((widths["w"], 2), np.float32),
    }
    positions = {name.replace("token_embd", "position_embd"): factor for name, factor in pair.items()}
    strange = changed(nameless, tmp_path / "d.gguf", {"general.architecture": "gpt2"}, lambda _: positions)
    with pytest.raises(MismatchError, match=r"changes 'position_embd\.weight', where .* no place for an adapter"):
        restore_adapter(strange, tmp_path / "positions", base_of("gpt2")[0])
    both = changed(nameless, tmp_path / "c.gguf", {}, lambda _: pair)
    with pytest.raises(UnsupportedError, match="which is the head of its base as well"):
        restore_adapter(both, tmp_path / "tied", tied)


# --- the command


def test_the_command_restores_an_adapter_where_its_base_is_named(
    whole: Path, base_of: Callable[[str], Base], tmp_path: Path
) -> None:
    base, gguf = base_of("llama")

    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(restore, list(map(str, arguments)), obj=PathJoints())

    made = run(whole, "--base", base, "-o", tmp_path / "adapter", "--json")
    assert made.exit_code == 0 and json.loads(made.stdout)["folder"] == str(tmp_path / "adapter")
    assert same_bits(factors(tmp_path / "adapter"), factors(whole.parent / "adapter"))
    told = run(whole, "-o", tmp_path / "b").exception
    assert isinstance(told, InputError) and f"slm restore {whole} --base BASE -o FOLDER" in told.hint
    for wrong in ((gguf, "--base", base), (whole, "--base", base, "--dtype", "bf16")):
        assert isinstance(run(*wrong, "-o", tmp_path / "b").exception, InputError)
    assert not (tmp_path / "b").exists()
    (tmp_path / "reader").mkdir()
    shutil.copy(whole, tmp_path / "reader/adapter.gguf")
    assert run(tmp_path / "reader", "--base", base, "-o", tmp_path / "c").exit_code == 0
    assert same_bits(factors(tmp_path / "c"), factors(tmp_path / "adapter"))
