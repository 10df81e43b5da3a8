"""The loss of a reader: of all lines before it and "none of them", the right ones have to be the likeliest.

A line's score is logit(yes) - logit(no) at its last token, with "none" at 0, and the probabilities are the softmax over
all lines of the question's passages: a right line is ranked against its neighbours, and a question that is not answered
has to push them all below 0. It knows nothing of how examples are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slm.errors import UnsupportedError
from train.batch.batches import Batch, packed
from train.batch.layers import causal_model
from train.batch.loss import forward_states
from train.run.reader.examples import ReaderExample

CONTRAST = ("yes", "no")


@dataclass(frozen=True)
class ContrastHead:
    """The rows of the output head for yes and no, (2, size), and the cap of the logits; neither is trained."""

    rows: torch.Tensor
    softcap: float | None

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        """logit(yes) - logit(no) of final states (lines, size), in float32: (lines)."""
        logits = states.float() @ self.rows.T
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits[:, 0] - logits[:, 1]


def contrast_head(model: Any, tokenizer: Any) -> ContrastHead:
    """What judges a final state of the model. Raises UnsupportedError where one of the words is not a single token."""
    rows = []
    causal = causal_model(model)
    head = causal.get_output_embeddings()
    for word in CONTRAST:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise UnsupportedError(f"'{word}' is {len(ids)} tokens of this model, a reader needs it to be one")
        rows.append(head.weight[ids[0]].detach().float())
    return ContrastHead(torch.stack(rows), getattr(causal.config, "final_logit_softcapping", None))


def reader_batch(examples: Sequence[ReaderExample]) -> Batch:
    """A packed batch of all sequences, with the examples under "examples"."""
    return packed([sequence for one in examples for sequence in one.sequences]) | {"examples": examples}


def reader_loss(model: Any, batch: Batch, head: ContrastHead) -> tuple[torch.Tensor, int]:
    """(summed nats, number of questions) of a batch of `reader_batch`."""
    states = forward_states(model, batch)[0, batch["rows"]]
    with torch.autocast("cpu", enabled=False):
        scores = head.scores(states)
    examples: Sequence[ReaderExample] = batch["examples"]
    parts = torch.split(scores, [len(one.right) for one in examples])
    return torch.stack([question_loss(part, one) for part, one in zip(parts, examples, strict=True)]).sum(), len(parts)


def question_loss(scores: torch.Tensor, example: ReaderExample) -> torch.Tensor:
    """Nats of one question; scores: (lines). With `every`, the mean over the right lines, else their sum counts."""
    right, counted = torch.tensor(example.right), ~torch.tensor(example.ignored)
    whole = torch.logsumexp(torch.cat([scores.new_zeros(1), scores[counted]]), dim=0)
    if not right.any():
        return whole
    return whole - (scores[right].mean() if example.every else torch.logsumexp(scores[right], dim=0))
