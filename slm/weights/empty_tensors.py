"""Refuses adapters and checkpoints whose tensors were saved empty, before anything computes with them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from slm.errors import DamagedFileError


def refuse_empty(file: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise DamagedFileError where a tensor of the file has no elements. shapes: of every tensor, by name.

    DeepSpeed's ZeRO-3 keeps every parameter in pieces and leaves a placeholder of size 0 in each process: saving
    without gathering them first saves the placeholders.
    """
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if not empty:
        return
    raise DamagedFileError(
        f"the saved tensors of '{file}' are empty",
        found=f"{len(empty)} of {len(shapes)}, such as {empty[0][:80]}",
        hint=(
            "So DeepSpeed ZeRO-3 saves parameters that were not gathered. Save it again from a checkpoint of the run,"
            ' with "stage3_gather_16bit_weights_on_model_save": true in DeepSpeed\'s configuration, or gather the'
            " checkpoint's pieces with its zero_to_fp32.py."
        ),
    )
