"""Muon: momentum whose matrices are orthogonalised before they are applied. It knows nothing of models.

Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/
torch.optim.Muon (torch 2.9 and later) is the same rule, but iterates in bfloat16, which most CPUs emulate hundreds of
times slower; here it is float32, and matrices of one shape are iterated together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

# Of the quintic iteration X <- aX + b(XX')X + c(XX')^2X: steepest at zero, singular values end in about 0.7 to 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_EPS = 1e-7


def orthogonalized(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Matrices (..., rows, columns) with their singular values brought near 1 (Newton-Schulz), in their own dtype."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + _EPS)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    result: torch.Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """For the 2-D matrices of hidden layers only; embeddings, heads and vectors belong to AdamW.

    The update of a matrix is scaled by sqrt(max(1, rows / columns)), and weights decay by lr * weight_decay.
    """

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon is for matrices")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step with Nesterov momentum."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append((parameter, parameter.grad))
            for pairs in alike.values():
                directions = []
                for parameter, gradient in pairs:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    buffer = state["momentum_buffer"]
                    buffer.lerp_(gradient, 1.0 - group["momentum"])
                    directions.append(gradient.lerp(buffer, group["momentum"]))
                rows, columns = pairs[0][0].shape
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (parameter, _), update in zip(pairs, orthogonalized(torch.stack(directions)), strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-scale)
