"""How many answers are right: by language and kind, with the range in which the share really is. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from train.measure.answers.items import ChatItem

_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


@dataclass(frozen=True)
class JudgedAnswer:
    """What a model said to an item, and the rules that it broke; `error` where it could not be asked."""

    item: ChatItem
    answer: str
    broken: tuple[str, ...]
    error: str = ""

    @property
    def is_right(self) -> bool:
        return not self.broken

    def as_json(self) -> dict[str, Any]:
        item = self.item
        values = {"id": item.id, "lang": item.lang, "kind": item.kind, "answer": self.answer, "right": self.is_right}
        return {**values, "broken": list(self.broken), **({"error": self.error} if self.error else {})}


@dataclass(frozen=True)
class RightCount:
    """So many of so many items are right."""

    right: int
    items: int

    @property
    def share(self) -> float:
        return self.right / self.items if self.items else 0.0

    def range95(self) -> tuple[float, float]:
        """The 95 % interval of the share (Wilson 1927): what other questions of these kinds would likely give."""
        if not self.items:
            return 0.0, 1.0
        n, p = self.items, self.share
        middle, half = p + _Z * _Z / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z * _Z / (4 * n * n))
        scale = 1 + _Z * _Z / n
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)

    def as_json(self) -> dict[str, Any]:
        low, high = self.range95()
        return {
            "right": self.right, "items": self.items, "share": round(self.share, 4), "share_low": round(low, 4),
            "share_high": round(high, 4),
        }  # fmt: skip


def count_of(answers: Iterable[JudgedAnswer]) -> RightCount:
    """The count over some answers."""
    judged = [answer.is_right for answer in answers]
    return RightCount(sum(judged), len(judged))


def kinds_of(answers: Sequence[JudgedAnswer]) -> list[tuple[str, str]]:
    """(language, kind) of the answers, languages and kinds in the order in which they come first."""
    langs = list(dict.fromkeys(answer.item.lang for answer in answers))
    kinds = list(dict.fromkeys(answer.item.kind for answer in answers))
    there = {(answer.item.lang, answer.item.kind) for answer in answers}
    return [(lang, kind) for lang in langs for kind in kinds if (lang, kind) in there]


def counts_json(answers: Sequence[JudgedAnswer]) -> dict[str, Any]:
    """{by_language: {en: {right, items, share, ..., by_kind: {format: {...}}}}, overall: {...}}."""
    by_language: dict[str, dict[str, Any]] = {}
    for lang, kind in kinds_of(answers):
        of_lang = [answer for answer in answers if answer.item.lang == lang]
        figures = by_language.setdefault(lang, {**count_of(of_lang).as_json(), "by_kind": {}})
        figures["by_kind"][kind] = count_of(answer for answer in of_lang if answer.item.kind == kind).as_json()
    return {"by_language": by_language, "overall": count_of(answers).as_json()}
