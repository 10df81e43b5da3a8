"""What a run will take, before it runs: tokens, steps, memory and time.

The data are read and encoded as the run does it, the model is loaded, the memory of the largest batch is counted
(train.batch.memory), and a few steps over batches of usual size are timed. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from slm.native.heap import give_back
from slm.terminal.console import note, progress
from train.adapter.fresh import add_adapter
from train.adapter.opened import check_adapter
from train.base import load_model
from train.batch.feed import computed_fast, feed, largest, plan_of, total_steps, use_gradient_checkpointing
from train.batch.layers import decoder_layers, lowest_layer, without_lower_layers
from train.batch.loss import supervised_loss
from train.batch.memory import Memory, available_bytes, peak_rss_mb, predict, resident_bytes, saved_for_backward
from train.batch.packing import seen_length
from train.batch.plan import BatchPlan
from train.batch.precision import choose_dtype, in_float32, precision, store_frozen, use_cores
from train.batch.tensors import Batch, Collate, packed
from train.config import TrainOptions
from train.data.masks import Encoded
from train.data.prepare import Prepared
from train.measure.evaluate import held_out_batches

# Steps that are timed, at even distances through the batches sorted by cost, after one that warms up.
_TIMED = 3
# Batches of an epoch that are made to know what one costs; more of them change the mean little.
_COUNTED = 200


@dataclass(frozen=True)
class Estimate:
    """The figures of a run that has not begun.

    Tokens are of one epoch; computed_tokens are those left when common beginnings are computed once (with --no-pack:
    padding included). peak_rss_mb: the memory that the run will have needed, available_mb: what it could have now,
    memory_mb: what the peak of a step is made of. frozen_states_mb: on the disk. train_seconds: of the steps;
    total_seconds: with loading, frozen states and held-out losses.
    """

    examples: int
    held_out_examples: int
    dropped_examples: int
    tokens: int
    tokens_longest: int
    supervised_tokens: int
    supervised_share: float
    computed_tokens: int
    steps: int
    dtype: str
    trainable_parameters: int
    checkpointing: bool
    peak_rss_mb: float
    peak_rss_checkpointing_mb: float
    available_mb: float
    memory_mb: dict[str, float]
    frozen_states_mb: float
    seconds_per_step: float
    tokens_per_s: float
    supervised_tokens_per_s: float
    train_seconds: float
    total_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the memory that can be had now is enough."""
        return self.peak_rss_mb <= self.available_mb

    def as_json(self) -> dict[str, Any]:
        """All figures, and whether they fit."""
        return asdict(self) | {"fits": self.fits}


@dataclass(frozen=True)
class _Speed:
    """Seconds for a multiplication in training, in its forward pass and in measuring a loss; how many a token asks for.

    per_row: of a computed token, in the layers that are run; per_label: of a supervised one, in the head.
    """

    per_row: int
    per_label: int
    training: float = 0.0
    forward: float = 0.0
    measuring: float = 0.0

    def cost(self, rows: int, labels: int) -> int:
        return rows * self.per_row + labels * self.per_label

    def of_batch(self, batch: Batch) -> int:
        return self.cost(batch["input_ids"].numel(), int((batch["labels"] >= 0).sum()))


@dataclass(frozen=True)
class _Measured:
    """What was found on this machine. thrifty: with gradient checkpointing; held_s: seconds of one held-out loss."""

    dtype: torch.dtype
    checkpointing: bool
    memory: Memory
    thrifty: Memory
    free: int
    loaded_s: float
    held_s: float
    speed: _Speed


def estimate(options: TrainOptions, prepared: Prepared) -> Estimate:
    """Predict the run of `options` on its prepared data. Raises what the run would raise before its first step."""
    use_cores(options.threads)
    started = time.monotonic()
    dtype, why = choose_dtype(options.dtype)
    note(f"{str(dtype).removeprefix('torch.')}: {why}")
    if options.from_adapter:
        check_adapter(options.from_adapter, options.base)
    model = add_adapter(load_model(options.base), options)
    store_frozen(model, dtype)
    loaded_s = time.monotonic() - started
    model.train()
    train = prepared.train
    plan = plan_of(options, prepared)
    seen = range(min(plan.batches_per_epoch, total_steps(plan, options) * options.accumulate))
    with _collating(model, options, prepared.tokenizer.pad_token_id, dtype) as collate:
        give_back()  # what reading the data has left behind: a run takes it for its first tensors
        saved = saved_for_backward(model, collate(largest(plan, train, seen)), dtype)
        process, loading = resident_bytes(), round(peak_rss_mb() * 1e6)
        free = available_bytes() + process
        plain, thrifty = (
            predict(model, saved, process=process, loading=loading, checkpointing=on) for on in (False, True)
        )
        thrift = options.checkpointing == "on" or (options.checkpointing == "auto" and plain.peak > free)
        if thrift:
            use_gradient_checkpointing(model)
        batches = list(_spread(plan, train, seen, collate))
        speed = _timed(model, batches, _speed(model, options), dtype)
        held_s = speed.measuring * sum(map(speed.of_batch, map(collate, held_out_batches(prepared.held_out))))
    memory = thrifty if thrift else plain
    measured = _Measured(dtype, thrift, memory, thrifty, free, loaded_s, held_s, speed)
    return _figures(options, prepared, plan, model, batches, measured)


