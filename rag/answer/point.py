"""From a reader's judgement of every line to an answer: the lines that answer, word for word, or a refusal.

Nothing can be said that does not stand in a passage, so instructions inside a passage change nothing. It knows nothing
of models, prompts or indexes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rag.answer.cite import NOT_FOUND, answer_language
from rag.answer.reader.lines import Line
from rag.answer.twofold import asks_for_two
from rag.index.lexical.pairs import HAS_PAIRS
from slm.joints import Passage, PointedAnswer, Quotation

# A second line belongs to the answer when it is at least this likely beside the first. On development questions of 18
# second lines more than above .25 five answer; of the next 31, down to .05, four would.
SECOND = 0.1
# A question that asks for two things, by at least so much of a probability, has a far less likely second line said.
TWOFOLD, _SECOND_OF_TWO = 0.3, 0.02
# A line in the question's own language goes first when it is at least this likely beside the first.
_OWN = 0.5
_NEAREST = 3
# A second line is sought among so many: translations of both may stand before it.
_SOUGHT = 6


@dataclass(frozen=True)
class Judged:
    """A passage with its lines and the reader's score of each: ln(p / p0), p that it answers, p0 that none does."""

    passage: Passage
    lines: Sequence[Line]
    scores: Sequence[float]


def point(question: str, judged: Sequence[Judged], refuse_at: Mapping[str, float]) -> PointedAnswer:
    """The answer to a question from judged passages; the passages are those of the likeliest lines, best first.

    A line's share is exp(score) / (1 + sum over all lines), the 1 for "none of them". The doubt is what is left of 1
    beside the lines that are said and the likeliest line in the other script, which mostly says the same on a
    translated page. Where it reaches the threshold of the question's language (`refuse_at`, with "" for every other),
    the answer is that the documents do not hold it.
    """
    language = answer_language(question)
    limit = refuse_at.get(language, refuse_at.get("", 0.5))
    ranked = _own_language_first(_ranked(judged), question)
    bound = _SECOND_OF_TWO if asks_for_two(question) >= TWOFOLD else SECOND
    said = ranked[:1] + [q for q in ranked[1:_SOUGHT] if _belongs(q, ranked[0], bound)][:1]
    elsewhere = [q.share for q in ranked if said and _is_japanese(q.text) != _is_japanese(said[0].text)]
    doubt = max(0.0, 1.0 - sum(q.share for q in said) - max(elsewhere, default=0.0))
    if doubt >= limit:
        said = []
    nearest = list(dict.fromkeys([*said, *ranked[:_NEAREST]]))[:_NEAREST]
    # Passages are numbered anew, so that an answer begins with [1].
    order = list(dict.fromkeys(quotation.passage for quotation in nearest))
    renumbered = [replace(quotation, passage=order.index(quotation.passage) + 1) for quotation in nearest]
    answer = tuple(renumbered[: len(said)])
    text = " ".join(f"{quotation.text} [{quotation.passage}]" for quotation in answer)
    if not answer:
        text = NOT_FOUND[language] + ("。" if language == "ja" else ".")
    return PointedAnswer(text, [judged[n].passage for n in order], answer, tuple(renumbered), doubt)


def _own_language_first(ranked: list[Quotation], question: str) -> list[Quotation]:
    """The lines with one in the question's script first, where it is nearly as likely as the first in another."""
    own = next((q for q in ranked if _is_japanese(q.text) == _is_japanese(question)), None)
    if own is None or own.share < _OWN * ranked[0].share:
        return ranked
    return [own, *(q for q in ranked if q is not own)]


def _is_japanese(text: str) -> bool:
    return HAS_PAIRS.search(text) is not None


def _belongs(second: Quotation, first: Quotation, bound: float) -> bool:
    """Whether a line completes the answer: likely beside it, and not the same again or its translation elsewhere."""
    new = _is_japanese(second.text) == _is_japanese(first.text) and second.text != first.text
    return new and second.share >= bound * first.share


def _ranked(judged: Sequence[Judged]) -> list[Quotation]:
    """All lines, likeliest first, with the number of their passage from 0."""
    flat = [(n, line, score) for n, one in enumerate(judged) for line, score in zip(one.lines, one.scores, strict=True)]
    highest = max([0.0, *(score for _, _, score in flat)])
    weights = [math.exp(score - highest) for _, _, score in flat]
    whole = math.exp(-highest) + sum(weights)  # the first is that none answers
    quotations = [
        Quotation(n, line.text, line.start, line.end, weight / whole)
        for (n, line, _), weight in zip(flat, weights, strict=True)
    ]
    return sorted(quotations, key=lambda quotation: -quotation.share)
