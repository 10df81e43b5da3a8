"""The decoder for text from elsewhere: every encoding that is still met, and a note wherever it is not certain."""

from __future__ import annotations

import contextlib
import random
import re
import time
from pathlib import Path

import pytest

from slm.errors import DamagedFileError
from slm.text.encoding.decode import decode, open_text

ROSTER = (
    "ID,NAME,DEPT,EXT\n1,佐藤健一,総務部,4101\n2,高橋花子,人事部,4102\n3,マリア・ロペス,営業部,4103\n"
    "4,鈴木健太,情報システム部,4177\n"
)
NOTICE = "会議室の清掃は毎週木曜日の朝八時に行います。机の上を片付けておいてください。"
DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp", "iso2022_jp", "utf-8", "utf-8-sig", "utf-16", "utf-16-le",
                                      "utf-16-be", "utf-32"])  # fmt: skip
@pytest.mark.parametrize("text", [ROSTER, NOTICE, NOTICE * 400], ids=["roster", "notice", "long"])
def test_japanese_is_read_in_every_encoding_with_or_without_hiragana(text: str, encoding: str) -> None:
    decoded = decode(text.encode(encoding))
    assert (decoded.text, decoded.note) == (text, "")


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp"])
def test_short_texts_of_the_data_are_read_in_both_japanese_encodings(encoding: str) -> None:
    """Sentences of ja.txt cut to 12, 20 and 40 bytes, as one line of a roster or a note might be."""
    sentences = [s for s in re.split(r"(?<=。)|\n", (DATA / "ja.txt").read_text(encoding="utf-8")) if len(s) > 5]
    wrong = 0
    for sentence in sentences:
        for size in (6, 10, 20):
            text = sentence[:size]
            raw = text.encode(encoding, "ignore")
            if not raw.isascii():
                wrong += decode(raw).text != raw.decode(encoding)
    assert wrong <= len(sentences) * 3 // 500


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp"])
@pytest.mark.parametrize("text", ["髙橋", "ネットワーク設定", "東京都千代田区", "防災備蓄品一覧", "ﾏﾘｱ･ﾛﾍﾟｽ 営業部"])
def test_a_few_words_in_kanji_or_katakana_are_read(text: str, encoding: str) -> None:
    raw = text.encode(encoding, "ignore")
    assert decode(raw).text == raw.decode(encoding)


def test_the_vendors_characters_are_read_in_all_three_japanese_encodings() -> None:
    assert decode("①番倉庫は㈱髙島商会の担当".encode("cp932")).text == "①番倉庫は㈱髙島商会の担当"
    assert decode(b"\xad\xa1" + "番倉庫の担当は".encode("euc_jp") + b"\xad\xea\xfc\xe2").text == "①番倉庫の担当は㈱髙"
    assert decode(b"\x1b$B-!HV\x1b(B, \x1b(I1\x1b(B\r\n").text == "①番, ｱ\r\n"


@pytest.mark.parametrize(
    "text",
    ["Travel policy – Zürich office\n\nDon’t forget the café receipts.", "5 €", "Le reçu: “déjà vu”", "20 °C ± 3",
     "Größe und Maße", "¿Dónde está la señora Muñoz?", "På kontoret", "São Paulo à noite"],
)  # fmt: skip
def test_western_letters_and_marks_are_read_as_windows_1252(text: str) -> None:
    decoded = decode(text.encode("cp1252"))
    assert (decoded.text, decoded.encoding) == (text, "Windows-1252")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("gb18030", "会议室的钥匙放在前台，请下班后交还。"), ("cp949", "회의실 열쇠는 안내 데스크에 있습니다."),
     ("big5", "會議室的鑰匙放在櫃檯，請下班後交還。"), ("cp1251", "Сотрудники могут работать из дома."),
     ("koi8_r", "Сотрудники могут работать из дома."), ("cp1250", "Příliš žluťoučký kůň pije"),
     ("cp1253", "Τα κλειδιά είναι στη ρεσεψιόν.")],
)  # fmt: skip
def test_other_languages_encodings_are_read(encoding: str, text: str) -> None:
    assert decode(text.encode(encoding)).text == text


