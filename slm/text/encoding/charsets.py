"""Which encoding older than Unicode bytes are in, by what they would cost in a plausible text.

Each candidate decodes a sample, and each character costs about as many bits as it is rare in the languages that use
that encoding (minimum description length): kana and everyday kanji little, rare kanji and letters in impossible places
much. The cheapest candidate wins; how far it is ahead says how sure that is. It knows nothing of files or of Unicode's
own encodings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from slm.text.encoding.alphabets import BALTIC, CENTRAL, DOS, TURKISH, WESTERN, Alphabets, strangeness
from slm.text.encoding.letters import letter_bits

_JAPANESE = frozenset(
    "日料時資答使間合場問分月質内見書用会休社出前当年円次人業番以入付務示認号取保手送事品理受電勤部後客工担期上申要名話必方一返房者報議様定修"
    "行約回給文費週発暇請情何承知階確金有先案連明曜絡中最予利決所証大外本来物対応引作営機新数談総自全不通線願相経毎得室目具限信開長終運浜直続"
    "面子度届支初点加員言録安計記食張与色込木件立算動製注気管健海積始切残車末働万朝松存止水断康小添同収火検未別園納口今共集午難持意体額消紙半"
    "仕田表労生学荷三配変説替代席短急設在館市調除避補買防払窓過二置家画契規力制台容告第了求購精材着語換空道原訳交待下再参十準題戻各単地育写結"
    "解公西類組整負降価特満屋重真飲村高位心常由正裁早選元商可読進産格静試訓練向印研講少庭際緊考標則個青教度従病四南北東京都県府区町丁佐藤鈴橋"
    "渡辺伊山林加吉斉斎池井野岡川森石原藤谷近坂遠福太三岩上崎村河和竹田金子菊阿江島菅清関木本武松井内久平花恵美幸雄男郎夫彦隆博健介奈香織智樹"
    "里治秀義弘芳竜翔拓直哲経財企広監査税宅庶支店職制賞与株式限責任情報技術品質環境健康倉庫在庫受注発注請求書見積契約社員氏住所電話備考単価税"
)
_SIMPLIFIED = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同现"
    "当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重"
    "并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入"
    "几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基"
    "眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运请费用户公司"
)
_TRADITIONAL = frozenset(
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡用道行所然家種事成方多經麼去法學如都同現"
    "當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日軍者意無力它與長把機十民第公此已工使情明性知全三又關點正業外將兩高間由問很最重"
    "並物手應戰向頭文體政美相見被利什二等產或新己制身果加西月話合回特代內信表化老給世位次度門任常先海通教兒原東聲提立及比員解水名真論處走義各入幾"
    "口認條平系氣題活爾更別打女變四神總何電數安少報才結反受目太量再感建務做接必場件計管期市直資命山金指許統區保至請費辦室臺灣經理職務專案客戶訂單"
)
_KOREAN = frozenset(
    "이다는을의에가고하지사한로기은도를시정자인리어서그나수아있스대해라일전부여제소보주과으만상장니면성원들신구적습공동무조오업안직회원요청출금용"
    "내위교국행년월화목토근휴택실담당방문관련등연락처급여재경비품목표계약번호회의열쇠합세까집때"
)
_LATIN_LETTERS = frozenset("àâäáãåæçèéêëìíîïñòóôöõøœùúûüýÿßšžÀÂÄÁÃÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖÕØŒÙÚÛÜÝŠŽðþÐÞŸ")
_CYRILLIC = frozenset(map(chr, range(0x410, 0x450))) | frozenset("ёЁіїєґІЇЄҐ")
_GREEK = frozenset(map(chr, range(0x391, 0x3CF))) | frozenset("Ά")
_CENTRAL = frozenset().union(*CENTRAL)
_TURKISH = frozenset("ğışİĞŞçöüÇÖÜâî")
_BALTIC = frozenset("äöüõÄÖÜÕ").union(*BALTIC)
_VOWELS = frozenset("aeiou")
_NO_PAIRS = frozenset(("èa", "èe", "èo", "èu", "áe", "úu"))  # of no Western language
_LATIN_ALONE = frozenset("àáéèêíìóòúùâôûyÀÁÉÈÓÚÅåØøæöô")
_VOICEABLE, _HALF_VOICEABLE = frozenset("ｳｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾊﾋﾌﾍﾎ"), frozenset("ﾊﾋﾌﾍﾎ")
_USUAL_KANA = frozenset("ﾝｰｽﾄﾙﾗﾘｲｸｱｼﾌﾀｶｺﾚﾛﾏﾃｯｳｻｵﾐﾊﾁｬｭｮ")
_NO_WORD_BEGINS = frozenset("ｧｨｩｪｫｬｭｮｯｰﾝｦﾞﾟ")
_LETTER, _SMALL = re.compile(r"[A-Za-z]"), re.compile(r"[a-z]")
_BAD, _FOREIGN = 22.0, 16.0  # an impossible character; one of another language
_ASCII, _BROKEN = 4.5, 40.0  # of an ordinary ASCII character; of a byte that does not decode


@dataclass(frozen=True)
class Charset:
    """A candidate: its name for people and for Python, its decoder, the cost of each character, a prior in bits.

    alphabets: of the languages that are written in it, where these have letters of their own.
    """

    name: str
    codec: str
    decode: Callable[[bytes], str]
    cost: Callable[[str, str, str], float]
    prior: float = 0.0
    alphabets: Alphabets = ()


def _by(codec: str) -> Callable[[bytes], str]:
    return lambda raw: raw.decode(codec, "replace")


# What Python's CP932 makes of bytes that begin no character there (0xA0, 0xFD to 0xFF).
STRAY = re.compile("[\uf8f0-\uf8f3]")


def _cp850(raw: bytes) -> str:
    return raw.decode("cp850", "replace").replace("\xa0", "\ufffd")  # 0xFF, which is damage more often


def _cp932(raw: bytes) -> str:
    return STRAY.sub("\ufffd", raw.decode("cp932", "replace"))


def decode_euc_jp(raw: bytes) -> str:
    """EUC-JP with the vendors' characters (① ㈱ 髙 of CP51932), which Python's codec leaves out."""
    try:
        return raw.decode("euc_jp")
    except UnicodeDecodeError:
        return b"".join(map(_euc_line, raw.splitlines(keepends=True))).decode("utf-8", "replace")


def _euc_line(line: bytes) -> bytes:
    try:
        return line.decode("euc_jp").encode()
    except UnicodeDecodeError:
        return _EUC_UNIT.sub(_euc_unit, line)


_EUC_UNIT = re.compile(rb"\x8e[\xa1-\xdf]|\x8f[\xa1-\xfe]{2}|[\xa1-\xfe]{2}|[\x80-\xff]")


def _euc_unit(match: re.Match[bytes]) -> bytes:
    unit = match.group()
    if len(unit) == 2 and unit[0] != 0x8E:
        row, cell = unit[0] - 0xA0, unit[1] - 0xA0
        lead = (row + 1) // 2 + (0x80 if row <= 62 else 0xC0)
        trail = cell + (0x9E if row % 2 == 0 else 0x3F + (cell > 63))
        return bytes((lead, trail)).decode("cp932", "replace").replace("\ufffd\ufffd", "\ufffd").encode()
    return unit.decode("euc_jp", "replace").encode()


_ESCAPE = re.compile(rb"\x1b(\$[@B]|\$\([DO-Q]|\([BJIH])")


def decode_iso2022_jp(raw: bytes) -> str:
    """ISO-2022-JP by way of EUC-JP, with half-width katakana and the vendors' characters."""
    pieces = _ESCAPE.split(raw)
    out = [pieces[0]]
    for escape, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        # A line ends in ASCII whatever came before it (RFC 1468).
        head, newline, tail = piece.partition(b"\n")
        if escape in (b"$@", b"$B"):
            head = re.sub(rb"[\x21-\x7e]", lambda m: bytes((m.group()[0] | 0x80,)), head)
        elif escape.startswith(b"$("):
            head = re.sub(rb"[\x21-\x7e]{2}", lambda m: bytes((0x8F, m.group()[0] | 0x80, m.group()[1] | 0x80)), head)
        elif escape == b"(I":
            head = re.sub(rb"[\x21-\x5f]", lambda m: bytes((0x8E, m.group()[0] | 0x80)), head)
        out += [head, newline, tail]
    return decode_euc_jp(b"".join(out))


