"""The options of a training run, checked as a whole. It knows nothing of models, data or torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm.errors import InputError

SCHEDULES = ("cosine", "linear", "constant")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainOptions:
    """What a LoRA run needs. Lengths are in tokens, `time_limit_s` in seconds, rates as fractions.

    Raises one InputError that lists every fault, not only the first.
    """

    base: Path
    data: tuple[Path, ...]
    output: Path
    eval_data: tuple[Path, ...] = ()
    eval_fraction: float = 0.1
    lang: str | None = None
    template: str | None = None
    drop_long: bool = False
    targets: str = "all"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    learning_rate: float = 5e-4
    schedule: str = "cosine"
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    epochs: float = 1.5
    max_steps: int = 0
    batch_size: int = 4
    accumulate: int = 1
    max_length: int = 1024
    seed: int = 0
    dtype: str = "auto"
    time_limit_s: float = 0.0
    threads: int = 0

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise InputError("the training options do not work: " + "; ".join(faults))

    def _faults(self) -> list[str]:
        wrong: list[str] = []

        def need(good: bool, text: str) -> None:
            if not good:
                wrong.append(text)

        need(bool(self.data), "--data names no file")
        need(
            bool(self.eval_data) or 0.0 < self.eval_fraction < 1.0,
            f"--eval-fraction must lie between 0 and 1 (is {self.eval_fraction})",
        )
        need(self.rank >= 1, f"--rank must be at least 1 (is {self.rank})")
        need(self.alpha > 0, f"--alpha must be positive (is {self.alpha})")
        need(0.0 <= self.dropout < 1.0, f"--dropout must be from 0 to below 1 (is {self.dropout})")
        need(self.learning_rate > 0, f"--lr must be positive (is {self.learning_rate})")
        need(self.schedule in SCHEDULES, f"--schedule must be one of {', '.join(SCHEDULES)} (is '{self.schedule}')")
        need(0.0 <= self.warmup_fraction < 1.0, f"--warmup must be from 0 to below 1 (is {self.warmup_fraction})")
        need(self.weight_decay >= 0, f"--weight-decay must not be negative (is {self.weight_decay})")
        need(self.epochs > 0, f"--epochs must be positive (is {self.epochs})")
        need(self.max_steps >= 0, f"--max-steps must not be negative (is {self.max_steps})")
        need(self.batch_size >= 1, f"--batch-size must be at least 1 (is {self.batch_size})")
        need(self.accumulate >= 1, f"--accumulate must be at least 1 (is {self.accumulate})")
        need(self.max_length >= 8, f"--max-length must be at least 8 (is {self.max_length})")
        need(0 <= self.seed < 2**32, f"--seed must be from 0 to 4294967295 (is {self.seed})")
        need(self.dtype in DTYPES, f"--dtype must be one of {', '.join(DTYPES)} (is '{self.dtype}')")
        need(self.time_limit_s >= 0, f"--time-limit-s must not be negative (is {self.time_limit_s})")
        need(self.threads >= 0, f"--threads must not be negative (is {self.threads})")
        need(bool(self.targets.strip(", ")), "--targets names no module")
        same = self.output.resolve() == self.base.resolve()
        need(not same, f"the output '{self.output}' is the base itself")
        return wrong

    def as_json(self) -> dict[str, Any]:
        """The options as JSON values, without the paths that the manifest keeps elsewhere."""
        values = asdict(self)
        for key in ("base", "data", "output", "eval_data"):
            del values[key]
        return values


# What differs for running text: short blocks, so that a file of 200 sentences makes enough of them to hold some out.
CAUSAL_DEFAULTS: dict[str, Any] = {"max_length": 128, "batch_size": 8, "learning_rate": 1e-3, "epochs": 3.0}
