"""What a reader reads: rows that hold every line of a passage, whatever their number and lengths."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.answer.reader.form import MAX_ROW, cost, rows_of, texts_of
from slm.errors import InputError
from tests.tiny_rag import passage
from tests.tiny_reader import BEGIN, END, Letters, text_of

TABLE = "Prices.\n\n| Place | Limit |\n|---|---|\n| Osaka | 13,000 yen |"
LONGEST_PLACE, LONGEST_LINE = 64, 192


@pytest.mark.parametrize(
    ("question", "text", "place", "lines"),
    [
        ("How much?", TABLE, "Trips > Hotels", ["Prices.", "Place: Osaka, Limit: 13,000 yen"]),
        ("いくら？", "日当は2,500円です。大阪は別です。", "出張 > 宿泊", ["日当は2,500円です。", "大阪は別です。"]),
    ],
)
def test_a_row_is_the_question_the_place_and_the_lines_each_with_its_end(
    question: str, text: str, place: str, lines: list[str]
) -> None:
    title, heading = place.split(" > ")
    texts, found = texts_of(passage(text, title, heading))
    assert texts == [place, *lines] and len(found) == len(lines)
    ((row,),) = rows_of(Letters(), f" {question}\n", [texts])
    parts = [Letters().encode([one])[0][1:] for one in (f"query: {question}", place, *lines)]
    assert list(row.ids) == [BEGIN, *(token for part in parts for token in part)]
    assert list(row.ids[: row.question]) == [BEGIN, *parts[0]]
    assert [list(row.ids[start:end]) for start, end in row.lines] == parts[2:]


def test_each_passage_has_rows_of_its_own_and_one_without_a_line_has_none() -> None:
    rows = rows_of(Letters(), "Why?", [["A", "one"], ["B"], ["", "two", ""]])
    assert [len(of_passage) for of_passage in rows] == [1, 0, 1]
    assert [[end - start for start, end in row.lines] for (row,) in (rows[0], rows[2])] == [[4], [4, 1]]
    assert rows_of(Letters(), "Why?", []) == []


def test_lines_that_do_not_fit_into_one_row_go_on_in_the_next_below_the_same_question_and_place() -> None:
    lines = [f"{number:3} " + "x" * (37 * number % 180) for number in range(30)]
    (rows,) = rows_of(Letters(), "Where?", [["Place", *lines]])
    assert len(rows) > 3
    assert [text_of(row.ids[start:end]) for row in rows for start, end in row.lines] == lines
    head = list(rows[0].ids[: rows[0].lines[0][0]])
    assert all(list(row.ids[: row.lines[0][0]]) == head for row in rows) and text_of(head) == "query: Where?Place"
    for row, following in itertools.pairwise(rows):
        start, end = following.lines[0]
        assert len(row.ids) <= MAX_ROW < len(row.ids) + end - start, "as few rows as hold them"


def test_places_and_lines_are_read_by_their_beginnings() -> None:
    long = passage("Word " * 400 + "end.", "T" * 400, "H")
    texts, _ = texts_of(long)
    assert [len(text) for text in texts] == [300, 600]
    ((row,),) = rows_of(Letters(), "q" * 185, [texts])
    assert row.question == 194
    (start, end), *more = row.lines
    assert more == [] and (start - row.question, end - start) == (LONGEST_PLACE + 1, LONGEST_LINE + 1)
    assert len(row.ids) == end <= MAX_ROW, "the longest question, place and line fit into a row"
    assert row.ids[row.question - 1] == row.ids[start - 1] == row.ids[end - 1] == END


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=185),
    st.lists(st.lists(st.text(max_size=250), min_size=1, max_size=12), max_size=4),
)
def test_every_line_has_one_stretch_in_order_and_no_row_is_too_long(question: str, texts: list[list[str]]) -> None:
    found = rows_of(Letters(), question, texts)
    assert len(found) == len(texts)
    for (place, *lines), rows in zip(texts, found, strict=True):
        spans = [list(row.ids[start:end]) for row in rows for start, end in row.lines]
        assert spans == [[*Letters().encode([line])[0][1:-1][:LONGEST_LINE], END] for line in lines]
        for row in rows:
            assert 0 < len(row.ids) <= MAX_ROW and row.lines
            after = row.question + min(len(place), LONGEST_PLACE) + 1
            assert [start for start, _ in row.lines] == [after, *(end for _, end in row.lines[:-1])]
            assert row.lines[-1][1] == len(row.ids)


@pytest.mark.parametrize("question", ["", " \n\t", "\u200b"])
def test_an_empty_question_is_none(question: str) -> None:
    with pytest.raises(InputError, match="the question is empty"):
        rows_of(Letters(), question, [["A", "one"]])


def test_a_question_of_too_many_characters_or_tokens_says_how_many_are_read() -> None:
    with pytest.raises(InputError, match=r"has 10,000 characters, at most 2,000 are read.*few sentences"):
        rows_of(Letters(), "あ" * 10_000, [])
    with pytest.raises(InputError, match=r"has 193 tokens, at most 192 are read.*few sentences"):
        rows_of(Letters(), "a" * 186, [])


def test_the_cost_of_a_passage_counts_its_lines() -> None:
    assert cost(passage("One. Two. Three.", "", "")) == 4 + round(len("One.Two.Three.") / 4)
