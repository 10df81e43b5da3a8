"""Which passages an answer rests on. It knows nothing of prompts, models or indexes.

A small model finds the words of an answer more surely than the number of the passage they stand in, so every
citation is checked: the sentence before it is compared with the passages, and a number whose passage holds clearly
less of it than another's gives way to that one. An answer without a citation gets one where the words leave no
doubt, and a refusal carries none.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from rag.answer.marks import Mark, Marks
from rag.index.lexical.pairs import terms_of
from slm.joints import Passage
from slm.text.language import detect
from slm.text.visible import visible

NOT_FOUND = {"en": "I could not find this in the documents", "ja": "資料には見つかりませんでした"}
# The end of a text that may yet become an escape sequence or a line end.
_UNFINISHED = re.compile(r"(?:\r|\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?)\Z")
_SENTENCE_END = re.compile(r"[。！？\n]|[.!?](?=\s)")
# The borders of a table's cells: every bar in a row that begins with one, else those between blanks.
_BORDER, _BLANK_BORDER = re.compile(r"(?<!\\)\|"), re.compile(r"(?<!\S)\|(?=\s)")
_DIGITS = re.compile(r"\d")
_NUMBER_WEIGHT = 3.0
# What a model makes up as the number of a passage is small; [404] and [2024] are text.
_MADE_UP = 20
# As much of an answer as a sentence may be long.
_LOOK_BACK = 600
# A number gives way to a passage that holds so much more of the sentence, and at least so much of it.
_CLEARLY_MORE, _ENOUGH, _NO_DOUBT = 0.15, 0.35, 0.6


def answer_language(question: str) -> str:
    """The language that a question is answered in: its own where a refusal is worded in it, else English."""
    return detect(question, tuple(NOT_FOUND)).language or "en"


class Support:
    """How much of a sentence stands in each passage.

    support = weight of the sentence's terms that the passage holds / weight of all its terms. A term's weight is
    1 + ln(n / passages that hold it), n passages; three times that for a term with a digit, which a paraphrase keeps.
    Terms are pairs, however the index finds its words: what counts as much was chosen with them.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._terms = [frozenset(terms_of(f"{p.title} {p.heading} {p.text}")) for p in passages]
        self._holders = Counter(term for terms in self._terms for term in terms)

    def of(self, sentence: str) -> list[float]:
        """The support of each passage, 0 to 1, in order; zeros for a sentence without words."""
        terms = dict.fromkeys(terms_of(sentence))
        weights = {term: self._weight(term) for term in terms}
        whole = sum(weights.values()) or 1.0
        return [sum(weight for term, weight in weights.items() if term in held) / whole for held in self._terms]

    def _weight(self, term: str) -> float:
        rarity = 1.0 + math.log(len(self._terms) / max(1, self._holders[term]))
        return rarity * (_NUMBER_WEIGHT if _DIGITS.search(term) else 1.0)


class Citations:
    """An answer on its way to the reader (implements slm.joints.CitationStream): text in, checked text out.

    Citations come out as [1]; numbers without a passage are taken out; code, and brackets that belong to a word, a link
    or data stay as they are (`rag.answer.marks`). Control characters never reach a terminal. What may be the
    beginning of a citation, of code or of an escape sequence is held back until it is whole.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages, self._support = tuple(passages), Support(passages)
        self._held, self._marks = "", Marks()
        # What was written, and the same without citations.
        self._text, self._bare = "", ""
        self._cited: dict[int, None] = {}

    def feed(self, piece: str) -> str:
        """Take the next piece of the answer; the text that is ready."""
        self._held += piece
        unfinished = _UNFINISHED.search(self._held)
        cut = unfinished.start() if unfinished else len(self._held)
        ready, self._held = self._held[:cut], self._held[cut:]
        return self._written(self._marks.split(visible(ready)))

    def end(self) -> str:
        """The rest of the answer, with the citation that an answer without one deserves."""
        rest = self._written(self._marks.split(visible(self._held), final=True))
        self._held = ""
        if self._cited or refuses(self._text) or not self._passages or self._marks.in_code:
            return rest
        support = self._support.of(self._bare)
        best = max(range(len(support)), key=support.__getitem__)
        others = [value for number, value in enumerate(support) if number != best]
        if support[best] < _NO_DOUBT or support[best] < max(others, default=0.0) + _CLEARLY_MORE:
            return rest
        self._cited[best + 1] = None
        last = self._text.rstrip()
        # After the end of a fence it would be no end any more.
        blank = "" if last.endswith(("。", "！", "？")) else "\n\n" if last.endswith(("```", "~~~")) else " "
        kept = rest.rstrip()
        return f"{kept}{blank}[{best + 1}]{rest[len(kept) :]}"

    @property
    def cited(self) -> list[int]:
        """The numbers cited so far, from 1, in order of appearance, each once."""
        return list(self._cited)

    def _written(self, parts: Iterable[str | Mark]) -> str:
        written = ""
        for part in parts:
            shown = part if isinstance(part, str) else self._shown(part)
            if isinstance(part, str) or part.attached:
                self._bare += shown
            self._text += shown
            written += shown
        return written

    def _shown(self, mark: Mark) -> str:
        shown = ""
        sentence = _sentence(self._bare[-_LOOK_BACK:])
        support = self._support.of(sentence)
        if mark.attached:
            self._cited.update(dict.fromkeys(_surely_cited(mark, support)))
            return mark.written
        for text, numbers in mark.brackets:
            if all(1 <= number <= len(self._passages) for number in numbers):
                checked = [] if refuses(sentence) else _checked(support, numbers)
                self._cited.update(dict.fromkeys(checked))
                # A number that gave way to its neighbour's stands there once.
                shown += "".join(f"[{number}]" for number in checked if f"[{number}]" not in shown)
            elif len(numbers) > 1 or numbers[0] > _MADE_UP or not mark.closed:
                shown += text
        return mark.blank + shown if shown else ""


def _surely_cited(mark: Mark, support: Sequence[float]) -> list[int]:
    """The numbers right after a word (days[1]) whose passage holds the sentence; hosts[1] without that is an index."""
    numbers = [number for _, of_one in mark.brackets for number in of_one]
    if not all(1 <= number <= len(support) for number in numbers):
        return []
    return [number for number in numbers if support[number - 1] >= max(_ENOUGH, max(support) - _CLEARLY_MORE)]


def _checked(support: Sequence[float], numbers: Sequence[int]) -> list[int]:
    """The numbers of a citation, or the passage that holds clearly more of its sentence."""
    best = max(range(len(support)), key=support.__getitem__)
    named = max(support[number - 1] for number in numbers)
    doubted = support[best] >= max(_ENOUGH, named + _CLEARLY_MORE)
    return [best + 1] if doubted else list(dict.fromkeys(numbers))


def _sentence(text: str) -> str:
    """What a citation after a text without citations stands for: its last sentence, be its full stop there or not.

    In a table that is the cell; a citation that has a cell of its own stands for the row.
    """
    bare = text.rstrip()
    ends = [m.end() for m in _SENTENCE_END.finditer(bare) if m.end() < len(bare)]
    row = bare.rfind("\n") + 1
    if not bare.endswith("|"):
        border = _BORDER if bare[row:].lstrip().startswith("|") else _BLANK_BORDER
        ends += [m.end() for m in border.finditer(bare, row)]
    return bare[max(ends, default=0) :]


def refuses(text: str) -> bool:
    """Whether an answer says that the passages do not hold it."""
    return any(phrase in text for phrase in NOT_FOUND.values())
