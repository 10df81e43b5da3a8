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
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from slm.console import note, progress
from slm.errors import InputError
from slm.llama import physical_cores
from train.batches import LengthBuckets, pad
from train.checkpoint import target_modules
from train.config import TrainOptions
from train.loss import causal_model, supervised_loss
from train.masks import Encoded

# Rounding to bfloat16 has to be paid for by speed; under emulation it is some hundred times slower instead.
_BF16_GAIN = 1.5


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


def use_cores(threads: int) -> None:
    """Let torch use `threads` threads (0: the physical cores)."""
    torch.set_num_threads(threads or physical_cores())


def choose_dtype(wanted: str) -> tuple[torch.dtype, str]:
    """(the dtype of matrix products, why in words): `auto` times both on this machine."""
    if wanted != "auto":
        return getattr(torch, wanted), "as asked"
    seconds = {dtype: _matmul_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    if gain >= _BF16_GAIN:
        return torch.bfloat16, f"products in bfloat16 are {gain:.1f} times faster here; weights stay float32"
    return torch.float32, f"bfloat16 would be {gain:.2g} times as fast here"


def _matmul_seconds(dtype: torch.dtype) -> float:
    """CPU seconds of one matrix product on one thread, the best of four: other processes hardly change it."""
    left, right = torch.ones(256, 640, dtype=dtype), torch.ones(640, 1024, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = float("inf")
        for _ in range(4):  # the first one warms up; an emulated bfloat16 takes about a second each
            started = time.thread_time()
            left @ right
            best = min(best, time.thread_time() - started)
            if best > 0.5:
                break
        return best
    finally:
        torch.set_num_threads(threads)


def precision(dtype: torch.dtype) -> Any:
    """The context in which forward passes run."""
    return torch.autocast("cpu", dtype=dtype) if dtype != torch.float32 else nullcontext()


def store_frozen(model: Any, dtype: torch.dtype) -> None:
    """Keep the frozen linear weights in `dtype`, so that autocast need not convert them again at every step.

    The products are the same ones. A head tied to the embedding gets a copy, because the embedding stays float32.
    """
    if dtype == torch.float32:
        return
    causal = causal_model(model)
    embedding = causal.get_input_embeddings()
    for module in causal.modules():
        if type(module) is torch.nn.Linear and not module.weight.requires_grad:
            if module.weight is embedding.weight:
                module.frozen_weight = module.weight.detach().to(dtype)
            else:
                module.weight.data = module.weight.data.to(dtype)
                if module.bias is not None:
                    module.bias.data = module.bias.data.to(dtype)


def add_adapter(model: Any, options: TrainOptions) -> Any:
    """The model with a fresh LoRA adapter (it changes nothing yet), seeded. Raises InputError for unknown targets."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    family = model.config.model_type
    set_seed(options.seed)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        target_modules=target_modules(family, options.targets),
        fan_in_fan_out=family == "gpt2",  # GPT-2 keeps its weights as (in, out)
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = {n.split(".")[-1] for n, m in model.named_modules() if getattr(m, "weight", None) is not None}
        raise InputError(
            f"--targets '{options.targets}' fits no layer of this model",
            hint=f"Presets: qv, attention, all. Layers: {', '.join(sorted(linear))}.",
        ) from error


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
            train_dataset=list(train),
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
