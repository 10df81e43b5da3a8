"""The loss of a reader: of all lines before it and "none of them", the right ones have to be the likeliest.

A line's score is how near its stretch of final states is to the question's (the cosine of their means, times SCALE,
plus OFFSET), with "none" at 0, and the probabilities are the softmax over all lines of the question's passages: a right
line is ranked against its neighbours, and a question that is not answered has to push them all below 0. An embedder
was trained to bring what belongs together near to each other, so it begins with something to go by. It knows nothing
of how examples are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from slm.native.batches import batches
from train.batch.tensors import Batch
from train.run.reader.examples import ReaderExample, ReaderRow

# The scores of each row's lines by a model, float32.
RowScores = Callable[[Any, Sequence[ReaderRow]], list[torch.Tensor]]
SCALE, OFFSET = 20.0, -18.0
# What a reader's card says of how its lines are judged.
BY_COSINE = {"kind": "cosine", "scale": SCALE, "offset": OFFSET}
# Padded tokens of one pass through the model, and rows.
_TOKENS, _ROWS = 2048, 64


def reader_batch(examples: Sequence[ReaderExample]) -> Batch:
    """The examples, with the number of their tokens."""
    return {"examples": examples, "tokens": sum(one.tokens for one in examples)}


def reader_loss(model: Any, batch: Batch, score: RowScores) -> tuple[torch.Tensor, int]:
    """(summed nats, number of questions) of a batch of `reader_batch`; score: how rows' lines are judged."""
    examples: Sequence[ReaderExample] = batch["examples"]
    scores = score(model, [row for one in examples for row in one.rows])
    parts = iter(scores)
    losses = [question_loss(torch.cat([next(parts) for _ in one.rows]), one) for one in examples]
    return torch.stack(losses).sum(), len(losses)


def row_scores(model: Any, rows: Sequence[ReaderRow]) -> list[torch.Tensor]:
    """The scores of each row's lines, float32. Rows of like length go through the model together."""
    scores: dict[int, torch.Tensor] = {}
    for numbers in batches([len(row.ids) for row in rows], _TOKENS, _ROWS, longest_first=True):
        longest = len(rows[numbers[0]].ids)
        ids = torch.zeros(len(numbers), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, number in enumerate(numbers):
            length = len(rows[number].ids)
            ids[place, :length] = torch.tensor(rows[number].ids)
            mask[place, :length] = 1
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        for place, number in enumerate(numbers):
            scores[number] = line_scores(states[place], rows[number])
    return [scores[number] for number in range(len(rows))]


def line_scores(states: torch.Tensor, row: ReaderRow) -> torch.Tensor:
    """The score of each line of a row from its final states, (tokens, width): (lines)."""
    sums = F.pad(states.cumsum(0), (0, 0, 1, 0))
    starts, ends = torch.tensor(row.lines, dtype=torch.long).reshape(-1, 2).T
    return SCALE * F.cosine_similarity(sums[ends] - sums[starts], sums[row.question][None], dim=-1) + OFFSET


def question_loss(scores: torch.Tensor, example: ReaderExample) -> torch.Tensor:
    """Nats of one question; scores: (lines). With `every`, the mean over the right lines, else their sum counts."""
    right, counted = torch.tensor(example.right), ~torch.tensor(example.ignored)
    whole = torch.logsumexp(torch.cat([scores.new_zeros(1), scores[counted]]), dim=0)
    if not right.any():
        return whole
    return whole - (scores[right].mean() if example.every else torch.logsumexp(scores[right], dim=0))
