"""What makes a checkpoint unreadable is named before anything loads; a name is not shadowed by a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.lora.adapter import convert_adapter
from convert.model import convert_checkpoint
from slm.errors import DamagedFileError, MissingFileError, SlmError, UnknownNameError, UnsupportedError
from slm.models.catalog import CATALOG
from slm.models.model_argument import model_argument, name_of_model
from tests import tiny_checkpoints as tiny
from train.base import load_tokenizer, read_config

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 538090408\n"
NAME = "model.layers.0.mlp.down_proj.weight"


def set_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))


def add_tensors(folder: Path, tensors: dict[str, torch.Tensor], leave_out: str = "") -> None:
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name != leave_out}
    save_file({**weights, **tensors}, folder / "model.safetensors", metadata={"format": "pt"})


QUANTIZED: dict[str, tuple[Callable[[Path], None], str]] = {
    "bitsandbytes": (
        lambda f: set_config(f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "bitsandbytes, 4 bits",
    ),
    "GPTQ": (lambda f: set_config(f, quantization_config={"quant_method": "gptq", "bits": 8}), "gptq, 8 bits"),
    "nested": (
        lambda f: set_config(f, text_config={"quantization_config": {"quant_method": "awq", "bits": 4}}),
        "awq, 4 bits",
    ),
    "older compressed-tensors": (
        lambda f: set_config(f, compression_config={"quant_method": "compressed-tensors"}),
        "compressed-tensors",
    ),
    "MLX": (lambda f: set_config(f, quantization={"group_size": 64, "bits": 4}), "MLX, 4 bits"),
    "only the tensors say so": (
        lambda f: add_tensors(f, {NAME.removesuffix("weight") + "qweight": torch.zeros(2, 2, dtype=torch.int32)}, NAME),
        "GPTQ or AWQ",
    ),
    "FP8 that nothing names": (
        lambda f: add_tensors(f, {NAME: torch.zeros(64, 96).to(torch.float8_e4m3fn)}),
        "stored as F8_E4M3",
    ),
    "packed": (lambda f: add_tensors(f, {NAME: torch.zeros(64, 12, dtype=torch.int32)}), "stored as I32"),
}


# What is left of a quantizer over weights that are floats, what is said of it and what is to be removed.
LEFT: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a plain name": (lambda f: set_config(f, quantization_config="int4"), "int4", "the key 'quantization_config'"),
    "a number": (lambda f: set_config(f, quantization=4), "MLX", "the key 'quantization'"),
    "a list": (
        lambda f: set_config(f, compression_config=["a"]),
        "by an unnamed method",
        "the key 'compression_config'",
    ),
    "AutoGPTQ's file": (
        lambda f: write_json(f / "quantize_config.json", {"bits": 4, "group_size": 128}),
        "GPTQ, 4 bits",
        "the file quantize_config.json",
    ),
    "AutoAWQ's file": (lambda f: write_json(f / "quant_config.json", {"w_bit": 4}), "AWQ, 4 bits", "the file quant_"),
    "ModelOpt's file": (
        lambda f: write_json(f / "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}),
        "FP8",
        "the file hf_quant_config.json",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_a_quantizer_left_over_floats_is_never_passed_by(case: str, tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    leave, method, where = LEFT[case]
    leave(folder)
    for use in (read_config, lambda f: convert_checkpoint(f, tmp_path / "m.gguf")):
        with pytest.raises(UnsupportedError, match=rf"quantized \({method}\).*no longer quantized, remove {where}"):
            use(folder)


@pytest.mark.parametrize("nothing", [None, {}, "", [], False, 0])
def test_a_key_that_names_no_quantization_is_none(nothing: Any, tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    set_config(folder, quantization_config=nothing, quantization=nothing)
    assert read_config(folder)["model_type"] == "llama"


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_weights_are_named_in_conversion_and_training(case: str, tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    spoil, told = QUANTIZED[case]
    spoil(folder)
    for use in (read_config, lambda f: convert_checkpoint(f, tmp_path / "m.gguf")):
        with pytest.raises(UnsupportedError, match=rf"quantized \({told}"):
            use(folder)
    assert not (tmp_path / "m.gguf").exists()


def test_an_empty_quantization_config_is_none(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    set_config(folder, quantization_config=None)
    assert read_config(folder)["model_type"] == "llama"
    set_config(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnsupportedError, match="remove the key 'quantization_config'"):
        read_config(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", [POINTER, POINTER.replace("\n", "\r\n"), POINTER.replace("git-lfs", "hawser")])
def test_a_pointer_of_git_lfs_is_named_as_one(name: str, content: str, tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    (folder / name).write_bytes(content.encode())
    for use in (read_config, lambda f: convert_checkpoint(f, tmp_path / "m.gguf")):
        with pytest.raises(DamagedFileError, match=rf"{name}' is a Git LFS pointer.*538,090,408") as caught:
            use(folder)
        assert "git lfs pull" in str(caught.value)
    if name.startswith("tokenizer"):
        with pytest.raises(DamagedFileError, match="Git LFS pointer"):
            load_tokenizer(folder)


def test_a_pointer_in_place_of_a_shard_or_of_a_gguf_file_is_named_as_one(tmp_path: Path) -> None:
    from slm.weights.gguf_reader import read_gguf

    folder = tiny.llama(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model-1.safetensors").write_text(POINTER)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(DamagedFileError, match=r"model-1\.safetensors' is a Git LFS pointer"):
        read_config(folder)
    (tmp_path / "m.gguf").write_text(POINTER)
    with pytest.raises(DamagedFileError, match="Git LFS pointer"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("/annex/objects/SHA256E-s538090408--aa.safetensors\n", "is a git-annex pointer"),
        ("../.git/annex/objects/aa/bb/SHA256E-s5--aa.safetensors", "is a git-annex pointer"),
        ("<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is an HTML page"),
        ("\ufeff\n<!-- a page --><HTML lang='en'>" + "x" * 9000, "is an HTML page"),
        ("Access to this model is restricted. 日本語", "is text, not weights"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_what_came_in_place_of_weights_is_named(content: str, what: str, name: str, tmp_path: Path) -> None:
    from slm.weights.gguf_reader import read_gguf

    folder = tiny.llama(tmp_path / "model")
    (folder / name).write_text(content, encoding="utf-8")
    if name == "model.gguf":
        with pytest.raises(DamagedFileError, match=what if "text" not in what else "GGUF"):
            read_gguf(folder / name)
        return
    for use in (read_config, lambda f: convert_checkpoint(f, tmp_path / "m.gguf")):
        with pytest.raises(DamagedFileError, match=what):
            use(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pointer_in_an_adapter_folder_is_named_as_one(name: str, tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "base")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
    )
    (tmp_path / "a" / name).write_text(POINTER)
    with pytest.raises(DamagedFileError, match=rf"{name}' is a Git LFS pointer"):
        convert_adapter(tmp_path / "a", tmp_path / "a.gguf", base)


def test_a_folder_that_is_no_model_does_not_shadow_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(CATALOG))
    home = tmp_path / "home/models" / name
    home.mkdir(parents=True)
    (home / "m.gguf").write_bytes(b"GGUF")
    (home / "manifest.json").write_text(
        json.dumps({"kind": "model", "files": {"m.gguf": {"sha256": "", "size_bytes": 0}}})
    )
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert model_argument(name) == home / "m.gguf" and name_of_model(name) == name
    assert model_argument(f"./{name}") == Path(name)
    tiny.llama(tmp_path / name / "inner")
    (tmp_path / name / "config.json").write_text("{}")
    assert model_argument(name) == Path(name)


def test_a_model_is_called_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(iter(CATALOG.values()))
    (tmp_path / "checkpoints/mine").mkdir(parents=True)
    (tmp_path / "checkpoints/mine/config.json").write_text("{}")
    (tmp_path / "mine-q8_0.v2.gguf").write_bytes(b"GGUF")
    (tmp_path / "current").symlink_to(tmp_path / "checkpoints/mine", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    names = {
        entry.name: entry.name, entry.hub.repo: entry.name, "owner/some-model": "owner/some-model",
        "checkpoints/mine": "mine", "./checkpoints/mine/": "mine", "current": "current",
        str(tmp_path / "checkpoints/mine"): "mine", "mine-q8_0.v2.gguf": "mine-q8_0.v2",
    }  # fmt: skip
    assert {given: name_of_model(given) for given in names} == names
    monkeypatch.chdir(tmp_path / "checkpoints/mine")
    assert name_of_model(".") == "mine"


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("nothing-here", UnknownNameError, "nothing-here"),
        ("./nothing", MissingFileError, "no file or folder"),
        ("nothing.gguf", MissingFileError, "no file or folder"),
        ("owner/name", MissingFileError, "slm pull owner/name"),
        (" ", SlmError, "empty"),
    ],
)
def test_what_was_tried_for_a_model_is_said(
    text: str, error: type[SlmError], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=told):
        model_argument(text)


def test_a_name_that_is_not_pulled_says_what_the_folder_of_that_name_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(iter(CATALOG))
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(MissingFileError, match=rf"not pulled.*folder '{name}' here is no model.*slm pull"):
        model_argument(name)


def test_a_folder_that_is_a_model_and_an_adapter_is_refused_wherever_it_is_read(tmp_path: Path) -> None:
    from train.adapter.merge import merge
    from train.adapter.opened import check_adapter

    base, both = tiny.llama(tmp_path / "base"), tiny.llama(tmp_path / "both")
    (both / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    save_file({"a": torch.zeros(1)}, both / "adapter_model.safetensors")
    for use in (
        read_config,
        lambda f: convert_checkpoint(f, tmp_path / "m.gguf"),
        lambda f: convert_adapter(f, tmp_path / "m.gguf", base),
        lambda f: merge(f, base, tmp_path / "merged"),
        lambda f: check_adapter(f, base),
    ):
        with pytest.raises(UnsupportedError, match=r"model and an adapter.*model\.safetensors;.*adapter_config\.json"):
            use(both)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model-00001-of-00002.safetensors", r"shards without.*model\.safetensors\.index\.json"),
        ("consolidated.safetensors", r"Mistral's own.*consolidated\.safetensors.*transformers' form"),
        ("model.fp16.safetensors", r"variant.*mv .*model\.fp16\.safetensors .*model\.safetensors"),
        ("mine.safetensors", r"mine\.safetensors.*transformers_weights"),
        ("model.gguf", r"Give the GGUF file itself: .*model\.gguf"),
        ("adapter_config.json", r"an adapter where a model is needed.*slm merge"),
        ("pytorch_model.bin", r"Pickled weights"),
        ("notes.txt", r"found: no weights.*download the checkpoint again"),
    ],
)
def test_what_is_there_in_place_of_weights_is_named_with_what_to_do(name: str, told: str, tmp_path: Path) -> None:
    from slm.weights.checkpoint_files import weight_files

    folder = tiny.llama(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "kept")
    (folder / name).write_text("{}")
    with pytest.raises(MissingFileError, match=told):
        weight_files(folder)
