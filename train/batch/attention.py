"""Attention over the pieces of a pack, as an attention implementation of transformers.

Every piece attends to itself causally and to the pieces before it; nothing else is multiplied.
It knows nothing of data, losses or adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from train.batch.layers import causal_model, narrowed_last_layer
from train.batch.packing import PackPiece

NAME = "slm_packed"


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """While it lasts, a transformers model takes `pieces` as a keyword of its forward pass, and needs it.

    Its last layer computes only what is needed for the rows that train.batch.layers.need_rows named.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    config = causal_model(model).config
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        with narrowed_last_layer(model):
            yield
    finally:
        config._attn_implementation = before


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    pieces: Sequence[PackPiece],
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query: (1, heads, tokens, size); key and value: (1, key-value heads, tokens, size). As transformers asks.

    Always in float32: torch's kernel takes twice as long for a backward pass in bfloat16.
    """
    query, key, value = query.float(), key.float(), value.float()
    # Heads that share a key are (key-value heads, groups), their keys views of one: nothing is repeated in memory.
    groups = query.shape[1] // key.shape[1]
    query = query.view(key.shape[1], groups, *query.shape[2:])
    key, value = key[0][:, None], value[0][:, None]
    sizes = [piece.end - piece.start for piece in pieces]
    starts = [piece.start for piece in pieces]
    keys = dict(zip(starts, torch.split(key, sizes, dim=2), strict=True))
    values = dict(zip(starts, torch.split(value, sizes, dim=2), strict=True))
    outputs = []
    masks = _masks(tuple(pieces), sliding_window)
    with torch.autocast("cpu", enabled=False):
        for piece, part, mask in zip(pieces, torch.split(query, sizes, dim=2), masks, strict=True):
            seen = [start for start, _ in piece.before] + [piece.start]
            k = torch.cat([keys[start] for start in seen], dim=2) if len(seen) > 1 else keys[piece.start]
            v = torch.cat([values[start] for start in seen], dim=2) if len(seen) > 1 else values[piece.start]
            k, v = k.expand(-1, groups, -1, -1), v.expand(-1, groups, -1, -1)
            if softcap is None:
                out = F.scaled_dot_product_attention(
                    part, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
                )
            else:
                out = _capped(part, k, v, mask, softcap, scaling)
            outputs.append(out)
    return torch.cat(outputs, dim=2).flatten(0, 1).transpose(0, 1).contiguous()[None], None


@lru_cache(maxsize=2)  # all layers of a pack use the same ones; some models have layers with a window and without
def _masks(pieces: tuple[PackPiece, ...], window: int | None) -> list[torch.Tensor | None]:
    """What is added to the scores (queries, keys) of each piece; None: plain causal."""
    lengths = [(piece.end - piece.start, sum(end - start for start, end in piece.before)) for piece in pieces]
    return [_mask(queries, before + queries, window) for queries, before in lengths]


def _mask(queries: int, keys: int, window: int | None) -> torch.Tensor | None:
    """-inf where a query does not see a key, else 0; the last query stands at the last key."""
    if queries == keys and (window is None or keys <= window):
        return None
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None, :]
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(queries, keys).masked_fill_(hidden, float("-inf"))


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    softcap: float,
    scaling: float | None,
) -> torch.Tensor:
    """Attention whose scores are softcap * tanh(scores / softcap), as in Gemma 2 (arXiv 2408.00118)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    if mask is None:
        mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype).triu(1)
    return (scores + mask).softmax(dim=-1) @ value
