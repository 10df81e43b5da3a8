"""Where the decoder layers of a model are. It knows nothing of what is done with them."""

from __future__ import annotations

from typing import Any

import torch

from slm.errors import InputError
from train.loss import causal_model


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The list of decoder layers of a transformers model, or of the one inside a PEFT model."""
    causal = causal_model(model)
    count = causal.config.num_hidden_layers
    lists = (m for m in causal.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)
    return next(lists)


def lowest_layer(model: Any, top_layers: int) -> int:
    """The number of the lowest of the `top_layers` highest layers. Raises InputError when there are not so many."""
    count = len(decoder_layers(model))
    if not 0 < top_layers < count:
        raise InputError(
            f"--top-layers {top_layers} does not fit a model of {count} layers",
            hint=f"Give a number from 1 to {count - 1}; a third of them is {max(1, count // 3)}.",
        )
    return count - top_layers
