"""The options of a run from scratch, checked as a whole. It knows nothing of models, data or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from slm.errors import InputError
from train.config import Faults, Need, check_run
from train.run.schedule import SCHEDULES
from train.scratch.sizes import SIZES
from train.tokenizer.corpus import Files

OPTIMIZERS = ("muon", "adamw")
# Peak learning rates, from scratch and for a model that has learned already (--init).
RATES = {"muon": (0.02, 0.002), "adamw": (0.003, 0.0002)}
NO_SHAPE = "one of --size, --config and --init is needed"
_NO_SOURCE = "--tokenizer is needed (or --init)"
# What is not asked of the run itself.
_NOT_ASKED = frozenset({"output", "resume", "fresh", "plot", "samples"})


@dataclass(frozen=True)
class ScratchOptions:
    """What a run from scratch needs. Lengths are in tokens, times in seconds, shares as fractions.

    Either tokenizer with size or config (a JSON file of LlamaConfig's fields), or init (a checkpoint folder, all of
    whose weights are trained on). learning_rate 0: the optimizer's own. max_tokens: instead of epochs. evaluations:
    how often the held-out text is measured, evenly over the run. samples: print what the model writes at each.
    """

    data: Files
    output: Path
    tokenizer: Path | None = None
    size: str | None = None
    config: Path | None = None
    init: Path | None = None
    eval_data: Files = field(default_factory=dict)
    eval_fraction: float = 0.02
    context: int = 512
    batch_size: int = 4
    optimizer: str = "muon"
    learning_rate: float = 0.0
    schedule: str = "wsd"
    warmup_fraction: float = 0.03
    weight_decay: float = 0.1
    clip: float = 1.0
    epochs: float = 1.0
    max_tokens: int = 0
    evaluations: int = 8
    samples: bool = True
    seed: int = 0
    dtype: str = "auto"
    time_limit_s: float = 0.0
    threads: int = 0
    save_every_s: float = 60.0
    resume: bool = False
    fresh: bool = False
    plot: Path | None = None

    def __post_init__(self) -> None:
        faults = Faults()
        self._check(faults.need)
        check_run(self, SCHEDULES, faults.need)
        faults.tell()

    def _check(self, need: Need) -> None:
        need(bool(self.data), "--data names no file")
        if self.init is not None:
            others = (self.tokenizer, self.size, self.config)
            need(others == (None, None, None), "--init brings its own --tokenizer, --size and --config")
            need(self.output.resolve() != self.init.resolve(), f"the output '{self.output}' is the model itself")
        else:
            need(self.tokenizer is not None, _NO_SOURCE)
            need((self.size is None) != (self.config is None), NO_SHAPE)
        need(self.size is None or self.size in SIZES, f"--size must be one of {', '.join(SIZES)} (is '{self.size}')")
        need(0.0 < self.eval_fraction < 1.0, f"--eval-fraction must lie between 0 and 1 (is {self.eval_fraction})")
        need(self.context >= 8, f"--context must be at least 8 (is {self.context})")
        need(self.optimizer in OPTIMIZERS, f"--optimizer must be one of {', '.join(OPTIMIZERS)}")
        need(self.learning_rate >= 0, f"--lr must not be negative (is {self.learning_rate})")
        need(self.clip > 0, f"--clip must be positive (is {self.clip})")
        need(self.max_tokens >= 0, f"--max-tokens must not be negative (is {self.max_tokens})")
        need(not (self.resume and self.fresh), "--resume and --fresh exclude each other")
        need(self.evaluations >= 1, f"--evaluations must be at least 1 (is {self.evaluations})")

    @property
    def source(self) -> Path:
        """Where the tokenizer is: the folder of --init or of --tokenizer. Raises InputError for neither."""
        source = self.init or self.tokenizer
        if source is None:
            raise InputError(_NO_SOURCE)
        return source

    @property
    def peak_rate(self) -> float:
        """The peak learning rate of the main optimizer."""
        return self.learning_rate or RATES[self.optimizer][self.init is not None]

    def as_json(self) -> dict[str, Any]:
        """What the run is asked, as JSON values: all but where the result goes and how it is shown."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self) if entry.name not in _NOT_ASKED}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {lang: [str(path) for path in paths] for lang, paths in value.items()}
    return str(value) if isinstance(value, Path) else value