def _figures(
    options: TrainOptions,
    prepared: Prepared,
    plan: BatchPlan,
    model: Any,
    batches: Sequence[Batch],
    measured: _Measured,
) -> Estimate:
    train, held_out, speed = prepared.train, prepared.held_out, measured.speed
    often = np.ones(len(train)) if prepared.weights is None else prepared.weights
    tokens, supervised = (round(float(counts @ often)) for counts in (train.lengths, train.supervised))
    per_epoch = plan.batches_per_epoch
    steps = total_steps(plan, options)
    per_step = speed.training * sum(map(speed.of_batch, batches)) / len(batches) * options.accumulate
    epochs = steps * options.accumulate / per_epoch
    train_s = min(per_step * steps, options.time_limit_s or float("inf"))
    states, states_s = 0, 0.0
    if options.top_layers:
        seen = sum({hash(item.ids): seen_length(item) for item in chain(train, held_out)}.values())
        states = seen * int(model.get_input_embeddings().weight.shape[1]) * 4
        below = lowest_layer(model, options.top_layers) / options.top_layers
        states_s = speed.forward * speed.cost(seen, 0) * below
    times = 2 + (steps // options.eval_every if options.eval_every else 0)
    return Estimate(
        examples=len(train),
        held_out_examples=len(held_out),
        dropped_examples=prepared.dropped,
        tokens=tokens,
        tokens_longest=int(train.lengths.max()),
        supervised_tokens=supervised,
        supervised_share=round(supervised / tokens, 4),
        computed_tokens=round(sum(batch["input_ids"].numel() for batch in batches) / len(batches) * per_epoch),
        steps=steps,
        dtype=str(measured.dtype).removeprefix("torch."),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        checkpointing=measured.checkpointing,
        peak_rss_mb=_mb(measured.memory.peak),
        peak_rss_checkpointing_mb=_mb(measured.thrifty.peak),
        available_mb=_mb(measured.free),
        memory_mb={name: _mb(value) for name, value in asdict(measured.memory).items()},
        frozen_states_mb=_mb(states),
        seconds_per_step=round(per_step, 3),
        tokens_per_s=round(tokens * epochs / (per_step * steps), 1),
        supervised_tokens_per_s=round(supervised * epochs / (per_step * steps), 1),
        train_seconds=round(train_s, 1),
        total_seconds=round(measured.loaded_s + states_s + train_s + times * measured.held_s, 1),
    )


@contextmanager
def _collating(model: Any, options: TrainOptions, pad_id: int, dtype: torch.dtype) -> Iterator[Collate]:
    """What makes batches as `feed` does; the states of frozen layers are not made, but noise of their shape."""
    if not options.top_layers:
        with feed(model, options, (), pad_id=pad_id, dtype=dtype) as collate:
            yield collate
        return
    size = model.get_input_embeddings().weight.shape[1]

    def with_noise(items: Sequence[Encoded]) -> Batch:
        batch = packed(items, share=options.share_prefix)
        return batch | {"states": torch.randn(1, batch["input_ids"].numel(), size)}

    cut = lowest_layer(model, options.top_layers)
    with computed_fast(model, options, dtype), without_lower_layers(model, cut):
        yield with_noise


def _spread(plan: BatchPlan, train: Sequence[Encoded], seen: range, collate: Collate) -> Iterator[Batch]:
    """The micro-batches with the numbers `seen`, or `_COUNTED` of them at even distances."""
    count = min(len(seen), _COUNTED)
    for n in range(count):
        yield collate([train[index] for index in plan.batch(n * len(seen) // count)])


def _speed(model: Any, options: TrainOptions) -> _Speed:
    layers = list(decoder_layers(model))[-options.top_layers :]  # -0: all of them
    return _Speed(
        per_row=sum(p.numel() for layer in layers for p in layer.parameters()),
        per_label=model.get_output_embeddings().weight.numel(),
    )


def _timed(model: Any, batches: Sequence[Batch], speed: _Speed, dtype: torch.dtype) -> _Speed:
    """The speed with its seconds, from steps over batches of usual size. The adapter is changed."""
    order = sorted(batches, key=speed.of_batch)
    chosen = [order[(2 * n + 1) * len(order) // (2 * _TIMED)] for n in range(_TIMED)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    whole = forward = 0.0
    with progress("timing", total=_TIMED + 2, unit="steps") as show:
        for number, batch in enumerate([chosen[0], *chosen]):
            started = time.monotonic()
            with precision(dtype):
                total, count = supervised_loss(model, batch)
            half = time.monotonic()
            (total / count).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if number:  # the first one warms up
                whole, forward = whole + time.monotonic() - started, forward + half - started
            show(number + 1)
        middle = chosen[_TIMED // 2]
        started = time.monotonic()
        with torch.no_grad(), in_float32(model):
            supervised_loss(model, middle)
        measuring = time.monotonic() - started
        show(_TIMED + 2)
    cost = sum(map(speed.of_batch, chosen))
    return _Speed(speed.per_row, speed.per_label, whole / cost, forward / cost, measuring / speed.of_batch(middle))


def _mb(amount: float) -> float:
    return round(amount / 1e6, 1)
