"""The terms of a text without a dictionary: words of alphabetic scripts, pairs of Japanese and Chinese characters.

Pairs find two-character words wherever they stand, and are in every index. It knows nothing of chunks or scores.
"""

from __future__ import annotations

import re

from rag.index.same.codes import codes_of
from rag.index.same.days import days_of
from rag.index.variants import comparable, searchable, years_of

_CJK = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u9fff\uf900-\ufaff々〆\U00020000-\U0003134f"
_RUNS = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+(?:['’][^\W_{_CJK}]+)*")
# A character of the scripts that are indexed by pairs.
HAS_PAIRS = re.compile(rf"[{_CJK}]")


def terms_of(text: str) -> list[str]:
    """The index terms of a text in one form of its characters (`rag.index.variants`) and in lower case, in order.

    A run of Japanese gives its overlapping character pairs, or its single character; "don't" is one word, and
    a possessive 's is dropped. A year or a day is a term of its own in Western reckoning, however it is written, and
    so is a code as a whole (`rag.index.same`).
    """
    western, plain = comparable(text), searchable(text)
    terms = [*(f"{year}年" for year in years_of(western)), *days_of(western), *codes_of(plain)]
    for run in _RUNS.findall(plain.lower()):
        if not HAS_PAIRS.match(run):
            terms.append(re.sub(r"['’]s$", "", run))
        elif len(run) == 1:
            terms.append(run)
        else:
            terms += [run[i : i + 2] for i in range(len(run) - 1)]
    return terms


def japanese_runs(text: str) -> list[str]:
    """The runs of Japanese or Chinese characters that `terms_of` makes pairs of, in order."""
    return [run for run in _RUNS.findall(searchable(text).lower()) if HAS_PAIRS.match(run)]
