"""Importance matrix files: llama.cpp's GGUF form, read strictly and written. It knows nothing of how one is collected.

For each weight: `<name>.in_sum2`, the sum of the squares of its inputs by channel, (experts, width) or (width,), and
`<name>.counts`, over how many tokens, (experts, 1) or (1,). Format: llama.cpp tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.output.writer import Ledger, OutTensor, write_gguf
from slm.artifacts import new_file
from slm.errors import DamagedFileError, InputError, MismatchError
from slm.weights.gguf_reader import GgufFile, read_gguf

_SUMS, _COUNTS = ".in_sum2", ".counts"
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImportanceMatrix:
    """Sums of squares, (experts, width) float32, and counts, (experts,) float32, by weight; where they come from."""

    sums: dict[str, FloatArray]
    counts: dict[str, FloatArray]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int

    def mean_squares(self, name: str) -> FloatArray:
        """(experts, width): sums over counts; 1 for an expert that no token came to, as llama-quantize has it."""
        counts = self.counts[name][:, None]
        means = np.divide(self.sums[name], counts, out=np.ones_like(self.sums[name]), where=counts > 0)
        return means.astype(np.float32)


def write_imatrix(path: Path | str, matrix: ImportanceMatrix) -> None:
    """Write the file, whole or not at all; names in order, as llama-imatrix does."""
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": list(matrix.datasets),
        "imatrix.chunk_count": matrix.chunks,
        "imatrix.chunk_size": matrix.chunk_size,
    }
    tensors = []
    for name in sorted(matrix.sums):
        sums, counts = matrix.sums[name], matrix.counts[name][:, None]
        if len(counts) == 1:
            sums, counts = sums[0], counts[0]
        tensors.append(OutTensor(name + _SUMS, sums.shape, "F32", [sums]))
        tensors.append(OutTensor(name + _COUNTS, counts.shape, "F32", [counts]))
    ledger = Ledger()
    with new_file(path) as temporary:
        with temporary.open("wb") as file:
            for _ in write_gguf(file, metadata, tensors, ledger):
                pass
        ledger.check(temporary)


def read_imatrix(path: Path | str) -> ImportanceMatrix:
    """Read and check an importance matrix. Raises the errors of `read_gguf`, InputError (another kind of file) or
    DamagedFileError (sums without counts, values that cannot be sums of squares)."""
    file = read_gguf(path)
    if file.metadata.get("general.type") != "imatrix":
        raise InputError(
            f"'{path}' is not an importance matrix",
            found=f"general.type {file.metadata.get('general.type', 'absent')!r}",
            hint="Make one with: slm imatrix MODEL.gguf --text LANG=FILE -o OUT.gguf",
        )
    names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
    paired = {name + end for name in names for end in (_SUMS, _COUNTS)}
    if not names or paired != set(file.tensors):
        odd = ", ".join(sorted(paired ^ set(file.tensors))[:3]) or "no weight at all"
        raise DamagedFileError(f"'{path}' does not have both sums and counts of every weight", found=odd)
    sums, counts = {}, {}
    for name in names:
        counts[name] = _values(file, name + _COUNTS)
        flat = _values(file, name + _SUMS)
        if flat.size % counts[name].size:
            raise DamagedFileError(f"'{path}': sums and counts of '{name}' do not belong together")
        sums[name] = flat.reshape(counts[name].size, -1)
    return ImportanceMatrix(
        sums, counts, _strings(file.metadata.get("imatrix.datasets")),
        _number(file, "imatrix.chunk_count"), _number(file, "imatrix.chunk_size"),
    )  # fmt: skip


def _values(file: GgufFile, name: str) -> FloatArray:
    if file.tensors[name].type_name != "F32":
        raise DamagedFileError(f"'{file.path}': '{name}' is {file.tensors[name].type_name}, not F32")
    values: FloatArray = file.raw(name).view(np.float32).copy()
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise DamagedFileError(
            f"'{file.path}': '{name}' has values that are no sums of squares (negative or not finite)"
        )
    return values


def _strings(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _number(file: GgufFile, key: str) -> int:
    value = file.metadata.get(key)
    if not isinstance(value, int) or value < 0:
        raise DamagedFileError(f"'{file.path}' lacks the number '{key}'")
    return value


def fitting(matrix: ImportanceMatrix, model: GgufFile) -> dict[str, FloatArray]:
    """Mean squares by weight, flat (experts * width,), as llama_model_quantize takes them.

    Raises MismatchError when the matrix was collected on another model.
    """
    matrices = {name: info.shape for name, info in model.tensors.items() if len(info.shape) > 1}
    shared = [name for name in matrix.sums if name in matrices]
    wrong = [name for name in shared if matrix.sums[name].shape != _expected(matrices[name])]
    if not shared or wrong:
        raise MismatchError(
            f"the importance matrix was not collected on '{model.path}' or its float original",
            found=f"'{wrong[0]}': {matrix.sums[wrong[0]].shape[-1]} channels, the model has {matrices[wrong[0]][-1]}"
            if wrong
            else f"weights such as '{next(iter(matrix.sums))}', which the model does not have",
            hint="Collect it on this model: slm imatrix MODEL.gguf --text LANG=FILE -o OUT.gguf",
        )
    return {name: matrix.mean_squares(name).ravel() for name in shared}


def _expected(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0] if len(shape) == 3 else 1, shape[-1])
