"""The reading set: every answer stands on its page, and nothing of one split is in another."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

READING = Path(__file__).parent.parent / "data/reading"
SPLITS = ("train", "development", "test")
ORGANISATIONS = sorted(folder for split in SPLITS for folder in (READING / split).iterdir() if folder.is_dir())
KINDS = {"sentence", "row", "heading", "two", "other", "near", "absent"}


def pages_of(organisation: Path) -> dict[str, str]:
    return {
        f"{lang}/{file.name}": file.read_text(encoding="utf-8")
        for lang in ("en", "ja") for file in sorted((organisation / lang).glob("*.md"))
    }  # fmt: skip


def questions_of(organisation: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (organisation / "questions.jsonl").read_text(encoding="utf-8").splitlines()]


def plain(text: str) -> str:
    """Without emphasis and with single spaces: sentences go over line ends."""
    return re.sub(r"[*_`]", "", " ".join(text.split()))


def under_headings(page: str) -> list[tuple[str, str]]:
    """(heading, text under it) of a Markdown page."""
    sections, fence = [("", "")], False
    for line in page.split("\n"):
        fence ^= line.startswith("```")
        match = None if fence else re.match(r"#{1,6} +(.*?) *#*$", line)
        if match:
            sections.append((match.group(1), ""))
        else:
            sections[-1] = (sections[-1][0], f"{sections[-1][1]}{line}\n")
    return sections


@pytest.mark.parametrize("organisation", ORGANISATIONS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_every_key_stands_in_its_place_and_every_place_on_its_page(organisation: Path) -> None:
    pages = pages_of(organisation)
    for question in questions_of(organisation):
        said = question["question"]
        assert question["kind"] in KINDS and question["lang"] in ("en", "ja") and said.strip(), said
        answerable = question["kind"] not in ("near", "absent")
        assert question["answerable"] is answerable
        assert bool(question["places"]) is bool(question["answer"]) is bool(question["relevant"]) is answerable, said
        texts = []
        for place in question["places"]:
            text = plain(place["text"])
            assert place["page"] in question["relevant"], said
            headings = [heading for heading, body in under_headings(pages[place["page"]]) if text in plain(body)]
            assert place["heading"] in headings, (said, headings)
            texts.append(text)
        assert set(question["relevant"]) <= pages.keys()
        found = [key for key in question["answer"] if key in "\n".join(texts)]
        assert len(found) >= (2 if question.get("together") else answerable), (said, question["answer"])
        if question["kind"] == "other":
            assert all(not page.startswith(question["lang"]) for page in question["relevant"]), said


def test_there_are_enough_questions_of_every_kind_in_each_language() -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for organisation in ORGANISATIONS:
        counts.update((question["lang"], question["kind"]) for question in questions_of(organisation))
    for lang in ("en", "ja"):
        of_language = {kind: counts[lang, kind] for kind in KINDS}
        assert sum(of_language.values()) >= 1500 and min(of_language.values()) >= 100, of_language
        missing = of_language["near"] + of_language["absent"]
        assert 0.2 <= missing / sum(of_language.values()) <= 0.3


def test_splits_share_no_page_no_sentence_of_weight_and_no_question() -> None:
    seen: dict[str, dict[str, set[str]]] = {split: {"sentences": set(), "questions": set()} for split in SPLITS}
    for organisation in ORGANISATIONS:
        of_split = seen[organisation.parent.name]
        of_split["questions"] |= {plain(q["question"]).lower() for q in questions_of(organisation)}
        for page in pages_of(organisation).values():
            of_split["sentences"] |= {plain(line) for line in page.split("\n") if len(plain(line)) > 60}
    for one, two in combinations(SPLITS, 2):
        for kind in ("sentences", "questions"):
            assert not seen[one][kind] & seen[two][kind]
    handbook = {plain(line) for file in (READING.parent / "handbook").rglob("*.md")
                for line in file.read_text(encoding="utf-8").split("\n") if len(plain(line)) > 60}  # fmt: skip
    assert not handbook & seen["train"]["sentences"]
