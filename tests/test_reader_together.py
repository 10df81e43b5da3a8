"""Two readers' scores in one sum: its loss against the one that is trained by, and what is fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rag.evaluate.together import TwiceJudged, fitted_sum, nats
from train.data.examples import Example
from train.run.reader.examples import ReaderExample
from train.run.reader.loss import question_loss


def drawn(count: int, seed: int = 3) -> list[TwiceJudged]:
    """Questions whose true score is the first reader's and half of the second's, less 1; each has noise of its own."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        first, second = draw.normal(0, 3, 12), draw.normal(0, 3, 12)
        scores = np.append(first + 0.5 * second - 1.0, 0.0)
        chosen = int(draw.choice(13, p=np.exp(scores) / np.exp(scores).sum()))
        made.append(TwiceJudged(first.tolist(), second.tolist(), [n == chosen for n in range(12)]))
    return made


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("right", [(), (1,), (0, 3)])
def test_the_loss_is_the_one_that_readers_are_trained_by(every: bool, right: tuple[int, ...]) -> None:
    first, second = [1.0, -2.0, 0.5, 3.0], [0.0, 4.0, -1.0, 2.0]
    marks = tuple(n in right for n in range(4))
    example = ReaderExample((), marks, (False,) * 4, every, Example(Path("q"), 1, "en"))
    scores = torch.tensor(first, dtype=torch.float64) * 0.7 + torch.tensor(second, dtype=torch.float64) * 0.2 - 0.3
    expected = float(question_loss(scores, example))
    assert nats([TwiceJudged(first, second, marks, every)], 0.7, 0.2, -0.3) == pytest.approx(expected, abs=1e-12)


def test_the_fit_finds_what_the_answers_were_drawn_by() -> None:
    questions = drawn(3000)
    share, scale, offset = fitted_sum(questions)
    assert [share, scale] == pytest.approx([1.0, 0.5], abs=0.1) and offset == pytest.approx(-1.0, abs=0.2)
    assert nats(questions, share, scale, offset) <= nats(questions, 1.0, 0.5, -1.0)


def test_without_questions_there_is_nothing_to_fit() -> None:
    with pytest.raises(ValueError, match="no question"):
        fitted_sum([])
