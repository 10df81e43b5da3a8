"""One form for what Japanese writes in several: old and new characters, variants in names, long vowels, years by era.

Whoever asks for 渡辺 means 渡邉 too, サーバ is サーバー, 2024年 is 令和6年. Texts and queries are brought to one form
before they are compared; what is shown and cited stays as it was written. It knows nothing of indexes.
"""

from __future__ import annotations

import re
from itertools import chain

from slm.text.names import names
from slm.text.normal_form import nfkc

# Old forms (旧字体) of 常用漢字表 (cabinet notification of 2010), and the new ones in the same order.
_OLD = (
    "乘亂亞佛來倂假傳僞價儉兒兩剩劍劑勞勳勵勸區卷卽參單嚴囑圈國圍圓圖團增墮壓壘壞壤壯壹壽奧奬孃學寢實寫寬寶將專對屆屬峽嶽巢帶"
    "廢廣廳彈彌徑從徵德恆惠惡惱愼慘應懷戀戰戲戾拂拔拜挾插揭搖搜擇擊擔據擧擴攝收效敍敕數斷晚晝曆曉曾會條棧榮槪樂樓樞樣橫檢櫻權歐"
    "歡步歷歸殘殼毆每氣涉淚淨淺渴溪溫滯滿潛澁澤濕濟濱瀧瀨灣燈燒營爐爭爲犧狀狹獨獵獸獻甁畫當疊瘦癡發盜盡眞硏碎祕禪禮稱稻穗穩竊竝"
    "粹絲經綠緖緣縣縱總繩繪繼續纖缺罐聲聽肅腦膽臟臺與舊艷莊莖萬薰藏藝藥處虛號螢蟲蠶蠻衞裝襃覺覽觀觸謠證譯譽讀變讓豐豫貳賣賴贊踐輕"
    "轉辭遞遲邊郞鄕醉醫釀釋錄錢鍊鎭鐵鑄鑛關陷隨險隱雙雜霸靈靜顯飜餘騷驅驗驛髓體髮鬭鷄鹽麥麵黃黑默點黨齊齋齒齡龍"
)
_NEW = (
    "乗乱亜仏来併仮伝偽価倹児両剰剣剤労勲励勧区巻即参単厳嘱圏国囲円図団増堕圧塁壊壌壮壱寿奥奨嬢学寝実写寛宝将専対届属峡岳巣帯"
    "廃広庁弾弥径従徴徳恒恵悪悩慎惨応懐恋戦戯戻払抜拝挟挿掲揺捜択撃担拠挙拡摂収効叙勅数断晩昼暦暁曽会条桟栄概楽楼枢様横検桜権欧"
    "歓歩歴帰残殻殴毎気渉涙浄浅渇渓温滞満潜渋沢湿済浜滝瀬湾灯焼営炉争為犠状狭独猟獣献瓶画当畳痩痴発盗尽真研砕秘禅礼称稲穂穏窃並"
    "粋糸経緑緒縁県縦総縄絵継続繊欠缶声聴粛脳胆臓台与旧艶荘茎万薫蔵芸薬処虚号蛍虫蚕蛮衛装褒覚覧観触謡証訳誉読変譲豊予弐売頼賛践軽"
    "転辞逓遅辺郎郷酔医醸釈録銭錬鎮鉄鋳鉱関陥随険隠双雑覇霊静顕翻余騒駆験駅髄体髪闘鶏塩麦麺黄黒黙点党斉斎歯齢竜"
)
# Variants (異体字) in names and in texts of JIS X 0208's two generations: the form that is kept, then the others.
_ALIKE = """
    辺邊邉 高髙 崎﨑嵜碕 浜濱濵 斉齊斎齋齎 国國圀 島嶋嶌 富冨 峰峯 館舘 柳栁桺 昇曻 吉𠮷 橋𣘺槗 徳德悳 淵渕渊 桧檜
    薮藪籔 篭籠 涼凉 遥遙 尭堯 槙槇 瑶瑤 凛凜 晋晉 巌巖 麹麴 頬頰 填塡 剥剝 噓嘘 掴摑 鴎鷗 蝋蠟 蝉蟬 繍繡 醤醬 侭儘
    壷壺 梼檮 涛濤 迩邇 祷禱 禄祿 鶴靍靏鸖 鉄鐵鉃銕 宝寶寳 船舩 松枩柗 桑桒 煕熙凞 莱萊 野埜 達逹 青靑 清淸 戸戶
    芦蘆 祇祗 呉吳 内內 税稅 説說 兎兔 教敎 彦彥 顔顏 産產 弁辨瓣辯 氷冰 回囘 姉姊 鰺鯵 飲飮 翠翆 梅楳 秋穐龝 稗粺
    隣鄰 群羣 略畧 跡蹟迹 駆駈 賢贒 熊熋 窓窗窻 裏裡 雁鴈 杯盃 烟煙 皐皋 珍珎 恥耻 柏栢 蕊蘂蕋 蛎蠣 撹攪 鹸鹼 鋤耡
    鈎鉤 諌諫 厨廚 砺礪 蝿蠅 靭靱 餅餠 粥鬻 荊荆 濾沪 箪簞 騨驒 屏屛 并幷 俠侠 倶俱 呑吞 喩喻 牽牵 焔焰 祢禰 頚頸
    鼡鼠 朗朖 郷鄉鄕 既旣
"""
_TABLE = str.maketrans(
    {
        **dict(zip(_OLD, _NEW, strict=True)),
        **dict(chain.from_iterable(((other, group[0]) for other in group[1:]) for group in _ALIKE.split())),
        "ヶ": "ケ", "ヵ": "カ",
        # Variation selectors choose a glyph of the same character.
        **{chr(code): None for code in chain(range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))},
    }
)  # fmt: skip
_REPEATED = re.compile(r"([\u3400-\u9fff])々")

