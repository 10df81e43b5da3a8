"""Numbers of lists and headings as Word counts them: 1., 2.3, (a), 第1条; bullets have none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rag.sources.office.package import attribute, child, tag
from rag.sources.office.word.styles import value

_PLAIN = re.compile(r"%\d[.)．）]?")
_KANJI = "〇一二三四五六七八九"
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"),
          (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip
_AIUEO = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワヲン"
_IROHA = "イロハニホヘトチリヌルヲワカヨタレソツネナラムウヰノオクヤマケフコエテアサキユメミシヱヒモセスン"
_CIRCLES = "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳"
_ROWS = {"aiueo": _AIUEO, "aiueoFullWidth": _AIUEO, "iroha": _IROHA, "irohaFullWidth": _IROHA,
         "decimalEnclosedCircle": _CIRCLES, "decimalEnclosedCircleChinese": _CIRCLES}  # fmt: skip


@dataclass(frozen=True)
class _Level:
    kind: str
    text: str
    start: int


@dataclass(frozen=True)
class Label:
    """The number of a paragraph: its text ("" for a bullet), and the count where it is a plain 1. or 1)."""

    text: str
    count: str


class Numbering:
    """Counts the numbered paragraphs of a document in their order."""

    def __init__(self, tree: Any | None) -> None:
        self._lists: dict[str, tuple[str, dict[int, _Level]]] = {}  # by number id: what it counts with, its levels
        self._starts: dict[str, dict[int, int]] = {}  # by number id and level: where it begins anew
        self._counts: dict[str, dict[int, int]] = {}
        self._begun: set[tuple[str, int]] = set()
        if tree is None:
            return
        abstract = {attribute(e, "abstractNumId"): e for e in tree if tag(e) == "w:abstractNum"}
        for element in tree:
            if tag(element) == "w:num":
                base = value(element, "w:abstractNumId") or ""
                levels = _levels(abstract[base]) if base in abstract else {}
                starts: dict[int, int] = {}
                for override in element:
                    if tag(override) == "w:lvlOverride":
                        level = int(attribute(override, "ilvl", "0") or 0)
                        own = child(override, "w:lvl")
                        levels |= {level: _level(own)} if own is not None else {}
                        start = value(override, "w:startOverride") or ""
                        starts |= {level: int(start)} if start.isdigit() else {}
                self._lists[attribute(element, "numId")] = (base, levels)
                self._starts[attribute(element, "numId")] = starts

    def next(self, number_id: str, level: int) -> Label | None:
        """The label of the next paragraph of a list; None where there is no such list."""
        if number_id not in self._lists:
            return None
        base, levels = self._lists[number_id]
        own = levels.get(level)
        if own is None or own.kind == "none":
            return Label("", "") if own is None else None
        counts = self._counts.setdefault(base, {})
        if (number_id, level) not in self._begun:
            self._begun.add((number_id, level))
            if level in self._starts.get(number_id, {}):
                counts[level] = self._starts[number_id][level] - 1
        counts[level] = counts.get(level, own.start - 1) + 1
        for deeper in [deeper for deeper in counts if deeper > level]:
            del counts[deeper]
        if own.kind == "bullet":
            return Label("", "")

        def number(match: re.Match[str]) -> str:
            at = int(match.group(1)) - 1
            kind = levels[at].kind if at in levels else "decimal"
            return _number(counts.get(at, levels[at].start if at in levels else 1), kind)

        text = re.sub(r"%([1-9])", number, own.text).strip()
        plain = own.kind == "decimal" and _PLAIN.fullmatch(own.text) is not None
        return Label(text, str(counts[level]) if plain else "")


def _levels(element: Any) -> dict[int, _Level]:
    levels = (part for part in element if tag(part) == "w:lvl")
    return {int(attribute(level, "ilvl", "0") or 0): _level(level) for level in levels}


def _level(element: Any) -> _Level:
    start = value(element, "w:start") or "1"
    kind = value(element, "w:numFmt") or "decimal"
    return _Level(kind, value(element, "w:lvlText") or "", int(start) if start.isdigit() else 1)


def _number(count: int, kind: str) -> str:
    if kind in ("lowerRoman", "upperRoman") and 0 < count < 4000:
        text = ""
        for worth, letters in _ROMAN:
            text += letters * (count // worth)
            count %= worth
        return text.upper() if kind == "upperRoman" else text
    if kind in ("lowerLetter", "upperLetter") and 0 < count <= 26 * 20:
        text = chr(ord("a") + (count - 1) % 26) * ((count - 1) // 26 + 1)
        return text.upper() if kind == "upperLetter" else text
    if kind == "decimalZero":
        return f"{count:02}"
    if kind == "decimalFullWidth":
        return "".join(chr(ord("０") + int(digit)) for digit in str(max(count, 0)))
    if kind.startswith(("japanese", "ideograph", "chinese")) and 0 < count < 100:
        tens, ones = divmod(count, 10)
        return ("" if not tens else ("" if tens == 1 else _KANJI[tens]) + "十") + (_KANJI[ones] if ones else "")
    row = _ROWS.get(kind, "")
    return row[count - 1] if 0 < count <= len(row) else str(count)
