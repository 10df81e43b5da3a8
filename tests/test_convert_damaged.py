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

import pytest
import tiny_checkpoints as tiny
from damage import BINARY, OF_CHECKPOINT, TEXT, damaged

from convert.model import convert_checkpoint

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