@pytest.mark.parametrize("bad", [b"\xff", b"\x81", b"\x9f", b"\xc3\x28"])
@pytest.mark.parametrize("text", ["日本語の文章です。" * 800, "The gate code changes. " * 800 + "Zürich 東京 café"])
def test_one_bad_byte_in_utf8_becomes_a_replacement_and_a_note(text: str, bad: bytes) -> None:
    raw = text.encode()
    decoded = decode(raw + bad + b" end\n")
    assert decoded.encoding == "UTF-8" and decoded.text.startswith(text) and decoded.text.endswith(" end\n")
    assert decoded.text.count("\ufffd") == 1 and "1 byte sequence is no character" in decoded.note


def test_a_bad_byte_in_english_is_damage_and_an_accented_letter_is_not() -> None:
    english = "Visitors park on level B2. %s The gate code changes.\n" * 1
    damaged = decode((english % "\xff").encode("latin1"))
    assert damaged.text == english % "\ufffd" and "U+FFFD" in damaged.note
    assert decode((english % "café").encode("latin1")).text == english % "café"


def test_a_bad_byte_far_along_one_line_is_found() -> None:
    decoded = decode(b"word " * 4000 + b"\xff tail")
    assert decoded.text.endswith("\ufffd tail") and decoded.encoding == "UTF-8"


def test_what_is_not_certain_has_a_note_that_names_the_encodings() -> None:
    decoded = decode("東京".encode("euc_jp"))
    assert decoded.text == "東京" and "not certain" in decoded.note and "EUC-JP" in decoded.note


@pytest.mark.parametrize("label", ["x-sjis", "Shift_JIS", "windows-31j", "SHIFT-JIS", "ms_kanji", " 'sjis' "])
def test_names_that_browsers_know_are_believed_where_the_bytes_agree(label: str) -> None:
    decoded = decode("東京".encode("cp932"), declared=label)
    assert (decoded.text, decoded.note) == ("東京", "")


def test_a_wrong_declaration_is_not_believed() -> None:
    assert decode(NOTICE.encode(), declared="Shift_JIS").text == NOTICE
    euc = decode(ROSTER.encode("euc_jp"), declared="shift_jis")
    assert euc.text == ROSTER and "declares the encoding shift_jis" in euc.note
    assert decode("Größe".encode("cp1252"), declared="no-such-charset").text == "Größe"
    assert decode(NOTICE.encode("cp932"), declared="utf-8").text == NOTICE
    assert decode("źródło".encode("iso8859-2"), declared="ISO-8859-2").text == "źródło"


