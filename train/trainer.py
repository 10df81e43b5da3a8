"""LoRA training on the CPU: PEFT's adapter, transformers' Trainer, our loss and batches.

It knows nothing of files: it is given a loaded model and encoded sequences, and changes the adapter in place.
"""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from slm.console import note, progress
from train.batches import LengthBuckets, pad
from train.config import TrainOptions
from train.loss import supervised_loss
from train.masks import Encoded
from train.precision import precision


@dataclass(frozen=True)
class RunFigures:
    """What a run took and did; tokens are real ones, without padding."""

    steps: int
    epochs: float
    seconds: float
    tokens: int
    tokens_per_s: float
    supervised_tokens: int
    supervised_tokens_per_s: float
    train_loss: float
    peak_rss_mb: float
    dtype: str
    trainable_parameters: int
    stopped_by: str


def decayed(schedule: str, done: float) -> float:
    """The share of the peak learning rate left when `done` (0 to 1) of the run is behind: down to a tenth of it."""
    if schedule == "cosine":
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * done))
    return 1.0 - 0.9 * done if schedule == "linear" else 1.0


class _Monitor(TrainerCallback):  # type: ignore[misc]
    """Feeds the progress bar and ends the run when its time is over."""

    def __init__(self, trainer: _LoraTrainer, show: Any, time_limit_s: float) -> None:
        self._trainer, self._show, self._limit = trainer, show, time_limit_s
        self._started = time.monotonic()
        self.timed_out = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        elapsed = time.monotonic() - self._started
        t = self._trainer
        self._show(
            state.global_step,
            f"loss {t.recent_loss:.3f}, {t.tokens / elapsed:,.0f} tok/s, {t.supervised / elapsed:,.0f} supervised",
        )
        if self._limit and elapsed > self._limit and state.global_step < state.max_steps:
            self.timed_out = True
            control.should_training_stop = True


class _LoraTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss at supervised positions, normalised by their count over the whole step."""

    loss_is_scaled_for_ga = True

    def __init__(self, *, dtype: torch.dtype, seed: int, time_limit_s: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # makes the Trainer count the labels of all accumulated batches
        self._dtype, self._order_seed = dtype, seed
        self._time_limit_s, self._started = time_limit_s, time.monotonic()
        self.tokens = self.supervised = 0
        self.loss_sum = self.recent_loss = 0.0

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBuckets:
        return LengthBuckets(
            [len(item.ids) for item in self.train_dataset], self.args.train_batch_size, self._order_seed
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up by steps, then the schedule over the steps, or over the time limit where that comes first."""
        warmup = max(1, self.args.warmup_steps)
        kind = str(self.args.lr_scheduler_type.value)

        def factor(step: int) -> float:
            if step < warmup:
                return float((step + 1) / warmup)
            done = (step - warmup) / max(1, num_training_steps - warmup)
            if self._time_limit_s:
                done = max(done, (time.monotonic() - self._started) / self._time_limit_s)
            return decayed(kind, min(1.0, done))

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        with precision(self._dtype):
            total, count = supervised_loss(model, inputs)
        self.tokens += int(inputs["attention_mask"].sum())
        self.supervised += count
        value = float(total.detach())
        self.loss_sum += value
        mean = value / count
        self.recent_loss = mean if not self.recent_loss else 0.8 * self.recent_loss + 0.2 * mean
        return total / (count if num_items_in_batch is None else num_items_in_batch)


def fit(model: Any, train: Sequence[Encoded], options: TrainOptions, dtype: torch.dtype, pad_id: int) -> RunFigures:
    """Train the adapter of a PEFT model on the sequences; it is changed in place."""
    from transformers.trainer_callback import PrinterCallback

    per_step = options.batch_size * options.accumulate
    steps = options.max_steps or max(1, round(-(-len(train) // per_step) * options.epochs))
    with tempfile.TemporaryDirectory(prefix="slm-train-") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulate,
            learning_rate=options.learning_rate,
            lr_scheduler_type=options.schedule,
            warmup_steps=round(options.warmup_fraction * steps),
            weight_decay=options.weight_decay,
            max_steps=steps,
            seed=options.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        model.train()
        trainer = _LoraTrainer(
            dtype=dtype,
            seed=options.seed,
            time_limit_s=options.time_limit_s,
            model=model,
            args=arguments,
            train_dataset=train,
            data_collator=lambda items: pad(items, pad_id),
        )
        trainer.remove_callback(PrinterCallback)
        with progress("training", total=steps, unit="steps") as show:
            monitor = _Monitor(trainer, show, options.time_limit_s)
            trainer.add_callback(monitor)
            started = time.monotonic()
            trainer.train()
            seconds = time.monotonic() - started
    if monitor.timed_out:
        note(
            f"the time limit of {options.time_limit_s:g} s ended the run at step {trainer.state.global_step} of {steps}"
        )
    model.eval()
    return RunFigures(
        steps=trainer.state.global_step,
        epochs=round(trainer.state.global_step * per_step / len(train), 2),
        seconds=round(seconds, 2),
        tokens=trainer.tokens,
        tokens_per_s=round(trainer.tokens / seconds, 1),
        supervised_tokens=trainer.supervised,
        supervised_tokens_per_s=round(trainer.supervised / seconds, 1),
        train_loss=trainer.loss_sum / trainer.supervised,
        peak_rss_mb=peak_rss_mb(),
        dtype=str(dtype).removeprefix("torch."),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        stopped_by="time limit" if monitor.timed_out else "last step",
    )


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)