_ERAS = {"明治": 1868, "大正": 1912, "昭和": 1926, "平成": 1989, "令和": 2019}
_LAST = {"明治": 45, "大正": 15, "昭和": 64, "平成": 31, "令和": 99}
_LETTERS = {"M": "明治", "T": "大正", "S": "昭和", "H": "平成", "R": "令和"}
_DIGITS = {kanji: value for value, kanji in enumerate("〇一二三四五六七八九")} | {"零": 0}
_ROMAN = {"meiji": "明治", "taisho": "大正", "showa": "昭和", "heisei": "平成", "reiwa": "令和"}
_ERA_YEAR = re.compile(
    rf"({'|'.join(_ERAS)})[ \t]{{0,2}}(元|\d{{1,2}}|[一二三四五六七八九十]{{1,3}})(?!\d)"
    r"[ \t]{0,2}(年?)"
)
# A letter alone is more often a part's or a heading's: it stands for an era before 年, 度 or a date (R6.4.1), and
# R, of the era that is, before a particle or at the end of a query.
_LETTER_YEAR = re.compile(
    r"(?<![A-Za-z0-9])(?:([MTSHR])\.?(元|\d{1,2})(?=[ \t]?[年度]|[./-]\d{1,2}[./-]\d{1,2}(?!\d))"
    r"|(R)(\d{1,2})(?=[のにはを]|[ \t]?\Z))"
    r"[ \t]?(年?)"
)
_ROMAN_YEAR = re.compile(r"\b(meiji|taish[oō]|sh[oō]wa|heisei|reiwa)[ \t](\d{1,2})\b", re.IGNORECASE)
_KANJI_YEAR = re.compile(r"([一二][〇零一二三四五六七八九]{3})年")
_YEAR = re.compile(r"(?<!\d)(1[89]\d\d|20\d\d)(?!\d)")
# What is typed for a hyphen, and for the long-vowel mark between katakana (コンピュ―タ, サ−バ).
_HYPHENS = re.compile(r"(?<=[A-Za-z0-9])[\u2010-\u2015\u2212](?=[A-Za-z0-9])")
_DASHED_VOWEL = re.compile(r"(?<=[\u30a1-\u30fa])[\u2012-\u2015\u2212\u2500](?=[\u30a1-\u30fa]|(?!\w))")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_ORDINAL = re.compile(r"第[ \t]?([一二三四五六七八九十]{1,3})(?![百千万億〇零])")
_KATAKANA = re.compile(r"[\u30a1-\u30fa\u30fc]{4,}")
_SMALL = re.compile("[ァィゥェォャュョヮ]")
# Words that are other ones without their last mark: batter and grasshopper, hacker and mint, rapper and bugle.
_OTHER_WORDS = names("バッター ハッカー ラッパー カッパー サンバー ジョッキー チューバー")


def folded(text: str) -> str:
    """The text in NFKC, with one form of each character, 々 written out, and years as they are."""
    text = nfkc(text)
    return text if text.isascii() else _REPEATED.sub(r"\1\1", text.translate(_TABLE))


def searchable(text: str) -> str:
    """`folded`, and one form of what words are found by: hyphens, 第三 as 第3, 13,000 as 13000, サーバー as サーバ.

    The mark at a word's end goes where JIS Z 8301:2008 (annex G) lets it: after three sounds or more, a small kana
    being none. カバー (a cover) stays, and so do the longer words that would be others without it.
    """
    text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), folded(text))
    if text.isascii():
        return text
    text = _DASHED_VOWEL.sub("ー", _HYPHENS.sub("-", text))
    text = _ORDINAL.sub(lambda m: f"第{count_of(m[1]) or m[1]}", text)
    return _KATAKANA.sub(lambda m: _short(m[0]), text)


def comparable(text: str) -> str:
    """`folded`, and years of Japanese eras as Western ones (令和6年度 becomes 2024年度): what is embedded."""
    text = folded(text)
    text = _ROMAN_YEAR.sub(lambda m: _western(_ROMAN[m[1].lower().replace("ō", "o")], m[2], "") or m[0], text)
    text = _ERA_YEAR.sub(lambda m: _western(m[1], m[2], m[3]) or m[0], text)
    text = _LETTER_YEAR.sub(lambda m: _western(_LETTERS[m[1] or m[3]], m[2] or m[4], m[5]) or m[0], text)
    return _KANJI_YEAR.sub(lambda m: "".join(str(_DIGITS[digit]) for digit in m[1]) + "年", text)


def count_of(text: str | None) -> int:
    """The value of digits, or of kanji numerals below 100; 0 for nothing and for what is no number."""
    if not text or text.isdecimal():
        return int(text or 0)
    tens, ten, ones = text.rpartition("十")
    if len(tens) > 1 or len(ones) > 1 or "十" in tens:
        return 0
    return (_DIGITS[tens] if tens else 1) * 10 * bool(ten) + (_DIGITS[ones] if ones else 0)


def years_of(text: str) -> list[int]:
    """The years that a `comparable` text names, 1800 to 2099, in order."""
    return [int(year) for year in _YEAR.findall(text)]


def _western(era: str, number: str, unit: str) -> str:
    """A year of an era in Western reckoning, or "" when the era had no such year."""
    count = 1 if number == "元" else count_of(number)
    return f"{_ERAS[era] + count - 1}{unit}" if 1 <= count <= _LAST[era] else ""


def _short(word: str) -> str:
    """A word in katakana without the mark of a long vowel at its end, where it is the same one without it."""
    stem = word.removesuffix("ー")
    return word if word in _OTHER_WORDS or len(_SMALL.sub("", stem)) < 3 else stem
