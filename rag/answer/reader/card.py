"""What a reader's adapter folder says of it: the form of its rows, how its scores are scaled, when it refuses.

It knows nothing of weights. `slm train reader` writes the card; fitting the thresholds fills them in.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.answer.reader.form import FORM
from slm.artifacts import new_file, read_json, read_manifest
from slm.errors import DamagedFileError, MismatchError, MissingFileError

CARD = "reader.json"
# The readers that come with the program: an encoder, and a causal model that reads what the first thinks likeliest.
RELEASED = Path(__file__).parent.parent.parent / "readers/multilingual-e5-small"
SECOND = RELEASED.parent / "gemma-3-270m"
# How a base judges a line: by the cosine of its state and the question's, or by yes against no behind it.
COSINE, CONTRAST = "cosine", "contrast"


@dataclass(frozen=True)
class Before:
    """What a reader makes of another that has read before it: how many of its likeliest passages are read again, and
    the share of its scores in the sum."""

    passages: int
    share: float


@dataclass(frozen=True)
class ReaderCard:
    """scale, offset: from what a base makes of a line to a score. refuse_at: by language, "" for others. base: the
    fingerprints it was trained on. kind: COSINE or CONTRAST. before: None for a reader that reads alone."""

    scale: float
    offset: float
    refuse_at: dict[str, float]
    base: frozenset[str]
    kind: str = COSINE
    before: Before | None = None


def read_card(folder: Path) -> ReaderCard:
    """The card of a reader's folder.

    Raises MissingFileError where it is none, DamagedFileError, and MismatchError for a reader of another form.
    """
    path = folder / CARD
    if not path.is_file():
        raise MissingFileError(
            f"'{folder}' is no reader: it has no {CARD}", hint="Make one with: slm train reader (docs/reader.md)."
        )
    card = read_json(path)
    form = card.get("form")
    if isinstance(form, int) and form != FORM:
        raise MismatchError(
            f"the reader '{folder}' was trained on rows of form {form}, this version asks in form {FORM}",
            hint="Make a new one with: make reader",
        )
    try:
        if not isinstance(form, int):
            raise TypeError(f"form {form!r}")
        scale, offset = float(card["scale"]), float(card["offset"])
        refuse_at = {str(lang): float(limit) for lang, limit in card["refuse_at"].items()}
        if not all(map(math.isfinite, (scale, offset, *refuse_at.values()))):
            raise ValueError(f"scale {scale}, offset {offset}, refuse_at {refuse_at}")
        kind = card.get("kind", COSINE)
        if kind not in (COSINE, CONTRAST):
            raise ValueError(f"kind {kind!r}")
        told = card.get("before")
        before = None if told is None else Before(int(told["passages"]), float(told["share"]))
        if before and (before.passages < 1 or not math.isfinite(before.share)):
            raise ValueError(f"before {told}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"'{path}' is no reader's card", found=repr(error)) from error
    base: Any = read_manifest(folder).get("base") or {}
    names = frozenset(base[key] for key in ("fingerprint", "weights") if isinstance(base.get(key), str))
    return ReaderCard(scale, offset, refuse_at, names, kind, before)


def write_card(folder: Path, **changes: Any) -> None:
    """Put what was fitted into a reader's card: `refuse_at`, `scale`, `offset`, `before`."""
    card = {key: value for key, value in (read_json(folder / CARD) | changes).items() if value is not None}
    with new_file(folder / CARD) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
