"""Converting and quantizing: what is damaged, unsupported or interrupted is refused and leaves nothing."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convert.model import convert_checkpoint
from convert.quantize.quantize import quantize_file
from convert.source.safetensors_file import read_header
from slm.errors import DamagedFileError, InputError, MissingFileError, SlmError, UnknownNameError, UnsupportedError
from tests import tiny_checkpoints as tiny


def refused(folder: Path, error: type[SlmError], match: str, tmp_path: Path) -> None:
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(error, match=match):
        convert_checkpoint(folder, tmp_path / "out.gguf", "f16")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_weight_that_is_not_a_number_is_refused_with_its_name(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    entry = read_header(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(entry.offset + 40)
        file.write(struct.pack("<f", float("nan")))
    refused(folder, DamagedFileError, r"model\.layers\.1\.mlp\.up_proj\.weight.*NaN", tmp_path)


def test_an_unsupported_architecture_is_named_with_the_supported_ones(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="mamba", architectures=["MambaForCausalLM"])
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, UnsupportedError, r"mamba.*gemma3_text, gpt2, gpt_neox, llama", tmp_path)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "sub/shard.safetensors", ".."])
def test_a_shard_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    refused(folder, DamagedFileError, "outside the folder", tmp_path)


def test_a_missing_shard_and_a_missing_tensor_are_named(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "all.safetensors")
    weights = dict.fromkeys(read_header(folder / "all.safetensors"), "all.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**weights, "x": "model-00002.safetensors"}}))
    refused(folder, MissingFileError, "model-00002.safetensors", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    index.write_text(json.dumps({"weight_map": weights}))
    refused(folder, DamagedFileError, r"lacks the tensor 'model\.layers\.2\.", tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 7, struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"{]",
     struct.pack("<Q", 71) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]},"b":{"dtype":1}}',
     struct.pack("<Q", 54) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
     struct.pack("<Q", 56) + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}  '],
)  # fmt: skip
def test_a_broken_safetensors_header_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, DamagedFileError, r"model\.safetensors", tmp_path)


def test_a_cut_off_safetensors_file_is_refused(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    refused(folder, DamagedFileError, "does not fit into the file", tmp_path)


def test_folders_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", MissingFileError, r"config\.json", tmp_path)
    refused(tmp_path / "absent", MissingFileError, "no folder", tmp_path)
    folder = tiny.llama(tmp_path / "tiny")
    (folder / "tokenizer.json").write_text("{")
    refused(folder, DamagedFileError, "not readable JSON", tmp_path)
    (folder / "tokenizer.json").unlink()
    refused(folder, MissingFileError, "no tokenizer", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, MissingFileError, r"pytorch_model\.bin", tmp_path)


def test_a_weight_too_large_for_f16_is_refused_with_its_name(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    entry = read_header(folder / "model.safetensors")["lm_head.weight"]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(entry.offset)
        file.write(struct.pack("<f", 1e6))
    refused(folder, InputError, r"output\.weight.*too large for f16", tmp_path)


def test_quantizing_refuses_what_it_should_not_quantize(tmp_path: Path) -> None:
    [f32, q4] = convert_checkpoint(tiny.llama(tmp_path / "tiny"), tmp_path / "ladder", ["f32", "q4_0"])
    with pytest.raises(InputError, match="already quantized"):
        quantize_file(q4["file"], tmp_path / "twice.gguf", "q8_0")
    with pytest.raises(UnknownNameError, match="q4_k_m"):
        quantize_file(f32["file"], tmp_path / "x.gguf", "q4_z")
    broken = tmp_path / "broken.gguf"
    whole = Path(f32["file"]).read_bytes()
    for content in (whole[:-1000], whole[:300], b"GGUF" + bytes(range(256)) * 4, b"\x7fELF" * 100):
        broken.write_bytes(content)
        with pytest.raises(InputError):
            quantize_file(broken, tmp_path / "out.gguf", "q4_0")
    assert not list(tmp_path.glob("*out*"))


def test_an_interrupted_quantization_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [f32] = convert_checkpoint(tiny.llama(tmp_path / "tiny"), tmp_path / "f32.gguf", "f32")

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        quantize_file(f32["file"], tmp_path / "out.gguf", "q4_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


_IN_A_CALLBACK = """
import ctypes, os, signal, time, click
from slm.terminal.console import run

@click.command()
def command():
    called_by_c = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGINT) or time.sleep(0))
    called_by_c()
    time.sleep(20)

run(command, [])
"""


def test_an_interrupt_inside_a_callback_of_the_runtime_is_not_lost() -> None:
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", _IN_A_CALLBACK], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert "interrupted" in ended.stderr
    assert time.monotonic() - started < 15
