"""What a run will take, before it runs: tokens, steps, memory and time.

The data are read and encoded as the run does it, the model is loaded, the memory of the largest batch is counted
(train.memory), and a few steps over batches of usual size are timed. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from slm.console import note, progress
from train.batches import Batch, Collate, packed
from train.checkpoint import load_model
from train.config import TrainOptions
from train.feed import feed, use_gradient_checkpointing
from train.fit import peak_rss_mb, total_steps
from train.layers import decoder_layers, lowest_layer, without_lower_layers
from train.loss import supervised_loss
from train.masks import Encoded
from train.memory import Memory, available_bytes, predict, resident_bytes, saved_for_backward
from train.packed_attention import use_packed_attention
from train.packing import seen_length
from train.peft_adapter import add_adapter
from train.plan import Plan
from train.precision import choose_dtype, precision, store_frozen, use_cores
from train.prepare import Prepared

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
    """Seconds for a multiplication in training and in a forward pass, and how many a token asks for.

    per_row: of a computed token, in the layers that are run; per_label: of a supervised one, in the head.
    """

    per_row: int
    per_label: int
    training: float = 0.0
    forward: float = 0.0

    def cost(self, rows: int, labels: int) -> int:
        return rows * self.per_row + labels * self.per_label

    def of_batch(self, batch: Batch) -> int:
        return self.cost(batch["input_ids"].numel(), int((batch["labels"] >= 0).sum()))


def estimate(options: TrainOptions, prepared: Prepared) -> Estimate:
    """Predict the run of `options` on its prepared data. Raises what the run would raise before its first step."""
    use_cores(options.threads)
    started = time.monotonic()
    dtype, why = choose_dtype(options.dtype)
    note(f"{str(dtype).removeprefix('torch.')}: {why}")
    model = add_adapter(load_model(options.base), options)
    store_frozen(model, dtype)
    loaded_s = time.monotonic() - started
    model.train()
    train = prepared.train
    plan = Plan([len(item.ids) for item in train], options.batch_size, options.seed)
    with _collating(model, options, prepared.tokenizer.pad_token_id, dtype) as collate:
        saved = saved_for_backward(model, collate(_largest(plan, train)), dtype)
        process, loading = resident_bytes(), round(peak_rss_mb() * 1e6)
        free = available_bytes() + process
        plain, thrifty = (
            predict(model, saved, process=process, loading=loading, checkpointing=on) for on in (False, True)
        )
        thrift = options.checkpointing == "on" or (options.checkpointing == "auto" and plain.peak > free)
        if thrift:
            use_gradient_checkpointing(model)
        batches = list(_spread(plan, train, collate))
        speed = _timed(model, batches, _speed(model, options), dtype)
    return _figures(
        options, prepared, plan, batches, speed, dtype=dtype, model=model, loaded_s=loaded_s, free=free,
        memory=thrifty if thrift else plain, thrifty=thrifty, thrift=thrift,
    )  # fmt: skip


def _figures(
    options: TrainOptions, prepared: Prepared, plan: Plan, batches: Sequence[Batch], speed: _Speed, *,
    dtype: torch.dtype, model: Any, loaded_s: float, free: int, memory: Memory, thrifty: Memory, thrift: bool,
) -> Estimate:  # fmt: skip
    train, held_out = prepared.train, prepared.held_out
    tokens, supervised = (sum(len(item.ids) for item in train), sum(item.supervised for item in train))
    per_epoch = plan.batches_per_epoch
    steps = total_steps(plan, options)
    per_step = speed.training * sum(map(speed.of_batch, batches)) / len(batches) * options.accumulate
    epochs = steps * options.accumulate / per_epoch
    train_s = min(per_step * steps, options.time_limit_s or float("inf"))
    held_cost = speed.cost(sum(len(i.ids) for i in held_out), sum(i.supervised for i in held_out))
    states, states_s = 0, 0.0
    if options.top_layers:
        seen = sum(map(seen_length, {item.ids: item for item in (*train, *held_out)}.values()))
        states = seen * int(model.get_input_embeddings().weight.shape[1]) * 4
        below = lowest_layer(model, options.top_layers) / options.top_layers
        states_s = speed.forward * speed.cost(seen, 0) * below
    measured = 2 + (steps // options.eval_every if options.eval_every else 0)
    return Estimate(
        examples=len(train),
        held_out_examples=len(held_out),
        dropped_examples=prepared.dropped,
        tokens=tokens,
        tokens_longest=max(len(item.ids) for item in train),
        supervised_tokens=supervised,
        supervised_share=round(supervised / tokens, 4),
        computed_tokens=round(sum(batch["input_ids"].numel() for batch in batches) / len(batches) * per_epoch),
        steps=steps,
        dtype=str(dtype).removeprefix("torch."),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        checkpointing=thrift,
        peak_rss_mb=_mb(memory.peak),
        peak_rss_checkpointing_mb=_mb(thrifty.peak),
        available_mb=_mb(free),
        memory_mb={name: _mb(value) for name, value in asdict(memory).items()},
        frozen_states_mb=_mb(states),
        seconds_per_step=round(per_step, 3),
        tokens_per_s=round(tokens * epochs / (per_step * steps), 1),
        supervised_tokens_per_s=round(supervised * epochs / (per_step * steps), 1),
        train_seconds=round(train_s, 1),
        total_seconds=round(loaded_s + states_s + train_s + measured * speed.forward * held_cost, 1),
    )


@contextmanager
def _collating(model: Any, options: TrainOptions, pad_id: int, dtype: torch.dtype) -> Iterator[Collate]:
    """What makes batches as `feed` does; the states of frozen layers are not made, but noise of their shape."""
    if not options.top_layers:
        with feed(model, options, [], pad_id=pad_id, dtype=dtype) as collate:
            yield collate
        return
    use_packed_attention(model)
    size = model.get_input_embeddings().weight.shape[1]

    def with_noise(items: Sequence[Encoded]) -> Batch:
        batch = packed(items, share=options.share_prefix)
        return batch | {"states": torch.randn(1, batch["input_ids"].numel(), size)}

    with without_lower_layers(model, lowest_layer(model, options.top_layers)):
        yield with_noise


def _largest(plan: Plan, train: Sequence[Encoded]) -> list[Encoded]:
    """The batch of the first epoch with the most tokens."""
    batches = ([train[index] for index in plan.batch(n)] for n in range(plan.batches_per_epoch))
    return max(batches, key=lambda items: sum(map(seen_length, items)))


def _spread(plan: Plan, train: Sequence[Encoded], collate: Collate) -> Iterator[Batch]:
    """Batches of the first epoch at even distances, at most `_COUNTED`."""
    count = min(plan.batches_per_epoch, _COUNTED)
    for n in range(count):
        yield collate([train[index] for index in plan.batch(n * plan.batches_per_epoch // count)])


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
    with progress("timing", total=_TIMED + 1, unit="steps") as show:
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
    cost = sum(map(speed.of_batch, chosen))
    return _Speed(speed.per_row, speed.per_label, whole / cost, forward / cost)


def _mb(amount: float) -> float:
    return round(amount / 1e6, 1)
