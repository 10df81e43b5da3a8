"""From scores to an answer, by hand: shares, refusal by language, a second line, numbers of passages."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.answer.point import SECOND, Judged, point
from rag.answer.reader.lines import lines_of
from slm.joints import PointedAnswer
from tests.tiny_rag import passage

EN, JA = "How much may a hotel cost?", "ホテルはいくらまでですか。"
TWO_EN, TWO_JA = "What does a room cost, and when is breakfast?", "大人と子どもはそれぞれいくらですか。"
NEVER = {"": 1.0}


def judged(text: str, *weights: float) -> Judged:
    """A passage whose lines are `weights` times as likely to answer as it is that none does."""
    one = passage(text, source=f"{text[:1]}.md")
    return Judged(one, lines_of(text), [math.log(weight) for weight in weights])


def answer(question: str, *parts: Judged, refuse_at: Mapping[str, float] = NEVER) -> PointedAnswer:
    return point(question, parts, refuse_at)


def test_shares_are_the_softmax_over_all_lines_and_none() -> None:
    found = answer(EN, judged("Aa. Bb.", 3.6, 0.2), judged("Cc.", 0.2))
    assert [one.text for one in found.nearest] == ["Aa.", "Bb.", "Cc."]
    assert [one.share for one in found.nearest] == pytest.approx([0.72, 0.04, 0.04])
    assert found.doubt == pytest.approx(1 - 0.72)
    assert found.text == "Aa. [1]" and [one.text for one in found.said] == ["Aa."]


@pytest.mark.parametrize(
    ("question", "refuse_at", "refused"),
    [
        (EN, {"en": 0.41, "ja": 0.1, "": 0.1}, False), (EN, {"en": 0.39, "ja": 0.9, "": 0.9}, True),
        (JA, {"en": 0.1, "ja": 0.41, "": 0.1}, False), (JA, {"en": 0.9, "ja": 0.39, "": 0.9}, True),
        (EN, {"ja": 0.1, "": 0.41}, False), (JA, {"en": 0.9, "": 0.39}, True),
        (EN, {}, False), (EN, {"": 0.0}, True), (JA, {"": 1.0}, False),
    ],
)  # fmt: skip
def test_it_refuses_from_the_threshold_of_the_questions_language_on(
    question: str, refuse_at: dict[str, float], refused: bool
) -> None:
    found = answer(question, judged("Aa. Bb. Cc.", 1.8, 0.1, 0.1), refuse_at=refuse_at)  # 1.8 of three, one for none
    assert (not found.said) is refused
    assert [one.text for one in found.nearest] == ["Aa.", "Bb.", "Cc."], "what is nearest is told either way"


def test_a_refusal_says_so_in_the_questions_language() -> None:
    none = {"": 0.0}
    assert answer(EN, judged("Aa.", 9), refuse_at=none).text == "I could not find this in the documents."
    assert answer(JA, judged("Aa.", 9), refuse_at=none).text == "資料には見つかりませんでした。"


@pytest.mark.parametrize("refuse_at", [1.0, 2.0])
def test_without_a_line_there_is_nothing_to_say(refuse_at: float) -> None:
    for parts in ((), (judged(""), judged("---"))):
        found = answer(EN, *parts, refuse_at={"": refuse_at})
        assert found == PointedAnswer("I could not find this in the documents.", [], (), (), 1.0)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ((3, 1.2), ["Aa.", "Bb."]), ((1.2, 3), ["Bb.", "Aa."]),
        ((3, 3 * SECOND * 0.99), ["Aa."]),  # not likely enough beside the first
        ((0.8, 0.7), ["Aa.", "Bb."]),  # whether anything answers is for the threshold to say
        ((30, 0.5), ["Aa."]),
    ],
)  # fmt: skip
def test_a_second_line_is_said_when_it_is_likely_beside_the_first(weights: tuple[float, ...], said: list[str]) -> None:
    assert [one.text for one in answer(EN, judged("Aa. Bb.", *weights)).said] == said


@pytest.mark.parametrize("question", [TWO_EN, TWO_JA])
def test_a_question_for_two_things_has_an_unlikely_second_line_said(question: str) -> None:
    for weight, said in ((3 * 0.021, 2), (3 * 0.019, 1)):
        assert len(answer(question, judged("Aa. Bb.", 3, weight)).said) == said


def test_a_second_line_is_found_behind_translations_of_both() -> None:
    parts = judged("Up to 9 yen. At noon.", 9, 6), judged("9円までです。正午です。", 8, 7)
    assert [one.text for one in answer(TWO_EN, *parts).said] == ["Up to 9 yen.", "At noon."]


def test_a_third_line_is_never_said() -> None:
    found = answer(EN, judged("Aa. Bb. Cc. Dd.", 9, 9, 9, 9))
    assert found.text == "Aa. [1] Bb. [1]" and len(found.nearest) == 3


def test_a_translation_or_a_repetition_of_the_first_line_is_not_said_beside_it() -> None:
    assert answer(EN, judged("Up to 9 yen.", 9), judged("9円までです。", 8)).text == "Up to 9 yen. [1]"
    assert answer(JA, judged("Up to 9 yen.", 8), judged("9円までです。", 9)).text == "9円までです。 [1]"
    assert answer(EN, judged("Up to 9 yen.", 9), judged("Up to 9 yen.", 8)).text == "Up to 9 yen. [1]"


def test_passages_are_numbered_anew_in_the_order_of_their_likeliest_lines() -> None:
    parts = judged("Aa. Bb.", 0.1, 0.1), judged("Cc.", 0.2), judged("Dd. Ee.", 5, 4), judged("Ff.", 0.01)
    found = answer(EN, *parts)
    assert [one.source for one in found.passages] == ["D.md", "C.md"]
    assert [(one.passage, one.text) for one in found.nearest] == [(1, "Dd."), (1, "Ee."), (2, "Cc.")]
    assert found.text == "Dd. [1] Ee. [1]" and found.said == found.nearest[:2]
    refused = answer(EN, *parts, refuse_at={"": 0.0})
    assert refused.passages == found.passages and refused.nearest == found.nearest and refused.said == ()


_scores = st.integers(-2400, 2400).map(lambda number: number / 8)


@given(st.lists(_scores, min_size=2, max_size=2), st.lists(_scores, min_size=1, max_size=1))
def test_any_scores_give_probabilities(two: list[float], one: list[float]) -> None:
    first, second = passage("Aa. Bb."), passage("大阪です。")
    parts = [Judged(first, lines_of(first.text), two), Judged(second, lines_of(second.text), one)]
    found = point(EN, parts, NEVER)
    shares = [quotation.share for quotation in found.nearest]
    assert sum(shares) <= 1.0 + 1e-9 and all(0.0 <= share <= 1.0 for share in shares)
    said = sum(quotation.share for quotation in found.said)
    assert 0.0 <= found.doubt <= 1.0 - said + 1e-9
    # The likeliest line goes first, or one in the question's script that is at least half as likely.
    assert shares[0] == max(shares) or (shares[0] >= 0.5 * max(shares) and found.nearest[0].text != "大阪です。")
    for quotation in found.nearest:
        there = found.passages[quotation.passage - 1].text
        assert there[quotation.start : quotation.end] == quotation.text


def test_a_line_in_the_questions_language_goes_before_its_translation() -> None:
    page, ページ = judged("Hotels cost 9 yen. Aa.", 3, 0.1), judged("宿は9円です。", 4)
    for question, first in ((EN, "Hotels cost 9 yen."), (JA, "宿は9円です。")):
        found = answer(question, page, ページ)
        assert [one.text for one in found.said] == [first], "the other one says the same"
        assert found.doubt == pytest.approx(1 - 7 / 8.1)
    assert answer(EN, judged("Aa.", 1), judged("宿は9円です。", 4)).said[0].text == "宿は9円です。"


def test_a_score_is_needed_for_each_line() -> None:
    with pytest.raises(ValueError, match="argument"):
        answer(EN, judged("Aa. Bb.", 1))
