"""Where the decoder layers of a model are, and stand-ins for those that need not be computed.

It knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from slm.errors import InputError


def causal_model(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The list of decoder layers of a transformers model, or of the one inside a PEFT model."""
    causal = causal_model(model)
    count = causal.config.num_hidden_layers
    return next(m for m in causal.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)


def lowest_layer(model: Any, top_layers: int) -> int:
    """The number of the lowest of the `top_layers` highest layers. Raises InputError when there are not so many."""
    count = len(decoder_layers(model))
    if not 0 < top_layers < count:
        raise InputError(
            f"--top-layers {top_layers} does not fit a model of {count} layers",
            hint=f"Give a number from 1 to {count - 1}; a third of them is {max(1, count // 3)}.",
        )
    return count - top_layers


@contextmanager
def without_lower_layers(model: Any, cut: int) -> Iterator[None]:
    """While it lasts, the layers below `cut` are not computed: what `supply` gave takes the place of their result."""
    layers = decoder_layers(model)
    lower = [layers[n] for n in range(cut)]
    for n in range(cut):
        layers[n] = _Supply() if n == cut - 1 else _Skip()
    try:
        yield
    finally:
        for n, layer in enumerate(lower):
            layers[n] = layer


@contextmanager
def narrowed_last_layer(model: Any) -> Iterator[None]:
    """While it lasts, the last layer's feed-forward network computes only the rows that `need_rows` named.

    Behind its attention nothing reads the other rows: no layer follows, and the head takes the named ones.
    """
    network: Any = decoder_layers(model)[-1].mlp
    whole = network.forward

    def forward(states: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = network.needed_rows
        return torch.zeros_like(states).index_copy(1, rows, whole(states[:, rows]))

    with with_forward(network, forward):
        yield


@contextmanager
def with_forward(module: Any, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """While it lasts, a module computes with another function; afterwards as before."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def need_rows(model: Any, rows: torch.Tensor) -> None:
    """Name the rows whose final states are used of the next batch (1, tokens)."""
    network: Any = decoder_layers(model)[-1].mlp
    network.needed_rows = torch.unique(rows)


def supply(model: Any, states: torch.Tensor) -> None:
    """Let the next forward pass of a model without its lower layers begin at these states (1, tokens, size)."""
    next(layer for layer in decoder_layers(model) if isinstance(layer, _Supply)).states = states


class _Skip(torch.nn.Module):
    """Stands where a lower layer was, whose result nobody needs."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


class _Supply(torch.nn.Module):
    """Stands where the highest frozen layer was, and gives its kept result."""

    states: torch.Tensor

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.states.to(hidden_states.dtype)
