"""What has to be found exactly as it is called: part numbers, versions, times, identifiers, numbered rooms.

Words alone take KX-250/B apart into kx, 250 and b, which KX-150/B and 250 V have too. Texts are taken in the form
that `rag.index.variants.searchable` gives them. It knows nothing of ranking.
"""

from __future__ import annotations

import re

_WHOLE = re.compile(r"(?<![a-z0-9])[a-z](?:\+\+|#)(?![a-z0-9])|[a-z0-9]+(?:[-/._:][a-z0-9]+)*", re.ASCII)
_DAY = re.compile(r"\d{4}([-/.])\d{1,2}(\1\d{1,2})?")
# A standard and its year: 9001:2015, iso60601-1:2005.
_EDITION = re.compile(r"[a-z]*-?(\d{3,6}(?:-\d{1,3})?:(?:19|20)\d\d)")
_VERSION = re.compile(r"v(?:er(?:sion)?)?\.?(?=\d+\.\d)")
_HYPHEN = re.compile(r"(?<=[a-z])[-_](?=[0-9])")
_COUNTED = re.compile(r"(第?)(?<![0-9.,:/-])([0-9]+)([\u30a1-\u30fa\u3400-\u9fff]?)")
# Longer ones are addresses, keys and hashes, which nobody types.
_LONGEST = 40


def codes_of(text: str) -> list[str]:
    """The index terms of the codes in a text, in order: each whole, and those of its parts that are codes again.

    A hyphen between a letter and a digit may be left out (KX-250/B gives kx250/b and kx250), nothing else may. v2.3.1
    is 2.3.1 too, and 第3会議室 has 第3 and 3会. Plain words and numbers give none, nor do days (`days_of`).
    """
    lower = text.lower()
    terms: list[str] = []
    for whole in _wholes(lower):
        terms += _spelled(whole)
    for ordinal, number, counted in _COUNTED.findall(lower):
        terms += [ordinal + number] if ordinal else []
        terms += [number + counted] if counted and not (counted == "年" and len(number) == 4) else []
    return terms


def names_in(question: str) -> list[re.Pattern[str]]:
    """What finds each code of a question that names one thing among similar ones: a part number, a version, a numbered
    room. Times, amounts and ordinals (2nd) name none. To be searched for in a `searchable` text in lower case.
    """
    lower = question.lower()
    names = [_pattern(whole) for whole in _wholes(lower) if _is_name(whole)]
    for ordinal, number, counted in _COUNTED.findall(lower):
        if ordinal:
            names.append(re.compile(f"第{number}{re.escape(counted) or '(?![0-9])'}"))
    return list(dict.fromkeys(names))


def _wholes(lower: str) -> list[str]:
    return [whole for whole in _WHOLE.findall(lower) if len(whole) <= _LONGEST and not _DAY.fullmatch(whole)]


def _is_name(whole: str) -> bool:
    if _EDITION.fullmatch(whole):
        return True
    digits = any(character.isdigit() for character in whole)
    return digits and ((whole[0].isalpha() and len(whole) > 2) or whole.count(".") > 1)


def _pattern(whole: str) -> re.Pattern[str]:
    """A code and no longer one: 2.3 is neither in 2.3.1 nor in 12.3, and kx250 is kx-250."""
    if edition := _EDITION.fullmatch(whole):  # ISO9001:2015 and ISO 9001:2015 are one
        return re.compile(rf"(?<![0-9]){re.escape(edition[1])}(?![a-z0-9])")
    version = _VERSION.match(whole)
    bare = whole[version.end() :] if version else _HYPHEN.sub("", whole)
    spelled = re.sub(r"(?<=[a-z])(?=[0-9])", "[-_]?", re.escape(bare))
    before = r"(?<![0-9])(?<![0-9]\.)" if version else r"(?<![a-z0-9])(?<![0-9]\.)"
    return re.compile(rf"{before}{spelled}(?![a-z0-9]|\.[0-9])")


def _spelled(whole: str) -> list[str]:
    """The terms of one code: itself and its parts; nothing for a plain word or number, which is a term anyway."""
    if whole[-1] in "+#" or "_" in whole:
        return [_HYPHEN.sub("", whole)]
    if whole.isalnum() or not any(character.isdigit() for character in whole):
        return []
    terms = [_HYPHEN.sub("", whole)]
    version = _VERSION.match(whole)
    if version:
        terms.append(whole[version.end() :])
    parts = whole.split("/") if "/" in whole else whole.split("-")
    if len(parts) > 1:
        for part in parts:
            terms += _spelled(part)
    return terms
