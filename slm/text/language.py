"""Which language a text is in. It knows nothing of adapters or models.

Scripts decide where they can (kana is Japanese, hangul is Korean). Where Japanese and Latin letters mix, grammar
decides: names and technical words are written in Latin letters inside Japanese sentences, and hiragana hold those
together. Only among languages that share a script is the statistical identifier py3langid asked.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from slm.text.normal_form import nfkc

# Languages by the script they are written in, as Unicode names its letters; Latin is written by all others.
_LANGUAGES = {
    "HIRAGANA": ("ja",), "KATAKANA": ("ja",), "HANGUL": ("ko",), "CYRILLIC": ("ru", "uk", "bg", "sr", "mk", "be", "kk"),
    "GREEK": ("el",), "ARABIC": ("ar", "fa", "ur"), "HEBREW": ("he",), "DEVANAGARI": ("hi", "mr", "ne"),
    "THAI": ("th",), "BENGALI": ("bn",), "TAMIL": ("ta",), "GEORGIAN": ("ka",), "ARMENIAN": ("hy",),
}  # fmt: skip
_NOT_LATIN = {"zh", *(code for codes in _LANGUAGES.values() for code in codes)}
_SCRIPT_NAMES = {"ja": "Japanese", "zh": "Chinese"}
# Asked about a longer text in Latin letters, to tell one in a language that nobody asks for.
_COMMON_LATIN = ("en", "fr", "de", "es", "it", "pt", "nl", "pl", "sv", "tr", "vi", "id", "cs", "ro")
# The part of an address before its @ is bounded (64 characters, RFC 5321), or a text without blanks would be read
# through again from each of its characters.
_NOT_PROSE = re.compile(r"```.*?(?:```|$)|`[^`]*`|https?://\S+|[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]+", re.DOTALL)
_QUOTED = re.compile(r"「[^「」]*」|『[^『』]*』")
_LATIN_WORD = re.compile(r"[A-Za-zÀ-ɏ][A-Za-zÀ-ɏ'’]*")
# API, PDF, WH-1000XM5, 0x80070005, snake_case: names that every language writes so.
_SHORT_NAME = re.compile(r"[A-Z]{1,5}s?")
_CODE_LETTERS = re.compile(r"[\w.+/-]+", re.ASCII)
_CODE_SIGN = re.compile(r"[\d_]", re.ASCII)
_PLAIN_RUN = re.compile(r"\b[a-z]{2,}(?:\s+[a-z]{2,}){2,}\b")
# English words that hold a sentence together, without those that are words of other languages too (me, no, was).
_GRAMMAR_WORDS = frozenset(re.findall(r"\w+", """
    about and are at be but by can could did does for from had has have how i if it its my not of our please she
    should that the their them there they this to we were what when where which who why with would yes you your
"""))  # fmt: skip
# A Latin word weighs as much as this many kana or kanji (a Japanese word is about two characters); a name, less.
_WORD_WEIGHT, _NAME_WEIGHT = 2.0, 0.5
_ENOUGH_WORDS = 5
_ISO_639_1 = frozenset(re.findall(r"\w+", """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
    en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu
    ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na
    nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so
    sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""))  # fmt: skip
_STATISTICS_SURE = 0.95


@dataclass(frozen=True)
class Guess:
    """A language code (ISO 639-1) or None for undecided, a confidence from 0 to 1, and the reason in words."""

    language: str | None
    confidence: float
    reason: str


def is_code(text: str) -> bool:
    """Whether a text is a language code: ISO 639-1, or three letters of ISO 639-3, with or without a region."""
    head = re.split("[-_]", text.lower(), maxsplit=1)[0]
    return head in _ISO_639_1 or bool(re.fullmatch("[a-z]{3}", head))


def detect(text: str, among: Collection[str] = ("en", "ja")) -> Guess:
    """Guess the language of `text` out of `among`. Code, URLs and addresses do not count as prose."""
    prose = nfkc(_NOT_PROSE.sub(" ", text))
    unquoted = _QUOTED.sub(" ", prose)
    if any(map(str.isalpha, unquoted)):  # what a text is about may be quoted in any language
        prose = unquoted
    scripts = Counter(_script(letter) for letter in prose if letter.isalpha())
    names: list[str] = []
    rest: list[str] = []
    for word in prose.split():
        (names if _is_code_word(word) else rest).append(word)
    words = _LATIN_WORD.findall(" ".join(rest))
    latin = len(words) * _WORD_WEIGHT + len(names) * _NAME_WEIGHT * any(_script(c) == "LATIN" for w in names for c in w)
    weights = {script: float(count) for script, count in scripts.items() if script not in ("LATIN", "CJK")}
    if scripts["CJK"]:
        weights["CJK"] = float(scripts["CJK"])
    if latin:
        weights["LATIN"] = latin
    weights = _japanese_together(weights, prose, among)
    if not weights:
        return Guess(None, 0.0, "no letters to judge by")
    script, weight = max(weights.items(), key=lambda item: item[1])
    share = weight / sum(weights.values())
    if "LATIN" in weights and "ja" in weights and _is_japanese_sentence(scripts, words, prose):
        return _named("ja", max(share if script == "ja" else 0.0, 0.8), "Latin words inside a Japanese sentence", among)
    if script == "LATIN":
        return _latin(prose, words, share, among)
    if script in ("ja", "zh"):
        ambiguous = "ja" in among and "zh" in among and not (scripts["HIRAGANA"] or scripts["KATAKANA"])
        sure = share * (0.5 if ambiguous and _fits(prose, "shift_jis") and _fits(prose, "gb2312") else 1.0)
        return _named(script, sure, f"{share:.0%} of the text is in {_SCRIPT_NAMES[script]} script", among)
    known = [code for code in _LANGUAGES.get(script, ()) if code in among]
    if len(known) > 1:
        return _statistics(prose, known, share, f"{script.capitalize()} script")
    code = known[0] if known else next(iter(_LANGUAGES.get(script, ())), script.lower())
    return _named(code, share, f"{share:.0%} of the text is in {script.capitalize()} script", among)


