"""A run from its first step, or the one it was broken off at, to its end: the adapter of a loaded model is trained.

It knows nothing of data files or of the command line.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import torch

from slm.terminal.console import note
from train import ranks
from train.batch.memory import peak_rss_mb
from train.config import TrainOptions
from train.run.folder import RunFolder
from train.run.history import History
from train.run.job import AdapterJob, RunState, Task, load_trained, noisy_embeddings, trained
from train.run.loop import LAST_STEP, TIME_LIMIT, Watch, train
from train.run.saved_states import checkpoint_of_step


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


def fit(
    model: Any,
    task: Task,
    options: TrainOptions,
    dtype: torch.dtype,
    run: RunFolder,
    state: RunState,
    watch: Watch = lambda _: None,
) -> RunFigures:
    """Train the adapter of a PEFT model, in place; it ends as the best one measured (`state.best`), maybe the last.

    run, state: where to begin, or to go on. Raises DivergenceError, and ResourceError when the disk is full.
    """
    if not state.stopped_by:
        _train(model, task, options, dtype, run, state, watch)
    elif run.checkpoint:
        load_trained(model, run.checkpoint.tensors())
    if state.best_step != state.step and ranks.rank() == 0:
        load_trained(model, checkpoint_of_step(run.checkpoints, state.best_step).tensors())
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
    model: Any,
    task: Task,
    options: TrainOptions,
    dtype: torch.dtype,
    run: RunFolder,
    state: RunState,
    watch: Watch,
) -> None:
    """Take the steps that are left, and tell what has ended them early."""
    with ExitStack() as stack:
        history = None
        if ranks.rank() == 0:
            history = stack.enter_context(closing(History(run.path, state.step, tensorboard=options.tensorboard)))
        stack.enter_context(noisy_embeddings(model, options.neftune))
        job = AdapterJob(model, task, options, dtype, run, history)
        if not run.checkpoint:
            job.record_held_out(0, state.before)
        train(job, state, job.limits, watch)
    if state.stopped_by != LAST_STEP:
        limit = f"the time limit of {options.time_limit_s:g} s" if state.stopped_by == TIME_LIMIT else "patience"
        note(f"{limit} ended the run at step {state.step} of {job.limits.steps}")
