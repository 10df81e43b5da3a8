"""How a causal model judges lines: logit(yes) - logit(no) at the token that ends a line.

A line is read after the question, its page's place and the lines before it; rows that begin alike are computed once.
It knows nothing of examples or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slm.errors import UnsupportedError
from train.batch.layers import causal_model
from train.batch.loss import forward_states
from train.batch.tensors import packed
from train.data.examples import Example
from train.data.masks import IGNORE, Encoded
from train.run.reader.examples import ReaderRow

CONTRAST = ("yes", "no")
# What a reader's card says of how its lines are judged.
BY_CONTRAST = {"kind": "contrast", "scale": 1.0, "offset": 0.0}
_NOWHERE = Example(Path(), 0, "")


@dataclass(frozen=True)
class ContrastHead:
    """The rows of the output head for yes and no, (2, size), and the cap of the logits; neither is trained."""

    rows: torch.Tensor
    softcap: float | None

    def __call__(self, model: Any, rows: Sequence[ReaderRow]) -> list[torch.Tensor]:
        """The score of each row's lines, float32 (`train.run.reader.loss.RowScores`)."""
        batch = packed([_sequence(row) for row in rows])
        states = forward_states(model, batch)[0, batch["rows"]]
        with torch.autocast("cpu", enabled=False):
            logits = states.float() @ self.rows.T
            if self.softcap is not None:
                logits = self.softcap * torch.tanh(logits / self.softcap)
            scores = logits[:, 0] - logits[:, 1]
        return list(torch.split(scores, [len(row.lines) for row in rows]))


def _sequence(row: ReaderRow) -> Encoded:
    """A row as a sequence with a label behind each line, whose last state is what is judged."""
    labels = [IGNORE] * (len(row.ids) + 1)
    for _, end in row.lines:
        labels[end] = 1
    return Encoded((*row.ids, row.ids[-1]), tuple(labels), _NOWHERE)


def contrast_head(model: Any, tokenizer: Any) -> ContrastHead:
    """What judges lines by the model. Raises UnsupportedError where one of the words is not a single token."""
    rows = []
    causal = causal_model(model)
    head = causal.get_output_embeddings()
    for word in CONTRAST:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise UnsupportedError(f"'{word}' is {len(ids)} tokens of this model, a reader needs it to be one")
        rows.append(head.weight[ids[0]].detach().float())
    return ContrastHead(torch.stack(rows), getattr(causal.config, "final_logit_softcapping", None))
