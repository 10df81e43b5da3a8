"""A tiny checkpoint of each family, data to learn from, and an adapter trained on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny_training import conversations, write_checkpoint, write_jsonl, write_sentencepiece_checkpoint
from train.config import TrainOptions
from train.run.lora import train_sft

FAMILIES = ["gpt2", "llama", "gemma3"]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {family: write_checkpoint(folder / family, family) for family in FAMILIES}
    made["gemma3"] = write_checkpoint(folder / "gemma3-capped", "gemma3", final_logit_softcapping=3.0)
    made["other"] = write_checkpoint(folder / "other", "gpt2", seed=1)
    made["wider"] = write_checkpoint(folder / "wider", "gpt2", n_embd=48)
    made["sentencepiece"] = write_sentencepiece_checkpoint(folder / "sentencepiece")
    return made


@pytest.fixture(scope="session")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "i.jsonl", conversations(20) + conversations(20, "ja"))


def options(base: Path, data: Path, output: Path, **changes: Any) -> TrainOptions:
    quick: dict[str, Any] = {"epochs": 3.0, "learning_rate": 2e-2, "targets": "all", "rank": 4, "threads": 1}
    return TrainOptions(base=base, data=(data,), output=output, **(quick | {"dtype": "float32"} | changes))


@pytest.fixture(scope="session")
def trained(checkpoints: dict[str, Path], instruct: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One SFT adapter for each family."""
    folder = tmp_path_factory.mktemp("adapters")
    for family in FAMILIES:
        train_sft(options(checkpoints[family], instruct, folder / family, template="chatml"))
    return {family: folder / family for family in FAMILIES}
