"""The training loop: batch, loss, backward, clip, schedule, optimizer, history, evaluation, checkpoint.

A job says what each of these is for its kind of training (train.run.job: an adapter, train.scratch.job: a whole
model); the loop says when. Every step is a function of the state before it and of the step's number, so a run that
goes on from a checkpoint takes the same steps as one that was never broken off. Several processes add up their
gradients at the end of a step, which makes it the step of one process with as many batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar

import torch

from slm.errors import DivergenceError
from slm.terminal.console import Show, progress
from train import ranks

LAST_STEP, TIME_LIMIT, PATIENCE = "last step", "time limit", "patience"
_RECENT = 0.8  # weight of the past in the loss on the progress bar
Watch = Callable[[int], None]
_O = TypeVar("_O", bound=torch.optim.Optimizer)


@dataclass
class Progress:
    """Where a run is. elapsed_s: seconds over all its parts; tokens are real ones; nats: summed losses.

    stopped_by: empty while the run goes on, then LAST_STEP, TIME_LIMIT or PATIENCE.
    """

    step: int = 0
    elapsed_s: float = 0.0
    tokens: int = 0
    supervised_tokens: int = 0
    nats: float = 0.0
    stopped_by: str = ""


@dataclass(frozen=True)
class RunLimits:
    """When a run ends, and how often it is saved. Seconds; 0: no time limit, no checkpoints."""

    steps: int
    time_limit_s: float = 0.0
    save_every_s: float = 0.0

    def along(self, step: int, elapsed_s: float) -> float:
        """How far a run is, from 0 to 1: by steps, or by time where that comes first."""
        timed = elapsed_s / self.time_limit_s if self.time_limit_s else 0.0
        return min(1.0, max(step / self.steps, timed))


@dataclass
class Pass:
    """What forward and backward passes came to: summed nats, over how many tokens, tokens read, and which examples
    gave a loss that is no number."""

    nats: float = 0.0
    supervised: int = 0
    tokens: int = 0
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """One step taken: the passes of all processes, the rate as a share of its peak, the gradient's norm, seconds."""

    whole: Pass
    rate: float
    norm: float
    seconds: float


_S = TypeVar("_S", bound=Progress)
_State = TypeVar("_State", bound=Progress, contravariant=True)


class Job(Protocol[_State]):
    """What is trained; its own kind of `Progress` says where its run is."""

    @property
    def parameters(self) -> Sequence[torch.nn.Parameter]:
        """What has gradients."""
        ...

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """What changes the parameters; each group names its peak rate as "peak" (`with_peaks`)."""
        ...

    @property
    def clip(self) -> float:
        """The largest norm of the gradient; a longer one is shortened to it."""
        ...

    @property
    def peak_rate(self) -> float:
        """The learning rate that was asked for."""
        ...

    def rate(self, at: _State) -> float:
        """The learning rate of the next step, as a share of its peak."""
        ...

    def backward(self, step: int) -> Pass:
        """Leave the gradients of step `step` (from 0) in the parameters: of this process's share of the mean loss."""
        ...

    def record(self, at: _State, step: Step) -> str:
        """Keep the history of a step; what the progress bar says beside the loss."""
        ...

    def is_measure_due(self, at: _State) -> bool:
        """Whether held-out text is to be measured after this step."""
        ...

    def measure(self, at: _State) -> bool:
        """Measure; whether this state has to be saved. It may set `at.stopped_by`."""
        ...

    def save(self, at: _State, random: torch.Tensor) -> None:
        """Write a checkpoint; random: the state of torch's generator of random numbers that belongs to it."""
        ...


