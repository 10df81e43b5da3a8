"""500 damaged inputs, made from a seed: each is refused with an error of ours, or converts soundly.

No crash, no hang over 10 s, no memory over 2 GB, no file left behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from convert.model import convert_checkpoint
from convert.output.finite import refuse_not_finite
from convert.quality.verify import verify_model
from convert.quantize.quantize import quantize_file
from convert.restore import restore_checkpoint
from convert.vocabulary.base.charsmap import read_charsmap, write_charsmap
from slm.errors import DamagedFileError
from slm.weights.gguf_reader import read_gguf
from tests import tiny_checkpoints as tiny
from tests.damage import BINARY, OF_CHECKPOINT, TEXT, damaged

CASES, CHILDREN = 500, 2
TESTS = Path(__file__).parent


def outcomes(folder: Path, first: int, last: int) -> Iterator[tuple[int, str, str]]:
    """(case, what it was, outcome) of a range of cases; a child that dies is started again behind the case."""
    environment = {
        **os.environ,
        "GGML_NO_BACKTRACE": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    while first < last:
        scratch = tempfile.mkdtemp(prefix="damaged-", dir=folder.parent)
        run = subprocess.run(
            [sys.executable, str(TESTS / "damaged_child.py"), str(folder), scratch, str(first), str(last)],
            capture_output=True, text=True, env=environment, timeout=900, cwd=TESTS.parent,
        )  # fmt: skip
        case, what = first, "nothing"
        for line in run.stdout.splitlines():
            word, _, rest = line.partition(" ")
            if word == "start":
                number, _, what = rest.partition(" ")
                case = int(number)
            elif word == "done":
                yield case, what, rest.split(" ", 2)[2]
                first = case + 1
        if first < last:
            yield case, what, f"bad: the process died with {run.returncode}: {run.stderr.strip()[-300:]}"
            first = case + 1


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound checkpoints of several families and tokenizers, and GGUF files of three of them."""
    folder = tmp_path_factory.mktemp("originals")
    for name, make in {"gpt2": tiny.gpt2, "llama": tiny.llama, "gemma3": tiny.gemma3}.items():
        make(folder / name)
        convert_checkpoint(folder / name, folder / f"{name}.gguf", "f16")
    tiny.gpt2(folder / "unigram", unigram=True)
    return folder


def test_500_damaged_inputs_are_refused_or_harmless(originals: Path) -> None:
    step = CASES // CHILDREN
    with ThreadPoolExecutor(CHILDREN) as pool:
        parts = pool.map(lambda at: list(outcomes(originals, at, at + step)), range(0, CASES, step))
    found = [one for part in parts for one in part]
    bad = [f"{case} {what}: {outcome}" for case, what, outcome in found if outcome.startswith("bad")]
    assert not bad, "\n".join(bad)
    assert [case for case, _, _ in found] == list(range(CASES))
    kinds = Counter(outcome for _, _, outcome in found)
    # The corpus must be neither harmless nor blunt: most are refused, by several kinds of error, some go through.
    assert kinds["sound"] < CASES / 2
    assert kinds["DamagedFileError"] > CASES / 3
    assert {"MissingFileError", "UnsupportedError", "VerificationError", "sound"} <= set(kinds)
    assert {what.split()[-1] for _, what, _ in found} >= {m.__name__ for m in (*BINARY, *TEXT)}


def test_a_mutation_is_made_again_from_its_number() -> None:
    data = b'{"a": [1, 2, {"b": "c"}], "d": 4}' * 1
    assert [damaged(data, OF_CHECKPOINT["config.json"], n) for n in range(50)] == [
        damaged(data, OF_CHECKPOINT["config.json"], n) for n in range(50)
    ]
    assert len({damaged(data, OF_CHECKPOINT["config.json"], n)[1] for n in range(50)}) > 25


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gguf_weight_that_is_not_a_number_is_refused_with_its_tensors_name(
    type_name: str, value: float, originals: Path, tmp_path: Path
) -> None:
    convert_checkpoint(originals / "llama", tmp_path / "m.gguf", type_name, verify=False)
    refuse_not_finite(read_gguf(tmp_path / "m.gguf"))
    info = read_gguf(tmp_path / "m.gguf").tensors["blk.1.ffn_up.weight"]
    bits = np.array([value], np.float32).tobytes() if type_name == "f32" else (
        np.array([value], np.float16).tobytes() if type_name == "f16" else np.array([value], np.float32).tobytes()[2:]
    )  # fmt: skip
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.seek(info.offset + 10 * len(bits))
        file.write(bits)
    with pytest.raises(DamagedFileError, match=r"blk\.1\.ffn_up\.weight.*NaN or infinite"):
        quantize_file(tmp_path / "m.gguf", tmp_path / "q.gguf", "q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_count", 0), ("block_count", 600), ("attention.head_count", 0), ("attention.head_count", 3),
     ("attention.key_length", 7), ("rope.dimension_count", 5), ("rope.dimension_count", 64), ("context_length", 0)],
)  # fmt: skip
def test_a_header_that_llama_cpp_only_asserts_on_is_refused(
    key: str, value: int, originals: Path, tmp_path: Path
) -> None:
    data = bytearray((originals / "llama.gguf").read_bytes())
    at = data.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    data[at : at + 4] = value.to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(data)
    for action in (
        lambda: verify_model(tmp_path / "m.gguf", originals / "llama.gguf", max_tokens=8),
        lambda: restore_checkpoint(tmp_path / "m.gguf", tmp_path / "back"),
    ):
        with pytest.raises(DamagedFileError):
            action()
    assert not (tmp_path / "back").exists()


def test_a_character_map_that_leads_out_of_itself_is_refused() -> None:
    sound = bytearray(write_charsmap({"Ａ": "A", "ａ": "a"}))
    assert read_charsmap(bytes(sound)) == {"Ａ": "A", "ａ": "a"}
    refused = 0
    for at in range(4, len(sound) - 8, 4):
        changed = bytearray(sound)
        changed[at + 2] ^= 0x80  # a far offset
        try:
            read_charsmap(bytes(changed))
        except DamagedFileError:
            refused += 1
    assert refused > 0
