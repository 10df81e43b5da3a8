"""A reader's card: what is taken from it, what is refused, and that thresholds are written into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rag.answer import card as module
from rag.answer.reader.card import CARD, ReaderCard, read_card, released_readers, write_thresholds
from rag.answer.reader.form import FORM
from slm.artifacts import new_folder
from slm.errors import DamagedFileError, MismatchError, MissingFileError

SOUND: dict[str, Any] = {"form": FORM, "contrast": ["yes", "no"], "refuse_at": {"en": 0.4, "": 0.5}}


def folder_with(path: Path, card: Any, base: dict[str, Any] | None = None) -> Path:
    """An adapter folder with this card; text as it is, else JSON."""
    with new_folder(path, "adapter") as (folder, manifest):
        (folder / CARD).write_text(card if isinstance(card, str) else json.dumps(card), encoding="utf-8")
        manifest.update(base=base)
    return path


def test_a_card_says_the_tokens_the_thresholds_and_the_base(tmp_path: Path) -> None:
    base = {"fingerprint": "f00d", "weights": "beef", "path": "/somewhere", "architecture": "gemma3_text"}
    read = read_card(folder_with(tmp_path / "r", SOUND, base))
    assert read == ReaderCard(("yes", "no"), {"en": 0.4, "": 0.5}, frozenset({"f00d", "beef"}))
    assert read_card(folder_with(tmp_path / "s", SOUND)).base == frozenset()


def test_a_folder_without_a_card_is_no_reader(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(MissingFileError, match=r"is no reader: it has no reader\.json.*slm train reader"):
            read_card(path)


@pytest.mark.parametrize(
    "card",
    [
        "{", "[]", "{}", {**SOUND, "contrast": ["yes"]}, {**SOUND, "contrast": 3}, {**SOUND, "contrast": None},
        {**SOUND, "contrast": [1, 2]}, {**SOUND, "contrast": "no"}, {**SOUND, "refuse_at": {"en": "often"}},
        {**SOUND, "refuse_at": [0.5]}, {**SOUND, "refuse_at": {"en": float("nan")}}, {**SOUND, "form": "one"},
        {key: value for key, value in SOUND.items() if key != "form"},
    ],
)  # fmt: skip
def test_a_damaged_card_is_named(tmp_path: Path, card: Any) -> None:
    with pytest.raises(DamagedFileError, match=r"reader\.json"):
        read_card(folder_with(tmp_path / "r", card))


def test_a_reader_of_other_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=f"form {FORM + 1}, this version asks in form {FORM}.*make reader"):
        read_card(folder_with(tmp_path / "r", {**SOUND, "form": FORM + 1}))


def test_thresholds_replace_those_of_the_card_and_nothing_else(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "r", {**SOUND, "note": "日本語"})
    write_thresholds(folder, {"": 0.6, "ja": 0.7})
    assert json.loads((folder / CARD).read_text()) == {**SOUND, "refuse_at": {"": 0.6, "ja": 0.7}, "note": "日本語"}
    assert read_card(folder).refuse_at == {"": 0.6, "ja": 0.7}
    assert {path.name for path in folder.iterdir()} == {CARD, "manifest.json"}


def test_released_readers_are_the_folders_with_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a"):
        folder_with(tmp_path / name, SOUND)
    (tmp_path / "none").mkdir()
    monkeypatch.setattr(module, "_RELEASED", tmp_path)
    assert released_readers() == [tmp_path / "a", tmp_path / "b"]
