"""Converts a checkpoint and measures what each quantized file costs against the unquantized weights, by language.

A shell over `convert.model`, `convert.quantize.quantize`, `convert.quality.verify` and `convert.quality.speed`; it
knows nothing of bounds or of how figures are shown. Files take their names only after everything has been measured.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.model import convert_checkpoint
from convert.quality.kld import pooled
from convert.quality.speed import measure_speed
from convert.quality.verify import by_language, gguf_runner, is_language_model, measure
from convert.quantize.quantize import FLOAT_TYPES, ladder, type_name, types_written
from convert.source.checkpoint import Checkpoint, read_checkpoint
from slm.terminal.console import note
from slm.weights.gguf_reader import read_gguf

QUICK_TOKENS = 256  # of each language when nobody asked for a report: enough to see that a file is sound
# From the smallest to the largest; one of each kind that people use. The last is the checkpoint's own precision.
LADDER = ("q2_k", "q3_k_m", "iq4_xs", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0")


@dataclass(frozen=True)
class MeasureOptions:
    """What a file is measured on, and for how long.

    texts: {language: text}, at most `max_tokens` of each (0: all). speed: measure tokens a second as well.
    """

    texts: Mapping[str, str]
    max_tokens: int = QUICK_TOKENS
    speed: bool = False


def ladder_of(types: Sequence[str], checkpoint: Checkpoint) -> list[str]:
    """The types to try: the user's own, or LADDER and the half-precision type that fits the checkpoint."""
    if types:
        return list(dict.fromkeys(type_name(name) for name in types))
    return [*LADDER, "bf16" if checkpoint.dtype == "BF16" else "f16"]


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `out`, so that a finished file can take its name in one step."""
    existed = out.parent.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as name:
            yield Path(name)
    finally:
        if not existed and not any(out.parent.iterdir()):
            out.parent.rmdir()


def convert_measured(
    folder: Path | str,
    out: Path | str,
    types: Sequence[str],
    on: MeasureOptions,
    convert: Callable[..., list[dict[str, Any]]] = convert_checkpoint,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """`convert_checkpoint` with proof, and the figures of every quantized file: (files, figures of the reference).

    `convert` is what writes the files: (folder, out, types) -> a list of {file, type, size_bytes, ...}. Each file
    gains `by_language`, `overall`, `bits_per_weight` and, when asked, `prefill_tok_s` and `decode_tok_s`. Nothing is
    left on an error.
    """
    out = Path(out)
    checkpoint = read_checkpoint(folder)
    ladder(out, checkpoint.folder.resolve().name, types)  # refuses an `out` of the wrong kind before any work
    with scratch_beside(out) as scratch:
        made = scratch / "out"
        made.mkdir()
        reference, results = convert_with_reference(checkpoint, made, types, convert)
        if not is_language_model(read_gguf(results[0]["file"])):
            note("an embedder predicts no next token: nothing to compare")
            return _published(results, out), {}
        measured = [measured_file(result, reference, on) for result in results]
        base = reference_figures(reference, checkpoint.own_type, measured, on.speed)
        return _published(measured, out), base


def _published(results: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Move every file to its final place; `out` is the file, or the folder of several."""
    published = []
    for result in results:
        made = Path(result["file"])
        target = out if len(results) == 1 else out / made.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, target)
        published.append({**result, "file": str(target)})
    return published


def measured_file(result: Mapping[str, Any], reference: Path, on: MeasureOptions) -> dict[str, Any]:
    """A file's record with its figures against the reference."""
    path = Path(result["file"])
    with ExitStack() as stack:
        tallies = measure(gguf_runner(stack, path), gguf_runner(stack, reference), on.texts, on.max_tokens)
    figures = {"by_language": by_language(tallies), "overall": asdict(pooled(tallies.values()).figures())}
    rates = asdict(measure_speed(path)) if on.speed else {}
    return {**result, "bits_per_weight": bits_per_weight(path), **rates, **figures}


def reference_figures(path: Path, precision: str, measured: Sequence[Mapping[str, Any]], speed: bool) -> dict[str, Any]:
    """The record of the reference itself; its perplexities are those that the comparisons found."""
    figures = measured[0]["by_language"]
    return {
        "type": precision,
        "size_bytes": path.stat().st_size,
        "tensor_types": types_written(read_gguf(path)),
        "bits_per_weight": bits_per_weight(path),
        **(asdict(measure_speed(path)) if speed else {}),
        "by_language": {
            lang: {"tokens": one["tokens"], "perplexity": one["reference_perplexity"],
                   "bits_per_byte": one["reference_bits_per_byte"]}
            for lang, one in figures.items()
        },
    }  # fmt: skip


def bits_per_weight(path: Path) -> float:
    """Bits of tensor data a weight, over all tensors of a file."""
    tensors = read_gguf(path).tensors.values()
    weights = sum(int(np.prod(info.shape, dtype=np.int64)) for info in tensors)
    return round(8 * sum(info.nbytes for info in tensors) / weights, 3)


def convert_with_reference(
    checkpoint: Checkpoint,
    out: Path,
    types: Sequence[str],
    convert: Callable[..., list[dict[str, Any]]] = convert_checkpoint,
) -> tuple[Path, list[dict[str, Any]]]:
    """(reference, files of all types), all in the folder `out`, from one reading of the checkpoint.

    The reference has the checkpoint's own precision: the others are made from it and compared with it.
    """
    names = list(dict.fromkeys(type_name(name) for name in types))
    wanted = list(dict.fromkeys([checkpoint.own_type, *names]))
    target = out if len(wanted) > 1 else out / "reference.gguf"
    by_type = {result["type"]: result for result in convert(checkpoint.folder, target, wanted)}
    return Path(by_type[checkpoint.own_type]["file"]), [by_type[name] for name in names]


def has_quantized(types: Sequence[str]) -> bool:
    """Whether a list of type names holds one that loses something worth measuring."""
    return any(type_name(name) not in FLOAT_TYPES for name in types)