@pytest.mark.parametrize("raw", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1", bytes(range(256)) * 20, b"\0" * 50])
def test_what_is_no_text_is_refused(raw: bytes) -> None:
    with pytest.raises(DamagedFileError, match="binary"):
        decode(raw)


def test_colours_of_a_terminal_and_one_zero_byte_do_not_change_the_encoding() -> None:
    assert decode(b"\x1b[31mred\x1b[0m").text == "\x1b[31mred\x1b[0m"
    assert decode(b"word " * 500 + b"\0" + b" word").encoding == "UTF-8"


def test_decoding_is_linear_in_the_size_of_junk() -> None:
    random.seed(3)
    for unit in (b"a\xe9", b"\x1b$B", b"\xad\xa1", b"\x81", b"x" * 99 + b"\xe9", random.randbytes(97)):
        times = []
        for size in (50_000, 400_000):
            start = time.process_time()
            with contextlib.suppress(DamagedFileError):
                decode(unit * (size // len(unit)))
            times.append(time.process_time() - start)
        assert times[1] < 0.5 + 30 * times[0], unit


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text",
    [
        "5",
        "OK",
        "301 号室",
        "一覧　2024年　一月　" * 30,
        "総務部",
        "テスト",
        "東京都",
        "Привет",
        "価格12,800",
        "회의실 301",
    ],
)
def test_utf16_without_a_mark_is_read_be_it_short_or_mixed_with_digits_and_wide_blanks(text: str, codec: str) -> None:
    assert decode(text.encode(codec)).text == text


@pytest.mark.parametrize("text", ["20人", "10日", "B0棟", "20個", "80円", "日本", "東京"])
def test_four_bytes_of_cp932_are_not_read_as_utf16_without_a_note(text: str) -> None:
    decoded = decode(text.encode("cp932"))
    assert decoded.text == text or "not certain" in decoded.note


@pytest.mark.parametrize("raw", ["会議", "資料", "請求書", "総務課", "東京", "在庫", "本社", "はい", "人事", "日本語"])
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_two_or_three_characters_of_utf16_are_read_or_noted(raw: str, codec: str) -> None:
    decoded = decode(raw.encode(codec))
    assert decoded.text == raw or "not certain" in decoded.note or "U+FFFD" in decoded.note, decoded
    if not raw.encode(codec).isascii() and raw not in ("人事", "在庫"):
        assert decoded.text == raw


def test_no_few_bytes_of_other_texts_are_taken_for_utf16() -> None:
    japanese = (DATA / "ja.txt").read_text(encoding="utf-8")
    for encoding in ("cp932", "euc_jp", "utf-8"):
        for start in range(0, len(japanese) - 6, 23):
            for size in (2, 3, 4, 6):
                raw = japanese[start : start + size].encode(encoding, "ignore")
                assert decode(raw).encoding != "UTF-16", raw
    words = [word for word in (DATA / "en.txt").read_text(encoding="utf-8").split() if word.isascii()]
    noted = {word for word in set(words) if decode(word.encode()).note}
    assert not noted, noted


SPANISH = "Mañana el señor Muñoz enviará la documentación del año. ¿Cuántos días de vacaciones tengo?"
GERMAN = "Größe und Maße müssen stimmen. Für Überstunden gibt es Zuschläge. Die Tür schließen, Äpfel und Öl kaufen."


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (SPANISH, "mac_roman"), (SPANISH, "cp850"), (SPANISH, "cp437"), (SPANISH * 40, "cp1252"),
        ("Mañana el señor Muñoz enviará la documentación del año.", "mac_roman"),
        ("Così è più facile: lunedì andrò là.", "cp850"),
        (GERMAN, "mac_roman"), (GERMAN, "cp850"), (GERMAN, "cp1252"), (GERMAN, "iso8859_1"),
        ("It’s “fine” – really… The employer’s “cost–benefit” report.", "mac_roman"),
        ("Mødet er på tirsdag. Nøglen hænger på døren.", "cp850"),
        ("Proszę zamknąć drzwi. Źródło jest zamknięte, składa się wniosek w piątek.", "iso8859_2"),
        ("Proszę zamknąć drzwi. Źródło jest zamknięte, składa się wniosek w piątek.", "cp1250"),
    ],
)  # fmt: skip
def test_sentences_of_dos_the_old_macintosh_and_central_europe_are_read(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)).text == text


@pytest.mark.parametrize("text", ["Größe und Maße", "café", "Smörgåsbord på kontoret", "Le café est fermé", "Mañana",
                                  "El año", "señor", "Según el plan"])  # fmt: skip
@pytest.mark.parametrize("encoding", ["cp850", "mac_roman"])
def test_a_few_letters_of_dos_and_the_old_macintosh_are_read_or_noted(text: str, encoding: str) -> None:
    decoded = decode(text.encode(encoding))
    assert decoded.text == text or decoded.note


@pytest.mark.parametrize(
    "text",
    ["A work–life balance—and the employee’s “own” view—is what we’re after. " * 30, "Naïve résumé, £5–£10, 20 °C…",
     "Škoda Žižek’s œuvre — the sœurs’ cœur", "Er sagte „so“ – und ging."],
)  # fmt: skip
def test_dashes_and_quotes_of_windows_1252_are_no_letters_of_a_macintosh(text: str) -> None:
    assert (decode(text.encode("cp1252")).text, decode(text.encode("cp1252")).note) == (text, "")


