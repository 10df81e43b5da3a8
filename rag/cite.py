"""Which passages an answer rests on. It knows nothing of prompts, models or indexes.

A small model finds the words of an answer more surely than the number of the passage they stand in, so every
citation is checked: the sentence before it is compared with the passages, and a number whose passage holds clearly
less of it than another's gives way to that one. An answer without a citation gets one where the words leave no
doubt, and a refusal carries none.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from rag.document import visible
from rag.lexical import terms_of
from slm.joints import Passage

NOT_FOUND = {"en": "I could not find this in the documents", "ja": "資料には見つかりませんでした"}
_CITATION = re.compile(r"( ?)[\[［【]\s*([0-9０-９]+(?:\s*[,、，]\s*[0-9０-９]+)*)\s*[\]］】]")
# The end of a text that may yet become a citation, an escape sequence or a line end.
_UNFINISHED = re.compile(
    r"(?: ?[\[［【][\s0-9０-９,、，]{0,24}| |\r|\x1b(?:\[[0-?]{0,32}[ -/]{0,8}|\][^\x07\x1b]{0,200}\x1b?)?)\Z"
)
_SENTENCE_END = re.compile(r"[。！？\n]|[.!?](?=\s)")
_DIGITS = re.compile(r"\d")
_NUMBER_WEIGHT = 3.0
# A number gives way to a passage that holds so much more of the sentence, and at least so much of it.
_CLEARLY_MORE, _ENOUGH, _NO_DOUBT = 0.15, 0.35, 0.6


class Support:
    """How much of a sentence stands in each passage.

    support = weight of the sentence's terms that the passage holds / weight of all its terms. A term's weight is
    1 + ln(n / passages that hold it), n passages; three times that for a term with a digit, which a paraphrase keeps.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._terms = [frozenset(terms_of(f"{p.title} {p.heading} {p.text}")) for p in passages]
        self._holders = Counter(term for terms in self._terms for term in terms)

    def of(self, sentence: str) -> list[float]:
        """The support of each passage, 0 to 1, in order; zeros for a sentence without words."""
        terms = dict.fromkeys(terms_of(without_citations(sentence)))
        weights = {term: self._weight(term) for term in terms}
        whole = sum(weights.values()) or 1.0
        return [sum(weight for term, weight in weights.items() if term in held) / whole for held in self._terms]

    def _weight(self, term: str) -> float:
        rarity = 1.0 + math.log(len(self._terms) / max(1, self._holders[term]))
        return rarity * (_NUMBER_WEIGHT if _DIGITS.search(term) else 1.0)


class Citations:
    """An answer on its way to the reader (implements slm.joints.Citations): text in, checked text out.

    Citations come out as [1]; numbers without a passage are taken out; control characters never reach a terminal.
    What may be the beginning of a citation or of an escape sequence is held back until it is whole.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages, self._support = tuple(passages), Support(passages)
        self._held, self._text = "", ""
        self._cited: dict[int, None] = {}

    def feed(self, piece: str) -> str:
        """Take the next piece of the answer; the text that is ready."""
        self._held += piece
        unfinished = _UNFINISHED.search(self._held)
        cut = unfinished.start() if unfinished else len(self._held)
        ready, self._held = self._held[:cut], self._held[cut:]
        return self._written(visible(ready))

    def end(self) -> str:
        """The rest of the answer, with the citation that an answer without one deserves."""
        rest = self._written(visible(self._held))
        self._held = ""
        if self._cited or refuses(self._text) or not self._passages:
            return rest
        support = self._support.of(self._text)
        best = max(range(len(support)), key=support.__getitem__)
        others = [value for number, value in enumerate(support) if number != best]
        if support[best] < _NO_DOUBT or support[best] < max(others, default=0.0) + _CLEARLY_MORE:
            return rest
        self._cited[best + 1] = None
        blank = "" if self._text.rstrip().endswith(("。", "！", "？")) else " "
        kept = rest.rstrip()
        return f"{kept}{blank}[{best + 1}]{rest[len(kept) :]}"

    @property
    def cited(self) -> list[int]:
        """The numbers cited so far, from 1, in order of appearance, each once."""
        return list(self._cited)

    def _written(self, ready: str) -> str:
        written, last = "", 0
        for match in _CITATION.finditer(ready):
            written += ready[last : match.start()]
            last = match.end()
            numbers = self._checked(_sentence(self._text + written), _numbers(match, len(self._passages)))
            self._cited.update(dict.fromkeys(numbers))
            written += match.group(1) + "".join(f"[{number}]" for number in numbers) if numbers else ""
        written += ready[last:]
        self._text += written
        return written

    def _checked(self, sentence: str, numbers: list[int]) -> list[int]:
        if refuses(sentence) or not numbers:
            return []
        support = self._support.of(sentence)
        best = max(range(len(support)), key=support.__getitem__)
        named = max(support[number - 1] for number in numbers)
        doubted = support[best] >= max(_ENOUGH, named + _CLEARLY_MORE)
        return [best + 1] if doubted else numbers


def without_citations(text: str) -> str:
    """A text with its numbers in brackets taken away."""
    return _CITATION.sub("", text)


def _numbers(match: re.Match[str], count: int) -> list[int]:
    """The passages of one citation, each once; numbers that no passage has are left out."""
    digits = unicodedata.normalize("NFKC", match.group(2))
    return list(dict.fromkeys(number for number in map(int, re.findall(r"\d+", digits)) if 1 <= number <= count))


def _sentence(text: str) -> str:
    """What a citation after `text` stands for: its last sentence, whose full stop may come before the citation."""
    bare = without_citations(text).rstrip()
    ends = [m.end() for m in _SENTENCE_END.finditer(bare) if m.end() < len(bare)]
    return bare[ends[-1] :] if ends else bare


def refuses(text: str) -> bool:
    """Whether an answer says that the passages do not hold it."""
    return any(phrase in text for phrase in NOT_FOUND.values())
