"""transformers' Trainer with our loss, our plan of the data and our checkpoints.

It knows nothing of data files or of where a run begins and ends. Every step is a function of the state before it and
of the step's number, so a run that goes on from a checkpoint takes the same steps as one that was never broken off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from slm.errors import DivergenceError
from train import ranks
from train.batch.batches import Collate
from train.batch.loss import supervised_loss
from train.batch.plan import Plan
from train.checkpoints import RunState, Sums, write_checkpoint
from train.config import TrainOptions
from train.data.masks import Encoded
from train.history import History
from train.precision import precision
from train.run_folder import RunFolder
from train.schedule import decayed

# Moments of Adam, kept beside each trained tensor.
_MODEL, _OPTIMIZER, _RANDOM = "model/", "optimizer/", "random"


@dataclass(frozen=True)
class Task:
    """What is trained on: sequences, their plan, how some become a batch, and the held-out sums by language.

    initial: tensors that every checkpoint keeps beside the trained ones.
    """

    train: Sequence[Encoded]
    plan: Plan
    collate: Collate
    measure: Callable[[], Sums]
    initial: dict[str, torch.Tensor]


def loss_of(sums: Sums) -> float:
    """Nats per token over all languages."""
    return sum(nats for nats, _ in sums.values()) / sum(tokens for _, tokens in sums.values())


class Monitor(TrainerCallback):  # type: ignore[misc]
    """After every step: history, bar, and whether to measure, to save and to end."""

    def __init__(self, trainer: LoraTrainer, show: Any, history: History | None) -> None:
        self._trainer, self._show, self._history = trainer, show, history
        self._saved_s = self._last_s = trainer.run_state.elapsed_s

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        t, run, asked = self._trainer, self._trainer.run_state, self._trainer.asked
        nats, supervised, tokens = t.step_sums
        seconds = max(run.elapsed_s - self._last_s, 1e-9)
        self._last_s = run.elapsed_s
        mean = nats / supervised
        t.recent_loss = mean if not t.recent_loss else 0.8 * t.recent_loss + 0.2 * mean
        self.record(
            step=run.step, loss=mean, learning_rate=t.step_rate, grad_norm=t.step_norm,
            tokens_per_s=round(tokens / seconds, 1), supervised_tokens_per_s=round(supervised / seconds, 1),
            elapsed_s=round(run.elapsed_s, 2),
        )  # fmt: skip
        held_out = f", held out {loss_of(t.measured):.3f}" if t.measured else ""
        self._show(
            run.step,
            f"loss {t.recent_loss:.3f}{held_out}, {run.tokens / run.elapsed_s:,.0f} tok/s,"
            f" {run.supervised_tokens / run.elapsed_s:,.0f} supervised",
        )
        if run.step >= state.max_steps:
            run.stopped_by = "last step"
        elif asked.time_limit_s and run.elapsed_s > asked.time_limit_s:
            run.stopped_by = "time limit"
        control.should_training_stop = bool(run.stopped_by)
        control.should_evaluate = bool(run.stopped_by or (asked.eval_every and run.step % asked.eval_every == 0))
        due = asked.save_every_s and (run.elapsed_s - self._saved_s >= asked.save_every_s or run.stopped_by)
        control.should_save = bool(due)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved_s = self._trainer.run_state.elapsed_s

    def record(self, **values: Any) -> None:
        if self._history is not None:
            self._history.add(values)


class LoraTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss at supervised positions, normalised by their count over the whole step.

    Its own data loading, saving, resuming and gradient sums are replaced: the plan knows every batch by its number,
    checkpoints are atomic, and several processes add up the small gradients of an adapter at the end of a step, which
    makes their step that of one process with as many accumulated batches.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, *, task: Task, asked: TrainOptions, run: RunFolder, state: RunState, dtype: torch.dtype, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        # Adapters change by one small sum a step (_clip_grad_norm); DistributedDataParallel hooks forward passes.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.task, self.asked, self.run, self.run_state, self._dtype = task, asked, run, state, dtype
        self._tensors = run.checkpoint.tensors() if run.checkpoint else {}
        self._before_s, self._started = state.elapsed_s, time.monotonic()
        self._random = torch.get_rng_state()
        self._sums, self._bad = [0.0, 0.0, 0.0], list[str]()
        self.step_sums = (0.0, 0, 0)
        self.optimizer: Any
        self.step_rate: float = 0.0
        self.step_norm = self.recent_loss = 0.0
        self.measured: Sums = {}
        self.monitor: Any = None

    # Data

    def get_train_dataloader(self) -> Any:
        return _Stream(self)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of a step that are this process's, and the supervised tokens of all of the step's."""
        self._random = torch.get_rng_state()
        self._sums, self._bad = [0.0, 0.0, 0.0], []
        samples = [{"items": next(epoch_iterator)} for _ in range(num_batches)]
        count = sum(item.supervised for sample in samples for item in sample["items"])
        return samples, ranks.sum_over_ranks(torch.tensor(count))

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    # Steps

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        batch = self.task.collate(inputs["items"])
        with precision(self._dtype):
            total, count = supervised_loss(model, batch)
        value = float(total.detach())
        if not math.isfinite(value):
            self._bad += [item.example.where for item in inputs["items"]]
        for n, part in enumerate((value, count, batch["tokens"])):
            self._sums[n] += part
        loss: torch.Tensor = total / num_items_in_batch
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """End a step before the optimizer acts: add up gradients and counters of all processes, refuse NaN, clip."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if ranks.world() > 1:
            flat, start = ranks.sum_over_ranks(torch.cat([g.flatten() for g in gradients])), 0
            for gradient in gradients:
                gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
                start += gradient.numel()
        mine = self._before_s + time.monotonic() - self._started if ranks.rank() == 0 else 0.0
        counters = torch.tensor([*self._sums, mine, len(self._bad)], dtype=torch.float64)
        nats, supervised, tokens, elapsed, bad = ranks.sum_over_ranks(counters).tolist()
        norm = super()._clip_grad_norm(model)
        self.step_norm = float(norm)
        if bad or not math.isfinite(self.step_norm):
            self._diverged(nats)
        self.step_sums, self.step_rate = (
            (nats, int(supervised), int(tokens)),
            float(self.optimizer.param_groups[0]["lr"]),
        )
        run = self.run_state
        run.step += 1
        run.elapsed_s = elapsed
        run.nats += nats
        run.supervised_tokens += int(supervised)
        run.tokens += int(tokens)
        return norm

    def _diverged(self, nats: float) -> None:
        what = f"loss became {nats}" if not math.isfinite(nats) else f"gradient became {self.step_norm}"
        where = list(dict.fromkeys(name for part in ranks.gathered(self._bad) for name in part))
        kept = self.run_state.step
        again = f"--lr {self.asked.learning_rate / 2:g}"
        if kept and all(bool(torch.isfinite(p).all()) for _, p in trained(self.model)):
            self._write(self._random)
            hint = f"The state of step {kept} is kept: go on from it with the same command and --resume {again}."
        else:
            hint = f"Try a lower learning rate ({again}), and look at the data and the base."
        named = ", ".join(where[:4]) + (f" and {len(where) - 4} more" if len(where) > 4 else "")
        raise DivergenceError(f"the {what} at step {kept + 1}", found=f"in the batch with {named}" if where else "",
                              hint=hint)  # fmt: skip

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW; with LoRA+ (Hayou et al. 2024) PEFT's groups, in which B learns faster than A."""
        if self.optimizer is None and self.asked.lora_plus != 1.0:
            from peft.optimizers import create_loraplus_optimizer

            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model, kind, loraplus_lr_ratio=self.asked.lora_plus,
                loraplus_weight_decay=self.args.weight_decay, **settings,
            )  # fmt: skip
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up by steps, then the schedule over the steps, or over the time limit where that comes first."""
        warmup = max(1, self.args.warmup_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return float((step + 1) / warmup)
            done = (step - warmup) / max(1, num_training_steps - warmup)
            if self.asked.time_limit_s:
                done = max(done, self.run_state.elapsed_s / self.asked.time_limit_s)
            return decayed(self.asked.schedule, min(1.0, done))

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    # Measuring, saving, resuming

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Measure the held-out loss; the best adapter is saved, and too long a wait for a better one ends the run."""
        run = self.run_state
        self.measured = self.task.measure()
        loss = loss_of(self.measured)
        by_language = {lang: nats / tokens for lang, (nats, tokens) in self.measured.items()}
        self.monitor.record(step=run.step, held_out=by_language, held_out_loss=loss)
        if not run.best_step or loss < loss_of(run.best):
            run.best, run.best_step, run.waited = self.measured, run.step, 0
            self.control.should_save = self.control.should_save or bool(self.asked.eval_every)
        else:
            run.waited += 1
            if self.asked.patience and run.waited >= self.asked.patience and not run.stopped_by:
                run.stopped_by = "patience"
                self.control.should_training_stop = True
                self.control.should_save = self.control.should_save or bool(self.asked.save_every_s)
        self.control.should_evaluate = False
        return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._write(torch.get_rng_state())

    def _write(self, random: torch.Tensor) -> None:
        states = torch.stack(ranks.gathered(random))
        if ranks.rank() == 0:
            tensors = {f"{_MODEL}{name}": p.detach() for name, p in trained(self.model)}
            for name, p in trained(self.model):
                for key, value in self.optimizer.state.get(p, {}).items():
                    tensors[f"{_OPTIMIZER}{key}/{name}"] = torch.as_tensor(value)
            run, tensors = self.run_state, {**tensors, **self.task.initial, _RANDOM: states}
            write_checkpoint(self.run.checkpoints, asdict(run), tensors, stays=run.best_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model, self._tensors)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        by_name = dict(trained(self.model))
        for entry, tensor in self._tensors.items():
            if entry.startswith(_OPTIMIZER):
                key, name = entry.removeprefix(_OPTIMIZER).split("/", 1)
                self.optimizer.state[by_name[name]][key] = tensor.clone()  # not the file's own memory
        schedule, step = self.lr_scheduler, self.run_state.step
        schedule.last_epoch = step  # the rate is a function of the step (and of the time behind)
        for group, peak, factor in zip(
            self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = peak * factor(step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            torch.set_rng_state(self._tensors[_RANDOM][ranks.rank()].clone())


class _Stream:
    """This process's micro-batches from the step the run is at, without end."""

    def __init__(self, trainer: LoraTrainer) -> None:
        self._trainer = trainer

    def __iter__(self) -> Iterator[list[Encoded]]:
        task, each = self._trainer.task, ranks.world()
        n = self._trainer.run_state.step * self._trainer.asked.accumulate * each + ranks.rank()
        while True:
            yield [task.train[index] for index in task.plan.batch(n)]
            n += each


def trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """The tensors that a run changes, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def load_trained(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Copy a checkpoint's trained tensors into the model they were taken from."""
    with torch.no_grad():
        for name, parameter in trained(model):
            parameter.copy_(tensors[f"{_MODEL}{name}"])
