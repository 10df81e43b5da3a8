"""How the sequences of a run become batches: packed or padded, whole or from the lowest adapted layer upwards.

It knows nothing of optimizers or of where a run begins and ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from slm.artifacts import checkpoint_fingerprint
from train import ranks
from train.batches import Batch, Collate, packed, pad
from train.config import TrainOptions
from train.frozen import frozen_states
from train.layers import causal_model, lowest_layer, without_lower_layers
from train.masks import Encoded
from train.packed_attention import packed_attention


def use_gradient_checkpointing(model: Any) -> None:
    """Let the backward pass compute each layer's states again instead of keeping them: less memory, more time."""
    causal_model(model).gradient_checkpointing_enable({"use_reentrant": False})


@contextmanager
def feed(
    model: Any, options: TrainOptions, sides: Sequence[Sequence[Encoded]], *, pad_id: int, dtype: torch.dtype
) -> Iterator[Collate]:
    """What makes batches of sequences, while the model is ready for them.

    sides: all sequences that will be in one; with `top_layers` the states of the lower layers are made now.
    """
    if not options.pack:
        yield partial(pad, pad_id=pad_id)
        return
    collate = partial(packed, share=options.share_prefix)
    with packed_attention(model):
        if not options.top_layers:
            yield collate
            return
        cut = lowest_layer(model, options.top_layers)
        make = partial(frozen_states, model, cut, sides, fingerprint=checkpoint_fingerprint(options.base), dtype=dtype)
        states = make() if ranks.rank() == 0 else None
        ranks.gathered(None)  # the others read what the first one wrote
        kept = states or make()

        def with_states(chosen: Sequence[Encoded]) -> Batch:
            batch = collate(chosen)
            return batch | {"states": kept.of_batch(chosen, batch)}

        with without_lower_layers(model, cut):
            yield with_states
