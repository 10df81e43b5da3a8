"""Quantization: ladders, overrides, what could not have its type, importance matrices, cancellation."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from convert.cli.quantize import quantize as quantize_command
from convert.model import convert_checkpoint
from convert.output.writer import OutTensor, write_gguf
from convert.quantize.imatrix_file import ImportanceMatrix, read_imatrix, write_imatrix
from convert.quantize.quantize import QuantizeOptions, quantize_file, quantize_ladder
from convert.quantize.types import NEEDS_IMATRIX
from slm.errors import DamagedFileError, EngineError, InputError, MismatchError, UnknownNameError
from slm.native.llama import open_model
from slm.weights.gguf_reader import GgufFile, read_gguf
from tests import tiny_checkpoints as tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    """A model whose rows are whole superblocks but for ffn_down's (96 values)."""
    root = tmp_path_factory.mktemp("wide")
    [result] = convert_checkpoint(tiny.llama(root / "tiny", width=256), root / "wide-f16.gguf", "f16")
    return read_gguf(result["file"])


@pytest.fixture(scope="module")
def matrix(wide: GgufFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "imatrix.gguf"
    write_imatrix(path, _matrix(wide))
    return path


def _matrix(model: GgufFile) -> ImportanceMatrix:
    random = np.random.default_rng(0)
    names = [n for n, t in model.tensors.items() if len(t.shape) == 2 and n.startswith("blk.")]
    sums = {n: random.uniform(0.1, 9, (1, model.tensors[n].shape[-1])).astype(np.float32) for n in names}
    counts = {n: np.array([512], np.float32) for n in names}
    return ImportanceMatrix(sums, counts, ("en=a.txt", "ja=b.txt"), 1, 512)


def kinds(path: str | Path, part: str) -> set[str]:
    return {info.type_name for name, info in read_gguf(path).tensors.items() if part in name and len(info.shape) > 1}


def test_the_command_makes_a_ladder_and_tells_the_types_and_the_fallbacks(wide: GgufFile, tmp_path: Path) -> None:
    arguments = [str(wide.path), "-o", str(tmp_path / "ladder"), "-t", "Q4_K_M", "-t", "q8_0", "-t", "q3_k_s"]
    run = CliRunner().invoke(quantize_command, [*arguments, "--json"])
    assert run.exit_code == 0, run.output
    files = json.loads(run.stdout)["files"]
    assert [Path(f["file"]).name for f in files] == ["wide-q4_k_m.gguf", "wide-q8_0.gguf", "wide-q3_k_s.gguf"]
    for file in files:
        assert file["tensor_types"] == _count(read_gguf(file["file"]))
    q4, q8, q3 = files
    assert sum(q4["fallbacks"].values()) == 2  # one ffn_down a layer
    assert set(q4["fallbacks"]) == kinds(q4["file"], "ffn_down") <= {"Q8_0", "Q5_0"}  # for Q6_K and Q4_K
    assert q8["fallbacks"] == {}
    assert q3["fallbacks"] == {"Q4_0": 2}
    shown = CliRunner().invoke(quantize_command, [str(wide.path), "-o", str(tmp_path / "x.gguf"), "-t", "q4_k_m"])
    assert "2 matrices are not whole blocks" in shown.stderr


def _count(file: GgufFile) -> dict[str, int]:
    found: dict[str, int] = {}
    for info in file.tensors.values():
        found[info.type_name] = found.get(info.type_name, 0) + 1
    return found


def test_every_type_that_needs_a_matrix_is_refused_without_and_written_with_one(
    wide: GgufFile, matrix: Path, tmp_path: Path
) -> None:
    for name in sorted(NEEDS_IMATRIX):
        with pytest.raises(InputError, match=r"needs an importance matrix.*slm imatrix"):
            quantize_file(wide.path, tmp_path / "x.gguf", name)
        with pytest.raises(InputError, match="needs an importance matrix"):  # before the checkpoint is even looked at
            convert_checkpoint(tmp_path / "nowhere", tmp_path / "x.gguf", name)
    assert not list(tmp_path.iterdir())
    results = quantize_ladder(wide.path, tmp_path / "ladder", ["iq2_xxs", "q2_k_s"], QuantizeOptions(imatrix=matrix))
    assert [result["imatrix_entries"] for result in results] == [14, 14]
    assert "IQ2_XXS" in results[0]["tensor_types"]
    assert "Q2_K" in results[1]["tensor_types"]
    for result in results:
        with ExitStack() as stack:
            open_model(stack, Path(result["file"]))


@pytest.mark.parametrize("name", ["iq4_xs", "iq4_nl", "q6_k", "q3_k_l", "tq1_0"])
def test_k_and_iq_types_are_written_and_loaded(name: str, wide: GgufFile, tmp_path: Path) -> None:
    result = quantize_file(wide.path, tmp_path / "out.gguf", name)
    assert re.sub(r"_(s|m|l)$", "", name).upper() in result["tensor_types"]
    with ExitStack() as stack:
        open_model(stack, Path(result["file"]))


def test_overrides_choose_the_type_of_what_they_match_and_the_first_wins(wide: GgufFile, tmp_path: Path) -> None:
    options = QuantizeOptions(
        tensor_types=((r"blk\.1\.attn_(q|k)\.", "q6_K"), (r"attn_q", "Q5_K"), (r"ffn_up", "f16")),
        token_embedding="q8_0",
        output="Q5_K",
    )
    result = quantize_file(wide.path, tmp_path / "mixed.gguf", "q4_k_s", options)
    assert result["overridden"] == 5  # attn_q and ffn_up of both layers, attn_k of one
    path = result["file"]
    assert kinds(path, "blk.1.attn_q") == kinds(path, "blk.1.attn_k") == {"Q6_K"}
    assert kinds(path, "blk.0.attn_q") == {"Q5_K"}
    assert kinds(path, "blk.0.attn_k") == kinds(path, "ffn_gate") == {"Q4_K"}
    assert kinds(path, "ffn_up") == {"F16"}
    assert kinds(path, "token_embd") == {"Q8_0"}
    assert read_gguf(path).tensors["output.weight"].type_name == "Q5_K"


def test_convert_takes_the_same_options(tmp_path: Path, matrix: Path, wide: GgufFile) -> None:
    folder = wide.path.parent / "tiny"
    options = QuantizeOptions(imatrix=matrix, tensor_types=(("attn_v", "q8_0"),))
    results = convert_checkpoint(folder, tmp_path / "out", ["f16", "q2_k_s", "q8_0"], options=options)
    assert [r["type"] for r in results] == ["f16", "q2_k_s", "q8_0"]
    assert kinds(results[1]["file"], "attn_v") == {"Q8_0"}
    assert results[1]["imatrix_entries"] == 14
    with pytest.raises(InputError, match="for quantized types"):
        convert_checkpoint(folder, tmp_path / "x.gguf", "f16", options=options)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (QuantizeOptions(tensor_types=(("attn_z", "q8_0"),)), InputError, r"attn_z.*blk\.0\.attn_q"),
        (QuantizeOptions(tensor_types=(("attn_q", "q4_k_m"),)), UnknownNameError, r"q4_k_m.*q4_k.*mixture"),
        (QuantizeOptions(tensor_types=(("(", "q8_0"),)), InputError, "not a regular expression"),
        (QuantizeOptions(tensor_types=(("attn_q", "iq2_xxs"),)), InputError, "needs an importance matrix"),
        (QuantizeOptions(token_embedding="q9"), UnknownNameError, "q9"),
    ],
)
def test_impossible_options_are_refused(
    options: QuantizeOptions, error: type[InputError], match: str, wide: GgufFile, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        quantize_file(wide.path, tmp_path / "x.gguf", "q4_k_m", options)
    assert not list(tmp_path.iterdir())


def test_an_embedding_type_whose_blocks_do_not_fit_is_refused(tmp_path: Path) -> None:
    [narrow] = convert_checkpoint(tiny.llama(tmp_path / "tiny"), tmp_path / "f16.gguf", "f16")
    with pytest.raises(InputError, match=r"token_embd\.weight.*q6_k.*256.*64 values"):
        quantize_file(narrow["file"], tmp_path / "x.gguf", "q4_0", QuantizeOptions(token_embedding="q6_k"))


def test_an_importance_matrix_changes_the_weights_and_is_noted_in_the_file(
    wide: GgufFile, matrix: Path, tmp_path: Path
) -> None:
    without = quantize_file(wide.path, tmp_path / "without.gguf", "q4_k_s")
    with_ = quantize_file(wide.path, tmp_path / "with.gguf", "q4_k_s", QuantizeOptions(imatrix=matrix))
    one, other = read_gguf(without["file"]), read_gguf(with_["file"])
    assert (one.raw("blk.0.attn_q.weight") != other.raw("blk.0.attn_q.weight")).any()
    assert (one.raw("token_embd.weight") == other.raw("token_embd.weight")).all()
    noted = {k: v for k, v in other.metadata.items() if k.startswith("quantize.imatrix.")}
    assert noted == {
        "quantize.imatrix.file": "imatrix.gguf",
        "quantize.imatrix.dataset": "en=a.txt, ja=b.txt",
        "quantize.imatrix.entries_count": 14,
        "quantize.imatrix.chunks_count": 1,
    }
    exact = wide.dequantized("blk.0.ffn_gate.weight")
    weight = read_imatrix(matrix).mean_squares("blk.0.ffn_gate.weight")

    def error(file: GgufFile) -> float:
        return float((weight * (file.dequantized("blk.0.ffn_gate.weight") - exact) ** 2).sum())

    assert error(other) < error(one)


def test_a_matrix_of_another_model_is_refused(wide: GgufFile, matrix: Path, tmp_path: Path) -> None:
    [narrow] = convert_checkpoint(tiny.llama(tmp_path / "tiny"), tmp_path / "f16.gguf", "f16")
    with pytest.raises(MismatchError, match="256 channels, the model has 64"):
        quantize_file(narrow["file"], tmp_path / "x.gguf", "q4_0", QuantizeOptions(imatrix=matrix))
    with pytest.raises(InputError, match="not an importance matrix"):
        quantize_file(wide.path, tmp_path / "x.gguf", "q4_0", QuantizeOptions(imatrix=wide.path))
    assert not (tmp_path / "x.gguf").exists()


def test_a_damaged_matrix_is_refused(wide: GgufFile, matrix: Path, tmp_path: Path) -> None:
    whole = matrix.read_bytes()
    path = tmp_path / "damaged.gguf"
    for content in (b"", whole[:100], whole[:-64], b"\0" * len(whole), whole.replace(b".counts", b".cnouts", 1)):
        path.write_bytes(content)
        with pytest.raises(InputError):
            read_imatrix(path)
    good = _matrix(wide)
    name = "blk.0.attn_q.weight"
    for value in (np.nan, np.inf, -1.0):
        spoiled = good.sums[name].copy()
        spoiled[0, 7] = value
        write_imatrix(path, ImportanceMatrix({**good.sums, name: spoiled}, good.counts, (), 1, 512))
        with pytest.raises(DamagedFileError, match=re.escape(name)):
            quantize_file(wide.path, tmp_path / "x.gguf", "q4_0", QuantizeOptions(imatrix=path))
    assert not (tmp_path / "x.gguf").exists()


def test_a_low_bit_type_without_the_matrix_of_some_weight_fails_with_its_name(wide: GgufFile, tmp_path: Path) -> None:
    good = _matrix(wide)
    sums = {n: v for n, v in good.sums.items() if n != "blk.1.ffn_up.weight"}
    write_imatrix(tmp_path / "m.gguf", ImportanceMatrix(sums, {n: good.counts[n] for n in sums}, (), 1, 512))
    with pytest.raises(EngineError, match=r"blk\.1\.ffn_up\.weight"):
        quantize_file(wide.path, tmp_path / "x.gguf", "q2_k_s", QuantizeOptions(imatrix=tmp_path / "m.gguf"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf"]


def test_ctrl_c_ends_a_quantization_soon_with_130_and_leaves_nothing(wide: GgufFile, tmp_path: Path) -> None:
    """On a matrix that llama.cpp would work on for many seconds without looking up."""
    big = (65_536, 256)
    tensors = [
        OutTensor(n, big if n == "blk.0.ffn_up.weight" else t.shape, "F32", [
            np.random.default_rng(0).standard_normal(big).astype(np.float32) * 0.02
            if n == "blk.0.ffn_up.weight" else wide.dequantized(n)
        ])
        for n, t in wide.tensors.items()
    ]  # fmt: skip
    source = tmp_path / "big.gguf"
    with source.open("wb") as file:
        for _ in write_gguf(file, wide.metadata, tensors):
            pass
    command = [
        sys.executable,
        "-m",
        "slm_cli",
        "quantize",
        str(source),
        "-o",
        str(tmp_path / "out.gguf"),
        "-t",
        "iq3_s",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not any(b"ffn_up" in p.read_bytes() for p in tmp_path.glob(".out.gguf.*.log")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    sent = time.monotonic()
    _, words = process.communicate(timeout=30)
    assert process.returncode == 130, words
    assert time.monotonic() - sent < 5  # about one second where nothing else runs
    assert [p.name for p in tmp_path.iterdir()] == ["big.gguf"]
