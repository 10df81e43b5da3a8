"""Routing by language: short, mixed and odd texts, and what a conversation remembers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from serve.cli import serve as cli
from serve.engine.router import by_language
from slm.text.language import detect

SPEAKERS = {"en": "en", "ja": "ja"}
ENGLISH = """\
Yes|no|Hi|Hello|thanks|please|Why|why?|help|How are you?|ok thanks|Mt. Fuji|Kyoto is nice|New York Times
Dear Mr. Suzuki,|What does 改善 mean?|What is はい in English?|Please translate 「改善」
Windows Update error 0x80070005|Answer: yes, 42|How do I say ありがとう to a friend?|The API key is missing.
I'd like two days off|restart nginx docker compose service logs"""
JAPANESE = """\
はい|了解|了解です|田中|東京|草|えっと|ﾃｽﾄ|ﾊﾟｿｺﾝが動かない|PDFを送って|Excelの使い方|meetingを設定
API keyはどこ?|NASAって何?|Q3の売上|JR東日本|２０２６年|1) はい 2) いいえ|「改善」を英語で
Windows Updateのエラー0x80070005|Sony WH-1000XM5の充電方法|tanaka@example.co.jp に返信|New York Timesの記事
「thank you very much」を訳して|conclusion: それは正しい|`print(x)` のエラー|ＰＤＦを開けない|人々|コーヒー"""
UNDECIDED = """\
OK|PDF|ＡＢＣ|GDPR|12345|3 + 4 = ?|😀|！？|...|2026-11-26|v1.2.3|0x80070005|https://example.com/日本
foo@example.com|`SELECT 1`|안녕하세요|Привет|你好|谢谢你的帮助|สวัสดี|Γειά σου
Je voudrais savoir combien de jours de congé il me reste
Wie viele Urlaubstage habe ich noch in diesem Jahr übrig"""
TABLE = [
    (text, adapter)
    for adapter, texts in {"en": ENGLISH, "ja": JAPANESE, None: UNDECIDED}.items()
    for text in texts.replace("\n", "|").split("|")
]


@pytest.mark.parametrize(("text", "adapter"), TABLE)
def test_short_mixed_and_odd_texts_go_where_a_reader_would_send_them(text: str, adapter: str | None) -> None:
    assert len(TABLE) >= 60
    way = by_language([text], SPEAKERS)
    assert way.adapter == adapter, way.reason
    assert way.reason
    assert by_language([text], SPEAKERS, default="ja").adapter == (adapter or "ja")


@pytest.mark.parametrize("scrap", ["OK", "PDF", "42", "GDPR", "Tanaka", "thx", "👍"])
def test_a_scrap_follows_the_conversation(scrap: str) -> None:
    assert by_language(["有給休暇は何日ですか。", scrap], SPEAKERS).adapter == "ja"
    assert by_language(["How many days do I have?", scrap], SPEAKERS).adapter == "en"
    assert by_language(["Where is it?", "有給休暇は何日ですか。", scrap, scrap], SPEAKERS).adapter == "ja"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Quels congés me restent ?", "fr"),
        ("Wo finde ich die Reisekostenabrechnung?", "de"),
        ("¿Cuántos días de vacaciones tengo?", "es"),
        ("Where do I find the travel form?", "en"),
        ("出張の申請はどこですか", "ja"),
        ("谢谢你的帮助", "zh"),
        ("東京駅", "ja"),
        ("휴가는 며칠인가요?", "ko"),
        ("Сколько дней отпуска у меня осталось?", "ru"),
        ("מה שלומך", "he"),
    ],
)
def test_any_set_of_languages_can_be_told_apart(text: str, language: str) -> None:
    everyone = {code: code for code in ("en", "ja", "fr", "de", "es", "zh", "ko", "ru", "he")}
    assert by_language([text], everyone).adapter == language
    alone = by_language([text], {"xx": "xx", language: language})
    assert alone.adapter == language, "a code that the identifier has never heard of does no harm"


def test_a_language_that_nobody_speaks_is_named_in_the_reason() -> None:
    assert "'ru'" in detect("Привет", SPEAKERS).reason
    assert "no adapter" in by_language(["Привет, как дела?"], SPEAKERS).reason


def test_slm_route_shows_choice_and_reason() -> None:
    texts = ["PDFを送って", "OK", "How are you?"]
    result = CliRunner().invoke(cli.route, [*texts, "--adapter", "en", "--adapter", "ja", "--default", "en", "--json"])
    rows: list[dict[str, Any]] = json.loads(result.stdout)["routes"]
    assert [row["adapter"] for row in rows] == ["ja", "en", "en"]
    assert rows[0]["reason"] == "Latin words inside a Japanese sentence" and "default 'en'" in rows[1]["reason"]
