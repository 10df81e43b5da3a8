"""What speaks against Windows-1252 where a text has too few letters above ASCII to be judged by what they cost.

`à la carte` of DOS is `… la carte` in Windows-1252, and `Dzień dobry` of Central Europe is `Dzieñ dobry`: both cost
little. Words that the other table makes of it, or letters where no Western language has them, tell them apart. It
knows nothing of files and changes no text.
"""

from __future__ import annotations

import re
from enum import Enum

from slm.text.names import names

# Everyday words of French, Italian and German in which DOS has a letter where Windows has dots, a dash or another mark.
_DOS_WORDS = names(
    "à où là voilà déjà deçà delà già più giù però può ciò perciò metà sarà potrà dovrà farà avrà verrà andrà c'è è "
    "für über äpfel ärger ämter änderung änderungen öl öffnen"
)
_DOS_ENDINGS = re.compile(r"\w(?:ttà|rtà|età|alità|bilità|ività|ersità|munità|torità|arità)\Z")
_DOS_BEGINNINGS = re.compile(r"(?:über|öster|änder|ärzt|öffn)[a-zäöüß]{2,}\Z")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_HIGH = re.compile("[^\x00-\x7f]")
# What follows a French "à" and hardly ever three dots.
_AFTER_A = re.compile(
    r"\bà (?:la (?:carte|maison|mode|fin|place|demande)|partir|louer|vendre|domicile|midi|peu|jour|nouveau|propos|"
    r"travers|cause|droite|gauche|demain|plus tard|(?:vo|no)tre|emporter|table)\b",
    re.IGNORECASE,
)
# Short words of one Western language that are no words of English or of the languages of Central Europe.
_WESTERN_WORDS = names(
    "les des du une est et dans pour avec sur que qui pas vous nous elle aux cette sono nel alla gli della che "
    "der das und ist nicht von dem ein eine uns auf im los las es por y uma os og det til ikke och att inte ett "
    "av het een voor niet"
)
_ROMANCE_WORDS = names("la le il di de un lo del per con non")  # and of Romanian, which DOS's table has no letters for
# Letters in whose places Windows-1250, 1254 and 1257 and ISO's tables have others.
_SHIFTED = frozenset("àãåæèêìïðñòõøùûýþÀÃÅÆÈÊÌÏÐÑÒÕØÙÛÝÞâîÂÎ")
_FEW = 2  # of those letters; more of them are judged by what they cost
# Where Western languages have them: words of one letter, ñ between vowels, São, crème, hôtel, naïve, på, København.
_USUAL = re.compile(
    r"\b[àèåø]\b|(?<![^aeiouáéíóúü\W])ñ(?=[aeiouáéíóú])|ão|ãe|ç[õã]|[èê][lmnrstv]e|[âî][cgmt][eh]|oû|rû|aî|[aou]ï|"
    r"[bdfghklmnprstv]å|ø[bdjlnr]|æ[dglnrs]",
    re.IGNORECASE,
)
_SYMBOLS = re.compile(
    r"[a-zß-ÿ][†‡ˆ‰¤¥¢¬©®¶¦§¾¼]{2,}|[a-z]±(?!\s*[\d.])|(?<!\w)¾[a-z]|[a-zß-ÿ][¼½](?!\w)|(?<![\w)])[¹³][a-z]"
)


# A quotation mark at a word that no other mark of the text belongs to is DOS's ö, ä or ô: Malm” of Malmö.
_CLOSED, _OPENED = re.compile(r"\w”"), re.compile(r"[“„](?=[a-z])")
# The Scandinavians' words of two letters that end in å: p†, s†, f†.
_DAGGER = re.compile(r"\b[a-zA-Z]†(?!\w)")


class Dos(Enum):
    """What a text is that may be of DOS: not at all, perhaps, most likely."""

    NO, PERHAPS, LIKELY = range(3)


def of_dos(windows: str, dos: str) -> Dos:
    """Whether all that is above ASCII in the text of DOS is in everyday words, as it is not in that of Windows.

    Both texts are of the same bytes, a character each.
    """
    if len(windows) != len(dos):
        return Dos.NO
    places = {match.start() for match in _HIGH.finditer(dos)}
    words = [word for word in _WORD.finditer(dos) if not word.group().isascii()]
    for word in words:
        if not _is_dos_word(word.group()) or (
            windows[word.start() : word.end()].isalpha() and word.group()[0] not in "Üü"
        ):
            return Dos.NO
        places.difference_update(range(word.start(), word.end()))
    if places or not words:
        return Dos.NO
    western = speaks_western(dos) or not _ROMANCE_WORDS.isdisjoint(re.findall(r"[a-z]+", dos.lower()))
    if all(word.group() in ("à", "À") for word in words):
        # Dots between blanks are dots, but in a language that has this word.
        return Dos.LIKELY if _AFTER_A.search(dos) else Dos.PERHAPS if western else Dos.NO
    return Dos.LIKELY if western or any("-" in word.group() for word in words) else Dos.PERHAPS


def _is_dos_word(word: str) -> bool:
    lower = word.lower().replace("’", "'")
    parts = re.split("['-]", lower)
    known = lower in _DOS_WORDS or all(part.isascii() or part in _DOS_WORDS for part in parts)
    return known or bool(_DOS_ENDINGS.search(lower) or _DOS_BEGINNINGS.match(lower))


def speaks_western(text: str) -> bool:
    """Whether a word of plain letters in it is a Western language's own."""
    return not _WESTERN_WORDS.isdisjoint(re.findall(r"\b[a-z]+\b", text.lower()))


def is_doubtful(text: str) -> bool:
    """Whether a text of Windows-1252 has so few letters of its own that it may as well be of another table."""
    if _has_lone_quote(text) or _DAGGER.search(text):
        return True
    if _SYMBOLS.search(text) or ("¿" in text and "?" not in text) or ("¡" in text and "!" not in text):
        return True
    shifted = sum(char in _SHIFTED for char in text)
    if not 0 < shifted <= _FEW or speaks_western(text):
        return False
    usual = sum(not _SHIFTED.isdisjoint(match.group().lower() + match.group()) for match in _USUAL.finditer(text))
    return usual < shifted


def _has_lone_quote(text: str) -> bool:
    """Whether a curly quotation mark touches a word and nothing opens or closes what it would quote."""
    closed, opened = _CLOSED.search(text), _OPENED.search(text)
    if closed and not re.search('[“„"«‘]', text) and text.count("”") < 2:
        return True
    return bool(opened and not re.search('[“”"»’‘]', text[opened.end() :]))