def is_iso2022_jp(raw: bytes) -> bool:
    """Whether 7-bit bytes switch to Japanese character sets (and not only colours of a terminal)."""
    return re.search(rb"\x1b(?:\$[@B]|\$\(D|\(I)", raw) is not None


@lru_cache(maxsize=1 << 14)
def _kanji(char: str, codec: str, level_1_to: int, frequent: frozenset[str]) -> float:
    if char in frequent:
        return 8.0
    try:
        unit = char.encode(codec)
    except UnicodeEncodeError:
        return _FOREIGN
    return 11.0 if unit[0] <= level_1_to else 15.5


def _beside_latin(before: str, char: str, after: str, frequent: frozenset[str]) -> float:
    """Rare characters between small Latin letters are more often one accented letter and its neighbour."""
    if char in frequent:  # “no is 渡o, where Japanese has a word of its own before a small letter
        return 0.0 if before > "\u2fff" or not _SMALL.match(after) else 4.0
    return 5.0 * (bool(_LETTER.match(before)) + bool(_LETTER.match(after)))


def _punctuation(char: str) -> float:
    if char in "、。・ー「」（）：／〜～！？，．『』【】“”‘’":
        return 6.0
    if "\uff10" <= char <= "\uff5a" or char in "　①②③④⑤⑥⑦⑧⑨⑩㈱㈲№℡㎡㎏㎝㎜℃○●◎□■△▲▽▼☆★※〒→←↑↓…―－×÷々〆":
        return 9.0
    return 14.0 if unicodedata.category(char)[0] in "PSNZ" else _FOREIGN


