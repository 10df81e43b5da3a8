"""One line in an old table of letters is read, or named as uncertain: never silently as another text."""

from __future__ import annotations

import pytest

from slm.text.encoding.decode import decode
from slm.text.encoding.doubt import Dos, is_doubtful, of_dos


@pytest.mark.parametrize("encoding", ["cp850", "cp437"])
@pytest.mark.parametrize(
    "text",
    ["à la carte", "Menu à la carte", "Où est-il ?", "vis-à-vis", "La chambre est à louer", "Il est là-bas",
     "La città è nella guida della regione", "già pronta per la consegna"],
)  # fmt: skip
def test_everyday_words_of_dos_are_no_dots_and_dashes_of_windows(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)).text == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("où", "cp850"), ("già", "cp850"), ("città", "cp850"), ("Über uns", "cp850"), ("l'università", "cp850"),
        ("Dzień dobry", "cp1250"), ("Praha – střed", "cp1250"), ("Plzeň", "cp1250"), ("tak, że", "cp1250"),
        ("się", "cp1250"), ("ćma", "cp1250"), ("ćma", "iso8859_2"), ("są", "iso8859_2"), ("Jūrmala", "cp1257"),
        ("āda", "cp1257"), ("Ħal Qormi", "iso8859_3"), ("Ċirku", "iso8859_3"), ("Proszę zamknąć drzwi", "cp852"),
    ],
)  # fmt: skip
def test_a_line_of_another_table_is_read_or_named_as_uncertain(text: str, encoding: str) -> None:
    decoded = decode(text.encode(encoding))
    assert decoded.text == text or "not certain" in decoded.note, decoded


@pytest.mark.parametrize(
    "text",
    ["Wait… what?", "one … two … three", "Tea – or coffee", "a deposit… perhaps",
     "Le café est fermé",
     "El Niño", "crème brûlée", "naïve", "Hôtel du Nord", "Straße", "på kontoret",
     "København", "Año nuevo"],
)  # fmt: skip
def test_plain_lines_of_windows_1252_stay_certain(text: str) -> None:
    decoded = decode(text.encode("cp1252"))
    assert (decoded.text, decoded.note) == (text, "")


@pytest.mark.parametrize("text", ["He said “no”—twice.", "São Paulo", "“Anna” and ‘so’"])
def test_a_quotation_mark_and_a_small_letter_are_no_character_of_japanese(text: str) -> None:
    assert decode(text.encode("cp1252")).text == text


def test_dots_between_blanks_are_dots_but_in_a_language_that_writes_a_word_there() -> None:
    assert of_dos("one … two", "one à two") is Dos.NO
    assert of_dos("il y va … la nage", "il y va à la nage") is Dos.PERHAPS
    assert of_dos("… la carte", "à la carte") is Dos.LIKELY


def test_a_letter_in_a_usual_place_or_among_western_words_is_no_reason_for_doubt() -> None:
    assert is_doubtful("Plzeò") and is_doubtful("tak, ¿e")
    assert (
        not is_doubtful("¿Qué?") and not is_doubtful("mañana") and not is_doubtful("cafe") and not is_doubtful("og bæk")
    )
