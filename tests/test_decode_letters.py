"""Tables of letters that have letters at the same places are told apart by the languages that write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slm.text.encoding.alphabets import CENTRAL, WESTERN, strangeness
from slm.text.encoding.charsets import distinct
from slm.text.encoding.decode import decode

HUNGARIAN = "A hűtőszekrényt ki kell üríteni.\nGyőrben a kulcs a portán van, kérjük, őrizze meg a számlát."
ROMANIAN = "Cheia depozitului se află la recepţie. Vă rugăm să semnaţi în registru şi să o înapoiaţi până seara."
CROATIAN = "Ključ skladišta nalazi se na recepciji. Molimo vas da ga vratite do večeri, šef će potvrditi."
SLOVENE = "Delovni čas: od 8. do 16. ure. Ključ je pri vratarju, prosimo, vrnite ga zvečer."
POLISH = "Książka skarg i zażaleń\nnumer,imię,dział\n1,Łukasz,księgowość\n"
CZECH = "Klíč od skladu je na recepci.\r\nVraťte jej večer a podepište se, děkujeme."
TURKISH = "Depo anahtarı resepsiyonda. Lütfen akşama kadar geri getirin, müdür onaylayacaktır."
LITHUANIAN = "Sandėlio raktas yra registratūroje. Prašome grąžinti iki vakaro."
LATVIAN = "Noliktavas atslēga ir reģistratūrā. Lūdzu, atgrieziet to līdz vakaram, šodien slēgts."
UKRAINIAN = "Ключ від складу знаходиться на рецепції. Поверніть його до вечора, будь ласка."
FINNISH = (
    "Virheellinen ”Hi”-rekisteri. Symboli ”%s” ei voi olla sekä ”weak” että ”common”.\nNäkyvissä tilapäinen näyttö"
)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (HUNGARIAN, "cp1250"), (HUNGARIAN, "iso8859_2"), (ROMANIAN, "cp1250"), (ROMANIAN, "iso8859_2"),
        (CROATIAN, "cp1250"), (CROATIAN, "iso8859_2"), (SLOVENE, "cp1250"), (POLISH, "cp1250"), (POLISH, "iso8859_2"),
        (CZECH, "iso8859_2"), (TURKISH, "cp1254"), (LITHUANIAN, "cp1257"), (LATVIAN, "cp1257"), (UKRAINIAN, "koi8_u"),
        (UKRAINIAN, "cp1251"),
    ],
)  # fmt: skip
def test_a_few_sentences_of_central_europe_and_the_baltic_are_not_read_as_western_ones(
    text: str, encoding: str
) -> None:
    assert decode(text.encode(encoding)).text == text


@pytest.mark.parametrize(
    "text",
    [
        FINNISH,
        "La clé de l'entrepôt est à la réception. Où êtes-vous ? Ça va, dès 8 h, cœur.",
        "A chave do armazém está na receção. Não se esqueça de a devolver até às 18h. Avaliações e ações.",
        "Lykillinn að geymslunni er í móttökunni. Vinsamlegast skilið honum fyrir kvöldið, þökk.",
        "Laohoone võti on vastuvõtus. Palun tagastage see õhtuks, ükskõik millal.",
        "Così è più facile: lunedì andrò là, perché c’è già.",
        "Kontakt: Müller (Zürich), Núñez (Málaga), François (Orléans), Ångström\nLe café est fermé\nDie Tür öffnen",
    ],
)  # fmt: skip
def test_western_languages_stay_what_they_are_and_two_of_them_may_share_a_text(text: str) -> None:
    decoded = decode(text.encode("cp1252"))
    assert (decoded.text, decoded.encoding) == (text, "Windows-1252")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Straße", "cp850"), ("São Paulo", "cp850"), ("Łódź", "iso8859_2"), ("Čeština", "cp1250"), ("Gőz", "cp1250"),
     ("İstanbul şubesi", "cp1254"), ("Toplantı odası", "cp1254"), ("œuvre", "iso8859_15"), ("Cœur", "iso8859_15")],
)  # fmt: skip
def test_single_words_of_other_tables_are_read_or_noted(text: str, encoding: str) -> None:
    decoded = decode(text.encode(encoding))
    assert decoded.text == text or "not certain" in decoded.note, decoded


@pytest.mark.parametrize("text", ["ﾃｽﾄ ﾃﾞｰﾀ", "ｶﾀｶﾅ半角", "ｺｰﾄﾞ,ﾒｲｼｮｳ,ﾀﾝｶ\r\n1,ﾎﾞﾙﾄ M6,30\r\n"])
def test_half_width_katakana_are_no_syllables_of_korean(text: str) -> None:
    """Most of Unicode's syllables are in no Korean text; KS X 1001 has those that are."""
    assert decode(text.encode("cp932")).text == text