def is_name_only(text: str) -> bool:
    """Whether a text is nothing but what every language writes alike: OK, PDF, a number, a part's code."""
    return all(_is_code_word(word) or not any(map(str.isalpha, word)) for word in nfkc(text).split())


def _is_code_word(word: str) -> bool:
    bare = word.strip(".,:;!?()")
    return bool(_SHORT_NAME.fullmatch(bare) or (_CODE_LETTERS.fullmatch(bare) and _CODE_SIGN.search(bare)))


def _japanese_together(weights: dict[str, float], prose: str, among: Collection[str]) -> dict[str, float]:
    """Kana and kanji as one weight, 'ja'; kanji without kana as 'zh' where they are no Japanese ones or can be both."""
    kana = weights.pop("HIRAGANA", 0.0) + weights.pop("KATAKANA", 0.0)
    kanji = weights.pop("CJK", 0.0)
    if kana + kanji == 0:
        return weights
    chinese = kana == 0 and (not _fits(prose, "shift_jis") or ("zh" in among and _fits(prose, "gb2312")))
    return {**weights, "zh" if chinese else "ja": kana + kanji}


def _is_japanese_sentence(scripts: Counter[str], words: list[str], prose: str) -> bool:
    """Hiragana beside Latin words that are no sentence of their own."""
    speaks = any(word.lower() in _GRAMMAR_WORDS and not word.isupper() for word in words)
    return scripts["HIRAGANA"] > 0 and not speaks and not _PLAIN_RUN.search(prose)


def _latin(prose: str, words: list[str], share: float, among: Collection[str]) -> Guess:
    known = sorted(code for code in among if code not in _NOT_LATIN)
    english = sum(word.lower() in _GRAMMAR_WORDS for word in words)
    reason = f"{share:.0%} of the text is in Latin script"
    if not known:
        return Guess(None, share, f"Latin letters, and none of {', '.join(sorted(among))} is written so")
    if len(words) >= _ENOUGH_WORDS and not ("en" in known and english * 4 >= len(words)):
        guess = _statistics(prose, sorted({*known, *_COMMON_LATIN}), 1.0, "Latin script")
        if guess.language not in known and guess.confidence > _STATISTICS_SURE:
            return _named(str(guess.language), share, guess.reason, among)
    if len(known) == 1:
        return Guess(known[0], share, reason)
    if "en" in known and english * 4 >= max(len(words), 1):
        return Guess("en", share, f"{reason}, with English grammar words")
    return _statistics(prose, known, share, f"{share:.0%} Latin script")


def _statistics(prose: str, known: Collection[str], share: float, reason: str) -> Guess:
    language, probability = _identifier(tuple(known)).classify(prose)
    return Guess(
        str(language), float(probability) * share, f"{reason}, identified as '{language}' ({float(probability):.2f})"
    )


def _named(code: str, confidence: float, reason: str, among: Collection[str]) -> Guess:
    if code in among:
        return Guess(code, confidence, reason)
    return Guess(None, confidence, f"{reason}: it looks like '{code}', which is not among {', '.join(sorted(among))}")


def _fits(text: str, encoding: str) -> bool:
    """Whether all kanji of the text are in a national character set."""
    return all(_encodes(letter, encoding) for letter in text if _script(letter) == "CJK")


def _encodes(letter: str, encoding: str) -> bool:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=1 << 14)
def _script(letter: str) -> str:
    """The first word of a letter's Unicode name: LATIN, HIRAGANA, CJK, ..."""
    first = unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
    return "CJK" if first == "IDEOGRAPHIC" else first


@lru_cache(maxsize=8)
def _identifier(languages: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = set(identifier.labels) & set(languages)  # an adapter may be for a language it has never heard of
    if known:
        identifier.set_languages(sorted(known))
    return identifier
