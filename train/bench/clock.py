"""Watches any transformers Trainer from inside its process: the time and memory of every step, written as it ends.

It knows nothing of what is trained. A line is on the disk before the next step begins, so that a process that is
ended half-way has still told what it did.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from train.memory import peak_rss_mb


class Clock(TrainerCallback):  # type: ignore[misc]
    """Appends {"step", "seconds" since training began, "peak_rss_mb"} to a file, and ends the run after a time.

    seconds: end when so much time is over (0: never).
    """

    def __init__(self, file: Path, seconds: float = 0.0) -> None:
        self._file, self._seconds, self._started = file, seconds, 0.0

    def _write(self, step: int) -> None:
        line = {"step": step, "seconds": time.monotonic() - self._started, "peak_rss_mb": peak_rss_mb()}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()
        self._write(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state.global_step)
        if self._seconds and time.monotonic() - self._started > self._seconds:
            control.should_training_stop = True


def read_steps(file: Path) -> list[dict[str, Any]]:
    """What a clock has written so far; empty when training has not begun."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
