"""Days, part numbers, versions and numbered rooms are found as what they are; what is different stays different."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag.document import Document, Section
from rag.index.embed import open_embedder
from rag.index.lexical.pairs import terms_of
from rag.index.retrieve import search
from rag.index.same.codes import codes_of, names_in
from rag.index.same.days import days_of
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.index.variants import comparable, searchable
from tests.tiny_rag import build_bm25

DAYS = {
    "2024-04-01": "令和6年4月1日 | 令和６年４月１日 | 令和六年四月一日 | 令和 6 年 4 月 1 日 | R6.4.1 | R6/4/1 | "
    "R06.04.01 | 2024年4月1日 | ２０２４年４月１日 | 二〇二四年四月一日 | 2024-04-01 | 2024/4/1 | 2024.4.1 | "
    "2024-04-01T10:30 | April 1, 2024 | April 1st, 2024 | 1 April 2024 | 1st of April 2024 | Apr. 1, 2024 | 1 APR 2024",
    "2019-05-01": "令和元年5月1日 | 令和1年5月1日 | R1.5.1 | 2019年5月1日 | May 1, 2019 | 1 May 2019",
    "1989-01-08": "平成元年1月8日 | H1.1.8 | 平成元年一月八日 | January 8, 1989",
    "1989-01-07": "昭和64年1月7日 | S64.1.7 | 昭和六十四年一月七日 | 1989-1-7",
    "2000-02-29": "平成12年2月29日 | H12.2.29 | 29 February 2000 | 2000/02/29",
    "1988-12-31": "昭和63年12月31日 | 昭和六十三年十二月三十一日 | S63.12.31 | Dec. 31, 1988",
}
NO_DAYS = (
    "may 5 people come", "march 3 times", "04/05/2024", "2024.4", "2024年2月30日", "H13.2.29", "12024-04-01",
    "version 2024.4.1.7", "2024-13-01", "4.1", "第4月", "四十月二日", "令和6年", "2024年度", "May I", "1月32日",
    "Mayor 5",
)  # fmt: skip


@pytest.mark.parametrize("day", DAYS)
def test_a_day_is_the_same_day_in_both_calendars_and_languages(day: str) -> None:
    year, month, of_month = day.split("-")
    for text in DAYS[day].split(" | "):
        for around in (text, f"施行日は{text}です。", f"It began on {text}."):
            found = days_of(comparable(around))
            assert found == [day, f"{year}-{month}", f"--{month}-{of_month}"], around
            assert {day, f"{year}-{month}", f"{year}年"} <= set(terms_of(around)), around


def test_a_month_of_a_year_and_a_day_of_any_year_have_terms_of_their_own() -> None:
    for text in ("令和6年4月", "2024年4月", "April 2024", "2024-04"):
        assert "2024-04" in days_of(comparable(text)), text
    for text in ("4月1日", "四月一日", "April 1", "1 April", "the 1st of April"):
        assert days_of(comparable(text)) == ["--04-01"], text
    index = build_bm25(["2024年4月1日に改定", "2024年4月15日に改定", "2023年4月1日に改定"])
    assert index.top("April 1, 2024", 3)[0][0] == 0
    assert {row for row, _ in index.top("April 1", 3) if row != 1} == {0, 2}
    assert [row for row, _ in index.top("R5.4.1", 1)] == [2]


@pytest.mark.parametrize("text", NO_DAYS)
def test_what_only_looks_like_a_day_is_none(text: str) -> None:
    days = [term for term in days_of(comparable(text)) if term.count("-") >= 2]
    assert days == []


CODES = {
    "KX-250/B": ["kx250/b", "kx250"],
    "ＫＸ－２５０／Ｂ": ["kx250/b", "kx250"],
    "KX–250/B": ["kx250/b", "kx250"],
    "KX250/B": ["kx250/b"],
    "v2.3.1": ["v2.3.1", "2.3.1"],
    "Ver.2.3.1": ["ver.2.3.1", "2.3.1"],
    "9:00-17:30": ["9:00-17:30", "9:00", "17:30"],
    "192.168.0.12": ["192.168.0.12"],
    "max_connections": ["max_connections"],
    "第3会議室": ["第3", "3会"],
    "第三会議室": ["第3", "3会"],
    "第十二条": ["第12", "12条"],
    "C++とC#": ["c++", "c#"],
    "IT-desk, and/or e-mail": [],
    "2024-04-01 2024/4/1": [],
    "13,000円": ["13000円"],
    "a" * 30 + "-1" * 30: [],
}


@pytest.mark.parametrize("text", CODES)
def test_a_code_is_a_term_of_its_own_and_so_are_its_parts_that_are_codes(text: str) -> None:
    assert codes_of(searchable(text)) == CODES[text]


CALLED = (
    "KX-250/B ＫＸ－２５０／Ｂ KX250/B kx-250/b", "KX-250 KX250 kx–250", "v2.3.1 2.3.1 Ver.2.3.1 V2.3.1",
    "第3会議室 第三会議室 第３会議室", "サーバ サーバー ｻｰﾊﾞｰ",
    "コンピュータ コンピューター コンピュ―タ ｺﾝﾋﾟｭｰﾀｰ", "プリンタ プリンター",
    "13,000円 13000円 １３，０００円", "学校 學校",
    "国立 國立", "沢井 澤井", "斎場 齋場", "高木 髙木", "川崎 川﨑", "田辺 田邊 田邉",
)  # fmt: skip
APART = (
    "KX-250/B KX-250/A KX-205/B KX-250B KX-2500 KX-25/0B AKX-250/B", "v2.3.1 v2.31 v23.1 v2.3.10 v2.3 v12.3.1",
    "第3会議室 第2会議室 第13会議室 第3応接室", "カバー カバ", "バッター バッタ", "ハッカー ハッカ", "コピー コピ",
    "13,000円 13円 3,000円 130,000円",
    "9:00 19:00 9:30", "C C++ C#", "2024-04-01 2024-04-11 2024-01-04", "メニュー メニュ",
)  # fmt: skip


@pytest.mark.parametrize("row", CALLED)
def test_what_is_called_by_any_of_its_forms_is_found_in_both_directions(row: str) -> None:
    forms = row.split()
    for asked in forms:
        others = ["unrelated 関係のない文", *(f"{form}について" for form in forms), "another"]
        found = [number for number, _ in build_bm25(others).top(asked, len(forms))]
        assert sorted(found) == list(range(1, len(forms) + 1)), asked


@pytest.mark.parametrize("row", APART)
def test_what_is_different_stays_different(row: str) -> None:
    forms = row.split()
    index = build_bm25([f"{form} について" for form in forms])
    for number, asked in enumerate(forms):
        (best, score), *rest = index.top(asked, len(forms))
        assert best == number and all(other < score for _, other in rest), asked


def test_names_in_a_question_are_codes_of_one_thing_and_no_times_or_amounts() -> None:
    def held(question: str, text: str) -> list[bool]:
        return [bool(name.search(searchable(text).lower())) for name in names_in(searchable(question))]

    assert held("How long is the warranty of the KX-250/B?", "ＫＸ２５０／Ｂ: two years") == [True]
    assert held("KX-250/Bの保証", "KX-250/BXの保証") == [False]
    assert held("KX-250の保証", "KX-250/Bの保証、KX-2500ではない") == [True]
    assert held("Is v2.3 supported?", "version 2.3 is, 2.3.1 is not") == [True]
    assert held("Is v2.3 supported?", "2.3.1 is, 12.3 is not") == [False]
    assert held("第三会議室の定員", "第3会議室は8人") == [True]
    assert held("第3会議室の定員", "第13会議室は8人、第3倉庫") == [False]
    assert held("Who follows ISO 9001:2015?", "ISO 9001:2008 and ISO 14001:2015") == [False]
    assert held("ISO9001:2015の認証", "ISO 9001:2015") == [True]
    for plain in ("at 10:30 on the 2nd", "A4で20枚、13,000円", "2024-04-01から", "1.5 hours", "十時"):
        assert held(plain, plain) == []


def test_the_packaged_embedder_shows_first_what_is_asked_for_by_its_number(tmp_path: Path) -> None:
    """Pages that differ in their number alone are all alike to vectors."""
    models = [f"{series}-{size}/{kind}" for series in ("KX", "KZ") for size in (205, 250, 520) for kind in "AB"]
    months = {model: number + 6 for number, model in enumerate(models)}
    english = tuple(Section((m,), f"The warranty of the {m} pump lasts {months[m]} months.") for m in models)
    japanese = tuple(Section((m,), f"ポンプ{m}の保証期間は{months[m]}か月です。") for m in models)
    rooms = tuple(Section((), f"第{n}会議室の定員は{n + 3}人です。") for n in (1, 2, 3, 13, 23))
    releases = ("2.3", "2.3.1", "2.3.10", "2.31", "12.3.1")
    notes = tuple(Section((f"v{v}",), f"Release {v} repairs fault number {n}.") for n, v in enumerate(releases))
    pages = {"pumps": ("en", english), "ポンプ": ("ja", japanese), "会議室": ("ja", rooms), "releases": ("en", notes)}
    # One section a page: no page is to have more than its share of a list.
    documents = [
        Document(title, f"{title}/{n}.md", lang, (section,))
        for title, (lang, sections) in pages.items() for n, section in enumerate(sections)
    ]  # fmt: skip
    embedder = open_embedder()
    add_documents(tmp_path / "i", documents, embedder)
    generation = open_generation(tmp_path / "i")

    def first(query: str) -> str:
        return generation.chunks[search(generation, embedder, query, 1)[0].row].text

    for model in models:
        assert f"{model} pump" in first(f"How long is the warranty of the {model}?"), model
        assert f"ポンプ{model}の" in first(f"{model.replace('-', '')}の保証は何か月ありますか"), model
    for number, asked in ((3, "第三会議室"), (13, "第13会議室"), (1, "第１会議室")):
        assert first(f"{asked}には何人入れますか").startswith(f"第{number}会議室")
    for number, version in enumerate(releases):
        assert first(f"What does v{version} repair?").endswith(f" {number}."), version
