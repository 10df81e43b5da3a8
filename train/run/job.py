"""An adapter's training as the loop sees it: its batches, loss, learning rate, measurements and checkpoints.

It knows nothing of data files or of the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from train import ranks
from train.batch.feed import total_steps
from train.batch.loss import supervised_loss
from train.batch.plan import BatchPlan
from train.batch.precision import precision
from train.batch.tensors import Batch
from train.config import TrainOptions
from train.data.examples import Example
from train.run.folder import RunFolder
from train.run.history import History
from train.run.loop import PATIENCE, Pass, Progress, RunLimits, Step, adamw, with_peaks
from train.run.saved_states import write_checkpoint
from train.run.schedule import adapter_rate_share

_MODEL, _OPTIMIZER, _RANDOM = "model/", "optimizer/", "random"
_CLIP = 1.0

Sums = dict[str, tuple[float, int]]
"""Language -> (summed nats, tokens)."""


@dataclass
class RunState(Progress):
    """Where an adapter's run is.

    before, best: held-out sums by language before training and at `best_step` (0: not measured yet). waited:
    measurements since the best.
    """

    before: Sums = field(default_factory=dict)
    best: Sums = field(default_factory=dict)
    best_step: int = 0
    waited: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunState:
        """The state that a manifest keeps."""
        pairs = ("before", "best")
        sums = {key: {lang: (float(n), int(t)) for lang, (n, t) in values[key].items()} for key in pairs}
        return cls(**(values | sums))


class Learned(Protocol):
    """What an epoch is made of: where it comes from, and over how many things its loss is summed."""

    @property
    def example(self) -> Example: ...

    @property
    def supervised(self) -> int: ...


@dataclass(frozen=True)
class Task:
    """What is trained on: sequences, their plan, how some become a batch, and the held-out sums by language.

    initial: tensors that every checkpoint keeps beside the trained ones. loss: (summed nats, over how many)
    of a batch; None: of its supervised tokens.
    """

    train: Sequence[Learned]
    plan: BatchPlan
    collate: Callable[[Sequence[Any]], Batch]
    measure: Callable[[], Sums]
    initial: dict[str, torch.Tensor]
    loss: Callable[[Any, Batch], tuple[torch.Tensor, int]] | None = None


def loss_of(sums: Sums) -> float:
    """Nats per token over all languages."""
    return sum(nats for nats, _ in sums.values()) / sum(tokens for _, tokens in sums.values())


class AdapterJob:
    """The adapter of a PEFT model, trained by AdamW (implements `train.run.loop.Job`).

    The loss of a step is the mean over its supervised tokens, whatever number of batches and processes they are in.
    With LoRA+ (Hayou et al. 2024) B learns faster than A.
    """

    clip = _CLIP

    def __init__(
        self, model: Any, task: Task, options: TrainOptions, dtype: torch.dtype, run: RunFolder, history: History | None
    ) -> None:
        self._model, self._task, self._options, self._dtype = model, task, options, dtype
        self._run, self._history = run, history
        self.limits = RunLimits(total_steps(task.plan, options), options.time_limit_s, options.save_every_s)
        self._warmup = max(1, round(options.warmup_fraction * self.limits.steps))
        self._measured: Sums = {}
        self.peak_rate = options.learning_rate
        self.parameters = [p for _, p in trained(model)]
        self.optimizers = [_optimizer(model, options)]
        if run.checkpoint:
            tensors = run.checkpoint.tensors()
            load_trained(model, tensors)
            _load_moments(model, self.optimizers[0], tensors)
            torch.set_rng_state(tensors[_RANDOM][ranks.rank()].clone())
        else:
            torch.manual_seed(options.seed)

    def rate(self, at: RunState) -> float:
        limits = self.limits
        timed = at.elapsed_s / limits.time_limit_s if limits.time_limit_s else 0.0
        return adapter_rate_share(self._options.schedule, at.step, self._warmup, limits.steps, timed)

    def backward(self, step: int) -> Pass:
        batches = list(self._batches(step))
        supervised = ranks.sum_over_ranks(torch.tensor(sum(item.supervised for items in batches for item in items)))
        result = Pass()
        self._model.train()
        for items in batches:
            batch = self._task.collate(items)
            loss = self._task.loss or supervised_loss
            with precision(self._dtype):
                total, count = loss(self._model, batch)
            value = float(total.detach())
            if not math.isfinite(value):
                result.bad += [item.example.where for item in items]
            result.nats += value
            result.supervised += count
            result.tokens += batch["tokens"]
            (total / supervised).backward()  # type: ignore[no-untyped-call]
        return result

    def _batches(self, step: int) -> Iterator[list[Learned]]:
        """This process's micro-batches of a step: the plan knows every batch by its number."""
        first = step * self._options.accumulate * ranks.world() + ranks.rank()
        for number in range(first, first + self._options.accumulate * ranks.world(), ranks.world()):
            yield [self._task.train[index] for index in self._task.plan.batch(number)]

    def record(self, at: RunState, step: Step) -> str:
        whole = step.whole
        if self._history is not None:
            self._history.add(
                {
                    "step": at.step, "loss": whole.nats / whole.supervised, "learning_rate": step.rate * self.peak_rate,
                    "grad_norm": step.norm, "tokens_per_s": round(whole.tokens / step.seconds, 1),
                    "supervised_tokens_per_s": round(whole.supervised / step.seconds, 1),
                    "elapsed_s": round(at.elapsed_s, 2),
                }
            )  # fmt: skip
        return f"held out {loss_of(self._measured):.3f}" if self._measured else ""

    def record_held_out(self, step: int, sums: Sums) -> None:
        """Keep a measurement in the history."""
        if self._history is not None:
            by_language = {lang: nats / tokens for lang, (nats, tokens) in sums.items()}
            self._history.add({"step": step, "held_out": by_language, "held_out_loss": loss_of(sums)})

    def is_measure_due(self, at: RunState) -> bool:
        every = self._options.eval_every
        return bool(at.stopped_by or (every and at.step % every == 0))

    def measure(self, at: RunState) -> bool:
        """The best adapter is saved; too long a wait for a better one ends the run."""
        self._measured = self._task.measure()
        self.record_held_out(at.step, self._measured)
        if not at.best_step or loss_of(self._measured) < loss_of(at.best):
            at.best, at.best_step, at.waited = self._measured, at.step, 0
            return bool(self._options.eval_every)
        at.waited += 1
        if self._options.patience and at.waited >= self._options.patience and not at.stopped_by:
            at.stopped_by = PATIENCE
        return False

    def save(self, at: RunState, random: torch.Tensor) -> None:
        states = torch.stack(ranks.gathered(random))
        if ranks.rank() == 0:
            tensors = {f"{_MODEL}{name}": p.detach() for name, p in trained(self._model)}
            for name, p in trained(self._model):
                for key, value in self.optimizers[0].state.get(p, {}).items():
                    tensors[f"{_OPTIMIZER}{key}/{name}"] = torch.as_tensor(value)
            tensors |= {**self._task.initial, _RANDOM: states}
            write_checkpoint(self._run.checkpoints, asdict(at), tensors, stays=at.best_step)