def test_letters_of_one_language_are_not_strange_and_those_of_several_are() -> None:
    assert strangeness("kérjük a számlát", CENTRAL) < 2 < strangeness("kérjük a számlát és a hûtõt", WESTERN)
    assert strangeness("plain words\n", WESTERN) == strangeness("", WESTERN) == 0
    assert strangeness("café\n" * 5 + "Tür öffnen", WESTERN) < 8.1 < strangeness("café Tür öffnen ñ ã þ", WESTERN)


PAYROLL = "ФИО;ОТДЕЛ\nИВАНОВ;ОТДЕЛ КАДРОВ\nПЕТРОВ;ОТДЕЛ КАДРОВ\nСИДОРОВ;БУХГАЛТЕРИЯ\n"
CLOSED = "СКЛАД ЗАКРЫТ ПО ВОСКРЕСЕНЬЯМ."


@pytest.mark.parametrize(("codec", "label"), [("cp1251", "windows-1251"), ("koi8_r", "koi8-r")])
@pytest.mark.parametrize("case", [str.upper, str.lower, str.title])
@pytest.mark.parametrize("text", [PAYROLL, CLOSED])
def test_cyrillic_of_every_case_is_not_taken_for_its_twin(
    text: str, case: Callable[[str], str], codec: str, label: str
) -> None:
    raw = case(text).encode(codec)
    assert decode(raw).text == case(text)
    assert (decode(raw, declared=label).text, decode(raw, declared=label).note) == (case(text), "")


@pytest.mark.parametrize("text", ["ФИО", "МОСКВА", "Москва", "отдел"])
@pytest.mark.parametrize(("codec", "label"), [("cp1251", "windows-1251"), ("koi8_r", "koi8-r")])
def test_one_word_of_cyrillic_is_read_as_its_page_declares_and_noted_where_none_does(
    text: str, codec: str, label: str
) -> None:
    found = decode(text.encode(codec), declared=label)
    assert (found.text, found.note) == (text, "")
    alone = decode(text.encode(codec))
    assert alone.text == text or "not certain" in alone.note


@pytest.mark.parametrize(
    ("text", "codec"),
    [("NOME;SETOR\nANA;INFORMAÇÕES\nRUI;INFORMAÇÕES\nEVA;OPERAÇÕES\n", "cp1252"),
     ("SOLICITAÇÕES E INFORMAÇÕES", "cp1252"), ("KSIĄŻKA, KSIĄŻKA\nKSIĄŻKA\n", "cp1250"), ("KSIĄŻKA", "iso8859_2")],
)  # fmt: skip
def test_accented_capitals_inside_a_word_are_no_characters_of_east_asia(text: str, codec: str) -> None:
    decoded = decode(text.encode(codec))
    assert decoded.text == text and (codec == "cp1252" or "not certain" in decoded.note), decoded
    named = decode(text.encode("cp1252", "replace"), declared="iso-8859-1")
    assert (named.text, named.note) == (text.encode("cp1252", "replace").decode("cp1252"), "")


def test_a_word_that_is_repeated_proves_no_more_than_once() -> None:
    assert distinct("é;é\nabc;é\n".encode("cp1252")) == b"\xe9;\nabc;\n"
    for word, codec in (("東京", "euc_jp"), ("KSIĄŻKA", "cp1250"), ("Москва", "koi8_r")):
        assert "not certain" in decode(f"{word}\n".encode(codec) * 50).note


@pytest.mark.parametrize("text", ["薔薇\n薔薇\n薔薇\n", "Room,Name\n1,薔薇\n2,薔薇\n3,薔薇\n", "蝋燭", "檸檬"])
def test_rare_kanji_are_not_read_as_letters_in_impossible_places(text: str) -> None:
    assert decode(text.encode("cp932")).text == text


@pytest.mark.parametrize("text", ["åkån", "år", "äd"])
def test_letters_that_are_kanji_as_well_are_noted(text: str) -> None:
    assert "not certain" in decode(text.encode("cp1252")).note


@pytest.mark.parametrize("text", ["X線CT", "WindowsとMac", "TeX入門"])
def test_japanese_between_latin_letters_is_read(text: str) -> None:
    assert decode(text.encode("cp932")).text == text
