"""The rules that an answer is judged by. Pure: a rule is a JSON object of an item, an answer is text.

An answer is read as people read it: full-width and half-width forms are one, and the case of letters, the marks around
an answer and the full stop behind it count for nothing, except where a rule is about just these (`matches`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slm.errors import InputError
from slm.text.language import detect
from slm.text.normal_form import nfkc

Keeps = Callable[[str], bool]

# What says that a question is not answered, in both languages. An apology alone does not: an answer may follow it.
_REFUSALS = re.compile(
    r"\b(?:can(?:not| not|'t)|could(?: not|n't) find|unable to|not able to|won't be able|will not be able"
    r"|don't know|do not know"
    r"|no way to know|no (?:information|access)|(?:don't|do not) have (?:any |enough |that |this |the |your )?"
    r"(?:access|information|data|details|ability|answer)"
    r"|(?:isn't|is not|not|doesn't|does not) (?:stated?|mention(?:ed)?|given|give|specif(?:y|ied)|say|said|known))\b"
    r"|できません|できかねます|いたしかねます|できない|分かりません|わかりません|わからない|分からない|知りません"
    r"|見つかりません"
    r"|知ることは(?:でき|不可能)|不明です|お断り|控えさせて|(?:記載|情報)(?:が|は)(?:ない|なく|ありません|ございません)"
    r"|(?:記載|言及)されて(?:いない|いません|おりません)|書かれて(?:いない|いません)|書いてありません",
    re.IGNORECASE,
)
_LONGEST_S = 1.0  # for one answer and one pattern
_NUMBER = re.compile(r"(?<!\d)-?\d+(?:,\d{3})*(?:\.\d+)?")
_FENCED = re.compile(r"\A```[\w-]*\n(.*?)\n?```\Z", re.DOTALL)
_SENTENCE = re.compile(r"[^.!?。!?]*[^\s.!?。!?][^.!?。!?]*(?:[.!?。!?]+(?=\s|\Z|[^\x00-\x7f])|\Z)")
_MARKS = "\"'“”‘’「」『』*_` \t\n"
_STOPS = ".。!！"


def plain(text: str) -> str:
    """The text in one form of its letters: NFKC, without case, white space as single blanks."""
    return " ".join(nfkc(text).casefold().split())


def bare(text: str) -> str:
    """`plain`, without the quotation marks and emphasis around it and the full stop behind it."""
    return plain(text).strip(_MARKS).rstrip(_STOPS).strip(_MARKS)


@dataclass(frozen=True)
class AnswerRule:
    """One rule: its name for people, and the check."""

    name: str
    check: Keeps


def rule_of(given: Any) -> AnswerRule:
    """The rule that a JSON object describes. Raises InputError that says what is wrong with it."""
    if not isinstance(given, Mapping) or given.get("rule") not in RULES:
        raise InputError(f"'{_shown(given)}' is no rule", hint=f'"rule" is one of: {", ".join(RULES)}')
    name = str(given["rule"])
    values = {key: value for key, value in given.items() if key != "rule"}
    try:
        return AnswerRule(name, RULES[name](values))
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise InputError(f"'{_shown(given)}' is no rule '{name}': {error}") from error


def _shown(given: Any) -> str:
    return json.dumps(given, ensure_ascii=False)[:120]


def _only(values: Mapping[str, Any], *known: str) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown or not values:
        raise ValueError(f"{', '.join(unknown) or 'nothing'} given, takes: {', '.join(known)}")


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise TypeError(f"{value!r} is no list of texts")
    return [str(one) for one in value]


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def _language(values: Mapping[str, Any]) -> Keeps:
    """{"is": "ja"}: the answer is in that language, as `slm route` tells it."""
    _only(values, "is")
    wanted = str(values["is"])
    if wanted not in ("en", "ja"):
        raise ValueError("languages are en and ja")
    return lambda answer: detect(answer).language == wanted


def _equals(values: Mapping[str, Any]) -> Keeps:
    """{"any": [...]}: the whole answer is one of these."""
    _only(values, "any")
    wanted = {bare(text) for text in _texts(values["any"])}
    return lambda answer: bare(answer) in wanted


def _contains(values: Mapping[str, Any]) -> Keeps:
    """{"any": [...]} at least one of these is in the answer; {"all": [...]} each of them."""
    _only(values, "any", "all")
    some = [plain(text) for text in _texts(values.get("any", values.get("all")))]
    every = [plain(text) for text in _texts(values["all"])] if "all" in values else []
    return lambda answer: any(_has(answer, text) for text in some) and all(_has(answer, text) for text in every)


def _lacks(values: Mapping[str, Any]) -> Keeps:
    """{"any": [...]}: none of these is in the answer."""
    _only(values, "any")
    unwanted = [plain(text) for text in _texts(values["any"])]
    return lambda answer: not any(_has(answer, text) for text in unwanted)


def _has(answer: str, text: str) -> bool:
    """Words of Latin letters and numbers as wholes: "no" is not in "know", 8 not in 18."""
    start = r"(?<![a-z0-9])" if re.match("[a-z0-9]", text) else ""
    end = r"(?![a-z0-9])" if re.search("[a-z0-9]$", text) else ""
    return re.search(start + re.escape(text) + end, plain(answer)) is not None


def _number(values: Mapping[str, Any]) -> Keeps:
    """{"value": 42}: the last number in the answer is this one; 1,000 is 1000."""
    _only(values, "value")
    wanted = values["value"]
    if isinstance(wanted, bool) or not isinstance(wanted, (int, float)):
        raise TypeError(f"{wanted!r} is no number")

    def check(answer: str) -> bool:
        found = _NUMBER.findall(nfkc(answer))
        return bool(found) and abs(float(found[-1].replace(",", "")) - wanted) < 1e-9

    return check


def _json(values: Mapping[str, Any]) -> Keeps:
    """{"values": {...}} the answer is this object; {"keys": [...]} an object of these keys; {"count": 3} a list of 3.

    A code fence around it is taken off. Texts in it are compared as `bare` has them.
    """
    _only(values, "values", "keys", "count")
    if len(values) > 1:
        raise ValueError("one of values, keys and count")
    if "values" in values and not isinstance(values["values"], dict):
        raise TypeError(f"{values['values']!r} is no object")
    keys = set(_texts(values["keys"])) if "keys" in values else None
    count = _count(values["count"]) if "count" in values else None

    def check(answer: str) -> bool:
        fenced = _FENCED.match(answer.strip())
        try:
            found = json.loads(fenced[1] if fenced else answer)
        except (ValueError, RecursionError):
            return False
        if count is not None:
            return isinstance(found, list) and len(found) == count
        if keys is not None:
            return isinstance(found, dict) and set(found) == keys
        return isinstance(found, dict) and _bare_values(found) == _bare_values(values["values"])

    return check


def _bare_values(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: bare(value) if isinstance(value, str) else value for key, value in found.items()}


def _lines(values: Mapping[str, Any]) -> Keeps:
    """{"count": 3, "each": REGEX}: so many lines that are not blank, each of them wholly of that form."""
    _only(values, "count", "each")
    count, form = _count(values["count"]), _form(str(values.get("each", ".+")))

    def check(answer: str) -> bool:
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        return len(lines) == count and all(map(form, lines))

    return check


def _parts(values: Mapping[str, Any]) -> Keeps:
    """{"by": ",", "count": 4}: one line of so many parts, none of them empty, none twice."""
    _only(values, "by", "count")
    by, count = plain(str(values["by"])), _count(values["count"])
    if not by:
        raise ValueError("parts are divided by nothing")

    def check(answer: str) -> bool:
        parts = [bare(part) for part in nfkc(answer).strip().split(by)]
        return "\n" not in answer.strip() and len(parts) == count == len(set(parts)) and all(parts)

    return check


def _length(values: Mapping[str, Any]) -> Keeps:
    """{"unit": "words", "min": 1, "max": 8}: of words, characters (without blanks) or sentences."""
    _only(values, "unit", "min", "max")
    unit = values["unit"]
    if unit not in _UNITS:
        raise ValueError(f"units are: {', '.join(_UNITS)}")
    least, most = _count(values.get("min", 0)), _count(values["max"])
    return lambda answer: least <= _UNITS[unit](answer) <= most


_UNITS: dict[str, Callable[[str], int]] = {
    "words": lambda answer: len(answer.split()),
    "characters": lambda answer: len("".join(answer.split())),
    "sentences": lambda answer: len(_SENTENCE.findall(nfkc(answer))),
}


def _matches(values: Mapping[str, Any]) -> Keeps:
    """{"pattern": REGEX}: the answer is wholly of this form, letter by letter; white space around it does not count."""
    _only(values, "pattern")
    form = _form(str(values["pattern"]))
    return lambda answer: form(answer.strip())


def _form(pattern: str) -> Keeps:
    """Whether a text is wholly of a form. One of which that is not known within a second is not: forms can be written
    that take the age of the world."""
    import regex

    try:
        compiled = regex.compile(pattern, regex.VERSION0)
    except regex.error as error:
        raise ValueError(f"{pattern!r} is no pattern: {error}") from error

    def check(text: str) -> bool:
        try:
            return compiled.fullmatch(text, timeout=_LONGEST_S) is not None
        except TimeoutError:
            return False

    return check


def _refuses(values: Mapping[str, Any]) -> Keeps:
    """{"is": true}: the answer says that it cannot be given; false: it does not."""
    _only(values, "is")
    wanted = values["is"]
    if not isinstance(wanted, bool):
        raise TypeError(f"{wanted!r} is neither true nor false")
    return lambda answer: (_REFUSALS.search(nfkc(answer).replace("’", "'")) is not None) is wanted


RULES: dict[str, Callable[[Mapping[str, Any]], Keeps]] = {
    "language": _language, "equals": _equals, "contains": _contains, "lacks": _lacks, "number": _number,
    "json": _json, "lines": _lines, "parts": _parts, "length": _length, "matches": _matches, "refuses": _refuses,
}  # fmt: skip
