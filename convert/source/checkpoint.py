"""Reads a checkpoint folder (config.json and safetensors, sharded or not) without torch. It knows nothing of GGUF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.source.malformed import check_values, reading
from convert.source.safetensors_file import TensorEntry, read_header
from slm.artifacts import read_json, require_folder
from slm.errors import DamagedFileError, MissingFileError
from slm.families import Family, family_of_config
from slm.families.parts.base import TensorRule
from slm.weights.checkpoint_files import CONFIG, check_checkpoint, refuse_pointer, weight_files

_PIECE_ELEMENTS = 1 << 20  # 4 MB of float32 at a time: it stays in the processor's cache


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to be written: its GGUF name and shape, where it comes from, and its transform."""

    gguf_name: str
    shape: tuple[int, ...]
    entry: TensorEntry
    rule: TensorRule

    def pieces(self) -> Iterator[npt.NDArray[np.float32]]:
        """The tensor in GGUF form, in pieces of whole rows. Raises DamagedFileError on NaN or infinite values."""
        transform = self.rule.transform
        if not transform.row_wise or len(self.entry.shape) < 2:
            yield transform.to_gguf(self._finite(self.entry.read()))
            return
        step = max(1, _PIECE_ELEMENTS // int(np.prod(self.entry.shape[1:])))
        for start in range(0, self.entry.shape[0], step):
            yield transform.to_gguf(self._finite(self.entry.read(start, start + step)))

    def _finite(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not np.isfinite(values).all():
            raise DamagedFileError(
                f"the tensor '{self.entry.name}' has NaN or infinite values",
                hint="The training has diverged, or the file is damaged; nothing was written.",
            )
        return values


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that has been looked at: its configuration, family and tensors by name."""

    folder: Path
    config: dict[str, Any]
    family: Family
    entries: dict[str, TensorEntry]

    def plan(self) -> list[PlannedTensor]:
        """Every tensor of the GGUF model, in the family's order.

        Raises DamagedFileError for a missing tensor, UnsupportedError for one the family does not have.
        """
        with reading(f"'{self.folder / CONFIG}'"):
            return self._plan()

    def metadata(self) -> dict[str, Any]:
        """The family's GGUF key-values. Raises DamagedFileError, and UnsupportedError as `Family.to_metadata` does."""
        what = f"'{self.folder / CONFIG}'"
        with reading(what):
            metadata = self.family.to_metadata(self.config)
        check_values(metadata, what)
        return metadata

    def extra_tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """GGUF tensors that no checkpoint tensor holds. Raises DamagedFileError."""
        with reading(f"'{self.folder / CONFIG}'"):
            return self.family.extra_tensors(self.config)

    def _plan(self) -> list[PlannedTensor]:
        if self.family.layers(self.config) > len(self.entries):
            raise DamagedFileError(
                f"'{self.folder / CONFIG}' claims {self.family.layers(self.config)} layers",
                found=f"{len(self.entries)} tensors in the weights",
            )
        rules = self.family.expanded(self.config)
        by_name = {}
        for name, entry in self.entries.items():
            found = self.family.rule_for(name, self.config)
            if found is not None:
                by_name[found[1]] = (entry, found[0])
        for target, source in self.family.copies(self.config).items():
            if target not in by_name and source in by_name:
                by_name[target] = by_name[source]
        missing = [gguf_name for _, _, gguf_name in rules if gguf_name not in by_name]
        if missing:
            names = {gguf_name: name for _, name, gguf_name in rules}
            raise DamagedFileError(
                f"'{self.folder}' lacks the tensor '{names[missing[0]]}'"
                + (f" and {len(missing) - 1} others" if len(missing) > 1 else ""),
                hint="Is a shard missing? Copy or download the checkpoint again.",
            )
        planned = []
        for _, _, gguf_name in rules:
            entry, rule = by_name[gguf_name]
            planned.append(PlannedTensor(gguf_name, rule.transform.gguf_shape(entry.shape), entry, rule))
        return planned

    @property
    def vocabulary_rows(self) -> int:
        """How many tokens the embedding has rows for."""
        for planned in self.plan():
            if planned.gguf_name == "token_embd.weight":
                return planned.shape[0]
        raise DamagedFileError(f"'{self.folder}' has no token embedding")

    @property
    def dtype(self) -> str:
        """The dtype most of the weights are stored in: F32, F16 or BF16."""
        sizes: dict[str, int] = {}
        for entry in self.entries.values():
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
        return max(sizes, key=lambda name: sizes[name])

    @property
    def own_type(self) -> str:
        """The float type of a GGUF file that holds the weights unrounded."""
        return {"F16": "f16", "BF16": "bf16"}.get(self.dtype, "f32")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder. Raises MissingFileError or DamagedFileError."""
    path = folder / CONFIG
    if not path.exists():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "an empty folder"
        raise MissingFileError(
            f"'{folder}' has no config.json, so it is not a checkpoint folder",
            found=found,
            hint="Give the folder that model.save_pretrained wrote.",
        )
    refuse_pointer(path)
    return read_json(path)


def read_checkpoint(folder: Path | str) -> Checkpoint:
    """Look at a checkpoint folder; no weights are read yet.

    Raises MissingFileError, DamagedFileError, or UnsupportedError (quantized weights, or a family that is not known).
    """
    folder = require_folder(folder)
    config = read_config(folder)
    check_checkpoint(folder)
    with reading(f"'{folder / CONFIG}'"):
        family = family_of_config(config)
    return Checkpoint(folder, config, family, _entries(folder))


def _entries(folder: Path) -> dict[str, TensorEntry]:
    weights = weight_files(folder)
    entries: dict[str, TensorEntry] = {}
    for file in weights.files:
        entries.update(read_header(file))
    absent = sorted(weights.promised - set(entries))
    if absent:
        raise DamagedFileError(f"'{folder}' lacks the tensor '{absent[0]}' that its index names")
    return entries
