"""Cross-entropy at the supervised positions only, with the output head applied nowhere else.

It knows nothing of data, optimizers or adapters. The head is the largest matrix of a small model (63 % of
the multiplications of a Gemma 3 270M forward pass), and most positions of instruction data carry no label.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from train.batch.layers import causal_model, need_rows, supply
from train.data.masks import IGNORE

# Words of the vocabulary whose logits exist at a time: their part of the weight (21 MB of Gemma's) fits a cache.
_BLOCK = 8192


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of softcap(hidden @ weight.T + bias) for a head that is not trained.

    The vocabulary is taken block by block with a running maximum and sum, as FlashAttention takes its keys
    (arXiv 2205.14135, with the weight in the place of keys and values): the logits of one block exist at a time.
    The gradient for `hidden`, (softmax - onehot) @ weight, is formed in the same pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        softcap: float | None,
    ) -> torch.Tensor:
        """hidden: (rows, size); weight: (vocabulary, size); bias: (vocabulary); labels: (rows)."""
        want_grad = hidden.requires_grad
        weight = weight.to(hidden.dtype)
        rows = hidden.shape[0]
        highest = torch.full((rows, 1), float("-inf"))
        total = torch.zeros(rows, 1)
        pull = torch.zeros(rows, hidden.shape[1])  # the sum of exp(logit - highest) * slope * weight
        for start in range(0, weight.shape[0], _BLOCK):
            block = weight[start : start + _BLOCK]
            logits, slope = _logits(hidden, block, None if bias is None else bias[start : start + _BLOCK], softcap)
            before = highest
            highest = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
            shrink = (before - highest).exp_()
            shares = logits.sub_(highest).exp_()
            total.mul_(shrink).add_(shares.sum(dim=1, keepdim=True))
            if want_grad:
                if slope is not None:
                    shares *= slope
                pull.mul_(shrink).add_((shares.to(weight.dtype) @ block).float())
        own = weight[labels]
        wanted = (hidden.float() * own.float()).sum(dim=1)
        if bias is not None:
            wanted += bias[labels]
        push = own.float()
        if softcap is not None:
            squashed = torch.tanh(wanted / softcap)
            wanted = softcap * squashed
            push *= (1.0 - squashed.square())[:, None]
        loss = (total.log_().squeeze(1) + highest.squeeze(1) - wanted).sum()
        if want_grad:
            ctx.save_for_backward((pull / total.exp_() - push).to(hidden.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * outputs[0].to(grad.dtype), None, None, None, None


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(logits in float32, their slope under the soft cap or None)."""
    logits = F.linear(hidden, weight, None if bias is None else bias.to(hidden.dtype)).float()
    if softcap is None:
        return logits, None
    squashed = torch.tanh(logits / softcap)
    return softcap * squashed, 1.0 - squashed.square()


def supervised_loss(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """(summed cross-entropy in nats, number of supervised tokens) of a batch of train.batch.tensors, packed or padded.

    Equal to the model's own loss times the count; `model` may be wrapped by PEFT. A packed batch needs a model that
    is under `packed_attention`.
    """
    causal = causal_model(model)
    states = forward_states(model, batch)
    if "pieces" in batch:
        hidden, wanted = states[0, batch["rows"]], batch["labels"]
    else:
        labels = batch["labels"][:, 1:]
        chosen = labels != IGNORE
        hidden, wanted = states[:, :-1][chosen], labels[chosen]
    return head_loss(causal, hidden, wanted), int(wanted.numel())


def forward_states(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The final states (sequences, tokens, size) of a batch of train.batch.tensors; a packed one is a single sequence.

    Of a packed batch only its "rows" are meant to be used. With "states" the model runs without its lower layers and
    begins at them.
    """
    names = ("position_ids", "pieces") if "pieces" in batch else ("attention_mask",)
    seen = {name: batch[name] for name in names}
    if "pieces" in batch:
        need_rows(model, batch["rows"])
    if "states" in batch:
        supply(model, batch["states"])
    states: torch.Tensor = (
        causal_model(model).base_model(input_ids=batch["input_ids"], use_cache=False, **seen).last_hidden_state
    )
    return states


def head_loss(causal: Any, hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy in nats of final states (rows, size) for the tokens `wanted` (rows)."""
    head = causal.get_output_embeddings()
    softcap = getattr(causal.config, "final_logit_softcapping", None)
    if type(head) is torch.nn.Linear and not head.weight.requires_grad:
        weight = head.weight
        if torch.is_autocast_enabled("cpu"):
            hidden = hidden.to(torch.get_autocast_dtype("cpu"))
            weight = getattr(head, "frozen_weight", weight)
        apply: Any = _FrozenHeadCrossEntropy.apply
        total: torch.Tensor = apply(hidden, weight, head.bias, wanted, softcap)
        return total
    logits = head(hidden).float()  # the head itself is trained
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, wanted, reduction="sum")
