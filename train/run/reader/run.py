"""A whole run that makes a reader: examples in, adapter folder out, with the loss before and after.

It knows nothing of the command line, of documents or of what the examples' prompts mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm.artifacts import new_folder, require_replaceable
from slm.errors import MismatchError
from slm.families.parts.base import positive
from slm.native.llama import physical_cores
from slm.terminal.console import note, progress
from train import ranks
from train.adapter.fresh import add_adapter, save_adapter
from train.base import is_encoder, load_encoder, load_model, load_tokenizer, read_config
from train.batch.feed import computed_fast, use_gradient_checkpointing
from train.batch.plan import BatchPlan
from train.batch.precision import choose_dtype, in_float32, store_frozen, use_cores
from train.config import TrainOptions
from train.run.fit import RunFigures, fit
from train.run.folder import KEPT, RunFolder, asked_of, ended_figures, open_run
from train.run.history import save_curve
from train.run.job import RunState, Sums, Task, loss_of
from train.run.reader.contrast import BY_CONTRAST, contrast_head
from train.run.reader.examples import ReaderExample, read_examples
from train.run.reader.loss import BY_COSINE, RowScores, reader_batch, reader_loss, row_scores

# What a reader is, beside the adapter's own files.
CARD = "reader.json"
_METHOD = "reader"


@dataclass(frozen=True)
class ReaderResult:
    """The adapter folder of a run and its figures; losses in nats per question."""

    output: Path
    held_out_loss_before: float
    held_out_loss_after: float
    examples: int
    run: RunFigures
    total_seconds: float

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self.run), **{k: v for k, v in vars(self).items() if k not in ("output", "run")}}

    @classmethod
    def from_json(cls, output: Path, values: dict[str, Any]) -> ReaderResult:
        """The result whose `as_json` a manifest keeps."""
        own = {key: values[key] for key in cls.__dataclass_fields__ if key in values}
        run = RunFigures(**{key: values[key] for key in RunFigures.__dataclass_fields__ if key in values})
        return cls(output=output, run=run, **own)


def train_reader(options: TrainOptions) -> ReaderResult:
    """Train an adapter that scores lines; `options.eval_data` is measured before and after. Writes `options.output`."""
    started = time.monotonic()
    ranks.connect()
    threads = options.threads or max(1, physical_cores() // ranks.local_world())
    use_cores(threads)
    encoder = is_encoder(options.base)
    config = read_config(options.base, encoder=encoder)
    limits = positive(config, "vocab_size"), positive(config, "max_position_embeddings")
    examples, form, counts = read_examples(options.data, *limits)
    held_out, its_form, its_counts = read_examples(options.eval_data, *limits)
    if its_form != form:
        raise MismatchError("the held-out examples were made for another form", found=f"{its_form} instead of {form}")
    asked = asked_of(options, _METHOD, None, (counts | its_counts).items(), threads)
    require_replaceable(options.output, "adapter")
    if options.resume and (known := ended_figures(options.output, asked)):
        return ReaderResult.from_json(options.output, known)
    tokens = sum(one.tokens for one in examples)
    note(f"{len(examples)} questions to train on ({tokens:,} tokens), {len(held_out)} held out")
    dtype, why = ranks.gathered(choose_dtype(options.dtype))[0]
    note(f"{str(dtype).removeprefix('torch.')}: {why}")
    with open_run(options.output, asked, resume=options.resume, fresh=options.fresh) as run:
        model = add_adapter(load_encoder(options.base) if encoder else load_model(options.base), options)
        score = row_scores if encoder else contrast_head(model, load_tokenizer(options.base))
        store_frozen(model, dtype)
        if options.checkpointing == "on":
            use_gradient_checkpointing(model)

        def measure() -> Sums:
            return _measured(model, held_out, score)

        lengths = np.zeros(len(examples))
        plan = BatchPlan(lengths, options.batch_size, options.seed)
        task = Task(examples, plan, reader_batch, measure, {}, partial(reader_loss, score=score))
        with nullcontext() if encoder else computed_fast(model, options, dtype):
            went = run.checkpoint and RunState.from_json(run.checkpoint.counters)
            state = went or RunState(before=measure())
            figures = fit(model, task, options, dtype, run, state)
        result = ReaderResult(
            options.output, loss_of(state.before), loss_of(state.best), len(examples), figures,
            round(time.monotonic() - started, 2),
        )  # fmt: skip
        if ranks.rank() == 0:
            _write(model, options, run, asked, result, form)
        ranks.gathered(None)  # all have ended before the first one leaves
    return result


def _measured(model: Any, held_out: Sequence[ReaderExample], score: RowScores) -> Sums:
    """Summed nats and questions by language; every process measures its share."""
    mine: Sums = {}
    share = held_out[ranks.rank() :: ranks.world()]
    model.eval()
    with progress("held-out loss", total=len(share), unit="questions") as show, torch.no_grad(), in_float32(model):
        for done, one in enumerate(share, 1):
            loss, _ = reader_loss(model, reader_batch([one]), score)
            before = mine.get(one.example.lang, (0.0, 0))
            mine[one.example.lang] = before[0] + float(loss), before[1] + 1
            show(done)
    whole: Sums = {}
    for part in ranks.gathered(mine):
        for lang, (nats, count) in part.items():
            known = whole.get(lang, (0.0, 0))
            whole[lang] = known[0] + nats, known[1] + count
    return whole


def _write(
    model: Any, options: TrainOptions, run: RunFolder, asked: dict[str, Any], result: ReaderResult, form: int
) -> None:
    """Write the adapter folder whole, with the run's history and picture in it."""
    if why_not := save_curve(run.path, result.run.best_step):
        note(why_not)
    with new_folder(options.output, "adapter") as (folder, manifest):
        save_adapter(model, options.base, folder, {})
        card = {"form": form, **(BY_COSINE if is_encoder(options.base) else BY_CONTRAST), "refuse_at": {}}
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        run.keep(folder)
        (folder / KEPT / "figures.json").write_text(json.dumps(result.as_json(), indent=2) + "\n", encoding="utf-8")
        manifest.update(
            base=asked["base"], template=None, lang=None, data=asked["data"], figures=result.as_json(),
            options=asked["options"], method=_METHOD,
        )  # fmt: skip
