"""Figures of answers, and thresholds of refusal, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rag.evaluate.answers import Answered, AskOne, Said, answer_figures, by_reader, evaluate_answers, says
from rag.evaluate.thresholds import fitted, threshold
from rag.questions import Question, read_questions
from slm.errors import DamagedFileError
from tests.tiny_reader import Pointing, document, reading, retriever_of


def test_facts_that_belong_together_have_to_be_said_together() -> None:
    assert says("From 9:00 to 17:00.", ["9:00", "17:00"], together=True)
    assert not says("From 9:00 on.", ["9:00", "17:00"], together=True)
    assert says("From 9:00 on.", ["9:00", "17:00"])
    assert says("9時から17時までです。 [1]", ["9時", "17時"], together=True)
    assert not says("19時から17時までです。", ["9時", "17時"], together=True)
    assert not says("anything", [], together=True) and not says("See this [3].", ["See", "3"], together=True)


def question(text: str, lang: str = "en", *answer: str, kind: str = "", together: bool = False) -> Question:
    relevant = ("a.md",) if answer else ()
    return Question(text, lang, relevant, bool(answer), answer, together, kind)


def said(text: str, *cited: str, refused: bool = False, doubt: float | None = None) -> Said:
    return Said(text, ["a.md", "b.md"], list(cited), refused, doubt)


def test_right_wrong_and_unsaid_part_the_answerable_questions() -> None:
    answers: dict[str, Said] = {
        "right": said("It costs 9 yen [1].", "a.md", doubt=0.1),
        "wrong": said("It costs 8 yen [1].", "a.md", doubt=0.2),
        "elsewhere": said("It costs 9 yen [2].", "b.md", doubt=0.3),
        "unsaid": said("Not found.", refused=True, doubt=0.9),
        "unsaid, its nearest line told": said("Not found: 9 yen.", refused=True, doubt=0.8),
        "both": said("9 yen [1] a day [1].", "a.md"),
        "one of two": said("9 yen [1].", "a.md"),
        "absent": said("Not found.", refused=True, doubt=0.95),
        "invented": said("It costs 9 yen [1].", "a.md", doubt=0.4),
    }
    asked = [
        question("right", "en", "9 yen", kind="sentence"), question("wrong", "en", "9 yen", kind="row"),
        question("elsewhere", "ja", "9 yen", kind="row"), question("unsaid", "ja", "9 yen"),
        question("unsaid, its nearest line told", "ja", "9 yen"),
        question("both", "en", "9 yen", "day", together=True), question("one of two", "en", "9", "day", together=True),
        question("absent", "en", kind="near"), question("invented", "ja", kind="near"),
    ]  # fmt: skip
    seen: list[int] = []
    ask: AskOne = answers.__getitem__
    figures = evaluate_answers(ask, asked, seen.append)
    assert seen == list(range(1, 10))
    assert figures["overall"] == {
        "n": 7, "shown": 7, "cited": 4, "keyed": 7, "right": 3, "wrong": 2, "unsaid": 2, "unanswerable": 2,
        "refused": 1,
    }  # fmt: skip
    assert figures["by_language"]["ja"] == {
        "n": 3, "shown": 3, "cited": 0, "keyed": 3, "right": 1, "wrong": 0, "unsaid": 2, "unanswerable": 1,
        "refused": 0,
    }  # fmt: skip
    assert set(figures["by_kind"]) == {"sentence", "row", "near"}
    assert figures["by_kind"]["row"]["right"] == figures["by_kind"]["row"]["wrong"] == 1
    assert [row["doubt"] for row in figures["answers"]][:2] == [0.1, 0.2]
    assert [row["refused"] for row in figures["answers"]] == [False] * 3 + [True] * 2 + [False] * 2 + [True, False]


def test_a_question_without_keys_is_neither_right_nor_wrong() -> None:
    asked = Question("Who?", "en", ("a.md",), True)
    figures = evaluate_answers(lambda _: said("Anybody [1].", "a.md"), [asked])["overall"]
    assert (figures["n"], figures["keyed"], figures["right"], figures["wrong"]) == (1, 0, 0, 0)
    assert answer_figures([])["n"] == 0


def test_a_line_that_reads_like_a_refusal_is_an_answer(tmp_path: Path) -> None:
    """Whether a reader has refused is known, and not told by its words, which are those of a document."""
    line = "The clerk wrote: I could not find this in the documents."
    trips = retriever_of(tmp_path / "i", [document("a.md", line)])
    ask = by_reader(trips, reading(Pointing("clerk")))
    said = ask("What did the clerk write?")
    assert said.doubt == pytest.approx(0.0067, abs=1e-4)
    assert said == Said(f"{line} [1]", ["a.md"], ["a.md"], False, said.doubt)
    assert by_reader(trips, reading(Pointing()))("What did the clerk write?").refused


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"question": "q", "lang": "en", "relevant": ["a.md"], "answer": ["9"], "together": 1, "kind": "two"}', None),
        ('{"question": "q", "lang": "en", "relevant": []}', "names no relevant document"),
        ('{"question": "q", "lang": "en", "relevant": ["a.md"], "answer": "13,000"}', "is no question"),
        ('{"question": "q", "lang": "en", "relevant": ["a.md"], "answer": [9]}', "is no question"),
        ('{"question": "q", "lang": "en", "relevant": "a.md"}', "is no question"),
    ],
)  # fmt: skip
def test_questions_say_what_belongs_together(line: str, what: str | None, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "p", "lang": "ja", "relevant": ["a.md"]}\n' + line, encoding="utf-8")
    if what:
        with pytest.raises(DamagedFileError, match=f"line 2.*{what}"):
            read_questions(path)
    else:
        assert read_questions(path)[1] == Question("q", "en", ("a.md",), True, ("9",), True, "two")


# Thresholds


def row(doubt: float, right: bool | None, lang: str = "en", *, answerable: bool = True) -> Answered:
    shown: dict[str, Any] = {"shown": True, "cited": True, "refused": False}
    return Answered("q", lang, "", "a", answerable, right=right, doubt=doubt, **shown)


def test_the_threshold_lies_halfway_where_the_sum_is_best() -> None:
    # Sums at a price of 2: 1, 2, 0, 1, 2, 3, 1.
    rows = [row(0.7, False), *(row(value, True) for value in (0.1, 0.2, 0.4, 0.5, 0.6)), row(0.3, False)]
    assert threshold(rows, 2.0) == pytest.approx(0.65)
    # At a price of 4: 1, 2, -2, -1, 0, 1, -3.
    assert threshold(rows, 4.0) == pytest.approx(0.25)
    # At a price of 0 nothing is refused: everything right is worth saying, and the last wrong one costs nothing.
    assert threshold(rows[1:], 0.0) == 1.0


def test_an_answer_where_there_is_none_costs_as_much_as_a_wrong_one() -> None:
    assert threshold([row(0.1, True), row(0.3, None, answerable=False)], 2.0) == pytest.approx(0.2)


def test_everything_or_nothing_may_be_best() -> None:
    assert threshold([row(0.2, True), row(0.9, True)], 2.0) == 1.0
    assert threshold([row(0.2, False), row(0.9, True)], 2.0) == 0.0
    assert threshold([], 2.0) == 0.0


def test_no_threshold_parts_what_is_equally_likely() -> None:
    rows = [row(0.2, True), row(0.2, True), row(0.2, False), row(0.6, True)]
    assert threshold(rows, 1.0) == 1.0  # 2 - 1 + 1
    assert threshold(rows, 3.0) == 0.0
    assert threshold([*rows, row(0.9, False)], 1.0) == pytest.approx(0.75)


def test_each_language_has_its_own_and_the_rest_that_of_all() -> None:
    rows = [row(0.1, True), row(0.3, False), row(0.5, True, "ja"), row(0.7, False, "ja")]
    assert fitted(rows, price=1.2) == pytest.approx({"": 0.2, "en": 0.2, "ja": 0.6})
    assert fitted(rows) == pytest.approx({"": 0.6, "en": 0.2, "ja": 0.6})


def test_a_question_whose_right_answer_nobody_knows_is_not_counted() -> None:
    rows = [row(0.1, True), row(0.2, None), row(0.3, True), row(0.5, False)]
    assert threshold(rows, 2.0) == pytest.approx(0.4)


def test_no_more_is_answered_wrong_than_may_be() -> None:
    rows = [row(0.1, True), row(0.2, False), row(0.3, True), row(0.4, True), row(0.5, False), row(0.6, True)]
    assert threshold(rows, 0.5) == 1.0  # a wrong one costs half a right one, and most are right
    assert threshold(rows, 0.5, most_wrong=0.2) == pytest.approx(0.45)  # one of six may be wrong
    assert threshold(rows, 0.5, most_wrong=0.1) == pytest.approx(0.15)
    assert fitted(rows, 0.5, 0.1) == pytest.approx({"": 0.15, "en": 0.15})
    # What has no answer is not answered wrong, it is no part of the share.
    assert threshold([row(0.1, True), row(0.2, None, answerable=False), row(0.3, True)], 0.5, 0.0) == 1.0
