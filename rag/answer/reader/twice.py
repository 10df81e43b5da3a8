"""Two readers, one after the other: the second reads again what the first thinks likeliest, and their scores are added.

It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

from rag.answer.reader.card import Before
from slm.joints import Judge, LineScores

# A line that is not read again: nothing that is said.
_UNREAD = -30.0


class ReadTwice:
    """Two judges as one (implements slm.joints.Judge)."""

    def __init__(self, first: Judge, second: Judge, before: Before) -> None:
        self._first, self._second, self._before = first, second, before

    def __call__(self, question: str, passages: Sequence[Sequence[str]]) -> LineScores:
        """Raises InputError for a question that is no question, EngineError."""
        first = self._first(question, passages)
        likeliest = sorted(range(len(passages)), key=lambda n: -max(first.scores[n], default=_UNREAD))
        again = sorted(likeliest[: self._before.passages])
        second = self._second(question, [passages[n] for n in again])
        scores = [[_UNREAD] * len(lines) for lines in first.scores]
        for n, lines in zip(again, second.scores, strict=True):
            scores[n] = [self._before.share * one + other for one, other in zip(first.scores[n], lines, strict=True)]
        return LineScores(scores, first.tokens + second.tokens)
