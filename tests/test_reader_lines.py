"""The lines of a passage: sentences, items, rows and code in two languages, each with its place in the text."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rag.answer.reader.lines import Line, lines_of
from slm.text.visible import one_line, visible


def texts(passage: str) -> list[str]:
    return [line.text for line in lines_of(passage)]


def places(passage: str) -> list[str]:
    return [passage[line.start : line.end] for line in lines_of(passage)]


@pytest.mark.parametrize(
    ("passage", "lines"),
    [
        ("Rooms cost this. No more! Really? Yes", ["Rooms cost this.", "No more!", "Really?", "Yes"]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("Wait...  Then go (by bus).", ["Wait...", "Then go (by bus)."]),
        ("Version 2.5 is at example.com. It works.", ["Version 2.5 is at example.com.", "It works."]),
        ("one sentence. without a capital. And another.", ["one sentence. without a capital.", "And another."]),
        ("料金は5,000円です。税込み！お早めに？はい", ["料金は5,000円です。", "税込み！", "お早めに？", "はい"]),
        ("本館は9時です。 別館は10時です。", ["本館は9時です。", "別館は10時です。"]),
        ("Open daily. 毎日開いています。Come in.", ["Open daily.", "毎日開いています。", "Come in."]),
    ],
)
def test_a_sentence_is_a_line(passage: str, lines: list[str]) -> None:
    assert texts(passage) == places(passage) == lines


@pytest.mark.parametrize(
    "sentence",
    [
        "Ask Dr. Smith or Mrs. J. Brown in room No. 12 today.", "Call ext. 5501 on 3. May at the latest.",
        "Fees (approx. 20 yen, cf. Fig. 3) are due.", "Bring tools, e.g. Hammers, i.e. Heavy ones.",
    ],
)  # fmt: skip
def test_a_full_stop_of_an_abbreviation_or_an_ordinal_ends_no_sentence(sentence: str) -> None:
    assert texts(f"{sentence} Then wait.") == [sentence, "Then wait."]


@pytest.mark.parametrize(
    ("passage", "lines"),
    [
        ("休み（日曜。祝日。）を除きます。終わり。", ["休み（日曜。祝日。）を除きます。", "終わり。"]),
        ("受付（土曜は10時。）から入ります。終わり。", ["受付（土曜は10時。）から入ります。", "終わり。"]),
        ("「本当ですか？」と聞きます。次へ。", ["「本当ですか？」と聞きます。", "次へ。"]),
        ("「はい。」彼は言います。", ["「はい。」", "彼は言います。"]),
        ("「閉じない。次の文。最後。", ["「閉じない。", "次の文。", "最後。"]),
        ("閉じるだけ」。次の文。", ["閉じるだけ」。", "次の文。"]),
        ("『甲。「乙。」丙。』です。次。", ["『甲。「乙。」丙。』です。", "次。"]),
    ],
)  # fmt: skip
def test_a_sentence_does_not_end_inside_brackets_that_close(passage: str, lines: list[str]) -> None:
    assert texts(passage) == places(passage) == lines


def test_the_mark_of_an_item_belongs_to_its_place_and_not_to_its_text() -> None:
    passage = "- First one. More of it.\n  2. Second\n* [x] Done\n> + quoted\n・最初の項目。続き。\n・ 次の項目"
    assert texts(passage) == [
        "First one.", "More of it.", "Second", "Done", "quoted", "最初の項目。", "続き。", "次の項目",
    ]  # fmt: skip
    assert places(passage) == [
        "- First one.", "More of it.", "2. Second", "* [x] Done", "> + quoted", "・最初の項目。", "続き。",
        "・ 次の項目",
    ]  # fmt: skip


def test_a_row_says_what_its_columns_are() -> None:
    passage = "Costs.\n\n| Place | Limit |\n|---|---:|\n| Osaka | 13,000 yen |\n| Abroad | |\n|| 9 yen |\n\nEnd."
    assert texts(passage) == [
        "Costs.", "Place: Osaka, Limit: 13,000 yen", "Place: Abroad", "Limit: 9 yen", "End.",
    ]  # fmt: skip
    assert places(passage) == ["Costs.", "| Osaka | 13,000 yen |", "| Abroad | |", "|| 9 yen |", "End."]
    japanese = "場所 | 上限\n--- | ---\n大阪 | 13,000円 | 税込\n"
    assert texts(japanese) == ["場所: 大阪, 上限: 13,000円, 税込"] and places(japanese) == ["大阪 | 13,000円 | 税込"]


def test_an_escaped_bar_stays_in_its_cell() -> None:
    assert texts("| Key | Does |\n|---|---|\n| a \\| b | either |") == ["Key: a | b, Does: either"]


def test_rows_without_a_header_are_lines_as_they_are() -> None:
    assert texts("| Osaka | 13,000 yen |\n| Tokyo | 14,000 yen |") == [
        "| Osaka | 13,000 yen |",
        "| Tokyo | 14,000 yen |",
    ]
    assert texts("|---|---|\n| Osaka | 1 |") == ["| Osaka | 1 |"]
    assert texts("| | |\n|---|---|\n| Osaka | 1 |") == ["Osaka, 1"]


def test_a_bar_above_a_thematic_break_begins_no_table() -> None:
    assert texts("Press a | b to choose.\n---\nThen wait.") == ["Press a | b to choose.", "Then wait."]


def test_a_table_ends_where_text_begins() -> None:
    assert texts("| A |\n|---|\n| 1 |\nText | with a bar") == ["A: 1", "A: Text, with a bar"]
    assert texts("| A |\n|---|\n| 1 |\n\nText | with a bar") == ["A: 1", "Text | with a bar"]
    assert texts("| A |\n|---|\n| 1 |\nText\n| 2 |") == ["A: 1", "Text", "| 2 |"]


def test_code_is_taken_row_by_row_and_its_fences_are_no_lines() -> None:
    code = "Run:\n```sh\nslm pull a. Then B.\n\n| x | y |\n|---|---|\n~~~\n````\nslm chat\n```\nAfter. End."
    assert texts("Run:\n```sh\nslm pull a. Then B.\n\n| x |\n~~~\n````\nAfter. End.") == [
        "Run:", "slm pull a. Then B.", "| x |", "After.", "End.",
    ]  # fmt: skip
    assert texts(code)[:3] == ["Run:", "slm pull a. Then B.", "| x | y |"]
    assert texts("~~~\nnever closed. Still code.") == ["never closed. Still code."]


def test_code_within_a_row_opens_no_fence() -> None:
    assert texts("```slm pull``` fetches it. Then wait.\nEnd. Really.") == [
        "```slm pull``` fetches it.", "Then wait.", "End.", "Really.",
    ]  # fmt: skip


@pytest.mark.parametrize("passage", ["", " \n\n\t", "---\n***", "| - |\n|---|", "```\n```", "!!! ...", "。\n・"])
def test_what_has_no_letter_or_digit_is_no_line(passage: str) -> None:
    assert lines_of(passage) == []


def test_invisible_characters_are_in_the_place_and_not_in_the_text() -> None:
    passage = "Hotels\u202e in  Osaka\x1b[31m cost\t5\u200b yen. Next."
    assert texts(passage) == ["Hotels in Osaka cost 5 yen.", "Next."]
    assert lines_of(passage)[0] == Line("Hotels in Osaka cost 5 yen.", 0, passage.index(" Next"))


_passages = st.lists(
    st.sampled_from(
        [*"aB1日。！.?! \n\t　\r|-`「」（）>*\u200b\x1b", "。」", "... ", "| a | b |\n|---|---|\n| 1 | ２ |\n", "- ",
         "1. ", "・", "[x] ", "\n\n", "```", "```sh\n", "~~~\n", "Dr. ", "\x1b[31m", "です。", "No. 5", "e.g. ", "\\|",
         "---\n"]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(_passages)
@example("- a. B\n\n| x |\n|-|\n| y |\n")
def test_lines_stand_in_order_apart_and_at_their_places(passage: str) -> None:
    before = 0
    for line in lines_of(passage):
        assert before <= line.start < line.end <= len(passage)
        before = line.end
        place = passage[line.start : line.end]
        assert place == place.strip() and "\n" not in place
        assert line.text == one_line(line.text) and any(map(str.isalnum, line.text))
        if "|" not in passage:
            assert one_line(visible(place)).endswith(line.text)
            assert re.fullmatch(r"[\s>*\-.・\dxX\[\]]*", one_line(visible(place)).removesuffix(line.text))


@settings(max_examples=500, deadline=None)
@given(_passages.map(lambda text: re.sub(r"[|`~\x1b]", "", text)))
def test_no_letter_of_prose_is_lost(passage: str) -> None:
    """What stands in no line is list marks: a number before a full stop or bracket, a ticked box."""
    lines = lines_of(passage)
    left, at = "", 0
    for line in lines:
        left, at = left + passage[at : line.start], line.end
    left += passage[at:]
    assert not any(map(str.isalnum, re.sub(r"\d+[.)][ \t]|\[[xX]\]", "", left)))


def test_a_long_row_is_read_once() -> None:
    import time

    times = []
    for count in (20_000, 80_000):
        begun = time.process_time()
        assert len(lines_of("（あ。い" * count + "）終。")) == 1
        times.append(time.process_time() - begun)
    assert times[1] < 9 * times[0] + 0.1
