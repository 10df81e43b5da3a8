"""Texts of many languages in their usual encodings, in every case and length: read right or with a note, never else."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from slm.text.encoding.decode import decode

# Everyday lines of each language, and the tables that it is written in.
LANGUAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "Russian": (
        ("cp1251", "koi8_r"),
        "Склад закрыт по воскресеньям.|Отдел кадров|Иванов|Сидоров|бухгалтерия|Ключ находится у дежурного, верните его "
        "до вечера.|Заявление на отпуск подаётся за две недели|фамилия|Уважаемые коллеги|этаж|Счёт|Москва|объект",
    ),
    "Ukrainian": (
        ("cp1251", "koi8_u"),
        "Ключ від складу знаходиться на рецепції.|Поверніть його до вечора|відділ кадрів|Київ|бухгалтерія|заява",
    ),
    "Greek": (
        ("cp1253",),
        "Τα κλειδιά είναι στη ρεσεψιόν.|Η αίτηση άδειας υποβάλλεται δύο εβδομάδες πριν|Αθήνα|γραφείο|τμήμα προσωπικού",
    ),
    "Portuguese": (
        ("cp1252", "iso8859_15"),
        "Informações|Operações|Solicitações e informações|São Paulo|A chave do armazém está na receção.|Férias|"
        "Endereço|"
        "Não se esqueça de a devolver até às 18h|Avaliação|João|Conceição|Benefícios",
    ),
    "French": (
        ("cp1252", "iso8859_15"),
        "La clé de l'entrepôt est à la réception.|Congés payés|Prénom|Société|Où êtes-vous ?|Élève|Reçu|Hôtel|Dépôt|"
        "Les employés déposent leur demande deux semaines à l'avance|Bâtiment",
    ),
    "German": (
        ("cp1252", "iso8859_15"),
        "Größe und Maße müssen stimmen.|Für Überstunden gibt es Zuschläge|Müller|Straße|Büro|Äpfel|Schlüssel|Gebühr|"
        "Kündigung|Die Tür schließen",
    ),
    "Spanish": (
        ("cp1252", "iso8859_15"),
        "Mañana el señor Muñoz enviará la documentación.|¿Cuántos días de vacaciones tengo?|Año|Información|Dirección|"
        "Teléfono|Núñez|Compañía|Habitación",
    ),
    "Swedish": (
        ("cp1252", "iso8859_15"),
        "Nyckeln finns på kontoret.|Malmö|Göteborg|Ändra|Öppettider|Så är det|Kläder|Räkning|Lösenord|Förnamn|Åtgärder",
    ),
    "Polish": (
        ("cp1250", "iso8859_2"),
        "Książka skarg i zażaleń|Proszę zamknąć drzwi.|Źródło jest zamknięte|księgowość|Łukasz|książka|imię|dział|Łódź|"
        "Składa się wniosek w piątek",
    ),
    "Czech": (
        ("cp1250", "iso8859_2"),
        "Klíč od skladu je na recepci.|Příliš žluťoučký kůň|Vraťte jej večer a podepište se|Účetní|Oddělení|Jméno|"
        "Město",
    ),
    "Hungarian": (
        ("cp1250", "iso8859_2"),
        "A hűtőszekrényt ki kell üríteni.|Győrben a kulcs a portán van|őrizze meg a számlát|Gőz|Név|Cím|Költség",
    ),
    "Turkish": (
        ("cp1254",),
        "Depo anahtarı resepsiyonda.|Lütfen akşama kadar geri getirin|müdür onaylayacaktır|İstanbul|"
        "Toplantı odası|Görev",
    ),
    "Japanese": (
        ("cp932", "euc_jp"),
        "会議室の予約は前日までに行ってください。|氏名|部署|総務部|薔薇|ネットワーク設定|東京都千代田区|鈴木健太|檸檬|躊躇|"
        "憂鬱な月曜日|ﾃｽﾄ ﾃﾞｰﾀ|林檎|蝋燭|Room 薔薇",
    ),
    "Korean": (
        ("cp949",),
        "회의실 열쇠는 안내 데스크에 있습니다.|이름|부서|총무팀|휴가 신청은 이 주 전에 하십시오|서울|전화번호",
    ),
    "Chinese": (
        ("gb18030",),
        "会议室的钥匙放在前台，请下班后交还。|姓名|部门|总务部|请假申请须提前两周提交|上海|电话",
    ),
    "Chinese of Taiwan": (
        ("big5",),
        "會議室的鑰匙放在櫃檯，請下班後交還。|姓名|部門|總務部|請假申請須提前兩週提交|臺北|電話",
    ),
}  # fmt: skip
# Words that are words in both decodings: nobody could tell, and English, Japanese and Windows-1252 come first.
BOTH_ARE_WORDS: set[str] = set()


def shapes(lines: list[str], seed: int) -> Iterator[str]:
    """Lines alone, in each case, repeated, in columns, and some together."""
    dice = random.Random(seed)
    for line in lines:
        for cased in {line, line.upper(), line.lower(), line.title()}:
            yield cased
            yield f"{cased}\n" * 3
            yield f"ID;NAME\n1;{cased}\n2;{cased}\n3;{cased}\n"
            yield f"{cased}, {cased}\r\n{cased}\r\n"
    for _ in range(40):
        some = dice.sample(lines, k=dice.randint(2, min(6, len(lines))))
        text = dice.choice(("\n", "; ", " ", "\t")).join(some)
        yield dice.choice((str, str.upper, str.lower, str.title))(text)


@pytest.mark.parametrize(
    ("language", "codec"), [(name, codec) for name, (codecs, _) in LANGUAGES.items() for codec in codecs]
)
def test_a_text_is_read_right_or_with_a_note(language: str, codec: str) -> None:
    wrong = set()
    for text in shapes(LANGUAGES[language][1].split("|"), 7):
        raw = text.encode(codec, "ignore")
        found = decode(raw)
        if found.text != raw.decode(codec) and not found.note and text.strip() not in BOTH_ARE_WORDS:
            wrong.add((raw.decode(codec), found.text, found.encoding))
    assert not wrong, sorted(wrong)[:8]
