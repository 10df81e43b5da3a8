"""Answers as a terminal shows them: marks, rows, tables; what is finished stays, and nothing is lost."""

from __future__ import annotations

import random
import re

import pytest
import wcwidth
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve.chat.screen.glyphs import marked_glyphs
from serve.chat.screen.markdown import ASCII_SIGNS, MarkdownStream
from serve.chat.screen.painter import Painter, painted
from serve.chat.screen.wrapping import row_width, text_rows

DOCUMENT = """\
# 見出し

Here is **bold** and *italic* with `code **x**` and use **kwargs here; 5*3*2, snake_case_name.

- one **bold that is long and goes on over the end of the row** end
- [ ] to do
  1. これはとても長い日本語の文章です。「改行」の位置を確かめるために、もっと長くします。
> quoted
```python
def f(x):  # **not bold**, and a line of code that is longer than the screen is wide
```
| 名前 | n | x |
|:---|--:|:-:|
| りんご 🍎 | 12 | a |
| e\u0301clair **b** | 3 | bb |
---
end ***both*** ~~gone~~ \\*literal\\*
"""
SHOWN = """\
見出し

Here is bold and italic with code **x** and
use **kwargs here; 5*3*2, snake_case_name.

• one bold that is long and goes on over the
  end of the row end
☐ to do
  1. これはとても長い日本語の文章です。「改
     行」の位置を確かめるために、もっと長くし
     ます。
│ quoted
```python
def f(x):  # **not bold**, and a line of code that is longer than the screen is wide
```
名前      │  n │ x
──────────┼────┼───
りんご 🍎 │ 12 │ a
e\u0301clair b  │  3 │ bb
────────────────────────────────────────
end both gone *literal*
"""
SGR = re.compile(r"\x1b\[[0-9;]*m")


def drawn(text: str, columns: int = 46, pieces: int = 1000, seed: int = 0) -> str:
    """What a terminal shows of an answer that comes in pieces of up to so many characters; with its styles."""
    codes: list[str] = []
    painter, chance, at = Painter(codes.append, lambda: columns), random.Random(seed), 0
    while at < len(text):
        size = chance.randint(1, pieces)
        painter.feed(text[at : at + size])
        at += size
    painter.end()
    rows = "".join(codes).split("\n")  # the only movement there is: to the beginning of the row being written
    assert set(re.findall(r"\x1b\[[0-9;]*[A-Za-z]", "".join(codes))) - set(SGR.findall("".join(codes))) <= {"\x1b[K"}
    return "\n".join(row.split("\r")[-1].replace("\x1b[K", "") for row in rows)


def test_a_document_is_drawn_with_its_marks_gone() -> None:
    assert SGR.sub("", drawn(DOCUMENT, pieces=3)) == SHOWN


@pytest.mark.parametrize("seed", range(25))
def test_how_an_answer_is_cut_into_pieces_changes_nothing(seed: int) -> None:
    assert SGR.sub("", drawn(DOCUMENT, pieces=9, seed=seed)) == SHOWN


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("a **b** c", "a \x1b[1mb\x1b[0m c"),
        ("**重要。**次です", "\x1b[1m重要。\x1b[0m次です"),
        ("これは*大事*です", "これは\x1b[3m大事\x1b[0mです"),
        ("use **kwargs", "use **kwargs"),
        ("5*3*2 and 2 * 3 * 4", "5*3*2 and 2 * 3 * 4"),
        ("snake_case_name _it_", "snake_case_name \x1b[3mit\x1b[0m"),
        ("***both***", "\x1b[1;3mboth\x1b[0m"),
        ("``a`b`` `**c**`", "\x1b[36ma`b\x1b[0m \x1b[36m**c**\x1b[0m"),
        (r"\*no\* \d", r"*no* \d"),
        ("**a `b** c", "**a `b** c"),
        ("[text](https://example.com/a_b_c)", "[text](https://example.com/a_b_c)"),
    ],
)
def test_marks_of_a_line(source: str, shown: str) -> None:
    assert painted(marked_glyphs(source, final=True)) == shown


