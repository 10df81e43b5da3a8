"""The time and memory of every training step, written as it ends: of our own loop, and of any transformers Trainer.

It knows nothing of what is trained. A line is on the disk before the next step begins, so that a process that is
ended half-way has still told what it did.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from train.batch.memory import peak_rss_mb


class StepClock:
    """Appends {"step", "seconds" since step 0, "peak_rss_mb"} to a file each time it is told that a step is over."""

    def __init__(self, file: Path) -> None:
        self._file, self._started = file, 0.0

    def __call__(self, step: int) -> None:
        if step == 0:
            self._started = time.monotonic()
        line = {"step": step, "seconds": self.seconds, "peak_rss_mb": peak_rss_mb()}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def seconds(self) -> float:
        """Since step 0."""
        return time.monotonic() - self._started


class ClockCallback(TrainerCallback):  # type: ignore[misc]
    """Tells a clock of a Trainer's steps, and ends its run when `seconds` are over (0: never)."""

    def __init__(self, clock: StepClock, seconds: float = 0.0) -> None:
        self._clock, self._seconds = clock, seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock(state.global_step)
        if self._seconds and self._clock.seconds > self._seconds:
            control.should_training_stop = True


def read_steps(file: Path) -> list[dict[str, Any]]:
    """What a clock has written so far; empty when training has not begun."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
