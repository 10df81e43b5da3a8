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
# The reader that comes with the program.
RELEASED = Path(__file__).parent.parent.parent / "readers/multilingual-e5-small"


@dataclass(frozen=True)
class ReaderCard:
    """scale, offset: from a cosine to a score. refuse_at: by language, "" for others. base: the fingerprints it was
    trained on."""

    scale: float
    offset: float
    refuse_at: dict[str, float]
    base: frozenset[str]


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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"'{path}' is no reader's card", found=repr(error)) from error
    base: Any = read_manifest(folder).get("base") or {}
    names = frozenset(base[key] for key in ("fingerprint", "weights") if isinstance(base.get(key), str))
    return ReaderCard(scale, offset, refuse_at, names)


def write_thresholds(folder: Path, refuse_at: dict[str, float]) -> None:
    """Put fitted thresholds into a reader's card."""
    card = read_json(folder / CARD) | {"refuse_at": refuse_at}
    with new_file(folder / CARD) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