def _japanese(before: str, char: str, after: str) -> float:
    if "\u3041" <= char <= "\u3096":
        return 5.0
    if "\u30a1" <= char <= "\u30fa":
        return 6.5
    if "\uff61" <= char <= "\uff65":  # ｡ ｢ ｣ ､ ･ stand beside Japanese
        return 14.0 if before > "\u2fff" or after > "\u2fff" else _BAD
    if "\uff66" <= char <= "\uff9f":
        return _half_width(before, char, after)
    if "\u4e00" <= char <= "\u9fff":
        return _kanji(char, "euc_jp", 0xCF, _JAPANESE) + _beside_latin(before, char, after, _JAPANESE)
    if "\ue000" <= char <= "\uf8ff":
        return 30.0  # CP932 keeps rooms for characters of the user's own, which hardly a text has
    return _punctuation(char) + _beside_latin(before, char, after, frozenset())


def _half_width(before: str, char: str, after: str) -> float:
    kana = "\uff66" <= before <= "\uff9f"
    if _LETTER.match(before) or (_LETTER.match(after) and not kana):
        return 18.0
    if char == "ﾞ":
        return 6.0 if before in _VOICEABLE else 18.0
    if char == "ﾟ":
        return 6.0 if before in _HALF_VOICEABLE else 18.0
    if char in _NO_WORD_BEGINS and not kana:
        return 18.0
    usual = 6.0 if char in _USUAL_KANA else 8.0
    return usual if kana or "\uff66" <= after <= "\uff9f" else 13.0


def _chinese(codec: str, level_1_to: int, frequent: frozenset[str]) -> Callable[[str, str, str], float]:
    def cost(before: str, char: str, after: str) -> float:
        if "\u4e00" <= char <= "\u9fff":
            return _kanji(char, codec, level_1_to, frequent) + _beside_latin(before, char, after, frequent)
        return _punctuation(char) if not "\u3041" <= char <= "\u30fa" else _FOREIGN

    return cost


def _korean(before: str, char: str, after: str) -> float:
    if "\uac00" <= char <= "\ud7a3":
        if len(char.encode("euc_kr")) > 2:  # Python spells out in eight bytes what the table leaves out
            return 30.0  # of the 11,172 syllables the text of a Korean uses these 2,350
        return 6.5 if char in _KOREAN else 9.0 + _beside_latin(before, char, after, _KOREAN)
    return _punctuation(char) if not "\u3041" <= char <= "\u30fa" else _FOREIGN


def _alphabet(letters: frozenset[str]) -> Callable[[str, str, str], float]:
    """The cost of letters that stand among those of ASCII."""

    def cost(before: str, char: str, after: str) -> float:
        if char not in letters:
            return _western(before, char, after) + (6.0 if char not in _LATIN_LETTERS else 3.0)
        if char.isupper() and before.islower():
            return 18.0
        if char.islower() and after.isascii() and after.isupper():
            return _FOREIGN
        capital = 0.5 if before.isupper() or after.isupper() else 2.5
        # What is a letter of Western languages at another place of the table is rather that one.
        bits = 8.0 + (char not in _LATIN_LETTERS) + capital * char.isupper()
        return bits + 12.0 * (not before.isalpha() and not after.isalpha())

    return cost


