"""Passages in the order of what a reader makes of their lines."""

from __future__ import annotations

import pytest

from rag.answer.rank import ranked
from slm.errors import InputError
from slm.joints import Passage
from tests.tiny_reader import Pointing


def passage(source: str, text: str, score: float, also: tuple[str, ...] = ()) -> Passage:
    return Passage("Trips", "Hotels", text, source, score, also)


def test_the_likeliest_line_decides_and_the_search_where_none_is_likely() -> None:
    passages = [passage("a", "Book early.", 0.9), passage("b", "Rooms cost up to 90 euros.", 0.1, ("c",))]
    first, second = ranked("What may a room cost?", passages, Pointing("90 euros"), 2)
    assert (first.source, first.also, second.source) == ("b", ("c",), "a") and first.score > second.score
    assert [one.source for one in ranked("What may a room cost?", passages, Pointing("nothing"), 2)] == ["a", "b"]


def test_at_most_two_of_a_page_stand_before_others_and_all_there_is_is_shown() -> None:
    passages = [*(passage("a", f"Room {n} costs 90 euros.", 0.5) for n in range(4)), passage("b", "Book early.", 0.1)]
    judge = Pointing("90 euros")
    assert [one.source for one in ranked("What may a room cost?", passages, judge, 3)] == ["a", "a", "b"]
    assert sorted(one.source for one in ranked("What may a room cost?", passages, judge, 9)) == ["a"] * 4 + ["b"]


def test_a_passage_without_a_line_comes_last_and_a_question_has_to_be_one() -> None:
    passages = [passage("a", "", 0.9), passage("b", "Book early.", 0.1)]
    assert [one.source for one in ranked("When?", passages, Pointing("early"), 2)] == ["b", "a"]
    with pytest.raises(InputError):
        ranked(" ", passages, Pointing("early"), 2)
