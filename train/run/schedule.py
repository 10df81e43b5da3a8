"""The learning rate over a training run, as a share of its peak: warm-up and decay of an adapter's and of a whole
model's. Pure: it knows nothing of optimizers."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "wsd")  # of a run from scratch; those of an adapter are in train.config
_FLOOR = 0.1  # where cosine and linear end
_COOLDOWN = 0.2  # the last share of a warmup-stable-decay run, in which the rate falls to zero


def decayed(schedule: str, done: float) -> float:
    """The share of the peak learning rate left when `done` (0 to 1) of the decay is behind: down to a tenth of it.

    schedule: cosine, linear, or constant.
    """
    if schedule == "cosine":
        return _FLOOR + (1.0 - _FLOOR) * 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0 - (1.0 - _FLOOR) * done if schedule == "linear" else 1.0


def adapter_rate_share(schedule: str, step: int, warmup: int, steps: int, timed: float) -> float:
    """The share of the peak rate of an adapter's step `step` (from 0) of `steps`, the first `warmup` of which rise.

    timed: the share of the time limit that is over (0: there is none); the decay follows whichever is further on.
    """
    if step < warmup:
        return (step + 1) / warmup
    return decayed(schedule, min(1.0, max(timed, (step - warmup) / max(1, steps - warmup))))


def learning_rate_share(schedule: str, done: float, warmup: float) -> float:
    """The share of the peak rate when `done` (0 to 1) of the run is behind and `warmup` of it rises linearly.

    cosine falls to a tenth; wsd stays and falls to zero in the last fifth as 1 - sqrt(x) (arXiv 2405.18392), so that a
    run can be prolonged from any checkpoint before its cool-down.
    """
    if done < warmup:
        return done / warmup
    if schedule == "wsd":
        cooling = max(0.0, done - (1.0 - _COOLDOWN)) / _COOLDOWN
        return 1.0 - math.sqrt(min(1.0, cooling))
    along = (done - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    return decayed("cosine", min(1.0, along))
