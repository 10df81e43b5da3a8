"""Readers of the packaged embedder with small random weights: folders as `slm train reader` writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rag.answer.reader.card import CARD
from rag.answer.reader.form import FORM
from rag.answer.reader.weights import base_file, base_fingerprint
from rag.index.embedders.packed import read_packed, write_checkpoint
from slm.artifacts import new_folder
from train.adapter.fresh import add_adapter, save_adapter
from train.base import load_encoder
from train.config import TrainOptions
from train.run.reader.loss import OFFSET, SCALE


@dataclass(frozen=True)
class TinyReader:
    """A reader's folder, its base as a checkpoint folder, and both in torch."""

    base: Path
    folder: Path
    model: Any


def write_reader(base: Path, folder: Path, *, size: float, seed: int = 1) -> Any:
    """Write the folder; the model. size: of the numbers of B, 0: it is the plain embedder."""
    options = TrainOptions(base=base, data=(base,), output=folder, rank=4, alpha=8)
    model = add_adapter(load_encoder(base), options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(size * torch.randn(weight.shape, generator=generator))
    with new_folder(folder, "adapter") as (made, manifest):
        save_adapter(model, base, made, {})
        card = {"form": FORM, "scale": SCALE, "offset": OFFSET, "refuse_at": {"": 0.5}}
        (made / CARD).write_text(json.dumps(card), encoding="utf-8")
        manifest.update(base={"fingerprint": base_fingerprint(base_file())})
    return model


@pytest.fixture(scope="module")
def tiny_e5_reader(tmp_path_factory: pytest.TempPathFactory) -> TinyReader:
    """A reader whose adapter changes its base."""
    root = tmp_path_factory.mktemp("readers")
    write_checkpoint(read_packed(base_file()), root / "base", base_fingerprint(base_file()))
    return TinyReader(root / "base", root / "reader", write_reader(root / "base", root / "reader", size=0.15))