def test_bold_goes_on_over_the_end_of_a_row() -> None:
    first, second = drawn("one **two three four five six** seven", columns=17, pieces=1).split("\n")[:2]
    assert SGR.sub("", first) == "one two three" and SGR.sub("", second) == "four five six"
    assert second.startswith("\x1b[1m") and "\x1b[0m" in first.split("two")[0] + second


def test_a_finished_row_comes_before_the_line_is_whole_and_is_given_once() -> None:
    stream = MarkdownStream(lambda: 12)
    seen = [row for char in "aaaa bbbb cccc dddd" for row in stream.feed(char).finished]
    assert ["".join(g.text for g in row) for row in seen] == ["aaaa bbbb"]
    assert ["".join(g.text for g in row) for row in stream.end().finished] == ["cccc dddd"]


@settings(max_examples=60, deadline=None)
@given(st.text("ab *_`~#>-|1.\n\\日本。「」🍣e\u0301[]()", max_size=120), st.integers(9, 40), st.integers(1, 7))
@example("11111111。。。 ", 15, 1)
def test_no_row_of_any_text_is_wider_than_the_terminal(text: str, columns: int, size: int) -> None:
    stream = MarkdownStream(lambda: columns)
    rows = [stream.feed(text[at : at + size]) for at in range(0, len(text), size)] + [stream.end()]
    for row in (row for written in rows for row in [*written.finished, written.pending]):
        is_code = all(glyph.style in ("36", "2") for glyph in row)
        assert is_code or row_width(row) < columns or any(glyph.text == "」" for glyph in row)


@settings(max_examples=60, deadline=None)
@given(st.text("abc xyz 日本語。\n", max_size=200), st.integers(9, 40), st.integers(1, 7))
def test_nothing_of_a_text_without_marks_is_lost(text: str, columns: int, size: int) -> None:
    shown = drawn(text, columns, size)
    assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", text)


def test_columns_of_a_table_align_for_wide_characters_emoji_and_combining_marks() -> None:
    rows = [row for row in SGR.sub("", drawn(DOCUMENT)).split("\n") if "│" in row and "quoted" not in row]
    assert len(rows) == 3
    places = {tuple(wcwidth.width(row[: m.start()]) for m in re.finditer("│", row)) for row in rows}
    assert len(places) == 1


def test_a_table_that_is_too_wide_has_its_long_cells_on_several_rows() -> None:
    text = "| a | b |\n|---|---|\n| one two three four | five six seven eight |\n"
    shown = SGR.sub("", drawn(text, columns=24)).rstrip().split("\n")
    assert len(shown) > 3 and all(len(row) < 24 for row in shown)
    assert "one" in shown[2] and "five" in shown[2]


def test_lines_with_bars_that_are_no_table_are_shown_as_they_are() -> None:
    assert drawn("| just | bars |\nafter") == "| just | bars |\nafter\n"


def test_closing_marks_do_not_begin_a_row_and_opening_ones_do_not_end_it() -> None:
    for columns in range(10, 24):
        for row in drawn("これは「本当に」長い、とても長い文です。そうです！", columns).split("\n"):
            assert not row.startswith(tuple("、。」！")) and not row.endswith("「")


def test_what_a_model_says_does_nothing_to_the_terminal() -> None:
    assert drawn("a\x1b[2Jb\x07c\u202ed\x9b1m") == "a[2Jbcd1m\n"


def test_signs_are_plain_where_the_terminal_has_no_others() -> None:
    written = MarkdownStream(lambda: 40, ASCII_SIGNS).feed("- a\n> b\n- [x] c\n")
    assert [painted([g for g in row if g.style != "2"]) for row in written.finished] == ["* a", "b", "[x] c"]


def test_notes_are_broken_between_words_and_below_their_text() -> None:
    text = "Sources:\n  1. Trips > Hotels (data/handbook/en/trips.md)\n     “予約は開始の30分前までに、取り消します。”"
    assert text_rows(text, 30) == [
        "Sources:",
        "  1. Trips > Hotels",
        "     (data/handbook/en/trips.m",
        "     d)",
        "     “予約は開始の30分前まで",
        "     に、取り消します。”",
    ]
    assert text_rows("* 2. one two three", 12) == ["* 2. one two", "     three"]
    assert text_rows("a\n\nb", 12) == ["a", "", "b"]
