"""A reader's card: what is taken from it, what is refused, and that thresholds are written into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rag.answer.reader.card import CARD, ReaderCard, read_card, write_card
from rag.answer.reader.form import FORM
from slm.artifacts import new_folder
from slm.errors import DamagedFileError, MismatchError, MissingFileError

SOUND: dict[str, Any] = {"form": FORM, "scale": 20.0, "offset": -18.0, "refuse_at": {"en": 0.4, "": 0.5}}


def folder_with(path: Path, card: Any, base: dict[str, Any] | None = None) -> Path:
    """An adapter folder with this card; text as it is, else JSON."""
    with new_folder(path, "adapter") as (folder, manifest):
        (folder / CARD).write_text(card if isinstance(card, str) else json.dumps(card), encoding="utf-8")
        manifest.update(base=base)
    return path


def test_a_card_says_the_scale_the_thresholds_and_the_base(tmp_path: Path) -> None:
    base = {"fingerprint": "f00d", "weights": "beef", "path": "/somewhere", "architecture": "bert"}
    read = read_card(folder_with(tmp_path / "r", SOUND, base))
    assert read == ReaderCard(20.0, -18.0, {"en": 0.4, "": 0.5}, frozenset({"f00d", "beef"}))
    assert read_card(folder_with(tmp_path / "s", SOUND)).base == frozenset()


def test_a_folder_without_a_card_is_no_reader(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(MissingFileError, match=r"is no reader: it has no reader\.json.*slm train reader"):
            read_card(path)


@pytest.mark.parametrize(
    "card",
    [
        "{", "[]", "{}", {**SOUND, "scale": "much"}, {**SOUND, "scale": None}, {**SOUND, "offset": [1]},
        {**SOUND, "scale": float("inf")}, {**SOUND, "offset": float("nan")}, {**SOUND, "refuse_at": {"en": "often"}},
        {**SOUND, "refuse_at": [0.5]}, {**SOUND, "refuse_at": {"en": float("nan")}}, {**SOUND, "form": "one"},
        {**SOUND, "form": None}, *({key: SOUND[key] for key in SOUND if key != left} for left in SOUND),
    ],
)  # fmt: skip
def test_a_damaged_card_is_named(tmp_path: Path, card: Any) -> None:
    with pytest.raises(DamagedFileError, match=r"reader\.json"):
        read_card(folder_with(tmp_path / "r", card))


@pytest.mark.parametrize("form", [1, FORM + 1])
def test_a_reader_of_another_form_is_refused(tmp_path: Path, form: int) -> None:
    """Form 1 had two tokens in place of a scale."""
    card = {"form": form, "contrast": ["yes", "no"], "refuse_at": {"": 0.5}}
    with pytest.raises(MismatchError, match=f"form {form}, this version asks in form {FORM}.*make reader"):
        read_card(folder_with(tmp_path / "r", card))


def test_thresholds_replace_those_of_the_card_and_nothing_else(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "r", {**SOUND, "note": "日本語"})
    write_card(folder, refuse_at={"": 0.6, "ja": 0.7})
    assert json.loads((folder / CARD).read_text()) == {**SOUND, "refuse_at": {"": 0.6, "ja": 0.7}, "note": "日本語"}
    assert read_card(folder).refuse_at == {"": 0.6, "ja": 0.7}
    assert {path.name for path in folder.iterdir()} == {CARD, "manifest.json"}