@contextmanager
def noisy_embeddings(model: Any, alpha: float) -> Iterator[None]:
    """NEFTune (Jain et al. 2023): while the model is in training mode, noise on the embeddings of each sequence,
    uniform within alpha / sqrt(tokens x width). Nothing for an alpha of 0."""
    if not alpha:
        yield
        return

    def add_noise(module: torch.nn.Module, _: Any, embedded: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return embedded
        bound = alpha / torch.sqrt(torch.tensor(embedded.size(1) * embedded.size(2)))
        return embedded + torch.zeros_like(embedded).uniform_(-bound, bound)  # type: ignore[arg-type]

    hook = model.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        hook.remove()


def trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """The tensors that a run changes, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def load_trained(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Copy a checkpoint's trained tensors into the model they were taken from."""
    with torch.no_grad():
        for name, parameter in trained(model):
            parameter.copy_(tensors[f"{_MODEL}{name}"])


def _load_moments(model: Any, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    by_name = dict(trained(model))
    for entry, tensor in tensors.items():
        if entry.startswith(_OPTIMIZER):
            key, name = entry.removeprefix(_OPTIMIZER).split("/", 1)
            optimizer.state[by_name[name]][key] = tensor.clone()  # not the file's own memory


def _optimizer(model: Any, options: TrainOptions) -> torch.optim.Optimizer:
    if options.lora_plus == 1.0:
        group = {"params": [p for _, p in trained(model)], "weight_decay": options.weight_decay}
        return adamw([group], options.learning_rate)
    from peft.optimizers import create_loraplus_optimizer

    made: torch.optim.Optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=options.learning_rate, loraplus_lr_ratio=options.lora_plus,
        loraplus_weight_decay=options.weight_decay, betas=(0.9, 0.999), eps=1e-8, fused=True,
    )  # fmt: skip
    return with_peaks(made)
