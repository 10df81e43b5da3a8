"""What a reader's adapter folder says of it: the form of its prompts, its two tokens, when it refuses.

It knows nothing of weights. `slm train reader` writes the card; fitting the thresholds fills them in.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.answer.reading import FORM
from slm.artifacts import new_file, read_json, read_manifest
from slm.errors import DamagedFileError, MismatchError, MissingFileError

CARD = "reader.json"
_RELEASED = Path(__file__).parent.parent / "readers"


@dataclass(frozen=True)
class ReaderCard:
    """contrast: yes and no. refuse_at: by language, "" for others. base: the fingerprints it was trained on."""

    contrast: tuple[str, str]
    refuse_at: dict[str, float]
    base: frozenset[str]


def read_card(folder: Path) -> ReaderCard:
    """The card of a reader's folder.

    Raises MissingFileError where it is none, DamagedFileError, and MismatchError for a reader of other prompts.
    """
    path = folder / CARD
    if not path.is_file():
        raise MissingFileError(
            f"'{folder}' is no reader: it has no {CARD}", hint="Make one with: slm train reader (docs/reader.md)."
        )
    card = read_json(path)
    try:
        yes, no = (_word(word) for word in _list(card["contrast"]))
        refuse_at = {str(lang): float(limit) for lang, limit in card["refuse_at"].items()}
        if not all(map(math.isfinite, refuse_at.values())):
            raise ValueError(f"refuse_at {refuse_at}")
        form = int(card["form"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"'{path}' is no reader's card", found=repr(error)) from error
    if form != FORM:
        raise MismatchError(
            f"the reader '{folder}' was trained on prompts of form {form}, this version asks in form {FORM}",
            hint="Make a new one with: make reader",
        )
    base: Any = read_manifest(folder).get("base") or {}
    names = frozenset(base[key] for key in ("fingerprint", "weights") if isinstance(base.get(key), str))
    return ReaderCard((yes, no), refuse_at, names)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"contrast is {value!r}")
    return value


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"contrast has {value!r}")
    return value


def write_thresholds(folder: Path, refuse_at: dict[str, float]) -> None:
    """Put fitted thresholds into a reader's card."""
    card = read_json(folder / CARD) | {"refuse_at": refuse_at}
    with new_file(folder / CARD) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def released_readers() -> list[Path]:
    """The folders of the readers that come with the program."""
    return sorted(path.parent for path in _RELEASED.glob(f"*/{CARD}"))
