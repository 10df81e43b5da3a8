"""Old and new characters, variants in names, and years by era find each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag.document import Document, Section
from rag.index import variants
from rag.index.embed import open_embedder
from rag.index.lexical.pairs import terms_of
from rag.index.retrieve import search
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.index.variants import comparable, folded, years_of
from tests.tiny_rag import build_bm25

SAME = """
渡辺 渡邊 渡邉 渡邉\U000e0101 | 高橋 髙橋 髙槗 | 浜田 濱田 濵田 | 山崎 山﨑 山嵜 | 斎藤 齋藤 齊藤 斉藤 | 沢 澤 | 広 廣
国 國 圀 | 島 嶋 嶌 | 富田 冨田 | 桜井 櫻井 | 吉野家 𠮷野家 | 佐々木 佐佐木 | 霞ケ関 霞ヶ関 | パソコン ﾊﾟｿｺﾝ
学校 學校 | 会社 會社 | 株式会社 ㍿ | 神 神
"""
DIFFERENT = "渡部 渡辺 高田 高橋 山崎 山埼 大阪 大坂 脇 脅 太田 大田 川 河 畑 畠 工 エ"
YEARS = """
2024 令和6年 令和６年度 令和_6_年 令和六年七月 R6年 R6.7.1 R6の改定 R6 二〇二四年 ２０２４年 2024年度 Reiwa_6 FY2024
2024 July_2024 2024-07-01 | 2019 令和元年 平成31年 | 2018 平成30年度 H30.4.1 平成三十年 ㍻30年 Heisei_30
1989 平成元年 昭和64年 | 1988 昭和六十三年 S63年 Shōwa_63 | 1923 大正12年 | 1912 明治45年
"""
NO_YEARS = "S3_bucket H2_heading 昭和65年 昭和の日 令和 平成0年 平成十十年 R6X 12024 0120-20245 M12ボルト"


@pytest.mark.parametrize("names", [line.strip() for line in SAME.replace("\n", "|").split("|") if line.strip()])
def test_all_forms_of_a_name_are_compared_as_one(names: str) -> None:
    assert len({folded(name) for name in names.split()}) == 1
    assert len({tuple(terms_of(name)) for name in names.split()}) == 1


def test_different_names_stay_different() -> None:
    assert len({folded(name) for name in DIFFERENT.split()}) == len(DIFFERENT.split())


def test_no_character_is_changed_twice_so_that_the_order_of_the_table_does_not_matter() -> None:
    changed = {chr(code): form for code, form in variants._TABLE.items() if form}
    assert not set(changed) & set(changed.values())


@pytest.mark.parametrize("row", [row.strip() for row in YEARS.replace("\n", "|").split("|") if row.strip()])
def test_a_year_is_the_same_year_however_it_is_written(row: str) -> None:
    year, *texts = row.split()
    for text in (text.replace("_", " ") for text in texts):
        assert years_of(comparable(text)) == [int(year)], text
        assert f"{year}年" in terms_of(text)


@pytest.mark.parametrize("text", NO_YEARS.replace("_", " ").split())
def test_what_only_looks_like_a_year_is_none(text: str) -> None:
    assert years_of(comparable(text)) == []


def test_an_era_is_still_found_by_its_own_name_and_the_text_is_not_changed(tmp_path: Path) -> None:
    index = build_bm25(["令和6年7月に改定", "2023年に改定"])
    assert [row for row, _ in index.top("令和", 5)] == [0]
    assert [row for row, _ in index.top("2024年", 1)] == [0]


SURNAMES = (
    "佐々木 宮﨑 山口 小林 山中 高山 伊藤 加藤 池田 近藤 石井 坂本 濵田 齋藤 渡邉 渡部 髙橋 橋本 邊見 田中".split()  # noqa: SIM905
)
FOUND = "渡辺:渡邉 高橋:髙橋 浜田:濵田 斉藤:齋藤 宮崎:宮﨑 辺見:邊見 佐佐木:佐々木"
REVISED = "平成29年:2017年 平成30年:2018年 令和元年:2019年 令和5年:2023年 令和6年:2024年"


def test_the_packaged_embedder_and_the_words_rank_every_form_first(tmp_path: Path) -> None:
    seats = [
        Section((f"席{n:03}",), f"{name}さんの席は{'南北東西'[n % 4]}棟{n % 9 + 1}階です。内線は{4000 + 7 * n}です。")
        for n, name in enumerate(SURNAMES)
    ]
    revised = dict(pair.split(":") for pair in REVISED.split())
    eras = [Section((), f"{year}{month}月に規程を改定しました。") for month, year in enumerate(revised, start=3)]
    western = [Section((), f"{year}の研修は{n}月でした。") for n, year in enumerate(revised.values(), start=3)]
    embedder = open_embedder()
    pages = {"内線一覧": seats, "改定の記録": eras, "研修の記録": western}
    documents = [
        Document(title, f"{title}.md", "ja", tuple(Section((*s.headings, str(n)), s.text) for n, s in enumerate(own)))
        for title, own in pages.items()
    ]
    add_documents(tmp_path / "i", documents, embedder)
    generation = open_generation(tmp_path / "i")

    def first(query: str) -> str:
        return generation.chunks[search(generation, embedder, query, 1)[0].row].text

    for asked, written in (pair.split(":") for pair in FOUND.split()):
        assert first(asked).startswith(written) and first(f"{asked}さんの席はどこですか。").startswith(written)
    for era, year in revised.items():
        assert first(f"{year}に改定した規程").startswith(era)
        assert first(f"{era}の研修").startswith(year)