def _script(letters: frozenset[str]) -> Callable[[str, str, str], float]:
    """The cost of letters whose words hold none of ASCII."""

    def cost(before: str, char: str, after: str) -> float:
        if char not in letters:
            return _western(before, char, after) + 6.0
        if _LETTER.match(before) or _LETTER.match(after):
            return _BAD
        return letter_bits(before, char, after)

    return cost


_VAGUE = frozenset("ëíìîïóÖ")


def _macintosh(before: str, char: str, after: str) -> float:
    """As `_western`; letters that are Windows-1252's dashes and quotes are no sign of a Macintosh."""
    if char in _LATIN_LETTERS and char.islower() and after.isascii() and after.isupper():
        return _FOREIGN
    vague = char in _VAGUE or (char == "ñ" and not (before in _VOWELS and after in _VOWELS))
    return _western(before, char, after) + 3.0 * vague


def _western(before: str, char: str, after: str) -> float:
    left, right = before.isalpha(), after.isalpha()
    if char == "–" and before in _VOWELS and after in _VOWELS:
        return _FOREIGN  # the old Macintosh's ñ, which hardly ever stands elsewhere
    if char == "œ" and right and after not in "uU":
        return 14.0  # the old Macintosh's ú
    if char in _LATIN_LETTERS:
        if not left and not right:
            return 10.0 if char in _LATIN_ALONE else _BAD
        if char.islower() and char != "ß" and after.isupper() and not before.islower():
            return _FOREIGN  # no word is written åK or KåN
        high = (before in _LATIN_LETTERS and left) + (after in _LATIN_LETTERS and right)
        if char in "ÿŸ":
            return 18.0  # hardly a language has them; 0xFF is damage more often
        if char.isupper() and before.islower():
            return _FOREIGN + 3 * high
        # No language writes these there; in another encoding they are the letters that it does write.
        if (char in "ùì" and right) or (char == "û" and before in _VOWELS and after in _VOWELS):
            return 13.0 + 3 * high
        if (char + after) in _NO_PAIRS or (char == "á" and before == "a"):
            return 14.0 + 3 * high
        return (8.0 if char not in "ýÝðþÐÞšžŠŽãÃ" else 11.0) + 3 * high
    if char in "“‘«„‚" and not left and (after.strip() or char == "«"):
        return 8.0
    if char in "“‘" and before.strip() and not right:  # as German ends a quotation
        return 8.0
    if char in "”’»" and (before.strip() or char == "»"):
        return 8.0
    if char == "”" and right:  # as Finnish and Swedish begin a quotation
        return 12.0
    # Letters of Central Europe: ¹ ³ º ¿ £ and fractions at the edges of words and inside them.
    if (char in "£ºª¼½¾" and right and not left) or (left and (char in "¿£" or (char in "¹³" and before not in "mM"))):
        return 14.0
    if char in "–—…•·€£©®™°§±µ¿¡½¼¾²³×º¹\xa0†":
        return 9.0 if not (left and right) or char in "–—…·\xa0" else 14.0
    return _BAD


