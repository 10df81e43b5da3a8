"""Cross-entropy at the supervised positions only, with the output head applied nowhere else.

It knows nothing of data, optimizers or adapters. The head is the largest matrix of a small model (63 % of
the multiplications of a Gemma 3 270M forward pass), and most positions of instruction data carry no label.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

IGNORE = -100
# Logits of one chunk: 128 x 262,144 (Gemma's vocabulary) x 4 bytes = 134 MB.
_CHUNK_ELEMENTS = 128 * 262_144


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of softcap(hidden @ weight.T + bias), chunk by chunk, for a head that is not trained.

    The gradient for `hidden` is formed in the forward pass, (softmax - onehot) @ weight, so that the logits
    of only one chunk exist at a time and nothing is computed twice.
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
        rows = max(1, _CHUNK_ELEMENTS // weight.shape[0])
        want_grad = hidden.requires_grad
        total = torch.zeros((), dtype=torch.float32)
        grads: list[torch.Tensor] = []
        weight = weight.to(hidden.dtype)
        for start in range(0, hidden.shape[0], rows):
            part, wanted = hidden[start : start + rows], labels[start : start + rows]
            logits = F.linear(part, weight, bias if bias is None else bias.to(part.dtype)).float()
            slope = None
            if softcap is not None:
                squashed = torch.tanh(logits / softcap)
                logits = softcap * squashed
                slope = 1.0 - squashed.square()
            logsum = logits.logsumexp(dim=-1)
            total = total + (logsum - logits.gather(1, wanted[:, None]).squeeze(1)).sum()
            if want_grad:
                grad = logits.sub_(logsum[:, None]).exp_()
                grad[torch.arange(len(wanted)), wanted] -= 1.0
                if slope is not None:
                    grad *= slope
                grads.append((grad.to(weight.dtype) @ weight).to(hidden.dtype))
        if want_grad:
            ctx.save_for_backward(torch.cat(grads))
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * outputs[0].to(grad.dtype), None, None, None, None


def causal_model(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def supervised_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """(summed cross-entropy in nats, number of supervised tokens) of a padded batch.

    batch: input_ids, attention_mask and labels, each (sequences, tokens); a label of -100 is not supervised.
    Equal to the model's own loss times the count; `model` may be wrapped by PEFT.
    """
    causal = causal_model(model)
    labels = batch["labels"][:, 1:]
    chosen = labels != IGNORE
    hidden = causal.base_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state[:, :-1][chosen]
    wanted = labels[chosen]
    head = causal.get_output_embeddings()
    softcap = getattr(causal.config, "final_logit_softcapping", None)
    if type(head) is torch.nn.Linear and not head.weight.requires_grad:
        if torch.is_autocast_enabled("cpu"):
            hidden = hidden.to(torch.get_autocast_dtype("cpu"))
        apply: Any = _FrozenHeadCrossEntropy.apply
        weight = getattr(head, "frozen_weight", head.weight)
        total = apply(hidden, weight, head.bias, wanted, softcap)
    else:  # the head itself is trained
        logits = head(hidden).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        total = F.cross_entropy(logits, wanted, reduction="sum")
    return total, int(wanted.numel())
