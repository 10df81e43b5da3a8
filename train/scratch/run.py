"""A whole run from scratch: text in, checkpoint folder out, bits per byte by language on the way.

It knows nothing of the command line. Every weight is trained; the output folder appears only when the run has ended
well, and what is needed to go on after a kill is kept beside it (train.run_folder).
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slm.artifacts import (
    new_folder,
    require_replaceable,
    sha256_file,
    sha256_files,
)
from slm.console import Show, note, progress
from slm.errors import DivergenceError, InputError
from slm.identity import checkpoint_fingerprint, identity_of
from slm.llama import physical_cores
from train.checkpoint import load_tokenizer, read_config
from train.checkpoints import write_checkpoint
from train.generate import GenerateOptions, Generator
from train.memory import peak_rss_mb
from train.precision import choose_dtype, precision, use_cores
from train.run_folder import RunFolder, ended_figures, environment, open_run
from train.schedule import learning_rate_share
from train.scratch.config import ScratchOptions
from train.scratch.model import new_model, new_optimizers, window_loss
from train.scratch.state import restore, state_tensors
from train.scratch.windows import Batches, Packed, Stream, held_out_windows, pack
from train.tokenizer.corpus import passages

# Tokens of one forward and backward pass; a larger batch is added up from several.
_PASS_TOKENS = 4096
_POINTS = 400  # of the loss curve
_PROMPT_TOKENS, _SAMPLE_TOKENS = 8, 48


@dataclass
class History:
    """What a run has seen: points of the loss curve and measurements of the held-out text.

    losses: (tokens seen, nats per token, share of the peak learning rate); held_out: (tokens seen, {language: bits
    per byte}); samples: (tokens seen, language, prompt, continuation).
    """

    losses: list[tuple[int, float, float]] = field(default_factory=list)
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    samples: list[tuple[int, str, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class ScratchResult:
    """The checkpoint folder of a run and its figures."""

    output: Path
    parameters: int
    embedding_parameters: int
    steps: int
    tokens: int
    seconds: float
    tokens_per_s: float
    train_loss: float
    bits_per_byte: dict[str, float]
    bits_per_byte_before: dict[str, float]
    held_out_bytes: dict[str, int]
    peak_rss_mb: float
    dtype: str
    stopped_by: str

    def as_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"output": str(self.output)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ScratchResult:
        """The result whose `as_json` a manifest keeps."""
        return cls(**(values | {"output": Path(values["output"])}))


def train_scratch(options: ScratchOptions) -> ScratchResult:
    """Train a model on text and write it to `options.output`.

    Raises InputError and its kin for data or options that do not work, MismatchError when --resume finds another run,
    DivergenceError for a loss that is not finite.
    """
    threads = options.threads or physical_cores()
    use_cores(threads)
    require_replaceable(options.output, "checkpoint")
    source = options.init or options.tokenizer
    assert source is not None  # the options have been checked
    if options.init is not None:
        read_config(options.init)
    tokenizer = load_tokenizer(source)
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer in '{source}' has no end-of-text token")
    with progress("reading"):
        packed = _packed(options, tokenizer)
    asked = _asked(options, source, threads)
    if options.resume and (known := ended_figures(options.output, asked)):
        return ScratchResult.from_json(known)
    batches = Batches(packed.train, options.context, options.batch_size, options.seed)
    _tell(packed, batches, options)
    dtype, why = choose_dtype(options.dtype)
    note(f"{str(dtype).removeprefix('torch.')}: {why}")
    with (
        open_run(options.output, asked, resume=options.resume, fresh=options.fresh) as folder_of_run,
        new_folder(options.output, "checkpoint") as (folder, manifest),
    ):
        model = new_model(options, tokenizer)
        limit = int(getattr(model.config, "max_position_embeddings", options.context))
        if options.context > limit:
            raise InputError(f"--context {options.context} is more than the {limit} positions of the model")
        run = _Run(options, model, tokenizer, batches, packed, dtype, folder_of_run)
        result = run.fit()
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        for name in ("tokenizer.model", "spiece.model"):
            if (source / name).exists() and not (folder / name).exists():
                shutil.copy(source / name, folder / name)
        folder_of_run.keep(folder)
        manifest.update(
            made_by="train scratch",
            fingerprint=checkpoint_fingerprint(folder),
            **{key: asked[key] for key in ("options", "data", "base", "environment")},
            figures=result.as_json(),
            history=vars(run.history),
        )
        if options.plot is not None:
            from train.pictures import draw_curve

            draw_curve(run.history.losses, run.history.held_out, options.plot)
    return result


def _asked(options: ScratchOptions, source: Path, threads: int) -> dict[str, Any]:
    """What a run is asked and with what (see train.run_folder): enough to tell whether another run is the same."""
    files = [file for texts in (options.data, options.eval_data) for paths in texts.values() for file in paths]
    return {
        "method": "scratch",
        "base": {
            "path": str(source.resolve()),
            "fingerprint": identity_of(source).weights if options.init else sha256_files(_tokenizer_files(source)),
        },
        "data": [{"file": str(file), "sha256": sha256_file(file)} for file in files],
        "options": options.as_json(),
        "environment": environment(threads),
    }


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted(file for name in ("tokenizer*", "*.model") for file in folder.glob(name))


def _packed(options: ScratchOptions, tokenizer: Any) -> Packed:
    if not options.eval_data:
        return pack(tokenizer, passages(options.data), options.eval_fraction, options.seed)
    packed = pack(tokenizer, passages(options.data), 0.0, options.seed)
    packed.held_out = pack(tokenizer, passages(options.eval_data), 0.0, options.seed).train
    return packed


def _tell(packed: Packed, batches: Batches, options: ScratchOptions) -> None:
    if lacking := [lang for lang in options.data if lang not in packed.held_out]:
        raise InputError(
            f"no text of '{lacking[0]}' is held out to measure on: it has too few passages",
            hint="Raise --eval-fraction, or name held-out text with --eval-data LANG=FILE.",
        )
    if batches.windows < options.batch_size:
        raise InputError(
            f"the text makes {batches.windows} windows of {options.context} tokens, less than one batch of"
            f" {options.batch_size}",
            hint="Give more text, or lower --context or --batch-size.",
        )
    shares = ", ".join(f"{len(stream.ids):,} {lang}" for lang, stream in sorted(packed.train.items()))
    held = ", ".join(f"{len(stream.ids):,} {lang}" for lang, stream in sorted(packed.held_out.items()))
    note(f"tokens to train on: {shares}; held out: {held}")


class _Run:
    """The loop: one object, because a resumed run has to find all of it again."""

    def __init__(
        self,
        options: ScratchOptions,
        model: Any,
        tokenizer: Any,
        batches: Batches,
        packed: Packed,
        dtype: torch.dtype,
        folder: RunFolder,
    ) -> None:
        self._options, self._model, self._tokenizer, self._dtype = options, model, tokenizer, dtype
        self._batches, self._held_out, self._folder = batches, packed.held_out, folder
        self._optimizers = new_optimizers(model, options)
        per_step = options.batch_size * options.context
        wanted = options.max_tokens or int(batches.windows * options.context * options.epochs)
        self._per_step, self._steps = per_step, max(1, wanted // per_step)
        self.history = History()
        self._step = 0
        if folder.checkpoint:
            restore(model, self._optimizers, folder.checkpoint.tensors())
            self._step, self.history = folder.checkpoint.step, History(**folder.checkpoint.counters["history"])

    def fit(self) -> ScratchResult:
        """Train to the last step or the time limit."""
        options, history = self._options, self.history
        embedding = sum(p.numel() for p in {self._model.get_input_embeddings().weight})
        parameters = sum(p.numel() for p in self._model.parameters())
        note(
            f"{parameters:,} parameters ({embedding:,} of them the embedding), {self._steps:,} steps of"
            f" {self._per_step:,} tokens, {options.optimizer} with {options.schedule}"
        )
        saved = time.monotonic()
        due = 1 + int(self._done * options.evaluations) if self._step else 0
        started = time.monotonic() - history.seconds
        recent = 0.0
        with progress("training", total=1000) as show:
            while True:
                history.seconds = time.monotonic() - started
                if self._done * options.evaluations >= due or self._done >= 1.0:
                    self._measure()
                    due = 1 + int(self._done * options.evaluations)
                    history.seconds = time.monotonic() - started
                if self._done >= 1.0:
                    break
                loss = self._one_step()
                recent = loss if not recent else 0.95 * recent + 0.05 * loss
                self._show(show, recent, time.monotonic() - started)
                if options.save_every_s and time.monotonic() - saved > options.save_every_s:
                    history.seconds = time.monotonic() - started
                    self._save()
                    saved = time.monotonic()
        self._model.eval()
        timed_out = self._step < self._steps
        tail = [loss for _, loss, _ in history.losses[-max(1, len(history.losses) // 20) :]]
        return ScratchResult(
            output=options.output,
            parameters=parameters,
            embedding_parameters=embedding,
            steps=self._step,
            tokens=history.tokens,
            seconds=round(history.seconds, 2),
            tokens_per_s=round(history.tokens / history.seconds, 1),
            train_loss=sum(tail) / len(tail),
            bits_per_byte=history.held_out[-1][1],
            bits_per_byte_before=history.held_out[0][1],
            held_out_bytes={lang: stream.utf8_bytes for lang, stream in self._held_out.items()},
            peak_rss_mb=peak_rss_mb(),
            dtype=str(self._dtype).removeprefix("torch."),
            stopped_by="time limit" if timed_out else "last step",
        )

    @property
    def _done(self) -> float:
        """The share of the run that is behind."""
        return self._along(self._step)

    def _along(self, step: int) -> float:
        """How far a step is along the run: by steps, or by time where that comes first."""
        limit = self._options.time_limit_s
        return min(1.0, max(step / self._steps, self.history.seconds / limit if limit else 0.0))

    def _save(self) -> None:
        counters = {"step": self._step, "elapsed_s": self.history.seconds, "history": vars(self.history)}
        write_checkpoint(self._folder.checkpoints, counters, state_tensors(self._model, self._optimizers))

    def _one_step(self) -> float:
        """One batch, one step of every optimizer; returns nats per token. Raises DivergenceError."""
        options, model = self._options, self._model
        share = learning_rate_share(options.schedule, self._along(self._step + 1), options.warmup_fraction)
        ids = self._batches.batch(self._step)
        nats = 0.0
        model.train()
        with precision(self._dtype):
            for part in torch.split(ids, max(1, _PASS_TOKENS // options.context)):
                nats += window_loss(model, part[:, :-1], part[:, 1:], scale=1.0 / self._per_step)
        loss = nats / self._per_step
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        if not (math.isfinite(loss) and bool(torch.isfinite(norm))):
            again = f"--lr {options.peak_rate / 2:g}"
            if self._step and all(bool(torch.isfinite(p).all()) for p in model.parameters()):
                self._save()
                hint = f"The state of step {self._step} is kept: go on with the same command and --resume {again}."
            else:
                hint = f"Try a lower learning rate ({again})."
            raise DivergenceError(
                f"the loss is not finite at step {self._step + 1} (learning rate {share * options.peak_rate:.2g})",
                found=f"loss {loss}, gradient norm {float(norm)}",
                hint=hint,
            )
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = share * group["peak"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._step += 1
        self.history.tokens += self._per_step
        if self._step % max(1, self._steps // _POINTS) == 0 or self._step == 1:
            self.history.losses.append((self.history.tokens, loss, share))
        return loss

    def _show(self, show: Show, recent: float, seconds: float) -> None:
        self.history.seconds = seconds
        show(1000 * self._done, f"loss {recent:.3f}, {self.history.tokens / seconds:,.0f} tok/s")

    def _measure(self) -> None:
        """Bits per byte of the held-out text, and what the model writes."""
        figures = {lang: self._bits_per_byte(stream) for lang, stream in sorted(self._held_out.items())}
        self.history.held_out.append((self.history.tokens, figures))
        shown = ", ".join(f"{lang} {value:.3f}" for lang, value in figures.items())
        note(f"{self.history.tokens:>12,} tokens: bits per byte {shown}")
        if self._options.samples:
            generator = Generator(self._model, self._tokenizer)
            options = GenerateOptions(max_new_tokens=_SAMPLE_TOKENS, temperature=0.7, seed=self._options.seed)
            for lang, stream in sorted(self._held_out.items()):
                prompt = self._tokenizer.decode(stream.ids[1 : 1 + _PROMPT_TOKENS].tolist(), skip_special_tokens=True)
                prompt = prompt.rstrip("\ufffd")  # not the first bytes of a character alone
                text = "".join(generator.stream(prompt, options, chat=False))
                self.history.samples.append((self.history.tokens, lang, prompt, text))
                note(f"    {lang}: {' '.join(prompt.split())}⟫{' '.join(text.split())}")

    def _bits_per_byte(self, stream: Stream) -> float:
        self._model.eval()
        nats = 0.0
        with torch.no_grad(), precision(self._dtype):
            for ids, labels in held_out_windows(stream, self._options.context, int(self._tokenizer.eos_token_id)):
                nats += window_loss(self._model, torch.tensor([ids]), torch.tensor([labels]))
        return nats / math.log(2) / stream.utf8_bytes
