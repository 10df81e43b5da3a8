"""Writing GGUF as a stream: the bytes, the memory, what is read back, and the comparison with a peer's file."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from convert.bench.conversion import compare_files, find_peer, measure
from convert.model import convert_checkpoint
from convert.output.encode import encode
from convert.output.writer import Ledger, OutTensor, write_gguf
from slm.errors import DamagedFileError, EngineError, InputError, MissingFileError, VerificationError
from slm.weights.gguf_reader import read_gguf
from tests import tiny_checkpoints as tiny

ROOT = Path(__file__).parent.parent

ROWS = arrays(np.float32, (3, 32), elements=st.floats(-65_000, 65_000, width=32))


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_encoding_gives_the_bytes_of_gguf_py(rows: np.ndarray) -> None:
    for name in ("F32", "F16", "BF16", "Q8_0"):
        expected = quantize(rows, gguf.GGMLQuantizationType[name])
        assert encode(rows, name).tobytes() == expected.tobytes(), name


def test_encoding_gives_the_bytes_of_gguf_py_for_ordinary_and_tiny_weights() -> None:
    random = np.random.default_rng(0)
    for scale in (1e-8, 1e-5, 0.02, 3.0, 2e4):  # the smallest are subnormal in float16
        rows = (random.standard_normal((64, 256)) * scale).astype(np.float32)
        rows[abs(rows) > 65_000] = 1
        for name in ("F16", "BF16", "Q8_0"):
            assert encode(rows, name).tobytes() == quantize(rows, gguf.GGMLQuantizationType[name]).tobytes(), name


@pytest.mark.parametrize("value", [65_520.0, -70_000.0, 3e38])
def test_a_value_beyond_float16_is_refused(value: float) -> None:
    rows = np.zeros((2, 8), np.float32)
    rows[1, 3] = value
    with pytest.raises(InputError, match="too large for f16"):
        encode(rows, "F16")


def _written(path: Path, ledger: Ledger) -> None:
    random = np.random.default_rng(1)
    tensors = [
        OutTensor(name, (4, 32), kind, [random.standard_normal((2, 32)).astype(np.float32) for _ in range(2)])
        for name, kind in (("first", "F32"), ("second", "F16"), ("third", "Q8_0"))
    ]
    with path.open("wb") as file:
        stream = write_gguf(file, {"general.architecture": "llama", "words": ["a", "日本", "\udcff"]}, tensors, ledger)
        assert next(stream) == 0
        early = read_gguf(path)
        assert list(early.tensors) == ["first", "second", "third"]  # whole for a reader of headers, before any weights
        assert early.metadata["words"] == ["a", "日本", "\udcff"]
        *_, last = stream
    assert path.stat().st_size == ledger.size
    assert last == ledger.size - ledger.parts[0][2]


def test_what_is_read_back_is_compared_part_by_part(tmp_path: Path) -> None:
    path, ledger = tmp_path / "x.gguf", Ledger()
    _written(path, ledger)
    ledger.check(path)
    whole = path.read_bytes()
    for name, offset, nbytes, _ in ledger.parts:
        spoiled = bytearray(whole)
        spoiled[offset + nbytes // 2] ^= 1
        path.write_bytes(spoiled)
        with pytest.raises(VerificationError, match=name):
            ledger.check(path)
    path.write_bytes(whole[:-32])
    with pytest.raises(VerificationError, match="length"):
        ledger.check(path)


def test_a_file_that_reads_back_differently_never_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    check = Ledger.check

    def failing_disk(ledger: Ledger, path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(-40, 2)
            file.write(b"\xff")
        check(ledger, path)

    monkeypatch.setattr(Ledger, "check", failing_disk)
    with pytest.raises(VerificationError, match="read back"):
        convert_checkpoint(folder, tmp_path / "out.gguf", "f32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


# Streams a 256 MB tensor of a sparse safetensors file into f16 and prints by how much its peak memory grew.
_STREAM = """
import json, resource, struct, sys
from pathlib import Path
from convert.source.checkpoint import PlannedTensor
from convert.output.encode import encode
from slm.families.parts.base import TensorRule
from convert.source.safetensors_file import read_header
from convert.output.writer import OutTensor, write_gguf
import numpy as np
source, target = map(Path, sys.argv[1:])
shape = (65536, 1024)
header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * 65536 * 1024]}}).encode()
with source.open("wb") as file:
    file.write(struct.pack("<Q", len(header)) + header)
    file.truncate(8 + len(header) + 4 * 65536 * 1024)