@pytest.mark.parametrize(
    "text", ["Wort „Zitat“ und ‚so‘ weiter…", "north–south, 5 € – it’s “so”† done‡", "ŒUVRE Škoda Žižek ™"]
)
def test_marks_of_windows_1252_at_the_edges_of_words_are_certain(text: str) -> None:
    assert (decode(text.encode("cp1252")).text, decode(text.encode("cp1252")).note) == (text, "")


@pytest.mark.parametrize("half", [b"\xed\xa0\xbd", b"\xed\xb8\x80"])
@pytest.mark.parametrize("around", ["plain words", "日本語の文", ""])
def test_surrogates_in_utf8_become_replacements_and_the_rest_stays_utf8(half: bytes, around: str) -> None:
    decoded = decode(around.encode() + half + b" end\n")
    assert (decoded.text, decoded.encoding) == (f"{around}\ufffd end\n", "UTF-8") and "U+FFFD" in decoded.note


# Streams


def test_a_stream_finds_an_encoding_that_shows_late_and_counts_bad_bytes(tmp_path: Path) -> None:
    path = tmp_path / "late.txt"
    path.write_bytes(b"plain\r\n" * 300_000 + (NOTICE + "\n").encode("cp932") * 3 + b"\xff\n")
    with open_text(path) as stream:
        lines = list(stream)
        assert lines[0] == "plain\n" and lines[-2] == NOTICE + "\n" and lines[-1] == "\ufffd\n"
        assert stream.encoding == "Shift_JIS (CP932)" and "1 byte sequence" in stream.note


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "euc_jp", "iso2022_jp", "cp932"])
def test_a_stream_gives_the_lines_that_were_written(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(ROSTER.encode(encoding))
    with open_text(path) as stream:
        assert "".join(stream) == ROSTER and stream.note == ""


def test_a_replacement_character_that_the_file_holds_itself_is_no_fault_of_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("known \ufffd here\n" * 3, encoding="utf-8")
    with open_text(path) as stream:
        assert len(list(stream)) == 3 and stream.note == ""
    assert decode(path.read_bytes()).note == ""


# What a page declares


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [("iso-8859-15", "iso8859_15", "Café à 3 €"), ("ISO-8859-15", "iso8859_15", "Prix : 12 €"),
     ("latin9", "iso8859_15", "Cœur et œuvre"), ("iso-8859-8-i", "iso8859_8", "מפתח המחסן נמצא בקבלה"),
     ("logical", "iso8859_8", "שלום"), ("visual", "iso8859_8", "שלום"), ("windows-1255", "cp1255", "שלום"),
     ("csisolatinarabic", "iso8859_6", "المفتاح"), ("tis-620", "cp874", "กุญแจ"), ("greek8", "iso8859_7", "Αθήνα"),
     ("iso-8859-2", "iso8859_2", "žluťoučký kůň"), ("l2", "iso8859_2", "źródło"), ("koi", "koi8_r", "Привет"),
     ("x-mac-cyrillic", "mac_cyrillic", "Привет"), ("ks_c_5601-1989", "cp949", "안녕하세요"),
     ("cn-big5", "big5", "會議室"), ("csgb2312", "gb18030", "会议室"), ("macintosh", "mac_roman", "Größe"),
     ("l5", "cp1254", "şubesi ığ"), ("iso-ir-100", "cp1252", "Größe")],
)  # fmt: skip
def test_every_name_of_the_whatwg_is_known_and_believed(label: str, codec: str, text: str) -> None:
    decoded = decode(text.encode(codec), declared=label)
    assert (decoded.text, decoded.note) == (text, ""), decoded


@pytest.mark.parametrize("text", ["Café à 3 €", "Le prix est de 3 € pour le café", "Prix : 12 €"])
def test_the_euro_sign_of_iso_8859_15_is_no_sign_of_a_currency_without_a_name(text: str) -> None:
    decoded = decode(text.encode("iso8859_15"))
    assert decoded.text == text, decoded
    assert decode(text.encode("cp1252")).text == text and decode(text.encode("cp1252")).note == ""


