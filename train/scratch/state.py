"""The checkpoints of a run from scratch: model, optimizers and counts, whole or absent, so that it can be resumed.

Each is a new folder beside the output (`NAME.run/step-000120`), and the older ones go when it is complete; a kill at
any moment leaves at least one good one. It knows nothing of the run itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from slm.artifacts import MANIFEST, new_folder, read_manifest
from slm.errors import DamagedFileError, MismatchError

_KIND = "training state"
Optimizers = dict[str, torch.optim.Optimizer]


def state_folder(output: Path) -> Path:
    """Where the checkpoints of a run to `output` are."""
    return output.with_name(f"{output.name}.run")


def save_state(output: Path, model: Any, optimizers: Optimizers, step: int, facts: dict[str, Any]) -> None:
    """Write a checkpoint, then remove the older ones. facts: JSON values to find again."""
    home = state_folder(output)
    with new_folder(home / f"step-{step:08d}", _KIND) as (folder, manifest):
        save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, folder / "model.safetensors")
        save_file(_optimizer_tensors(optimizers), folder / "optimizers.safetensors")
        manifest.update(facts, step=step)
    for old in _complete(home)[:-1]:
        shutil.rmtree(old)


def load_state(output: Path, model: Any, optimizers: Optimizers, decisive: dict[str, Any]) -> dict[str, Any] | None:
    """Bring model and optimizers to the last checkpoint and return its facts; None when there is none.

    decisive: what must be as it was (compared with the fact of that name). Raises MismatchError or DamagedFileError.
    """
    states = _complete(state_folder(output))
    if not states:
        return None
    facts = read_manifest(states[-1])
    was = facts.get("decisive", {})
    changed = [name for name in decisive if decisive[name] != was.get(name)]
    if changed:
        name = changed[0]
        raise MismatchError(
            f"the unfinished run in '{state_folder(output)}' had other options: {', '.join(changed)}",
            found=f"{name} was {was.get(name)!r}, is {decisive[name]!r}",
            hint="Resume it with its own options, or begin anew without --resume.",
        )
    try:
        weights, moments = (load_file(states[-1] / f"{part}.safetensors") for part in ("model", "optimizers"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        _restore_optimizers(optimizers, moments)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise DamagedFileError(f"the checkpoint '{states[-1]}' cannot be read: {error}") from error
    return facts


def drop_state(output: Path) -> None:
    """Remove the checkpoints of a run that has ended well."""
    shutil.rmtree(state_folder(output), ignore_errors=True)


def _complete(home: Path) -> list[Path]:
    return sorted(folder for folder in home.glob("step-*") if (folder / MANIFEST).exists())


def _optimizer_tensors(optimizers: Optimizers) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{index}/{key}": tensor.contiguous()
        for name, optimizer in optimizers.items()
        for index, state in optimizer.state_dict()["state"].items()
        for key, tensor in state.items()
    }


def _restore_optimizers(optimizers: Optimizers, tensors: dict[str, torch.Tensor]) -> None:
    for name, optimizer in optimizers.items():
        plain = optimizer.state_dict()
        states: dict[int, dict[str, torch.Tensor]] = {}
        for path, tensor in tensors.items():
            owner, index, key = path.split("/")
            if owner == name:
                states.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({**plain, "state": states})
