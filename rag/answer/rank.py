"""Orders passages by what a reader makes of their lines, instead of by likeness. It knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rag.answer.reader.form import texts_of
from rag.index.retrieve import Weights
from rag.index.same.once import once_each
from slm.joints import Judge, Passage

# What the search says of a passage, from 0 to about 1.5, counts so many times: it knows names and numbers, and which of
# two translations is in the question's language.
_SEARCHED = 2.0
# Lines that are this unlikely to answer are all the same.
_UNLIKELY = -12.0


def ranked(question: str, passages: Sequence[Passage], judge: Judge, k: int) -> list[Passage]:
    """The k passages that most likely hold an answer, likeliest first, each with that as its score; at most two of a
    page as long as others are left. Raises InputError for a question that is no question, EngineError."""
    judged = judge(question, [texts_of(passage)[0] for passage in passages]).scores
    scored = [
        replace(passage, score=max([*lines, _UNLIKELY]) + _SEARCHED * passage.score)
        for passage, lines in zip(passages, judged, strict=True)
    ]
    best = sorted(range(len(scored)), key=lambda n: -scored[n].score)
    shown = once_each(
        best, lambda n: (scored[n].place, scored[n].text), lambda n: scored[n].source, k, Weights().a_page
    )
    return [scored[best[one.place]] for one in shown]
