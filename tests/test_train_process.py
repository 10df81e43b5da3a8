"""What a training process is given before torch is loaded: OpenMP's spins and malloc's tunables, and what they save."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.native.heap import give_back, whole_blocks, without_whole_blocks
from slm.native.threads import TRAINING_SPINS, settle_openmp
from train.batch.attention import _attend
from train.batch.memory import resident_bytes
from train.batch.packing import PackPiece
from train.cli.process import prepare_process

_PROGRAM = """
import json, os, platform, sys
sys.path.insert(0, {root!r})
platform.libc_ver = lambda *_: ("glibc", "2.36")
import click
from slm.terminal.console import run
from train.cli.process import prepare_process

@click.command()
@click.argument("words", nargs=-1)
def main(words):
    print(os.getpid(), flush=True)
    prepare_process()
    names = ("GLIBC_TUNABLES", "GOMP_SPINCOUNT")
    print(json.dumps([words, *map(os.environ.get, names), "torch" in sys.modules]))

run(main)
"""


def _program(tmp_path: Path, **more: str) -> list[str]:
    file = tmp_path / "program.py"
    file.write_text(_PROGRAM.format(root=str(Path(__file__).resolve().parents[1])), encoding="utf-8")
    ours = ("GLIBC_TUNABLES", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | more
    command = [sys.executable, "-X", "utf8", str(file), "one", "two words"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_program_begins_again_once_with_the_same_arguments(tmp_path: Path) -> None:
    first, second, last = _program(tmp_path)
    words, tunables, spins, torch_loaded = json.loads(last)
    assert first == second and words == ["one", "two words"]
    assert "tcache_count=0" in tunables and spins == str(TRAINING_SPINS) and not torch_loaded


def test_a_program_keeps_what_its_user_has_set(tmp_path: Path) -> None:
    pid, last = _program(tmp_path, GLIBC_TUNABLES="glibc.malloc.perturb=0", GOMP_SPINCOUNT="7")
    assert pid.isdigit() and json.loads(last)[1:3] == ["glibc.malloc.perturb=0", "7"]


def test_a_command_called_from_python_does_not_replace_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *call: replaced.append(call))
    monkeypatch.setattr(platform, "libc_ver", lambda *_: ("glibc", "2.36"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    prepare_process()
    assert not replaced


@pytest.mark.parametrize(
    ("libc", "changed"), [(("glibc", "2.31"), True), (("glibc", "2.38"), False), (("musl", "1.2.4"), False),
                          (("", ""), False)],
)  # fmt: skip
def test_only_a_malloc_that_needs_it_is_told(
    libc: tuple[str, str], changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda *_: libc)
    told = whole_blocks({"A": "b"})
    assert (told != {"A": "b"}) is changed
    assert without_whole_blocks(told) == {"A": "b"}
    assert whole_blocks(told) == told


def test_a_training_process_changes_only_our_own_spins() -> None:
    ours, users = dict[str, str](), {"GOMP_SPINCOUNT": "5"}
    settle_openmp(environment=ours)
    for environment in (ours, users):
        settle_openmp(TRAINING_SPINS, environment)
    assert ours == {"GOMP_SPINCOUNT": str(TRAINING_SPINS)} and users == {"GOMP_SPINCOUNT": "5"}


def test_attention_keeps_no_copy_of_a_key_for_each_query_head() -> None:
    heads, key_heads, tokens, size = 8, 2, 96, 16
    pieces = (PackPiece(0, 16), PackPiece(16, 96))
    query, key, value = (
        torch.randn(1, count, tokens, size, requires_grad=True) for count in (heads, key_heads, key_heads)
    )
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out, _ = _attend(torch.nn.Module(), query, key, value, None, pieces=pieces)
    states = (2 * heads + 2 * key_heads) * tokens * size * 4  # query, keys, values, and what comes out
    sums = heads * tokens * 4
    assert out.shape == (1, tokens, heads, size)
    assert sum(kept.values()) <= states + sums


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_blocks_under_one_in_use_are_given_back() -> None:
    blocks = [bytearray(64 * 1024) for _ in range(2048)]  # too small for a mapping of their own
    pin = bytearray(64 * 1024)
    before = resident_bytes()
    del blocks
    give_back()
    assert before - resident_bytes() > 100e6 and pin
