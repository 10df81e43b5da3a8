"""The options of a training run, checked as a whole. It knows nothing of models, data or torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm.errors import InputError

SCHEDULES = ("cosine", "linear", "constant")
DTYPES = ("auto", "float32", "bfloat16")
CHECKPOINTING = ("auto", "on", "off")


Need = Callable[[bool, str], None]


class Faults:
    """What is wrong with a set of options, gathered, so that all of it is told at once."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def need(self, good: bool, text: str) -> None:
        """Remember `text` unless the option is good."""
        if not good:
            self._texts.append(text)

    def tell(self) -> None:
        """Raise one InputError that lists every fault, if there is any."""
        if self._texts:
            raise InputError("the training options do not work: " + "; ".join(self._texts))


def check_run(run: Any, schedules: Sequence[str], need: Need) -> None:
    """Check the options that all kinds of training runs have, under the same names."""
    for name, value in vars(run).items():
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            need(not isinstance(number, float) or math.isfinite(number), f"{name} is not a finite number ({number})")
    need(run.schedule in schedules, f"--schedule must be one of {', '.join(schedules)} (is '{run.schedule}')")
    need(0.0 <= run.warmup_fraction < 1.0, f"--warmup must be from 0 to below 1 (is {run.warmup_fraction})")
    need(run.weight_decay >= 0, f"--weight-decay must not be negative (is {run.weight_decay})")
    need(run.epochs > 0, f"--epochs must be positive (is {run.epochs})")
    need(run.batch_size >= 1, f"--batch-size must be at least 1 (is {run.batch_size})")
    need(0 <= run.seed < 2**32, f"--seed must be from 0 to 4294967295 (is {run.seed})")
    need(run.dtype in DTYPES, f"--dtype must be one of {', '.join(DTYPES)} (is '{run.dtype}')")
    need(run.time_limit_s >= 0, f"--time-limit-s must not be negative (is {run.time_limit_s})")
    need(run.save_every_s >= 0, f"--save-every-s must not be negative (is {run.save_every_s})")
    need(run.threads >= 0, f"--threads must not be negative (is {run.threads})")


@dataclass(frozen=True)
class TrainOptions:
    """What a LoRA run needs. Lengths are in tokens, `time_limit_s` in seconds, rates as fractions.

    weights: how often each file of `data` counts, in its order (none: once each). lora_plus: B learns this many
    times faster than A. neftune: noise alpha. top_layers: adapt only so many (0: all). pack: no padding.
    share_prefix: the common beginnings of a step's sequences are computed once. fuse: fewer passes over memory in
    each layer (train.batch.fused). eval_every: steps between measurements of the held-out loss (0: at the end
    only). patience: measurements without a better one before the run ends (0: never). save_every_s: seconds between
    checkpoints (0: none). resume: go on where a run was broken off. fresh: throw a broken-off run away. from_adapter:
    begin with the weights of a PEFT folder instead of an adapter that changes nothing.

    Raises one InputError that lists every fault, not only the first.
    """

    base: Path
    data: tuple[Path, ...]
    output: Path
    weights: tuple[float, ...] = ()
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
    dora: bool = False
    pissa: bool = False
    lora_plus: float = 1.0
    neftune: float = 0.0
    top_layers: int = 0
    pack: bool = True
    share_prefix: bool = True
    fuse: bool = True
    checkpointing: str = "auto"
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
    eval_every: int = 0
    patience: int = 0
    save_every_s: float = 60.0
    resume: bool = False
    fresh: bool = False
    tensorboard: bool = False
    from_adapter: Path | None = None

    def __post_init__(self) -> None:
        faults = Faults()
        self._check(faults.need)
        check_run(self, SCHEDULES, faults.need)
        faults.tell()

    def _check(self, need: Need) -> None:
        need(bool(self.data), "--data names no file")
        need(
            bool(self.eval_data) or 0.0 < self.eval_fraction < 1.0,
            f"--eval-fraction must lie between 0 and 1 (is {self.eval_fraction})",
        )
        need(self.rank >= 1, f"--rank must be at least 1 (is {self.rank})")
        need(self.alpha > 0, f"--alpha must be positive (is {self.alpha})")
        need(0.0 <= self.dropout < 1.0, f"--dropout must be from 0 to below 1 (is {self.dropout})")
        need(self.learning_rate > 0, f"--lr must be positive (is {self.learning_rate})")
        need(self.max_steps >= 0, f"--max-steps must not be negative (is {self.max_steps})")
        need(self.accumulate >= 1, f"--accumulate must be at least 1 (is {self.accumulate})")
        need(self.max_length >= 8, f"--max-length must be at least 8 (is {self.max_length})")
        good_weights = not self.weights or len(self.weights) == len(self.data)
        need(good_weights, f"--weight must be given once for each --data ({len(self.weights)} of {len(self.data)})")
        need(all(weight > 0 for weight in self.weights), "--weight must be positive")
        need(not (self.dora and self.pissa), "--dora and --pissa exclude each other")
        need(not (self.from_adapter and self.pissa), "--pissa is for new adapters, --from-adapter goes on with one")
        need(self.lora_plus >= 1, f"--lora-plus must be at least 1 (is {self.lora_plus})")
        need(self.neftune >= 0, f"--neftune must not be negative (is {self.neftune})")
        need(self.top_layers >= 0, f"--top-layers must not be negative (is {self.top_layers})")
        need(not (self.top_layers and self.neftune), "--neftune needs the embedding, which --top-layers leaves out")
        need(not self.top_layers or self.pack, "--top-layers needs --pack")
        names = ", ".join(CHECKPOINTING)
        need(self.checkpointing in CHECKPOINTING, f"--checkpointing must be one of {names} (is '{self.checkpointing}')")
        need(self.eval_every >= 0, f"--eval-every must not be negative (is {self.eval_every})")
        need(self.patience >= 0, f"--patience must not be negative (is {self.patience})")
        need(not self.patience or self.eval_every > 0, "--patience needs --eval-every")
        need(not (self.resume and self.fresh), "--resume and --fresh exclude each other")
        need(bool(self.targets.strip(", ")), "--targets names no module")
        same = self.output.resolve() == self.base.resolve()
        need(not same, f"the output '{self.output}' is the base itself")

    @property
    def packs(self) -> bool:
        """Whether batches are packed: not under NEFTune, whose noise is scaled by the length of each sequence."""
        return self.pack and not self.neftune

    def as_json(self) -> dict[str, Any]:
        """The options as JSON values, without the paths that the manifest keeps elsewhere."""
        values = asdict(self)
        for key in ("base", "data", "output", "eval_data", "resume", "fresh", "from_adapter"):
            del values[key]
        return values


# What differs for running text: short blocks, so that a file of 200 sentences makes enough of them to hold some out.
CAUSAL_DEFAULTS: dict[str, Any] = {"max_length": 128, "batch_size": 8, "learning_rate": 1e-3, "epochs": 3.0}
