"""Named arrays as .npy files of one folder, mapped into memory when read. It knows nothing of their meaning."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def file_of(name: str) -> str:
    """The file that holds an array."""
    return f"{name}.npy"


def save_arrays(folder: Path, arrays: Mapping[str, Array]) -> None:
    """Write each array into a file of its own. Raises OSError."""
    for name, array in arrays.items():
        with (folder / file_of(name)).open("wb") as file:
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def load_arrays(folder: Path, kinds: Mapping[str, tuple[type[np.generic], int]]) -> dict[str, Array]:
    """The arrays of a folder by name, read-only and mapped; `kinds` has the type and the dimensions each must have.

    Raises OSError and ValueError.
    """
    arrays: dict[str, Array] = {}
    for name, (kind, dimensions) in kinds.items():
        array = np.asarray(np.load(folder / file_of(name), mmap_mode="r", allow_pickle=False))
        if array.dtype != np.dtype(kind) or array.ndim != dimensions:
            raise ValueError(f"'{folder / file_of(name)}' holds {array.dtype} {array.shape}")
        arrays[name] = array
    return arrays


def files_of(names: Collection[str]) -> list[str]:
    """The files of arrays of these names."""
    return [file_of(name) for name in names]
