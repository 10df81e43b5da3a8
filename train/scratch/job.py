"""The training of a whole model as the loop sees it: windows of text, Muon and AdamW, bits per byte by language.

It knows nothing of files of text or of the command line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from slm.terminal.console import note
from train.adapter.sample import GenerateOptions, Generator
from train.batch.precision import precision
from train.run.folder import RunFolder
from train.run.loop import Pass, Progress, RunLimits, Step
from train.run.saved_states import SavedState, write_checkpoint
from train.run.schedule import learning_rate_share
from train.scratch.config import ScratchOptions
from train.scratch.model import new_optimizers, window_loss
from train.scratch.state import restore, state_tensors
from train.scratch.windows import Batches, Stream, held_out_windows

# Tokens of one forward and backward pass; a larger batch is added up from several.
_PASS_TOKENS = 4096
_POINTS = 400  # of the loss curve
_PROMPT_TOKENS, _SAMPLE_TOKENS = 8, 48


@dataclass
class ScratchState(Progress):
    """Where a run is, with points of its loss curve and the measurements of the held-out text.

    losses: (tokens seen, nats per token, share of the peak learning rate); held_out: (tokens seen, {language: bits
    per byte}); samples: (tokens seen, language, prompt, continuation).
    """

    losses: list[tuple[int, float, float]] = field(default_factory=list)
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    samples: list[tuple[int, str, str, str]] = field(default_factory=list)

    @property
    def history(self) -> dict[str, Any]:
        """What the manifest keeps of it, as JSON values."""
        return {
            "losses": self.losses, "held_out": self.held_out, "samples": self.samples, "seconds": self.elapsed_s,
            "tokens": self.tokens,
        }  # fmt: skip

    @classmethod
    def of(cls, checkpoint: SavedState | None) -> ScratchState:
        """The state that a checkpoint keeps, or a fresh one."""
        if checkpoint is None:
            return cls()
        kept = dict(checkpoint.counters["history"])
        return cls(checkpoint.step, kept.pop("seconds"), stopped_by=checkpoint.counters.get("stopped_by", ""), **kept)


@dataclass(frozen=True)
class ScratchTask:
    """What is trained on: windows of text, held-out text by language, and the tokenizer that both went through."""

    tokenizer: Any
    batches: Batches
    held_out: Mapping[str, Stream]


class ScratchJob:
    """A model whose every weight is trained on windows of text (implements `train.run.loop.Job`)."""

    def __init__(
        self, options: ScratchOptions, model: Any, task: ScratchTask, dtype: torch.dtype, folder: RunFolder,
        state: ScratchState,
    ) -> None:  # fmt: skip
        self.options, self.model = options, model
        self._task, self._dtype, self._folder = task, dtype, folder
        self._named = new_optimizers(model, options)
        self.optimizers = list(self._named.values())
        self.parameters = list(model.parameters())
        self.clip, self.peak_rate = options.clip, options.peak_rate
        self.step_tokens = options.batch_size * options.context
        wanted = options.max_tokens or int(task.batches.windows * options.context * options.epochs)
        self.limits = RunLimits(max(1, wanted // self.step_tokens), options.time_limit_s, options.save_every_s)
        if folder.checkpoint:
            restore(model, self._named, folder.checkpoint.tensors())
        self._due = self._next_measure(state)

    def rate(self, at: ScratchState) -> float:
        options = self.options
        return learning_rate_share(
            options.schedule, self.limits.along(at.step + 1, at.elapsed_s), options.warmup_fraction
        )

    def backward(self, step: int) -> Pass:
        ids = self._task.batches.batch(step)
        nats = 0.0
        self.model.train()
        with precision(self._dtype):
            for part in torch.split(ids, max(1, _PASS_TOKENS // self.options.context)):
                nats += window_loss(self.model, part[:, :-1], part[:, 1:], scale=1.0 / self.step_tokens)
        return Pass(nats, self.step_tokens, self.step_tokens)

    def record(self, at: ScratchState, step: Step) -> str:
        if at.step % max(1, self.limits.steps // _POINTS) == 0 or at.step == 1:
            at.losses.append((at.tokens, step.whole.nats / step.whole.supervised, step.rate))
        return ""

    def is_measure_due(self, at: ScratchState) -> bool:
        return bool(at.stopped_by) or self._done(at) * self.options.evaluations >= self._due

    def measure(self, at: ScratchState) -> bool:
        """Bits per byte of the held-out text, and what the model writes."""
        figures = {lang: self._bits_per_byte(stream) for lang, stream in sorted(self._task.held_out.items())}
        at.held_out.append((at.tokens, figures))
        shown = ", ".join(f"{lang} {value:.3f}" for lang, value in figures.items())
        note(f"{at.tokens:>12,} tokens: bits per byte {shown}")
        if self.options.samples:
            self._sample(at)
        self._due = self._next_measure(at)
        return False

    def save(self, at: ScratchState, random: torch.Tensor) -> None:
        counters = {"step": at.step, "elapsed_s": at.elapsed_s, "stopped_by": at.stopped_by, "history": at.history}
        write_checkpoint(self._folder.checkpoints, counters, state_tensors(self.model, self._named))

    def _done(self, at: ScratchState) -> float:
        return self.limits.along(at.step, at.elapsed_s)

    def _next_measure(self, at: ScratchState) -> int:
        return 1 + int(self._done(at) * self.options.evaluations)

    def _sample(self, at: ScratchState) -> None:
        generator = Generator(self.model, self._task.tokenizer)
        options = GenerateOptions(max_new_tokens=_SAMPLE_TOKENS, temperature=0.7, seed=self.options.seed)
        for lang, stream in sorted(self._task.held_out.items()):
            prompt = self._task.tokenizer.decode(stream.ids[1 : 1 + _PROMPT_TOKENS].tolist(), skip_special_tokens=True)
            prompt = prompt.rstrip("\ufffd")  # not the first bytes of a character alone
            text = "".join(generator.stream(prompt, options, chat=False))
            at.samples.append((at.tokens, lang, prompt, text))
            note(f"    {lang}: {' '.join(prompt.split())}⟫{' '.join(text.split())}")

    def _bits_per_byte(self, stream: Stream) -> float:
        self.model.eval()
        nats = 0.0
        with torch.no_grad(), precision(self._dtype):
            for ids, labels in held_out_windows(stream, self.options.context, int(self._task.tokenizer.eos_token_id)):
                nats += window_loss(self.model, torch.tensor([ids]), torch.tensor([labels]))
        return nats / math.log(2) / stream.utf8_bytes
