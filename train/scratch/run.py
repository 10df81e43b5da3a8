"""A whole run from scratch: text in, checkpoint folder out, bits per byte by language on the way.

It knows nothing of the command line. Every weight is trained; the output folder appears only when the run has ended
well, and what is needed to go on after a kill is kept beside it (train.run.folder).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slm.artifacts import (
    new_folder,
    require_replaceable,
    sha256_file,
    sha256_files,
)
from slm.errors import InputError
from slm.native.llama import physical_cores
from slm.terminal.console import note, progress
from slm.weights.identity import checkpoint_fingerprint, identity_of
from train.base import load_tokenizer, read_config
from train.batch.memory import peak_rss_mb
from train.batch.precision import choose_dtype, use_cores
from train.run.folder import ended_figures, environment, open_run
from train.run.loop import train
from train.scratch.config import ScratchOptions
from train.scratch.job import ScratchJob, ScratchState, ScratchTask
from train.scratch.model import new_model
from train.scratch.windows import Batches, PackedText, pack
from train.tokenizer.corpus import passages


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
    source = options.source
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
        state = ScratchState.of(folder_of_run.checkpoint)
        task = ScratchTask(tokenizer, batches, packed.held_out)
        job = ScratchJob(options, model, task, dtype, folder_of_run, state)
        _tell_run(job, options)
        if not state.step:
            job.measure(state)
        train(job, state, job.limits)
        model.eval()
        result = _result(job, state, packed, dtype)
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
            history=state.history,
        )
        if options.plot is not None:
            from train.run.pictures import draw_curve

            draw_curve(state.losses, state.held_out, options.plot)
    return result


def _asked(options: ScratchOptions, source: Path, threads: int) -> dict[str, Any]:
    """What a run is asked and with what (see train.run.folder): enough to tell whether another run is the same."""
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


def _packed(options: ScratchOptions, tokenizer: Any) -> PackedText:
    if not options.eval_data:
        return pack(tokenizer, passages(options.data), options.eval_fraction, options.seed)
    packed = pack(tokenizer, passages(options.data), 0.0, options.seed)
    packed.held_out = pack(tokenizer, passages(options.eval_data), 0.0, options.seed).train
    return packed


def _tell(packed: PackedText, batches: Batches, options: ScratchOptions) -> None:
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


def _tell_run(job: ScratchJob, options: ScratchOptions) -> None:
    parameters, embedding = _sizes(job.model)
    note(
        f"{parameters:,} parameters ({embedding:,} of them the embedding), {job.limits.steps:,} steps of"
        f" {job.step_tokens:,} tokens, {options.optimizer} with {options.schedule}"
    )


def _sizes(model: Any) -> tuple[int, int]:
    """Parameters of the model, and of its embedding."""
    return sum(p.numel() for p in model.parameters()), model.get_input_embeddings().weight.numel()


def _result(job: ScratchJob, state: ScratchState, packed: PackedText, dtype: torch.dtype) -> ScratchResult:
    parameters, embedding = _sizes(job.model)
    tail = [loss for _, loss, _ in state.losses[-max(1, len(state.losses) // 20) :]]
    return ScratchResult(
        output=job.options.output,
        parameters=parameters,
        embedding_parameters=embedding,
        steps=state.step,
        tokens=state.tokens,
        seconds=round(state.elapsed_s, 2),
        tokens_per_s=round(state.tokens / state.elapsed_s, 1),
        train_loss=sum(tail) / len(tail),
        bits_per_byte=state.held_out[-1][1],
        bits_per_byte_before=state.held_out[0][1],
        held_out_bytes={lang: stream.utf8_bytes for lang, stream in packed.held_out.items()},
        peak_rss_mb=peak_rss_mb(),
        dtype=str(dtype).removeprefix("torch."),
        stopped_by=state.stopped_by,
    )