def train(job: Job[_S], at: _S, limits: RunLimits, watch: Watch = lambda _: None) -> None:
    """Train in place until `at.stopped_by` says why the run has ended. watch: told of every step that is over.

    Raises DivergenceError for a loss, a gradient or weights that are no numbers, ResourceError when the disk is full.
    """
    started, saved_s, recent = time.monotonic() - at.elapsed_s, at.elapsed_s, 0.0
    with progress("training", total=limits.steps, unit="steps") as show:
        show(at.step)
        watch(at.step)
        while not at.stopped_by:
            random, rate, before_s = torch.get_rng_state(), job.rate(at), at.elapsed_s
            whole = _of_all(job.backward(at.step), job.parameters)
            at.elapsed_s = ranks.gathered(time.monotonic() - started)[0]
            norm = float(torch.nn.utils.clip_grad_norm_(job.parameters, job.clip))
            if whole.bad or not (math.isfinite(whole.nats) and math.isfinite(norm)):
                _diverged(job, at, random, whole, norm)

            for optimizer in job.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["peak"]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            at.step += 1
            at.tokens += whole.tokens
            at.supervised_tokens += whole.supervised
            at.nats += whole.nats

            watch(at.step)
            says = job.record(at, Step(whole, rate, norm, max(at.elapsed_s - before_s, 1e-9)))
            recent = _show(show, at, whole.nats / whole.supervised, recent, says)
            if at.step >= limits.steps:
                at.stopped_by = LAST_STEP
            elif limits.time_limit_s and at.elapsed_s > limits.time_limit_s:
                at.stopped_by = TIME_LIMIT
            must_save = job.is_measure_due(at) and job.measure(at)
            if limits.save_every_s:
                must_save |= bool(at.stopped_by) or at.elapsed_s - saved_s >= limits.save_every_s
            if (must_save or at.stopped_by) and not _all_finite(job):
                raise DivergenceError(
                    f"the weights became NaN or infinite at step {at.step}",
                    hint=f"Nothing of them is kept. Try a lower learning rate (--lr {job.peak_rate / 2:g}).",
                )
            if must_save:
                job.save(at, torch.get_rng_state())
                saved_s = at.elapsed_s


def adamw(groups: list[dict[str, Any]], rate: float, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over parameter groups, each of which keeps its rate as its peak."""
    return with_peaks(torch.optim.AdamW(groups, lr=rate, betas=betas, eps=1e-8, fused=True))


def with_peaks(optimizer: _O) -> _O:
    """The optimizer, whose rates now are its peaks for `train`."""
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def _of_all(mine: Pass, parameters: Sequence[torch.nn.Parameter]) -> Pass:
    """The passes of all processes, and their gradients added up in place."""
    if ranks.world() == 1:
        return mine
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat, start = ranks.sum_over_ranks(torch.cat([g.flatten() for g in gradients])), 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    parts = ranks.gathered(mine)
    bad = list(dict.fromkeys(where for part in parts for where in part.bad))
    return Pass(sum(p.nats for p in parts), sum(p.supervised for p in parts), sum(p.tokens for p in parts), bad)


def _all_finite(job: Job[_S]) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in job.parameters)


def _diverged(job: Job[_S], at: _S, random: torch.Tensor, whole: Pass, norm: float) -> NoReturn:
    """Keep the last sound state, if there is one, and tell where the run broke."""
    what = f"loss became {whole.nats}" if not math.isfinite(whole.nats) else f"gradient became {norm}"
    again = f"--lr {job.peak_rate / 2:g}"
    if at.step and _all_finite(job):
        job.save(at, random)
        hint = f"The state of step {at.step} is kept: go on from it with the same command and --resume {again}."
    else:
        hint = f"Try a lower learning rate ({again}), and look at the data and the base."
    named = ", ".join(whole.bad[:4]) + (f" and {len(whole.bad) - 4} more" if len(whole.bad) > 4 else "")
    raise DivergenceError(
        f"the {what} at step {at.step + 1}", found=f"in the batch with {named}" if named else "", hint=hint
    )


def _show(show: Show, at: Progress, loss: float, recent: float, says: str) -> float:
    """Move the bar; returns the smoothed loss."""
    recent = loss if not recent else _RECENT * recent + (1.0 - _RECENT) * loss
    rates = f"{at.tokens / at.elapsed_s:,.0f} tok/s, {at.supervised_tokens / at.elapsed_s:,.0f} supervised"
    show(at.step, ", ".join(filter(None, (f"loss {recent:.3f}", says, rates))))
    return recent