planned = PlannedTensor("w", shape, read_header(source)["w"], TensorRule("w", "w"))
encode(np.zeros((1, 32), np.float32), "F16")  # loads ggml
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with target.open("wb") as file:
    for _ in write_gguf(file, {}, [OutTensor("w", shape, "F16", planned.pieces())]):
        pass
print(json.dumps({"grown_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "size":
    target.stat().st_size, "torch": "torch" in sys.modules}))
"""


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _STREAM, str(tmp_path / "in.safetensors"), str(tmp_path / "out.gguf")],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert found["size"] > 2 * 65536 * 1024
    assert found["grown_kb"] < 40_000
    assert not found["torch"]


def test_a_conversion_imports_no_torch(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "tiny")
    code = (
        "import sys; from convert.model import convert_checkpoint;"
        "convert_checkpoint(sys.argv[1], sys.argv[2], ['f16', 'q4_0']);"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "out")], capture_output=True,
                         text=True, cwd=ROOT, check=True)  # fmt: skip
    assert run.stdout.strip() == "[]"


def test_strings_that_end_beyond_the_file_are_refused(tmp_path: Path) -> None:
    path, ledger = tmp_path / "x.gguf", Ledger()
    _written(path, ledger)
    whole = path.read_bytes()
    at = whole.index("日本".encode()) - 8
    for size in (1 << 62, len(whole), 1 << 31):
        path.write_bytes(whole[:at] + struct.pack("<Q", size) + whole[at + 8 :])
        with pytest.raises(DamagedFileError, match="cut off"):
            read_gguf(path)


# --- the bench


def test_two_files_are_compared_by_bytes_and_tables(tmp_path: Path) -> None:
    [result] = convert_checkpoint(tiny.llama(tmp_path / "tiny"), tmp_path / "one.gguf", "f16")
    one = read_gguf(result["file"])
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*one.metadata["tokenizer.ggml.tokens"][:-1], "another"])
    writer.add_token_types(one.metadata["tokenizer.ggml.token_type"].tolist())
    for name, info in one.tensors.items():
        values = one.dequantized(name).astype(np.float16 if info.type_name == "F16" else np.float32)
        if name == "blk.1.ffn_up.weight":
            values[0, 0] += 1
        if name != "output.weight":
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = compare_files(one, read_gguf(tmp_path / "other.gguf"))
    assert found["tensors_different"] == ["blk.1.ffn_up.weight"]
    assert found["tensors_equal"] == len(one.tensors) - 2
    assert found["only_in_one"] == ["output.weight"]
    assert found["tables"] == {"model": True, "tokens": False, "token_type": True}
    assert compare_files(one, one)["tensors_different"] == []


def test_a_program_is_measured_with_its_children_and_its_failure_is_told() -> None:
    held = "x = bytearray(120_000_000); import time; time.sleep(0.3)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}])"
    figures, _ = measure([sys.executable, "-c", code])
    assert figures.peak_rss_mb > 120
    assert figures.seconds >= 0.3
    if sys.platform == "linux":
        assert figures.peak_tree_mb > 120
    with pytest.raises(EngineError, match="no such checkpoint"):
        measure([sys.executable, "-c", "import sys; sys.exit('no such checkpoint')"])


def test_a_peer_that_is_not_there_is_an_error_when_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="convert_hf_to_gguf"):
        find_peer(tmp_path)
    (tmp_path / "convert_hf_to_gguf.py").write_text("")
    assert find_peer(tmp_path) == tmp_path / "convert_hf_to_gguf.py"
