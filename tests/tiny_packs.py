"""Sequences with something in common, and tiny random models of every family with an adapter, to train on in packs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from train.adapter.fresh import add_adapter
from train.config import TrainOptions
from train.data.examples import Example
from train.data.masks import IGNORE, Encoded

VOCABULARY = 90


def encoded(ids: list[int], learned: range) -> Encoded:
    labels = [token if n in learned else IGNORE for n, token in enumerate(ids)]
    return Encoded(tuple(ids), tuple(labels), Example(Path("x.jsonl"), 1, "en"))


def a_batch() -> list[Encoded]:
    """Sequences with a common beginning, one that goes on from another's end, and two that are equal."""
    draw = torch.Generator().manual_seed(3)

    def fresh(count: int) -> list[int]:
        return [int(token) for token in torch.randint(3, VOCABULARY, (count,), generator=draw)]

    system, question = fresh(12), fresh(9)
    first = system + question + fresh(7)
    return [
        encoded(first, range(21, 28)),
        encoded(system + question + fresh(4), range(21, 25)),
        encoded(system + fresh(15), range(20, 24)),  # three tokens stand behind its last label
        encoded(fresh(11), range(1, 11)),
        encoded(first + fresh(6), range(5, 34)),
        encoded(first, range(21, 28)),
    ]


def tiny(model_type: str, layers: int = 3) -> Any:
    """A random model of a family, narrow, with a sliding window of 8 where the family has one."""
    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if model_type == "gpt2":
        shape: dict[str, Any] = {"n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 64}
        shape |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
    if model_type in ("mistral", "gemma2", "gemma3_text"):
        shape["sliding_window"] = 8
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **common, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.float()


def with_adapter(model: Any, tmp_path: Path, **options: Any) -> Any:
    chosen = TrainOptions(base=tmp_path / "b", data=(tmp_path / "d",), output=tmp_path / "o", rank=4, **options)
    adapted = add_adapter(model, chosen)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted.train()


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    wanted = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, wanted)])
