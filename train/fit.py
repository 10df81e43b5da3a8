"""A run from its first step, or the one it was broken off at, to its end: the adapter of a loaded model is trained.

It knows nothing of data files or of the command line.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments

from slm.console import note, progress
from train import ranks
from train.batch.plan import Plan
from train.checkpoints import RunState, best_checkpoint
from train.config import TrainOptions
from train.history import History
from train.memory import peak_rss_mb
from train.run_folder import RunFolder
from train.trainer import LoraTrainer, Monitor, Task, load_trained, loss_of, trained


@dataclass(frozen=True)
class RunFigures:
    """What a run took and did over all its parts; tokens are real ones, without padding.

    best_step: the step whose adapter is the result; an earlier one than the last if its held-out loss was lower.
    """

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
    best_step: int


def total_steps(plan: Plan, options: TrainOptions) -> int:
    """How many optimizer steps the run has."""
    per_step = options.accumulate * ranks.world()
    return options.max_steps or max(1, round(plan.batches_per_epoch * options.epochs / per_step))


def fit(
    model: Any, task: Task, options: TrainOptions, dtype: torch.dtype, run: RunFolder, state: RunState
) -> RunFigures:
    """Train the adapter of a PEFT model, in place; it ends as the best one measured (`state.best`), maybe the last.

    run, state: where to begin, or to go on. Raises DivergenceError, and ResourceError when the disk is full.
    """
    steps = total_steps(task.plan, options)
    if not state.stopped_by:
        ended_by = _train(model, task, options, dtype, run, state, steps)
        if ended_by != "last step":
            limit = f"the time limit of {options.time_limit_s:g} s" if ended_by == "time limit" else "patience"
            note(f"{limit} ended the run at step {state.step} of {steps}")
    elif run.checkpoint:
        load_trained(model, run.checkpoint.tensors())
    if state.best_step != state.step and ranks.rank() == 0:
        load_trained(model, best_checkpoint(run.checkpoints, state).tensors())
    model.eval()
    return RunFigures(
        steps=state.step,
        epochs=round(state.step * options.accumulate * ranks.world() / task.plan.batches_per_epoch, 2),
        seconds=round(state.elapsed_s, 2),
        tokens=state.tokens,
        tokens_per_s=round(state.tokens / state.elapsed_s, 1),
        supervised_tokens=state.supervised_tokens,
        supervised_tokens_per_s=round(state.supervised_tokens / state.elapsed_s, 1),
        train_loss=state.nats / state.supervised_tokens,
        peak_rss_mb=peak_rss_mb(),
        dtype=str(dtype).removeprefix("torch."),
        trainable_parameters=sum(p.numel() for _, p in trained(model)),
        stopped_by=state.stopped_by,
        best_step=state.best_step,
    )


def _train(
    model: Any, task: Task, options: TrainOptions, dtype: torch.dtype, run: RunFolder, state: RunState, steps: int
) -> str:
    from transformers.trainer_callback import PrinterCallback

    with tempfile.TemporaryDirectory(prefix="slm-train-") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulate,
            learning_rate=options.learning_rate,
            warmup_steps=round(options.warmup_fraction * steps),
            weight_decay=options.weight_decay,
            neftune_noise_alpha=options.neftune or None,
            max_steps=steps,
            seed=options.seed,
            use_cpu=True,
            ddp_backend="gloo" if ranks.world() > 1 else None,
            bf16=False,
            gradient_checkpointing=False,
            ignore_data_skip=True,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        model.train()
        trainer = LoraTrainer(
            task=task, asked=options, run=run, state=state, dtype=dtype, model=model, args=arguments
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        here = None
        if run.checkpoint:  # the Trainer reads its own state from a file; ours only has to name the step
            at = TrainerState(global_step=state.step, train_batch_size=options.batch_size)
            at.save_to_json(str(Path(scratch) / "trainer_state.json"))
            here = scratch
        history = History(run.path, state.step, tensorboard=options.tensorboard) if ranks.rank() == 0 else None
        try:
            with progress("training", total=steps, unit="steps") as show:
                show(state.step)
                trainer.monitor = Monitor(trainer, show, history)
                if history and not run.checkpoint:
                    before = {lang: nats / tokens for lang, (nats, tokens) in state.before.items()}
                    trainer.monitor.record(step=0, held_out=before, held_out_loss=loss_of(state.before))
                trainer.add_callback(trainer.monitor)
                trainer.train(resume_from_checkpoint=here)
        finally:
            if history:
                history.close()
    return state.stopped_by
