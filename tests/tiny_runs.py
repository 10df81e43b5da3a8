"""Short training runs on a tiny checkpoint: what they are asked for, how they are broken off, what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_training import conversations, write_checkpoint, write_jsonl
from train.batch.loss import supervised_loss
from train.config import TrainOptions
from train.run.history import read_history
from train.run.lora import train_sft


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "llama", "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "d.jsonl", conversations(20) + conversations(20, "ja"))


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a quarter of a tiny run; those who look at the picture say so."""
    if "picture" not in request.node.name and "packages" not in request.node.name:
        monkeypatch.setattr("train.run.lora.save_curve", lambda *_: None)


@pytest.fixture(scope="module")
def whole(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of an unbroken run."""
    output = tmp_path_factory.mktemp("whole") / "a"
    train_sft(asked(base, data, output))
    return output


def options(base: Path, *data: Path, **changes: Any) -> TrainOptions:
    """Options whose data is only made ready: nothing is written to the output."""
    return TrainOptions(base=base, data=data, output=base.parent / "out", **changes)


def asked(base: Path, data: Path, output: Path, **changes: Any) -> TrainOptions:
    quick: dict[str, Any] = {
        "max_steps": 12, "learning_rate": 2e-2, "rank": 4, "threads": 1, "dtype": "float32", "template": "chatml",
        "save_every_s": 1e-9, "eval_every": 4,
    }  # fmt: skip
    return TrainOptions(base=base, data=(data,), output=output, **(quick | changes))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return weights


def same(one: Path, two: Path) -> bool:
    """Whether two adapters are equal in every bit."""
    left, right = adapter(one), adapter(two)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def learned(folder: Path) -> list[dict[str, Any]]:
    """The history without what time does to it."""
    timed = ("elapsed_s", "tokens_per_s", "supervised_tokens_per_s")
    return [{k: v for k, v in record.items() if k not in timed} for record in read_history(folder / "history.jsonl")]


class Broken(Exception):
    """Raised by a test in the middle of a run."""


def break_at(monkeypatch: pytest.MonkeyPatch, batch: int, outcome: Any = Broken) -> None:
    """Let the loss of the n-th batch fail, or be what `outcome` makes of it."""
    calls = 0

    def fail(model: Any, inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != batch:
            return supervised_loss(model, inputs)
        if isinstance(outcome, type):
            raise outcome
        return outcome(*supervised_loss(model, inputs))

    monkeypatch.setattr("train.run.job.supervised_loss", fail)
