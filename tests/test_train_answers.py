"""Answers are judged by rules: each takes what it should and refuses what it should, and counts are as they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from slm.errors import DamagedFileError, InputError, MissingFileError
from train.measure.answers.ask import rows
from train.measure.answers.counts import JudgedAnswer, RightCount, counts_json
from train.measure.answers.items import ChatItem, first_of_each, read_items
from train.measure.answers.rules import RULES, rule_of

ROOT = Path(__file__).parent.parent
EVAL = ROOT / "data/eval.jsonl"
KINDS = ("format", "language", "extraction", "arithmetic", "refusal", "list")

# rule, answers that keep it, answers that break it
CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {"rule": "language", "is": "en"},
        ["The library lends books.", "猫 means cat in English."],
        ["図書館です。", "42"],
    ),
    (
        {"rule": "language", "is": "ja"},
        ["図書館は本を貸します。", "dog は犬のことです。"],
        ["It lends books.", "La bibliothèque prête des livres."],
    ),
    (
        {"rule": "equals", "any": ["Yes"]},
        ["yes", " YES. ", "**Yes**", '"yes."', "ＹＥＳ"],
        ["yes, it is", "no", "y e s"],
    ),
    ({"rule": "equals", "any": ["はい", "そうです"]}, ["はい。", "「はい」", "そうです"], ["はい、恒星です", "いいえ"]),
    ({"rule": "contains", "any": ["no", "9"]}, ["No!", "at 9:00", "番号は9です"], ["I know", "19", "9a"]),
    ({"rule": "contains", "all": ["Tom", "Ravi"]}, ["ravi and TOM"], ["Tom", "Tommy and Ravi"]),
    ({"rule": "contains", "any": ["七", "7"], "all": ["パン"]}, ["パンは７時"], ["パンは八時", "7時"]),
    ({"rule": "lacks", "any": ["big"]}, ["large", "bigger"], ["Big.", "it is big"]),
    ({"rule": "number", "value": 42}, ["42", "17 + 25 = 42.", "４２です", "42.0"], ["42 or 43", "-42", "", "four"]),
    ({"rule": "number", "value": 24000}, ["24,000円", "24000"], ["24", "2,4000"]),
    ({"rule": "number", "value": 3.75}, ["3.75", "3.750."], ["3.7", "375"]),
    (
        {"rule": "json", "values": {"a": "Paris", "n": 2}},
        ['{"n": 2, "a": "paris."}', '```json\n{"a": "Paris", "n": 2}\n```'],
        ['{"a": "Paris"}', '{"a": "Paris", "n": "2"}', 'Here: {"a": "Paris", "n": 2}', "[]", "[" * 5000],
    ),
    ({"rule": "json", "keys": ["a", "b"]}, ['{"b": 1, "a": null}'], ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', "[]"]),
    ({"rule": "json", "count": 2}, ['["x", "y"]', "```\n[1, 2]\n```"], ['["x"]', '{"x": 1, "y": 2}', "x, y"]),
    ({"rule": "lines", "count": 2}, ["a\nb", "a\n\nb\n"], ["a", "a\nb\nc"]),
    ({"rule": "lines", "count": 2, "each": "- .+"}, ["- a\n- b"], ["- a\nb", "-a\n-b"]),
    ({"rule": "parts", "by": ",", "count": 3}, ["a, b, c", "a，b,c."], ["a, b", "a, b, a", "a,,b", "a, b,\nc"]),
    ({"rule": "parts", "by": "、", "count": 2}, ["犬、猫"], ["犬,猫", "犬", "犬、犬"]),
    ({"rule": "length", "unit": "words", "min": 1, "max": 3}, ["one two three"], ["one two three four", "  "]),
    ({"rule": "length", "unit": "characters", "max": 5}, ["雨 の日だ", ""], ["雨の日のため"]),
    (
        {"rule": "length", "unit": "sentences", "min": 2, "max": 2},
        ["It rains. We wait!", "雨です。待ちます。", "Is it 3.5? No", "本当？はい。"],
        ["It rains.", "雨です。待つ。行く。", "..."],
    ),
    ({"rule": "matches", "pattern": r"(a|aa|a|b?a)*c"}, ["aaac"], ["a" * 200 + "b"]),  # without an end, almost
    ({"rule": "matches", "pattern": r"\d\d:\d\d"}, ["14:30", " 14:30\n"], ["14:30.", "at 14:30", "１４：３０"]),
    (
        {"rule": "refuses", "is": True},
        [
            "I cannot tell you that.",
            "I’m sorry, I can't.",
            "The text does not say.",
            "It is not stated.",
            "I do not know.",
            "I don't have access to it.",
            "お答えできません。",
            "わかりません",
            "本文には記載がありません。",
            "書かれていません。",
            "I could not find this in the documents.",
            "資料には見つかりませんでした。",
        ],
        [
            "It is 42.",
            "I'm sorry, it is 42.",
            "You can go.",
            "You do not have to.",
            "42です。",
            "できます。",
            "色は青です。",
        ],
    ),
    ({"rule": "refuses", "is": False}, ["At nine."], ["I am not able to answer."]),
]


@pytest.mark.parametrize(("given", "kept", "broken"), CASES, ids=lambda value: str(value)[:60])
def test_a_rule_takes_what_keeps_it_and_refuses_what_does_not(
    given: dict[str, Any], kept: list[str], broken: list[str]
) -> None:
    rule = rule_of(given)
    assert [answer for answer in kept if not rule.check(answer)] == []
    assert [answer for answer in broken if rule.check(answer)] == []


def test_every_rule_is_held_against_answers() -> None:
    assert {given["rule"] for given, _, _ in CASES} == set(RULES)


@pytest.mark.parametrize(
    "given",
    [
        "number",
        {"rule": "gone"},
        {},
        {"rule": "number"},
        {"rule": "number", "value": "4"},
        {"rule": "number", "value": True},
        {"rule": "number", "value": 4, "more": 1},
        {"rule": "equals", "any": []},
        {"rule": "equals", "any": "yes"},
        {"rule": "matches", "pattern": "("},
        {"rule": "lines", "count": -1},
        {"rule": "lines", "count": True},
        {"rule": "language", "is": "xx"},
        {"rule": "length", "unit": "pages", "max": 1},
        {"rule": "length", "unit": "words"},
        {"rule": "json", "keys": ["a"], "count": 1},
        {"rule": "json", "values": []},
        {"rule": "refuses", "is": "yes"},
        {"rule": "parts", "by": "", "count": 2},
        {"rule": "contains"},
    ],
    ids=str,
)
def test_a_rule_that_says_nothing_that_can_be_checked_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="is no rule"):
        rule_of(given)


def test_the_items_that_come_with_the_program_are_sixty_a_language_ten_of_a_kind_each_with_both_answers() -> None:
    items = read_items(EVAL)  # which holds the rules against the right and the wrong answer of each
    assert Counter((item.lang, item.kind) for item in items) == {(lang, k): 10 for lang in ("en", "ja") for k in KINDS}
    assert all(item.right and item.wrong for item in items)
    assert len({(item.messages[0]["content"], item.messages[-1]["content"]) for item in items}) == 120
    english = [item for item in items if item.lang == "en" and item.kind not in ("language",)]
    assert not any(ord(letter) > 0x2FFF for item in english for letter in item.messages[-1]["content"])


def test_a_quarter_of_the_refusals_or_more_ask_for_an_answer() -> None:
    """Or a model that refuses everything would be the best one."""
    refusals = [item for item in read_items(EVAL) if item.kind == "refusal"]
    answered = [item for item in refusals if item.broken("NOT STATED") and item.broken("I cannot say. 記載なし")]
    assert len([item for item in answered if "only help" not in str(item.right)]) >= 5


def test_none_of_the_items_stands_in_the_training_data() -> None:
    taught = (ROOT / "data/instruct.jsonl").read_text(encoding="utf-8")
    asked = [item.messages[-1]["content"] for item in read_items(EVAL)]
    assert [text for text in asked if json.dumps(text, ensure_ascii=False)[1:-1] in taught] == []


def written(path: Path, *rows_: Any) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows_)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


ROW = {"id": "a", "lang": "en", "kind": "sum", "prompt": "2+2?", "rules": [{"rule": "number", "value": 4}]}


@pytest.mark.parametrize(
    ("row", "said"),
    [("{", "line 2 is no item"), ("[]", "no JSON object"), ({**ROW, "id": ""}, "'id' is no text"),
     ({**ROW, "prompt": 3}, "'prompt' is no text"), ({**ROW, "rules": []}, "no list of rules"),
     ({**ROW, "rules": [{"rule": "sum"}]}, "is no rule"), ({**ROW, "answer": "4"}, "no field 'answer'"),
     ({**ROW, "right": "5"}, "refuse its own right answer \\(number\\)"),
     ({**ROW, "wrong": "4"}, "take its own wrong answer for right"), (dict(ROW), "two items called 'a'")],
)  # fmt: skip
def test_a_line_that_is_no_item_is_named_with_its_number(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(DamagedFileError, match=said):
        read_items(written(tmp_path / "i.jsonl", ROW, row))


def test_a_file_without_items_or_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no item"):
        read_items(written(tmp_path / "i.jsonl", ""))
    with pytest.raises(MissingFileError):
        read_items(tmp_path / "gone.jsonl")


def test_the_document_shows_an_item_that_is_read_and_names_every_rule(tmp_path: Path) -> None:
    page = (ROOT / "docs/chat-evaluation.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if line.startswith('{"id"')]
    assert [one.id for one in read_items(written(tmp_path / "i.jsonl", *shown))] == ["en-1"]
    examples = [
        json.loads(text.replace("[...]", '["x"]')) for text in re.findall(r'^\| `(\{"rule".*?\})` \|', page, re.M)
    ]
    assert {rule["rule"] for rule in examples} == set(RULES)
    for rule in examples:
        rule_of(rule)


def item(name: str, lang: str = "en", kind: str = "sum") -> ChatItem:
    return ChatItem(name, lang, kind, ({"role": "user", "content": name},), (rule_of(ROW["rules"][0]),))


def test_an_item_is_right_when_all_its_rules_are_kept_and_never_when_empty() -> None:
    both = ChatItem(
        "a", "en", "k", (), (rule_of({"rule": "number", "value": 4}), rule_of({"rule": "lacks", "any": ["x"]}))
    )
    assert both.broken("4") == () and both.broken("x 4") == ("lacks",) and both.broken("x") == ("number", "lacks")
    empty = ChatItem("a", "en", "k", (), (rule_of({"rule": "lacks", "any": ["x"]}),))
    assert empty.broken(" \n") == ("empty",)


def test_counts_are_by_language_and_kind_with_the_range_of_wilson() -> None:
    answers = [
        JudgedAnswer(item("a"), "4", ()),
        JudgedAnswer(item("b"), "5", ("number",)),
        JudgedAnswer(item("c", "ja", "x"), "4", ()),
        JudgedAnswer(item("d", "ja"), "", ("not asked",), "too long"),
    ]
    counts = counts_json(answers)
    assert counts["overall"] == {"right": 2, "items": 4, "share": 0.5, "share_low": 0.15, "share_high": 0.85}
    assert counts["by_language"]["ja"]["by_kind"]["x"]["right"] == 1
    assert list(counts["by_language"]["ja"]["by_kind"]) == ["sum", "x"]
    # Wilson's interval of 0 of 10, 81 of 263 (Newcombe 1998, table I: .0000-.2775, .2553-.3662)
    assert RightCount(0, 10).range95() == pytest.approx((0, 0.2775), abs=1e-4)
    assert RightCount(81, 263).range95() == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert rows([("base", answers), ("adapter", answers)]) == [
        ["en", "sum", "1/2", "1/2"], ["en", "all", *["1/2 (9-91 %)"] * 2], ["ja", "sum", "0/1", "0/1"],
        ["ja", "x", "1/1", "1/1"], ["ja", "all", *["1/2 (9-91 %)"] * 2], ["all", "all", *["2/4 (15-85 %)"] * 2],
    ]  # fmt: skip


def test_the_first_of_each_kind_are_taken_in_each_language() -> None:
    items = [item("a"), item("b"), item("c", "ja"), item("d", kind="x"), item("e", kind="x")]
    assert [one.id for one in first_of_each(items, 1)] == ["a", "c", "d"]
    assert first_of_each(items, 0) == items
