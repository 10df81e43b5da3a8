"""The data that comes with the project is what its README says: enough, distinct, in the right language, and true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from slm.text.language import detect

DATA = Path(__file__).parent.parent / "data"
HEADERS = {
    "en": "Answer the question using only the passages below.",
    "ja": "次の資料だけを使って質問に答えてください。",
}
NOT_FOUND = {"en": "I could not find this in the documents.", "ja": "資料には見つかりませんでした。"}


def instruct() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / "instruct.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_plain_text_has_200_distinct_sentences_in_its_language(lang: str) -> None:
    lines = [line for line in (DATA / f"{lang}.txt").read_text(encoding="utf-8").splitlines() if line]
    assert len(set(lines)) == len(lines) >= 200
    assert {detect(line).language for line in lines} == {lang}


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_instruction_data_has_150_distinct_examples_in_its_language(lang: str) -> None:
    examples = [e for e in instruct() if e["lang"] == lang]
    firsts = {e["messages"][0]["content"] for e in examples}
    assert len(firsts) == len(examples) >= 150
    for example in examples:
        roles = [m["role"] for m in example["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(m["content"].strip() == m["content"] != "" for m in example["messages"])
        answer = example["messages"][-1]["content"]
        assert detect(answer).language in (lang, None), answer


def test_grounded_examples_cite_a_passage_that_is_there_or_say_that_none_answers() -> None:
    grounded = [e for e in instruct() if e["messages"][0]["content"].startswith(HEADERS[e["lang"]])]
    assert min(sum(e["lang"] == lang for e in grounded) for lang in HEADERS) >= 30
    for example in grounded:
        prompt, answer = (m["content"] for m in example["messages"][:2])
        numbers = re.findall(r"^\[(\d)\] .+ > .+$", prompt, re.MULTILINE)
        assert numbers == [str(n) for n in range(1, len(numbers) + 1)], prompt
        cited = re.findall(r"\[(\d)\]", answer)
        assert answer == NOT_FOUND[example["lang"]] if not cited else set(cited) <= set(numbers), answer


def test_the_handbook_has_the_same_20_pages_in_both_languages() -> None:
    pages = {lang: sorted(p.name for p in (DATA / "handbook" / lang).glob("*.md")) for lang in ("en", "ja")}
    assert pages["en"] == pages["ja"]
    assert len(pages["en"]) >= 20
    for lang, names in pages.items():
        for name in names:
            text = (DATA / "handbook" / lang / name).read_text(encoding="utf-8")
            assert text.startswith("# ")
            assert text.count("\n## ") >= 3, name
            assert detect(text).language == lang


def test_every_page_says_the_same_numbers_of_four_digits_and_more_in_both_languages() -> None:
    for page in sorted((DATA / "handbook" / "en").glob("*.md")):
        english, japanese = (
            set(re.findall(r"\d{1,3}(?:,\d{3})+", (DATA / "handbook" / lang / page.name).read_text(encoding="utf-8")))
            for lang in ("en", "ja")
        )
        # Japanese writes round ten-thousands with 万, so English figures may be missing there, never the reverse.
        assert japanese <= english, page.name


def test_the_questions_name_pages_that_exist() -> None:
    lines = (DATA / "handbook" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    for question in questions:
        assert bool(question["relevant"]) == question["answerable"]
        assert all((DATA / "handbook" / page).is_file() for page in question["relevant"])
        assert detect(question["question"]).language == question["lang"]
        pages = [DATA / "handbook" / page for page in question["relevant"] if page.startswith(question["lang"])]
        text = "".join(page.read_text(encoding="utf-8") for page in pages)
        assert bool(question.get("answer")) == question["answerable"]
        assert any(fact in text for fact in question.get("answer", [""])), question["question"]
    assert {(q["lang"], q["answerable"]) for q in questions} == {
        (lang, a) for lang in ("en", "ja") for a in (True, False)
    }
