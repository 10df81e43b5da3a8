"""From a reader's judgement of every line to an answer: the lines that answer, word for word, or a refusal.

Nothing can be said that does not stand in a passage, so instructions inside a passage change nothing. It knows nothing
of models, prompts or indexes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rag.answer.cite import NOT_FOUND
from rag.answer.lines import Line
from rag.index.lexical import HAS_PAIRS
from slm.joints import Passage, PointedAnswer, Quotation
from slm.text.language import detect

# A second line belongs to the answer when it is at least this likely beside the first.
SECOND = 0.35
_NEAREST = 3


@dataclass(frozen=True)
class Judged:
    """A passage with its lines and the reader's score of each: ln(p / p0), p that it answers, p0 that none does."""

    passage: Passage
    lines: Sequence[Line]
    scores: Sequence[float]


def point(question: str, judged: Sequence[Judged], refuse_at: Mapping[str, float]) -> PointedAnswer:
    """The answer to a question from judged passages; the passages are those of the likeliest lines, best first.

    The probability that none of the lines answers is 1 / (1 + sum of exp(score)); where it reaches the threshold of
    the question's language (`refuse_at`, with "" for every other), the answer is that the documents do not hold it.
    """
    language = detect(question, ("en", "ja")).language or "en"
    limit = refuse_at.get(language, refuse_at.get("", 0.5))
    ranked, unknown = _ranked(judged)
    nearest = ranked[:_NEAREST]
    said = nearest[:1] if unknown < limit else []
    if said:
        said += [q for q in nearest[1:2] if _belongs(q, said[0], unknown)]
    # Passages are numbered anew, so that an answer begins with [1].
    order = list(dict.fromkeys(quotation.passage for quotation in nearest))
    renumbered = [replace(quotation, passage=order.index(quotation.passage) + 1) for quotation in nearest]
    answer = tuple(renumbered[: len(said)])
    text = " ".join(f"{quotation.text} [{quotation.passage}]" for quotation in answer)
    if not answer:
        text = NOT_FOUND[language] + ("。" if language == "ja" else ".")
    return PointedAnswer(text, [judged[n].passage for n in order], answer, tuple(renumbered), unknown)


def _belongs(second: Quotation, first: Quotation, unknown: float) -> bool:
    """Whether a line completes the answer: about as likely, and not the same again or its translation elsewhere."""
    same_script = bool(HAS_PAIRS.search(second.text)) == bool(HAS_PAIRS.search(first.text))
    new = same_script and second.text != first.text
    return new and second.share >= SECOND * first.share and second.share > unknown


def _ranked(judged: Sequence[Judged]) -> tuple[list[Quotation], float]:
    """(all lines, likeliest first, with the number of their passage from 0; the probability of none)."""
    flat = [(n, line, score) for n, one in enumerate(judged) for line, score in zip(one.lines, one.scores, strict=True)]
    highest = max([0.0, *(score for _, _, score in flat)])
    weights = [math.exp(score - highest) for _, _, score in flat]
    none = math.exp(-highest)
    whole = none + sum(weights)
    quotations = [
        Quotation(n, line.text, line.start, line.end, weight / whole)
        for (n, line, _), weight in zip(flat, weights, strict=True)
    ]
    return sorted(quotations, key=lambda quotation: -quotation.share), none / whole