CANDIDATES = (
    Charset("Shift_JIS (CP932)", "cp932", _cp932, _japanese),
    Charset("EUC-JP", "euc_jp", decode_euc_jp, _japanese),
    Charset("Windows-1252", "cp1252", _by("cp1252"), _western, alphabets=WESTERN),
    Charset("GB18030", "gb18030", _by("gb18030"), _chinese("gb2312", 0xD7, _SIMPLIFIED), 8.0),
    Charset("EUC-KR (CP949)", "cp949", _by("cp949"), _korean, 8.0),
    Charset("Big5", "big5hkscs", _by("big5hkscs"), _chinese("big5", 0xC6, _TRADITIONAL), 8.0),
    Charset("Windows-1251", "cp1251", _by("cp1251"), _script(_CYRILLIC), 4.0),
    Charset("KOI8-R", "koi8_r", _by("koi8_r"), _script(_CYRILLIC), 4.0),
    Charset("KOI8-U", "koi8_u", _by("koi8_u"), _script(_CYRILLIC), 5.0),
    Charset("Windows-1253", "cp1253", _by("cp1253"), _script(_GREEK), 8.0),
    Charset("Windows-1250", "cp1250", _by("cp1250"), _alphabet(_CENTRAL), 6.0, CENTRAL),
    Charset("ISO-8859-2", "iso8859_2", _by("iso8859_2"), _alphabet(_CENTRAL), 7.0, CENTRAL),
    Charset("Windows-1254", "cp1254", _by("cp1254"), _alphabet(_TURKISH), 7.0, TURKISH),
    Charset("Windows-1257", "cp1257", _by("cp1257"), _alphabet(_BALTIC), 7.0, BALTIC),
    Charset("ISO-8859-15", "iso8859_15", _by("iso8859_15"), _western, 6.0, WESTERN),
    Charset("Mac Roman", "mac_roman", _by("mac_roman"), _macintosh, 10.0, DOS),
    Charset("CP850", "cp850", _cp850, _western, 10.0, DOS),
    Charset("CP866", "cp866", _by("cp866"), _script(_CYRILLIC), 8.0),
)

EAST_ASIAN = frozenset(("cp932", "euc_jp", "gb18030", "cp949", "big5hkscs"))
_INSIDE = re.compile(r"(?<=[A-Za-z])[^\x00-\x7f]{1,3}(?=[A-Za-z])")
_GLUED = 20.0  # bits for each run of East Asian characters inside a Latin word
_RUN = re.compile(rb"[^\t\n\r -/:-?]+")  # what stands between characters that are the second byte of no other


def cost(charset: Charset, sample: bytes) -> float:
    """What the sample costs in this encoding, in bits."""
    text = charset.decode(sample)
    padded = f" {text} "
    bits = charset.prior
    for i, char in enumerate(text, start=1):
        if char < "\x80":
            bits += _ASCII
        elif char == "\ufffd" or "\x80" <= char <= "\x9f":
            bits += _BROKEN
        else:
            bits += charset.cost(padded[i - 1], char, padded[i + 1])
    if charset.codec in EAST_ASIAN:
        return bits + _glued(text)
    return bits + (strangeness(text, charset.alphabets) if charset.alphabets else 0.0)


def _glued(text: str) -> float:
    """Bits for East Asian characters inside Latin words, which are rather accented letters of these words."""
    bits = 0.0
    for match in _INSIDE.finditer(text):
        run = match.group()
        if all("\u3041" <= char <= "\u3096" for char in run):  # Japanese writes particles between words: WindowsのPath
            continue
        around = text[max(match.start() - 2, 0) : match.start()] + text[match.end() : match.end() + 2]
        long = sum(bool(_LETTER.match(char)) for char in around) > 2
        usual = all(char in _JAPANESE for char in run)
        bits += (_GLUED / 5 if usual else _GLUED) if long else _GLUED / 5
    return bits


def distinct(sample: bytes) -> bytes:
    """The sample with each word or run that is not ASCII once: repeating a word proves nothing about its encoding."""
    seen: set[bytes] = set()

    def once(match: re.Match[bytes]) -> bytes:
        word = match.group()
        if word.isascii():
            return word
        if word in seen:
            return b""
        seen.add(word)
        return word

    return _RUN.sub(once, sample)


@lru_cache(maxsize=1 << 14)
def character_bits(char: str) -> float:
    """What a character of East Asia, a symbol or a mark costs wherever it stands, as in UTF-16."""
    if "\uac00" <= char <= "\ud7a3":
        return _korean("", char, "")
    if "\u4e00" <= char <= "\u9fff":
        if char in _SIMPLIFIED or char in _TRADITIONAL:
            return 8.0
        return min(_kanji(char, "euc_jp", 0xCF, _JAPANESE), _kanji(char, "gb2312", 0xD7, _SIMPLIFIED))
    return _japanese("", char, "")


def ascii_cost(text: str) -> float:
    """The part of a text's cost that its ASCII characters make, in bits."""
    return _ASCII * sum(char < "\x80" for char in text)


def ranked(sample: bytes) -> list[tuple[float, Charset]]:
    """All candidates with what the sample costs in them, the cheapest first."""
    return sorted(((cost(charset, sample), charset) for charset in CANDIDATES), key=lambda pair: pair[0])
