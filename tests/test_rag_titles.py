"""Titles are questions to sections whose titles are not in the index."""

from __future__ import annotations

import pytest

from rag.bench.titles import measure_titles, titled_sections
from rag.document import Document, Section
from slm.errors import InputError
from tests.tiny_rag import PairEmbedder, own_home

__all__ = ["own_home"]  # a fixture

EN = Document("Manual", "m/guide.en.html", "en", (
    Section(("Manual",), ""), Section(("Manual", "1.2. `Parking`"), "The garage is open all day."),
    Section(("Manual", "Lunch"), "The canteen serves soup."), Section(("Manual", "zzz"), "Guests wear a badge."),
))  # fmt: skip
JA = Document("手引き", "m/guide.ja.html", "ja", (
    Section(("手引き", "駐車場"), "駐車場は終日使えます。"), Section(("手引き", "昼食"), "食堂ではスープを出します。"),
    Section(("手引き", "来客"), "来客は入館証を着けます。"),
))  # fmt: skip
ALONE = Document("Extra", "m/extra.en.html", "en", (Section(("Extra", "Soup"), "Canteen, canteen, canteen."),))


def test_sections_without_heading_or_text_are_left_out_and_languages_meet_by_file_and_number() -> None:
    sections = titled_sections([EN, JA, ALONE])
    assert [(s.source, s.title) for s in sections if s.lang == "ja"] == [
        ("m/guide.*.html#0", "駐車場"), ("m/guide.*.html#1", "昼食"), ("m/guide.*.html#2", "来客"),
    ]  # fmt: skip
    assert [s.title for s in sections if s.lang == "en"] == ["Parking", "Lunch", "zzz", "Soup"]
    assert [s.source for s in sections if s.lang == "en"][1:] == [
        "m/guide.*.html#1", "m/guide.*.html#2", "m/extra.*.html#0",
    ]  # fmt: skip


def test_a_file_is_in_the_language_that_its_name_says_whatever_its_text_is_in() -> None:
    half = Document("第7章", "m/gui.ja.html", "en", (Section(("第7章", "フォント"), "Fonts are not translated yet."),))
    assert [(s.lang, s.source) for s in titled_sections([EN, JA, half]) if s.title == "フォント"] == [
        ("ja", "m/gui.*.html#0")
    ]
    beside = Document("it", "it/en.notes.md", "en", (Section(("it", "Cable"), "Red."),))
    assert titled_sections([beside])[0].source == "it/*.notes.md#0"


def test_recall_is_counted_by_leg_in_each_language_and_across_without_the_titles() -> None:
    result = measure_titles([EN, JA, ALONE], PairEmbedder())
    assert {name: (one["sections"], one["questions"]) for name, one in result.items()} == {
        "en": (4, 4), "ja": (3, 3), "en -> ja": (3, 3), "ja -> en": (4, 3),
    }  # fmt: skip
    # "駐車場" and "来客" stand in their texts, "昼食" does not; no English title does but "Soup", in another section.
    assert result["ja"]["legs"]["lexical"] == {"recall_at_1": 0.667, "recall_at_5": 0.667}
    assert result["en"]["legs"]["lexical"]["recall_at_5"] == 0.0
    # Four texts are all among the first five vectors.
    assert result["en"]["legs"]["dense"]["recall_at_5"] == 1.0
    assert set(result["ja -> en"]["legs"]) == {"dense", "lexical", "fused"}


def test_documents_without_sections_are_an_error() -> None:
    with pytest.raises(InputError, match="no sections with a heading"):
        measure_titles([Document("t", "a.md", "en", (Section((), "text"),))], PairEmbedder())