@pytest.mark.parametrize("text", ["Malmö", "Malmö och Lund", "på kontoret", "ändern", "övrigt", "Så är det"])
def test_a_quotation_mark_that_belongs_to_no_other_is_noted_as_a_letter_of_dos(text: str) -> None:
    decoded = decode(text.encode("cp850"))
    assert decoded.text == text or "not certain" in decoded.note, decoded


@pytest.mark.parametrize("text", ["“Anna”", "Er sagte „so“.", "a 6” pipe, “so”", "Sivu ”Hi” on", "he said “go on’"])
def test_quotation_marks_that_belong_together_are_certain(text: str) -> None:
    assert (decode(text.encode("cp1252")).text, decode(text.encode("cp1252")).note) == (text, "")


# UTF-16 and UTF-32 without a mark


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text",
    ["氏名\t○\r\n佐藤\t○\r\n鈴木\t×\r\n", "①受付で鍵を受け取る\r\n②会議室を開ける\r\n", "● 受付", "→ 次へ",
     "กุญแจอยู่ที่แผนกต้อนรับ\r\nกรุณาคืนก่อนเย็น\r\n", "المفتاح موجود في الاستقبال\r\n", "המפתח נמצא בקבלה\r\n",
     "☆ お知らせ", "चाबी रिसेप्शन पर है\r\n",
     "Done 👍 🎉\r\nThanks ❤️\r\n", "👩‍💻 仕事", "שלום", "№ 5 – ✓ ok", "㎡ 30\r\n"],
)  # fmt: skip
def test_symbols_and_every_script_are_read_in_utf16_and_utf32_without_a_mark(text: str, codec: str) -> None:
    decoded = decode(text.encode(codec))
    assert decoded.text == text and decoded.encoding == codec[:6].upper(), decoded


@pytest.mark.parametrize("text", ["㈱山田", "㈱佐藤", "№山田"])
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_a_few_characters_of_utf16_that_look_like_ascii_are_noted(text: str, codec: str) -> None:
    decoded = decode(text.encode(codec))
    assert decoded.text == text or decoded.note, decoded


@pytest.mark.parametrize(
    ("raw", "name"),
    [("name\tvalue\r\n".encode("utf-16-le") * 9 + b"x", "UTF-16"), ("a\0b\0c\0 words\n".encode("utf-16-be"), "UTF-16"),
     ("three\0 words\0\0\0\n".encode("utf-32-le"), "UTF-32")],
)  # fmt: skip
def test_damaged_utf16_and_utf32_are_named_where_they_are_refused(raw: bytes, name: str) -> None:
    with pytest.raises(DamagedFileError, match=f"binary.*{name} without a byte order mark"):
        decode(raw)


@pytest.mark.parametrize("raw", [b"ab\0cd", b"<p>twenty\0 days</p>", b"\0" * 50, bytes(range(256)) * 40])
def test_words_of_a_byte_each_with_zeros_are_plainly_binary(raw: bytes) -> None:
    with pytest.raises(DamagedFileError, match=r"^it is binary, not text$"):
        decode(raw)


def test_zero_characters_do_not_come_out_silently() -> None:
    assert "1 zero character," in decode(b"word " * 500 + b"\0" + b" word").note
    for count in range(1, 8):
        with contextlib.suppress(DamagedFileError):
            found = decode(b"word " * 900 + b"\0" * count + "é".encode("cp1252"))
            assert "\0" not in found.text or found.note


def test_numbers_of_a_binary_file_are_no_text_of_utf16_or_utf32() -> None:
    dice = random.Random(5)
    for width, most in ((2, 1 << 16), (4, 1 << 16), (4, 1 << 31), (2, 4000), (4, 4000)):
        raw = b"".join(dice.randrange(most).to_bytes(width, "little") for _ in range(500))
        with pytest.raises(DamagedFileError):
            decode(raw)


@pytest.mark.parametrize("codec", ["utf-32-le", "utf-32-be"])
def test_a_stream_of_utf32_without_a_mark_is_read(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "wide.txt"
    path.write_bytes((ROSTER * 90).encode(codec))
    with open_text(path) as stream:
        assert "".join(stream) == ROSTER * 90 and stream.note == "" and stream.encoding == "UTF-32"
