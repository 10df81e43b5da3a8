"""How the sequences of a run become batches: packed or padded, whole or from the lowest adapted layer upwards.

It knows nothing of optimizers or of where a run begins and ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from slm.artifacts import sha256_file
from slm.terminal.console import note
from slm.weights.checkpoint_files import CONFIG
from slm.weights.identity import identity_of
from train import ranks
from train.batch.attention import packed_attention
from train.batch.frozen import frozen_states
from train.batch.fused import fused_layers
from train.batch.layers import causal_model, lowest_layer, without_lower_layers
from train.batch.memory import needs_checkpointing
from train.batch.plan import BatchPlan
from train.batch.tensors import Batch, Collate, packed, pad
from train.config import TrainOptions
from train.data.masks import Encoded
from train.data.prepare import Prepared
from train.data.store import TokenStore


def use_gradient_checkpointing(model: Any) -> None:
    """Let the backward pass compute each layer's states again instead of keeping them: less memory, more time."""
    causal_model(model).gradient_checkpointing_enable({"use_reentrant": False})


def plan_of(options: TrainOptions, prepared: Prepared) -> BatchPlan:
    """Which sequences are in which micro-batch; packs need no neighbours of like length, so theirs are drawn freely."""
    lengths = np.zeros(len(prepared.train)) if options.packs else prepared.train.lengths
    return BatchPlan(lengths, options.batch_size, options.seed, prepared.weights)


def total_steps(plan: BatchPlan, options: TrainOptions) -> int:
    """How many optimizer steps a run has."""
    per_step = options.accumulate * ranks.world()
    return options.max_steps or max(1, round(plan.batches_per_epoch * options.epochs / per_step))


def largest(plan: BatchPlan, train: TokenStore, seen: range) -> list[Encoded]:
    """The micro-batch with the most tokens of those with the numbers `seen`."""
    lengths = train.lengths
    number = max(seen, key=lambda n: int(lengths[plan.batch(n)].sum()))
    return [train[index] for index in plan.batch(number)]


def settle_checkpointing(
    model: Any, options: TrainOptions, plan: BatchPlan, train: TokenStore, collate: Collate, dtype: torch.dtype
) -> None:
    """Turn gradient checkpointing on if that was asked for, or if it was left open and the memory asks for it."""
    if options.checkpointing == "auto":
        model.train()
        small = collate([train[int(train.lengths.argmin())]])
        large = collate(largest(plan, train, range(plan.batches_per_epoch)))
        needed, why = needs_checkpointing(model, small, large, dtype)
        if needed:
            note(f"gradient checkpointing: {why}")
    else:
        needed = options.checkpointing == "on"
    if needed:
        use_gradient_checkpointing(model)


@contextmanager
def computed_fast(model: Any, options: TrainOptions, dtype: torch.dtype) -> Iterator[None]:
    """While it lasts, the model computes as the options say: with fused layers, and on packs."""
    with ExitStack() as stack:
        if options.fuse:
            stack.enter_context(fused_layers(model, dtype))
        if options.packs:
            stack.enter_context(packed_attention(model))
        yield


@contextmanager
def feed(
    model: Any, options: TrainOptions, sides: Sequence[Sequence[Encoded]], *, pad_id: int, dtype: torch.dtype
) -> Iterator[Collate]:
    """What makes batches of sequences, while the model is ready for them.

    sides: all sequences that will be in one; with `top_layers` the states of the lower layers are made now.
    """
    with computed_fast(model, options, dtype):
        collate = partial(packed, share=options.share_prefix) if options.packs else partial(pad, pad_id=pad_id)
        if not options.top_layers:
            yield collate
            return
        cut = lowest_layer(model, options.top_layers)
        exact = f"{identity_of(options.base).weights} {sha256_file(options.base / CONFIG)}"
        make = partial(frozen_states, model, cut, sides, fingerprint=exact, dtype=dtype)
        kept = ranks.first_then_others(make)

        def with_states(chosen: Sequence[Encoded]) -> Batch:
            batch = collate(chosen)
            return batch | {"states": kept.of_batch(chosen, batch)}

        with without_lower_layers(model, cut):
            yield with_states
