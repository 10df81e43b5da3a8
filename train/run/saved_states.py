"""Checkpoints of a run: whole or absent, proven by their hashes, and enough to go on as if nothing had happened.

They hold tensors and counters. The order of the data and the learning rate are functions of the step
(train.batch.plan, train.run.schedule) and need no saving. It knows nothing of how a model is trained.

    step-00000120/state.safetensors   model/NAME, optimizer/..., and what else the run named
    step-00000120/manifest.json       kind, counters, SHA-256; written last
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.artifacts import MANIFEST, new_folder, read_manifest, sha256_file
from slm.errors import DamagedFileError, InputError
from slm.terminal.console import note

if TYPE_CHECKING:
    from torch import Tensor

KIND = "training-checkpoint"
_STATE = "state.safetensors"
_KEPT = 2


@dataclass(frozen=True)
class SavedState:
    """A whole checkpoint folder and its counters: "step", "elapsed_s" and what else the run counts, as JSON values."""

    path: Path
    counters: dict[str, Any]

    @property
    def step(self) -> int:
        """How many steps are behind."""
        return int(self.counters["step"])

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(self.path / _STATE)
        return tensors


def write_checkpoint(folder: Path, counters: dict[str, Any], tensors: dict[str, Tensor], *, stays: int = 0) -> Path:
    """Write `folder`/step-N whole, then remove those no longer needed. Raises ResourceError on a full disk.

    counters: see SavedState. The last two stay, since the newest may turn out damaged, and that of the step `stays`.
    """
    path = folder / _name(counters["step"])
    with new_folder(path, KIND) as (new, manifest):
        _save(tensors, new / _STATE)
        manifest.update(state=counters, sha256=sha256_file(new / _STATE))
    steps = sorted(_paths(folder))
    for old in steps[:-_KEPT]:
        if old.name != _name(stays):
            (old / MANIFEST).unlink(missing_ok=True)  # first, so that a half-removed one is seen as such
            shutil.rmtree(old, ignore_errors=True)
    return path


def open_checkpoint(path: Path) -> SavedState:
    """The checkpoint at `path`, read and hashed whole. Raises MissingFileError or DamagedFileError."""
    manifest = read_manifest(path)
    if manifest.get("kind") != KIND:
        raise DamagedFileError(f"'{path}' is no checkpoint of a training run")
    try:
        counters, digest = manifest["state"], manifest["sha256"]
        sound = _name(counters["step"]) == path.name and float(counters["elapsed_s"]) >= 0
        sound = sound and sha256_file(path / _STATE) == digest
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"'{path}' is damaged: {type(error).__name__} {error}") from error
    if not sound:
        raise DamagedFileError(f"'{path / _STATE}' is damaged: its SHA-256 is not the manifest's")
    return SavedState(path, counters)


def whole_checkpoints(folder: Path) -> list[SavedState]:
    """Those that are whole, newest first; damaged ones are told and passed over."""
    found = []
    for path in sorted(_paths(folder), reverse=True):
        try:
            found.append(open_checkpoint(path))
        except InputError as error:
            note(f"passed over: {error}")
    return found


def checkpoint_of_step(folder: Path, step: int) -> SavedState:
    """The checkpoint written after so many steps. Raises MissingFileError or DamagedFileError."""
    return open_checkpoint(folder / _name(step))


def remove_all_but(folder: Path, whole: Sequence[SavedState]) -> None:
    """Remove damaged checkpoints, and what a killed process left half-written."""
    stay = {checkpoint.path for checkpoint in whole}
    for path in [*_paths(folder), *folder.glob(".step-*")]:
        if path not in stay:
            shutil.rmtree(path, ignore_errors=True)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file)
    except SafetensorError as error:  # it tells what the system said in its text alone
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), str(error)) from error
        raise


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _paths(folder: Path) -> Iterator[Path]:
    return folder.glob("step-*")
