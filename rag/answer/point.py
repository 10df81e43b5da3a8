"""From a reader's judgement of every line to an answer: the lines that answer, word for word, or a refusal.

Nothing can be said that does not stand in a passage, so instructions inside a passage change nothing. It knows nothing
of models, prompts or indexes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rag.answer.cite import NOT_FOUND
from rag.answer.lines import Line
from slm.joints import Passage, PointedAnswer, Quotation
from slm.text.language import detect

# A second line belongs to the answer when it is at least this likely beside the first.
_SECOND = 0.35
_NEAREST = 3


@dataclass(frozen=True)
class Judged:
    """A passage with its lines and the reader's score of each: ln(p / p0), p that it answers, p0 that none does."""

    passage: Passage
    lines: Sequence[Line]
    scores: Sequence[float]


def point(question: str, judged: Sequence[Judged], refuse_at: Mapping[str, float]) -> PointedAnswer:
    """The answer to a question from judged passages.

    The probability that none of the lines answers is 1 / (1 + sum of exp(score)); where it reaches the threshold of
    the question's language (`refuse_at`, with "" for every other), the answer is that the documents do not hold it.
    """
    language = detect(question, ("en", "ja")).language or "en"
    limit = refuse_at.get(language, refuse_at.get("", 0.5))
    flat = [
        (n, line, score) for n, one in enumerate(judged, 1) for line, score in zip(one.lines, one.scores, strict=True)
    ]
    passages = [one.passage for one in judged]
    if not flat:
        return PointedAnswer(NOT_FOUND[language] + _full_stop(language), passages, (), (), 1.0)
    highest = max(0.0, *(score for _, _, score in flat))
    nothing = math.exp(-highest)
    weights = [math.exp(score - highest) for _, _, score in flat]
    whole = nothing + sum(weights)
    ranked = sorted(zip(flat, weights, strict=True), key=lambda pair: -pair[1])
    quotations = tuple(Quotation(n, line.text, line.start, line.end, weight / whole) for (n, line, _), weight in ranked)
    unknown = nothing / whole
    if unknown >= limit:
        return PointedAnswer(NOT_FOUND[language] + _full_stop(language), passages, (), quotations[:_NEAREST], unknown)
    said = [quotations[0]]
    said += [q for q in quotations[1:2] if q.share >= _SECOND * quotations[0].share and q.share > unknown]
    said.sort(key=lambda q: (q.passage, q.start))
    text = " ".join(f"{q.text} [{q.passage}]" for q in said)
    return PointedAnswer(text, passages, tuple(said), quotations[:_NEAREST], unknown)


def _full_stop(language: str) -> str:
    return "。" if language == "ja" else "."
