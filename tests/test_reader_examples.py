"""Examples to train a reader on: their marks point at the right lines, whatever is drawn; damaged data are named."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rag.answer.reader.examples import PASSAGES, example_of, require_places, right_lines
from rag.answer.reader.form import FORM, rows_of, texts_of
from rag.questions import AnswerPlace, Question, read_questions
from slm.errors import DamagedFileError
from slm.joints import Passage
from tests.tiny_rag import passage
from tests.tiny_reader import Letters, text_of

TABLE = "Prices.\n\n| Place | Limit |\n|---|---|\n| Osaka | 13,000 yen |\n| Tokyo | 14,000 yen |"
TABLE_JA = "料金です。\n\n| 場所 | 上限 |\n|---|---|\n| 大阪 | 13,000円 |\n| 東京 | 14,000円 |"
RIGHT = passage(TABLE, "Trips", "Hotels", "handbook/en/trips.md")
RIGHT_JA = passage(TABLE_JA, "出張", "宿泊", "handbook/ja/trips.md")
WRONG = [passage(f"Rule {n} holds. {n} is more.", "Rules", f"Rule {n}", f"handbook/en/{n}.md") for n in range(6)]
WRONG_JA = [passage(f"規則{n}です。{n}の続き。", "規則", f"規則{n}", f"handbook/ja/{n}.md") for n in range(6)]
FOUND = [WRONG[0], RIGHT, *WRONG[1:], WRONG_JA[0], RIGHT_JA, *WRONG_JA[1:]]
LANGUAGES = {one.source: one.source.split("/")[1] for one in FOUND}
PLACES = (
    AnswerPlace("en/trips.md", "Hotels", "| Osaka | 13,000 yen |"),
    AnswerPlace("ja/trips.md", "宿泊", "| 大阪 | 13,000円 |"),
)


def question(text: str, lang: str, places: tuple[AnswerPlace, ...], *, together: bool = False) -> Question:
    """A question with the places of its answer, none for one that is not answerable."""
    pages = tuple(place.page for place in places)
    return Question(text, lang, pages, bool(places), together=together, places=places)


ASKED = {
    "en": question("How much in Osaka?", "en", PLACES, together=False),
    "ja": question("大阪ではいくらですか。", "ja", PLACES, together=False),
}
FACT = {"en": "Place: Osaka, Limit: 13,000 yen", "ja": "場所: 大阪, 上限: 13,000円"}


def drawn(asked: Question, found: list[Passage] = FOUND, count: int = 300) -> list[dict[str, Any]]:
    made = [example_of(asked, found, LANGUAGES, Letters(), random.Random(seed)) for seed in range(count)]
    return [one for one in made if one is not None]


def line_at(row: dict[str, Any], number: int) -> str:
    start, end = row["lines"][number]
    return text_of(row["ids"][start:end])


def lines_at(example: dict[str, Any], kind: str) -> list[str]:
    """The texts of the lines that are marked."""
    return [line_at(example["rows"][row], line) for row, line in example[kind]]


def head_of(row: dict[str, Any]) -> tuple[str, str]:
    """(the question, the place) of a row."""
    return text_of(row["ids"][: row["question"]]), text_of(row["ids"][row["question"] : row["lines"][0][0]])


@pytest.mark.parametrize("lang", ASKED)
def test_the_marks_are_on_the_lines_that_answer_and_on_no_other(lang: str) -> None:
    other = {"en": "ja", "ja": "en"}[lang]
    examples = drawn(ASKED[lang])
    assert len(examples) == 300
    for example in examples:
        assert example["form"] == FORM and example["lang"] == lang and example["every"] is False
        assert set(lines_at(example, "right")) <= {FACT[lang]} and set(lines_at(example, "ignored")) <= {FACT[other]}
        marked = {tuple(mark) for mark in (*example["right"], *example["ignored"])}
        for at, row in enumerate(example["rows"]):
            answers = [number for number in range(len(row["lines"])) if line_at(row, number) in FACT.values()]
            assert [number for place, number in sorted(marked) if place == at] == answers


def test_passages_come_in_any_order_with_hard_neighbours_and_sometimes_without_the_right_one() -> None:
    examples = drawn(ASKED["en"], count=1000)
    seen = Counter(len(example["right"]) for example in examples)
    assert seen[0] + seen[1] == 1000 and 80 <= seen[0] <= 170, "about 12 in 100 are without it"
    places = Counter(example["right"][0][0] for example in examples if example["right"])
    assert set(places) == set(range(PASSAGES)) and min(places.values()) > 120
    also = sum(bool(example["ignored"]) for example in examples)
    assert 200 <= also <= 330 and all(example["right"] for example in examples if example["ignored"])
    heads = Counter(head_of(row)[1] for example in examples for row in example["rows"])
    own = sum(count for head, count in heads.items() if head.startswith("Rules"))
    others = sum(count for head, count in heads.items() if head.startswith("規則"))
    assert own > 2 * others > 0
    assert heads["Rules > Rule 0"] > 3 * heads["Rules > Rule 5"], "what retrieval brought first is drawn most"
    for example in examples:
        titles = {head_of(row)[1] for row in example["rows"]}
        assert len(titles) == len(example["rows"]) <= PASSAGES
        assert {head_of(row)[0] for row in example["rows"]} == {"query: How much in Osaka?"}


def test_the_same_draw_makes_the_same_example() -> None:
    assert drawn(ASKED["ja"], count=20) == drawn(ASKED["ja"], count=20)


def test_a_question_without_an_answer_or_whose_page_was_not_found_has_no_right_line() -> None:
    absent = question("Who is the king?", "en", (), together=False)
    for examples in (drawn(absent, count=50), drawn(ASKED["en"], [*WRONG, *WRONG_JA], 50)):
        assert len(examples) == 50 and not any(example["right"] or example["ignored"] for example in examples)


def test_a_question_that_takes_several_lines_says_so() -> None:
    places = (
        AnswerPlace("en/trips.md", "Hotels", "| Osaka | 13,000 yen |"),
        AnswerPlace("en/3.md", "Rule 3", "3 is more."),
    )
    examples = drawn(question("How much, and what more?", "en", places, together=True))
    assert all(example["every"] is True for example in examples)
    most = [example for example in examples if len(example["right"]) == 2]
    assert len(most) > 200
    assert all(sorted(lines_at(one, "right")) == ["3 is more.", FACT["en"]] for one in most)


def test_only_the_page_in_the_other_language_answers() -> None:
    asked = question("大阪ではいくらですか。", "ja", PLACES[:1], together=False)
    for example in drawn(asked):
        assert set(lines_at(example, "right")) <= {FACT["en"]} and not example["ignored"]


def test_nothing_to_read_is_no_example() -> None:
    assert drawn(ASKED["en"], [passage("---"), passage("")], 5) == drawn(ASKED["en"], [], 5) == []


@pytest.mark.parametrize(
    ("place", "lines"),
    [
        (AnswerPlace("en/trips.md", "Hotels", "| Osaka | 13,000 yen |"), [1]),
        (AnswerPlace("trips.md", "", "|Osaka|13,000  yen|"), [1]),
        (AnswerPlace("en/trips.md", "Trips", "| Tokyo | 14,000 yen |"), [2]),  # the page's title for its first section
        (AnswerPlace("en/trips.md", "Trains", "| Osaka | 13,000 yen |"), []),
        (AnswerPlace("en/rips.md", "Hotels", "| Osaka | 13,000 yen |"), []),
        (AnswerPlace("ja/trips.md", "Hotels", "| Osaka | 13,000 yen |"), []),
        (AnswerPlace("en/trips.md", "Hotels", "| Kobe | 12,000 yen |"), []),
    ],
)
def test_a_place_is_a_page_a_heading_and_the_text_whatever_its_blanks(place: AnswerPlace, lines: list[int]) -> None:
    assert right_lines(question("How much?", "en", (place,), together=False), RIGHT) == lines


def test_a_sentence_that_is_cut_into_lines_or_is_part_of_one_is_found() -> None:
    torn = passage("He said to them: wait. Then the rest follows here.")
    place = AnswerPlace("en/leave.md", "Length", "said to them: wait. Then the rest follows here.")
    assert right_lines(question("q", "en", (place,), together=False), torn) == [1]
    short = passage("Yes. It costs 20 yen a day.")  # of what is so short nothing is said by being part of a place
    place = AnswerPlace("en/leave.md", "Length", "Yes. It costs 20 yen a day.")
    assert right_lines(question("q", "en", (place,), together=False), short) == [1]


@pytest.mark.parametrize("mark", ["- ", "3. ", "12) ", ""])
def test_the_mark_or_number_of_a_list_item_is_no_part_of_its_place(mark: str) -> None:
    item = passage(f"{mark}The hall opens at nine in June. It is free.", "Hall", "Minutes")
    for text in ("The hall opens at nine in June. It is free.", "3. The hall opens at nine in June. It is free."):
        assert right_lines(question("q", "en", (AnswerPlace("en/leave.md", "", text),), together=False), item) == [0, 1]


def test_a_reading_set_is_read_and_a_damaged_line_named(tmp_path: Path) -> None:
    pages = [place.page for place in PLACES]
    both = {"question": "And both?", "lang": "en", "relevant": ["a.md"], "together": True}
    rows: list[Any] = [
        {"question": "大阪ではいくらですか。", "lang": "ja", "relevant": pages, "places": [vars(p) for p in PLACES]},
        {"question": "Who is king?", "lang": "en", "answerable": False},
        {**both, "places": [{"page": "a.md", "text": "x"}]},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    assert read_questions(path) == [
        ASKED["ja"], question("Who is king?", "en", ()),
        question("And both?", "en", (AnswerPlace("a.md", "", "x"),), together=True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '"text"',
        "{}",
        '{"question": "q"}',
        '{"question": "q", "lang": "en", "relevant": ["a.md"], "places": 3}',
        '{"question": "q", "lang": "en", "relevant": ["a.md"], "places": [{"page": "a.md"}]}',
        '{"question": "q", "lang": "en", "relevant": ["a.md"], "places": ["a.md"]}',
        '{"question": "q", "lang": "en", "relevant": ["a.md"], "places": [{"page": "a.md", "text": " |-| "}]}',
    ],
)
def test_a_line_that_is_no_question_with_places_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "q", "lang": "en", "relevant": ["a.md"]}\n' + line, encoding="utf-8")
    with pytest.raises(DamagedFileError, match=r"questions.jsonl', line 2 is no question: "):
        read_questions(path)


def test_a_key_that_is_nowhere_on_its_page_is_an_error_and_teaches_nothing() -> None:
    require_places([*ASKED.values(), question("Who?", "en", (), together=False)], FOUND)
    lost = question(
        "How much in Kobe?", "en", (AnswerPlace("en/trips.md", "Hotels", "| Kobe | 12,000 yen |"),), together=False
    )
    with pytest.raises(DamagedFileError, match=r"'How much in Kobe\?' is answered nowhere.*en/trips.md.*Kobe"):
        require_places([ASKED["en"], lost], FOUND)


READING = Path(__file__).parent.parent / "data/reading"


@pytest.mark.parametrize(
    "folder", sorted(READING.glob("*/*/")), ids=lambda folder: f"{folder.parent.name}/{folder.name}"
)
def test_every_place_of_the_reading_set_is_a_line_of_its_page(folder: Path) -> None:
    """Of what is trained on and measured with, as documents are cut into passages."""
    from rag.index.chunk import chunk_document
    from rag.sources.files import read_files

    documents = read_files([folder / "en", folder / "ja"]).documents
    chunks = [chunk for one in documents for chunk in chunk_document(one, 480, len)]
    require_places(
        read_questions(folder / "questions.jsonl"),
        [Passage(one.title, one.heading, one.text, one.source, 0.0) for one in chunks],
    )


def test_rows_are_those_of_answering() -> None:
    example = drawn(ASKED["en"], [RIGHT], 1)[0]
    ((row,),) = rows_of(Letters(), ASKED["en"].question, [texts_of(RIGHT)[0]])
    assert example["rows"] == [{"ids": row.ids, "question": row.question, "lines": row.lines}]
    assert json.loads(json.dumps(example))["right"] == [[0, 1]]


def test_marks_of_a_passage_of_several_rows_are_in_the_row_that_has_the_line() -> None:
    rules = [f"- Rule {n} of the hotel is long{' and longer' * 12}." for n in range(9)]
    long = passage("\n".join([*rules[:5], "- Osaka is 13,000 yen.", *rules[5:], "- Osaka again."]), "Trips", "Hotels",
                   "handbook/en/trips.md")  # fmt: skip
    places = tuple(AnswerPlace("en/trips.md", "Hotels", f"{text}") for text in ("Osaka is 13,000 yen.", "Osaka again."))
    for one in drawn(question("How much in Osaka?", "en", places), [long], 20):
        assert len(one["rows"]) == 5 and sum(len(row["lines"]) for row in one["rows"]) == 11
        if one["right"]:
            assert lines_at(one, "right") == ["Osaka is 13,000 yen.", "Osaka again."]
            assert len({row for row, _ in one["right"]}) == 2
