"""Brackets in answers: which are citations, and that code, words, links and intervals keep theirs."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rag.answer.cite import Citations
from rag.answer.marks import Mark, Marks, without_marks
from rag.evaluate.answers import says
from tests.tiny_rag import passage

THREE = [passage("alpha"), passage("beta"), passage("gamma")]


def cited_text(answer: str, size: int = 7) -> tuple[str, list[int]]:
    citations = Citations(THREE)
    pieces = [citations.feed(answer[i : i + size]) for i in range(0, len(answer), size)]
    return "".join(pieces) + citations.end(), citations.cited


WORDS = (
    "Edit hosts[1] and a[0, 10] in it.|use array[i] or array[2]|data[3]|naïve[1]|Größe[2]|T_[1] and $[1]|[2]nd|[1][i]|"
    "f(x)[1] = 3|a[0][1] += 2|変数［１］を使う|手順【1】を行う|配列ホスト[1]を直す|【1】申請する\n【2】待つ"
)
INTERVALS = "The range is [0, 10].|x in [1, 9], y in [0, 1]|x = [1, 2, 3]|list [1, 2]|範囲は[1, 3]です|[404] in [2024]"
LINKS = (
    "See [1](http://x.test/a) and [the page][1] and [text](b).|A note[^1] and [^2].|[1]: http://x.test/a|"
    "[ ] open, [x] done|\\[1, 2\\] and \\[1]|[1234567]"
)
CODE = (
    "```python\nhosts[1] = [1]\nx = y [2]\n```|~~~\n [1] \n~~~\n|````\n```\n [1]\n````\n|```\nnever closed [1]|"
    "> ```\n> a [1]\n> ```|Run `cut -f [1]` now|``a ` b [2]`` and `x[1] [9]`|  ```\n  z [7]\n  ```\n|a\n```[1]"
)

DATA = (
    '{"a": [1, 2]}|"ids": [1, 2, 3]|{"a": {"b": [[1, 2], [3]]}, "c": [2]}|'
    '{\n  "rows": [\n    [1, 2],\n    [2, 3]\n  ]\n}|'
    "$$\n[1, 2]\n$$|\\[\n[1, 2]\n\\]|$x \\in [1, 2]$ holds|\\(f: [1, 2]\\)|"
    "x IN [1, 2]|WHERE id IN [1, 2];|for i in [1, 2]:|"
    "between [1, 3]|It lies between [1, 3].|return [1, 2]|sum([1, 2])|f(a, [1, 2])|Step [1] of [3]|See steps [1] to 3|"
    "Run:\n\n    x = y [1]\n    print [2]\n\nDone.|\tsort -k [1]|    a [2]"
)


@pytest.mark.parametrize("text", DATA.split("|"))
def test_numbers_of_data_formulas_steps_and_indented_code_stay_though_they_are_numbers_of_passages(text: str) -> None:
    for size in (1, 2, 5, len(text)):
        assert cited_text(text, size) == (text, [])


def test_a_number_right_after_a_word_stays_and_is_a_citation_where_its_passage_holds_the_sentence() -> None:
    for size in (1, 3, 40):
        assert cited_text("So alpha[1].", size) == ("So alpha[1].", [1])
        assert cited_text("At alpha[1]. Beta[2]", size)[1] == [1, 2]
        assert cited_text("Edit hosts[1] and data[3] there.", size) == ("Edit hosts[1] and data[3] there.", [])


def test_a_paragraph_of_a_list_item_is_no_code() -> None:
    for text in ("1. One\n\n    more [1].", "- a\n    - b [1]\n", "- a\n\n    b [1]\n\n    c [1]"):
        for size in (1, 3, 40):
            assert cited_text(text, size) == (text, [1])


@pytest.mark.parametrize("text", ["[" + "1" * 6000 + "]", *"|".join((WORDS, INTERVALS, LINKS, CODE)).split("|")])
def test_brackets_that_are_no_citations_stay_as_they_are(text: str) -> None:
    for size in (1, 2, 5, len(text)):
        assert cited_text(text, size) == (text, [])


@pytest.mark.parametrize(
    ("text", "shown", "numbers"),
    [
        ("Twenty days [1].", "Twenty days [1].", [1]),
        ("Twenty days [1, 3] a year", "Twenty days [1][3] a year", [1, 3]),
        ("Yes.[2] No.", "Yes.[2] No.", [2]),
        ("20日です[1]。", "20日です[1]。", [1]),
        ("20日です。［２］【3】", "20日です。[2][3]", [2, 3]),
        ("年間20日[1]。", "年間20日[1]。", [1]),
        ("資料[1]によると", "資料[1]によると", [1]),
        ("[2] says so", "[2] says so", [2]),
        ("(see [1])", "(see [1])", [1]),
        ("Bold **days** [1], then", "Bold **days** [1], then", [1]),
        ("`x[1]` is meant [2].", "`x[1]` is meant [2].", [2]),
        ("```\na [1]\n```\nSo it is [2].", "```\na [1]\n```\nSo it is [2].", [2]),
        ("A stray ` tick [1]\nand [2].", "A stray ` tick [1]\nand [2].", [1, 2]),
        ("```one line``` [1]", "```one line``` [1]", [1]),
        ("Made up [7]. And [0].", "Made up. And.", []),
        ("無いです[9]。", "無いです。", []),
        ("Both [7][2].", "Both [2].", [2]),
        ("| 20 | [1] |", "| 20 | [1] |", [1]),
        ("So it is **[1]**.", "So it is **[1]**.", [1]),
        ("So it is _[1]_ and *[2]*", "So it is _[1]_ and *[2]*", [1, 2]),
        ("**Twenty days [1]** a year", "**Twenty days [1]** a year", [1]),
        ("年間**20日[1]**です", "年間**20日[1]**です", [1]),
        ("So it is **[7]**.", "So it is **[7]**.", []),
        ("as stated in [1, 2].", "as stated in [1][2].", [1, 2]),
        ("Sources: [1, 2]", "Sources: [1][2]", [1, 2]),
        ("$20 = 2000 yen [1].", "$20 = 2000 yen [1].", [1]),
        ("It costs $5 [1] or $6 [2].", "It costs $5 [1] or $6 [2].", [1, 2]),
        ("사용 가능합니다[1].", "사용 가능합니다[1].", [1]),
    ],
)
def test_free_standing_numbers_of_passages_are_citations_and_made_up_ones_go(
    text: str, shown: str, numbers: list[int]
) -> None:
    for size in (1, 3, len(text)):
        assert cited_text(text, size) == (shown, numbers)


_answers = st.lists(
    st.sampled_from(
        [*"a日。 \n`[](),19=:>\\\r\x1b\u200b", "です", ". ", "``", "```", "~~~", "[1]", "[2, 3]", "[0, 10]", "［１］",
         "【2】", "\x1b[31m", "\x1b]0;t\x07", "[1](u)", "x[1]", "範囲", "[^1]",
         "    ", "\n\n", "$$\n", "\\[\n", "word", "**", "- ", "1. ", '": ', "Step"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(_answers, st.integers(1, 9))
@example("\x1b]" + "0" * 300 + "\x07 [1].", 1)
@example("[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", 1)
def test_a_streamed_answer_is_the_whole_one_whatever_is_in_it(answer: str, size: int) -> None:
    whole = cited_text(answer, len(answer) or 1)
    assert cited_text(answer, size) == whole
    assert "\x1b" not in whole[0]


@settings(max_examples=200, deadline=None)
@given(_answers)
def test_splitting_loses_nothing(answer: str) -> None:
    marks = Marks()
    parts = [part for letter in answer for part in marks.split(letter)] + list(marks.split("", final=True))
    joined = "".join(p.blank + "".join(text for text, _ in p.brackets) if isinstance(p, Mark) else p for p in parts)
    assert joined == answer


def test_a_citation_that_is_added_does_not_break_a_fence() -> None:
    answer = "Alpha:\n```\nalpha alpha\n```"
    text, numbers = cited_text(answer)
    assert numbers == [1] and text == answer + "\n\n[1]"
    assert cited_text(answer[:-3]) == (answer[:-3], [])


def test_a_row_of_brackets_that_comes_piece_by_piece_is_read_once() -> None:
    times = []
    for count in (1_000, 4_000):
        begun = time.process_time()
        cited_text("[1]" * count, 3)
        times.append(time.process_time() - begun)
    assert times[1] < 9 * times[0] + 0.1


def test_what_is_shown_at_once_is_all_but_what_may_change() -> None:
    citations = Citations(THREE)
    assert citations.feed("See [2].") == "See [2]."
    assert citations.feed(" A [") == " A"
    assert citations.feed("1") == ""
    assert citations.feed("] b `co") == " [1] b "
    assert citations.feed("de` x") == "`code` x"


def test_a_fact_in_brackets_of_a_word_is_said_and_a_citation_is_not() -> None:
    assert says("Edit hosts[1] there.", ["hosts[1]"]) and not says("It is so [3].", ["3"])
    assert without_marks("a [1] b[2] `[3]`") == "a b[2] `[3]`"
