"""Questions that ask for two things are told from those that ask for one, and anything may be asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.answer.point import TWOFOLD
from rag.answer.twofold import LEARNED, WEIGHTS, asks_for_two, pieces
from scripts.twofold import matrix_of, questions_of


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_most_that_ask_for_two_things_are_seen_and_hardly_any_other(lang: str) -> None:
    """The development organisations, of which nothing was learned."""
    held = [one for one in questions_of("development") if one.lang == lang]
    two, one = (
        [asks_for_two(asked.question) >= TWOFOLD for asked in held if asked.together is together]
        for together in (True, False)
    )
    assert len(two) >= 40 and sum(two) / len(two) >= 0.55
    assert len(one) >= 500 and sum(one) / len(one) <= 0.02


@pytest.mark.parametrize(
    ("two", "one"),
    [
        ("What does a room cost, and when is breakfast?", "What does a room cost?"),
        ("大人と子どもはそれぞれいくらですか。", "大人はいくらですか。"),
    ],
)
def test_the_same_question_with_and_without_a_second_half(two: str, one: str) -> None:
    assert asks_for_two(two) >= TWOFOLD > asks_for_two(one)


@given(st.text(max_size=300))
def test_any_text_is_a_question_for_one_or_for_two(text: str) -> None:
    assert 0 < asks_for_two(text) < 1
    assert all(0 <= place < WEIGHTS for place in pieces(text))


def test_forms_of_the_same_letters_are_the_same_question() -> None:
    assert pieces("ＷＨＡＴ does　it cost?") == pieces("what does it cost?")


def test_the_model_is_fitted_on_what_it_is_asked_with() -> None:
    """A row of the matrix times the weights is the score of its question."""
    questions = questions_of("development")[:50]
    weights = np.load(LEARNED).astype(np.float32)
    scores = matrix_of(questions) @ weights[:-1] + weights[-1]
    assert 1 / (1 + np.exp(-scores)) == pytest.approx([asks_for_two(one.question) for one in questions], abs=1e-5)
