"""Bounds such as `kld=0.05,ja`, `size=100MB` or `decode=60tok/s`: reading them, and how far figures are beyond them.

Pure. It knows nothing of how figures are measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm.errors import InputError, UnknownNameError

# Measure -> (key of the figures, whether more is better, what it is called). By language:
LANGUAGE_MEASURES = {
    "kld": ("mean_kl_divergence", False, "mean KL divergence"),
    "p99": ("p99_kl_divergence", False, "99th percentile of the KL divergence"),
    "top1": ("top1_agreement", True, "top-1 agreement"),
    "ppl": ("perplexity", False, "perplexity"),
    "bpb": ("bits_per_byte", False, "bits per byte"),
}
# Of a whole file:
FILE_MEASURES = {
    "size": ("size_bytes", False, "size"),
    "prefill": ("prefill_tok_s", True, "prefill tok/s"),
    "decode": ("decode_tok_s", True, "decode tok/s"),
}
_MEASURES = {**LANGUAGE_MEASURES, **FILE_MEASURES}
_UNITS = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_RATES = ("", "tok/s", "t/s", "tokens/s")
_FORM = re.compile(
    r"(?P<measure>[a-z0-9]+)=(?P<number>[0-9.]+(?:e-?[0-9]+)?)(?P<unit>[a-z/]*)(?:,(?P<lang>[\w-]+))?", re.I
)


@dataclass(frozen=True)
class Bound:
    """At most `limit` of a measure (at least, for top1, prefill and decode), in one language or (None) in each."""

    measure: str
    limit: float
    lang: str | None = None

    @property
    def key(self) -> str:
        return _MEASURES[self.measure][0]

    @property
    def more_is_better(self) -> bool:
        return _MEASURES[self.measure][1]

    @property
    def is_of_language(self) -> bool:
        return self.measure in LANGUAGE_MEASURES

    def __str__(self) -> str:
        limit = f"{self.limit / 1e6:g}MB" if self.measure == "size" else f"{self.limit:g}"
        unit = "tok/s" if self.measure in ("prefill", "decode") else ""
        return f"{self.measure}={limit}{unit}" + (f",{self.lang}" if self.lang else "")

    def excess(self, value: float | None) -> float:
        """How far a figure is beyond the bound, as a factor: 1.0 or less meets it; inf where nothing was measured."""
        if value is None or math.isnan(value):
            return math.inf
        better, worse = (value, self.limit) if self.more_is_better else (self.limit, value)
        if worse <= better:
            return 1.0 if worse == better else min(1.0, worse / better)
        return math.inf if better <= 0 else worse / better

    def broken_by(self, value: float | None) -> str | None:
        """A sentence when the figure breaks the bound, else None."""
        if self.excess(value) <= 1.0:
            return None
        name, sign = _MEASURES[self.measure][2], "<" if self.more_is_better else ">"
        unit, scale = (" MB", 1e6) if self.measure == "size" else ("", 1.0)
        found = "not measured" if value is None else f"{value / scale:.4g} {sign} {self.limit / scale:g}{unit}"
        return f"{name}{f' in {self.lang}' if self.lang else ''} {found}"


def parse_bound(text: str, measures: Sequence[str] = tuple(_MEASURES)) -> Bound:
    """Read `MEASURE=NUMBER[UNIT][,LANG]`. Raises InputError or UnknownNameError that lists what there is."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise InputError(f"'{text}' is not a bound", hint="For example: kld=0.05,ja or size=100MB or decode=60tok/s")
    measure, unit, lang = match["measure"].lower(), match["unit"].lower(), match["lang"]
    if measure not in measures:
        raise UnknownNameError("measure", measure, measures)
    try:
        limit = float(match["number"])
    except ValueError as error:
        raise InputError(f"'{match['number']}' in '{text}' is not a number") from error
    if measure == "size":
        if unit not in _UNITS:
            raise UnknownNameError("unit of size", unit, [name for name in _UNITS if name])
        limit *= _UNITS[unit]
    elif unit not in (_RATES if measure in FILE_MEASURES else ("",)):
        raise InputError(f"'{unit}' in '{text}' is no unit of {measure}")
    if measure in FILE_MEASURES and lang:
        raise InputError(f"'{text}': {measure} belongs to the file, not to a language")
    if not math.isfinite(limit) or limit <= 0:
        raise InputError(f"the bound '{text}' must be above zero")
    return Bound(measure, limit, lang)


def check_languages(bounds: Sequence[Bound], languages: Sequence[str]) -> None:
    """Raise UnknownNameError for a bound in a language that is not measured."""
    for bound in bounds:
        if bound.lang is not None and bound.lang not in languages:
            raise UnknownNameError("language", bound.lang, languages, hint="Give its text with: --text LANG=FILE")


def each_language(bound: Bound, languages: Sequence[str]) -> list[Bound]:
    """The bound for each language it speaks of; a bound of the file as it is."""
    if not bound.is_of_language or bound.lang is not None:
        return [bound]
    return [Bound(bound.measure, bound.limit, lang) for lang in languages]


def value_of(bound: Bound, figures: Mapping[str, Any]) -> float | None:
    """The figure a bound speaks of, from {by_language: {lang: {...}}, size_bytes, prefill_tok_s, decode_tok_s}."""
    held = figures["by_language"][bound.lang] if bound.is_of_language else figures
    value = held.get(bound.key)
    return None if value is None else float(value)
