"""Batches as tensors: packed, or padded with sequences of like length. It knows nothing of models or losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from train.batch.packing import pack, seen_length
from train.data.masks import IGNORE, Encoded

Batch = dict[str, Any]
Collate = Callable[[Sequence[Encoded]], Batch]


def packed(items: Sequence[Encoded], *, share: bool = True) -> Batch:
    """A batch without padding (see train.batch.packing).

    input_ids, position_ids: (1, tokens). rows, labels: (supervised tokens). owners: (tokens). pieces: of the pack.
    tokens: of the sequences, common beginnings counted in each.
    """
    made = pack(items, share=share)
    return {
        "input_ids": torch.tensor([made.ids]),
        "position_ids": torch.tensor([made.positions]),
        "owners": torch.tensor(made.owners),
        "rows": torch.tensor(made.rows),
        "labels": torch.tensor(made.labels),
        "pieces": made.pieces,
        "tokens": made.tokens,
    }


def pad(items: Sequence[Encoded], pad_id: int) -> Batch:
    """input_ids, attention_mask and labels, each (sequences, longest), padded on the right.

    What stands behind the last learned token of a sequence has no effect on the loss and is left out.
    """
    sizes = [1 + seen_length(item) for item in items]
    width = max(sizes)
    rows = list(zip(items, sizes, strict=True))
    return {
        "input_ids": torch.tensor([[*item.ids[:size], *([pad_id] * (width - size))] for item, size in rows]),
        "attention_mask": torch.tensor([[1] * size + [0] * (width - size) for _, size in rows]),
        "labels": torch.tensor([[*item.labels[:size], *([IGNORE] * (width - size))] for item, size in rows]),
        "tokens": sum(sizes),
    }


def by_length(items: Sequence[Encoded], max_tokens: int) -> Iterator[list[Encoded]]:
    """Groups of like length whose padded size stays within `max_tokens` (a longer sequence stands alone)."""
    group: list[Encoded] = []
    for item in sorted(items, key=lambda item: len(item.ids), reverse=True):
        if group and len(group[0].ids) * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(item)
    if group:
        yield group
