"""How often the letters of Cyrillic and Greek are written, and where they cannot stand.

Windows-1251 and KOI8-R make letters of the same bytes, in the other case and in another order: ИВАНОВ of the one is
хбюмнб of the other. Only how often the letters occur tells them apart, and that consonants do not stand in heaps. It
knows nothing of bytes.
"""

from __future__ import annotations

from functools import lru_cache

# From the most frequent to the rarest, the accented ones where they belong.
_RUSSIAN = "оеаинтсрвлкмдпуяыьгзбчйхжшюіцъщэфїєёґ"  # with Ukrainian and Bulgarian
_GREEK = "αοιετσνηυρπκμςλωίόάέγήδχύθώφβξζψϊϋΐΰ"
_FIRST, _RANK = 4.2, 0.175  # bits of the most frequent letter, and for each rank behind it
_VOWELS = frozenset("аеёиоуыэюяіїєαειουηωάέίόύήώ")
_HEAP, _NO_BEGINNING, _NO_SIGN = 2.0, 10.0, 8.0  # bits for a third consonant; for ь and ы at a beginning; after vowels
_WORDS = frozenset("викосуаійєзжбηοόή")  # letters that are words by themselves; я is 0xFF, which is damage more often
_GREEK_INNER = frozenset("βγδζθκλμξπστφχψ")  # consonants that no word of Greek ends in, but those from abroad
_GREEK_END = 3.0
_CASE_BREAK, _CAPITAL, _CAPITALS, _LONE = 18.0, 2.5, 0.5, 12.0


def _ranks(letters: str) -> dict[str, float]:
    return {letter: _FIRST + _RANK * rank for rank, letter in enumerate(letters)}


_BITS = {**_ranks(_RUSSIAN), **_ranks(_GREEK)}


@lru_cache(maxsize=1 << 15)
def letter_bits(before: str, char: str, after: str) -> float:
    """What a letter of Cyrillic or Greek costs between two characters, in bits."""
    left, right = before.isalpha(), after.isalpha()
    small, last, following = char.lower(), before.lower(), after.lower()
    bits = _BITS.get(small, _BITS["ф"])
    if char.isupper():
        bits += _CASE_BREAK if before.islower() else _CAPITALS if before.isupper() else _CAPITAL
    if not left and not right and small not in _WORDS:
        bits += _LONE
    if small in "ьы" and not left:
        bits += _NO_BEGINNING
    elif (small in "ьъ" and last in _VOWELS) or (small == "ς" and right and char.islower()):
        bits += _NO_SIGN
    elif small in _GREEK_INNER and left and not right:
        bits += 0.0 if char == "Σ" else _GREEK_END
    elif left and right and _VOWELS.isdisjoint((last, small, following)) and small not in "ьъ":
        bits += _HEAP
    return bits
