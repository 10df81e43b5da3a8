"""Model and optimizers of a run from scratch as named tensors, and back: what a checkpoint of it keeps.

It knows nothing of files or of the run itself.
"""

from __future__ import annotations

from typing import Any

import torch

from slm.errors import DamagedFileError

Optimizers = dict[str, torch.optim.Optimizer]
_MODEL, _OPTIMIZER = "model/", "optimizer/"


def state_tensors(model: Any, optimizers: Optimizers) -> dict[str, torch.Tensor]:
    """model/NAME of every weight, and optimizer/NAME/INDEX/KEY of what the optimizers remember of it."""
    tensors = {f"{_MODEL}{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for key, tensor in state.items():
                tensors[f"{_OPTIMIZER}{name}/{index}/{key}"] = tensor.contiguous()
    return tensors


def restore(model: Any, optimizers: Optimizers, tensors: dict[str, torch.Tensor]) -> None:
    """Bring model and optimizers to the state that `state_tensors` gave. Raises DamagedFileError."""
    try:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"{_MODEL}{name}"])
        for name, optimizer in optimizers.items():
            states: dict[int, dict[str, torch.Tensor]] = {}
            for path, tensor in tensors.items():
                if path.startswith(f"{_OPTIMIZER}{name}/"):
                    index, key = path.split("/")[2:]
                    states.setdefault(int(index), {})[key] = tensor.clone()  # not the file's own memory
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    except (KeyError, RuntimeError, ValueError) as error:
        raise DamagedFileError(f"the checkpoint does not fit this model: {error}") from error
