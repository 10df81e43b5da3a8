"""Several adapters in one model: the updates of all are added to the base, each times its weight.

What is added is each adapter's whole update, its merged weights less the base's. Adding the factors instead, as
(sum w B)(sum w A), would make another product; and DoRA, trained embeddings and biases have no factors at all.
It knows nothing of files but those of base and adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from slm.errors import MismatchError
from train.adapter.opened import folded, load_with_adapter
from train.base import load_model


def combine(base: Path, adapters: Sequence[tuple[Path, float]]) -> Any:
    """The base as a float32 model, with sum(weight * update) added; sums are in double precision.

    A token that only adapters have has no row in the base: it gets the mean of theirs by weight. One adapter is in
    memory at a time. Raises MismatchError when an adapter does not fit, or when the weights of a new token's adapters
    add up to nothing.
    """
    model = load_model(base)
    start = model.state_dict()
    sums: dict[str, torch.Tensor] = {}
    fresh: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    untied = False
    for adapter, weight in adapters:
        wrapped = load_with_adapter(base, adapter)
        untied |= untie_adapted(wrapped)
        for name, tensor in folded(wrapped, adapter).state_dict().items():
            old = start[name]
            grown = tensor.shape != old.shape
            known = tensor[: len(old)] if grown else tensor
            if not torch.equal(known, old):
                sums.setdefault(name, old.double()).add_(known.double() - old.double(), alpha=weight)
            if grown:
                _add_rows(fresh, name, tensor[len(old) :].double(), weight)
    return _filled(model, sums, fresh, untied=untied)


def _add_rows(
    fresh: dict[str, tuple[torch.Tensor, torch.Tensor]], name: str, rows: torch.Tensor, weight: float
) -> None:
    """Add weighted rows to {name: (sum of rows, sum of weights of each)}, which grows to the longest."""
    total, weights = fresh.get(name, (rows[:0], rows.new_zeros(0)))
    missing = len(rows) - len(total)
    if missing > 0:
        total = torch.cat([total, rows.new_zeros(missing, *rows.shape[1:])])
        weights = torch.cat([weights, rows.new_zeros(missing)])
    total[: len(rows)] += weight * rows
    weights[: len(rows)] += weight
    fresh[name] = total, weights


def _filled(
    model: Any, sums: dict[str, torch.Tensor], fresh: dict[str, tuple[torch.Tensor, torch.Tensor]], *, untied: bool
) -> Any:
    grown = {name: _mean(total, weights) for name, (total, weights) in fresh.items()}
    longest = max((len(rows) for rows in grown.values()), default=0)
    if untied:
        separate_head(model)
    if longest:
        model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + longest, mean_resizing=False)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in sums:
                tensor[: len(sums[name])].copy_(sums[name])
            if name in grown:
                tensor[len(tensor) - longest :][: len(grown[name])].copy_(grown[name])
    return model


def _mean(total: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if (weights.abs() < 1e-9).any():
        raise MismatchError(
            "the weights of the adapters that bring new tokens add up to nothing", hint="Choose other weights."
        )
    return total / weights.view(-1, *[1] * (total.dim() - 1))


def untie_adapted(model: Any) -> bool:
    """Give the head of a tied model a weight of its own when the adapter changes only one of the two (peft#2244).

    PEFT adds to the embedding's output or to the head's, not to both; folded into the shared weight, the update would
    act twice. True if that was so.
    """
    if any(getattr(config, "ensure_weight_tying", False) for config in model.peft_config.values()):
        return False  # PEFT then adapts both alike
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    table, matrix = (getattr(module, "base_layer", module) for module in (embedding, head))
    if (table is embedding and matrix is head) or table.weight is not matrix.weight:
        return False
    separate_head(model)
    return True


def separate_head(model: Any) -> None:
    """Give the head a copy of the embedding's weight, in a model whose head may be tied to it."""
    head = model.get_output_embeddings()
    matrix = getattr(head, "base_layer", head)
    matrix.weight = torch.nn.Parameter(matrix.weight.detach().clone())
    model.config.tie_word_embeddings = False
