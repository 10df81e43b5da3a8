"""Picks the type that meets the user's bounds: the smallest one in quality, or the best one in size or speed.

`choose` and `nearest` are pure; `fit_checkpoint` makes the ladder, measures only what it must, and keeps one file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from convert.model import convert_checkpoint
from convert.quality.bounds import Bound, check_languages, each_language, value_of
from convert.quality.cost import (
    MeasureOptions,
    convert_with_reference,
    ladder_of,
    measured_file,
    reference_figures,
    scratch_beside,
)
from convert.quality.report import Record
from convert.quality.speed import measure_speed
from convert.quality.verify import is_language_model
from convert.quantize.quantize import QuantizeOptions
from convert.source.checkpoint import read_checkpoint
from slm.errors import InputError, UnsupportedError, VerificationError
from slm.terminal.console import note
from slm.weights.gguf_reader import read_gguf

_NO_OPTIONS = QuantizeOptions()


def excesses(record: Record, bounds: Sequence[Bound]) -> list[float | None]:
    """How far a file is beyond each bound, as a factor (1.0 or less: met); None where it was not measured."""
    found: list[float | None] = []
    for bound in bounds:
        languages = list(record.get("by_language", {}))
        if bound.is_of_language and not languages:
            found.append(None)
            continue
        values = [value_of(single, record) for single in each_language(bound, languages)]
        found.append(None if None in values else max(bound.excess(value) for value in values))
    return found


def meets(record: Record, bounds: Sequence[Bound]) -> bool:
    """Whether every bound was measured and holds."""
    return all(excess is not None and excess <= 1.0 for excess in excesses(record, bounds))


def choose(records: Sequence[Record], bounds: Sequence[Bound]) -> Record | None:
    """The file that the bounds ask for, None when none meets them all.

    With a bound on quality it is the smallest that meets them; with bounds on size or speed alone, the one with the
    least mean KL divergence, since a smaller one would only be worse.
    """
    sound = [record for record in records if meets(record, bounds)]
    if not sound:
        return None
    if any(bound.is_of_language for bound in bounds):
        return min(sound, key=lambda record: int(record["size_bytes"]))
    return min(sound, key=lambda record: float(record["overall"]["mean_kl_divergence"]))


def nearest(records: Sequence[Record], bounds: Sequence[Bound]) -> Record:
    """The file that misses the bounds by the least: by how many unmeasured ones, then by the worst factor."""

    def distance(record: Record) -> tuple[int, float]:
        found = excesses(record, bounds)
        return found.count(None), max((excess for excess in found if excess is not None), default=float("inf"))

    return min(records, key=distance)


def refusal(records: Sequence[Record], bounds: Sequence[Bound]) -> VerificationError:
    """The error when no type meets the bounds: it names the nearest and by what it misses them."""
    best = nearest(records, bounds)
    broken = []
    for bound in bounds:
        if bound.is_of_language and not best.get("by_language"):
            continue
        for single in each_language(bound, list(best.get("by_language", {}))):
            value = value_of(single, best)
            sentence = None if value is None else single.broken_by(value)
            broken += [] if sentence is None else [sentence]
    return VerificationError(
        f"no type meets {' and '.join(map(str, bounds))}; the nearest is {best['type']}",
        found=f"{'; '.join(broken)}; {best['size_bytes'] / 1e6:,.1f} MB",
        hint="Nothing was written; loosen the bound, or name other types with --type.",
    )


def fit_checkpoint(
    folder: Path | str,
    out: Path | str,
    bounds: Sequence[Bound],
    on: MeasureOptions,
    *,
    types: Sequence[str] = (),
    options: QuantizeOptions = _NO_OPTIONS,
) -> dict[str, Any]:
    """Write the one file `out` that `choose` picks; returns {chosen, tried, reference, bounds}.

    on.speed: measure tokens a second even when no bound needs it; then every type is measured. types: the ladder to
    try (default: `cost.LADDER`). options: for the quantizer. Raises VerificationError that names the nearest type
    when none meets the bounds, UnsupportedError for an embedder; nothing is written then.
    """
    out = Path(out)
    if out.is_dir():
        raise InputError(f"'{out}' is a folder", hint=f"Name the file, for example: -o {out}/model.gguf")
    check_languages(bounds, list(on.texts))
    checkpoint = read_checkpoint(folder)
    with scratch_beside(out) as scratch:
        reference, files = convert_with_reference(
            checkpoint, scratch, ladder_of(types, checkpoint), partial(convert_checkpoint, options=options)
        )
        if not is_language_model(read_gguf(reference)):
            raise UnsupportedError("--fit needs a language model: an embedder has no KL divergence to bound")
        files.sort(key=lambda one: int(one["size_bytes"]))
        tried = _measured(files, reference, bounds, on)
        chosen = choose(tried, bounds)
        if chosen is None:
            raise refusal(tried, bounds)
        with_figures = [record for record in tried if record.get("by_language")]
        base = reference_figures(reference, checkpoint.own_type, with_figures, on.speed)
        os.replace(chosen["file"], out)
    kept = {**chosen, "file": str(out)}
    return {
        "chosen": kept,
        "tried": [kept if r is chosen else {k: v for k, v in r.items() if k != "file"} for r in tried],
        "reference": base,
        "bounds": [str(bound) for bound in bounds],
    }


def _measured(
    files: Sequence[dict[str, Any]], reference: Path, bounds: Sequence[Bound], on: MeasureOptions
) -> list[dict[str, Any]]:
    """The files with figures, in order of size. Measured are only those that the cheaper bounds leave over, or all.

    Sizes are known, speeds take seconds, divergences longest. Once a file meets a bound on quality, larger ones
    need not be measured.
    """
    size = [bound for bound in bounds if bound.measure == "size"]
    rates = [bound for bound in bounds if not bound.is_of_language and bound.measure != "size"]
    by_quality = any(bound.is_of_language for bound in bounds)
    records, found = [], False
    for one in files:
        record: dict[str, Any] = dict(one)
        wanted = not found and meets(record, size)
        if (wanted and rates) or on.speed:
            record.update(asdict(measure_speed(Path(one["file"]))))
        if (wanted and meets(record, rates)) or on.speed:
            note(f"measuring {one['type']}, {one['size_bytes'] / 1e6:,.1f} MB")
            record = measured_file(record, reference, replace(on, speed=False))
            found = found or (by_quality and meets(record, bounds))
        records.append(record)
    return records
