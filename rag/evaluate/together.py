"""How much a line's scores by two readers count in their sum, fitted on questions with answers.

It knows nothing of models: it is given what both made of every line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_START, _STEP, _ENOUGH = (0.5, 0.5, 0.0), 0.25, 1e-3


@dataclass(frozen=True)
class TwiceJudged:
    """The lines of a question's passages: both readers' scores of each, and which are right. every: all of these have
    to be found, else one is enough."""

    first: Sequence[float]
    second: Sequence[float]
    right: Sequence[bool]
    every: bool = False


def nats(questions: Sequence[TwiceJudged], share: float, scale: float, offset: float) -> float:
    """The mean loss of share * first + scale * second + offset, as a reader is trained by (train.run.reader.loss)."""
    return float(np.mean([_loss(one, share, scale, offset) for one in questions]))


def _loss(one: TwiceJudged, share: float, scale: float, offset: float) -> float:
    scores = share * np.asarray(one.first) + scale * np.asarray(one.second) + offset
    whole = float(np.logaddexp.reduce(np.append(scores, 0.0)))
    right = scores[np.asarray(one.right, dtype=bool)]
    if not len(right):
        return whole
    return whole - (float(right.mean()) if one.every else float(np.logaddexp.reduce(right)))


def fitted_sum(questions: Sequence[TwiceJudged]) -> tuple[float, float, float]:
    """(share, scale, offset) with the least loss: one after the other is moved as long as that helps, in ever smaller
    steps. Raises ValueError without questions."""
    if not questions:
        raise ValueError("there is no question to fit by")
    best, step = list(_START), _STEP
    least = nats(questions, *best)
    while step > _ENOUGH:
        moved = False
        for at in range(len(best)):
            for change in (step, -step):
                tried = [*best[:at], best[at] + change, *best[at + 1 :]]
                loss = nats(questions, *tried)
                if loss < least:
                    best, least, moved = tried, loss, True
        step = step if moved else step / 2
    return round(best[0], 3), round(best[1], 3), round(best[2], 3)
