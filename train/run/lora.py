"""A whole LoRA run: data in, adapter folder out, held-out loss before and after.

It knows nothing of the command line. Everything that can be wrong with the input is found before the
model is loaded; the output folder appears only when the run has ended well.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slm.artifacts import (
    new_folder,
    require_replaceable,
)
from slm.native.llama import physical_cores
from slm.terminal.console import note
from train import ranks
from train.adapter.fresh import add_adapter, initial_factors, return_to_initial, save_adapter
from train.base import load_model
from train.batch.feed import feed, plan_of, settle_checkpointing
from train.batch.precision import choose_dtype, store_frozen, use_cores
from train.batch.tensors import Collate
from train.config import TrainOptions
from train.data.masks import Encoded
from train.data.prepare import Prepared, prepare_conversations, prepare_texts
from train.measure.evaluate import LossSum, held_out_loss
from train.run.fit import RunFigures, fit
from train.run.folder import KEPT, RunFolder, asked_of, ended_figures, open_run
from train.run.history import require_tensorboard, save_curve
from train.run.job import RunState, Sums, Task, loss_of
from train.run.loop import Watch


@dataclass(frozen=True)
class LanguageLoss:
    """Held-out loss of one language in nats per supervised token, before and after training."""

    held_out_loss_before: float
    held_out_loss_after: float
    held_out_tokens: int
    train_examples: int
    held_out_examples: int
    dropped_examples: int


@dataclass(frozen=True)
class TrainResult:
    """The adapter folder of a run and its figures."""

    output: Path
    by_language: dict[str, LanguageLoss]
    held_out_loss_before: float
    held_out_loss_after: float
    dropped_examples: int
    run: RunFigures
    total_seconds: float
    unused_fields: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All figures as JSON values; losses in nats per token."""
        values = asdict(self.run)
        values |= {
            "held_out_loss_before": self.held_out_loss_before,
            "held_out_loss_after": self.held_out_loss_after,
            "by_language": {lang: asdict(figures) for lang, figures in self.by_language.items()},
            "dropped_examples": self.dropped_examples,
            "total_seconds": self.total_seconds,
            "unused_fields": self.unused_fields,
        }
        return values

    @classmethod
    def from_json(cls, output: Path, values: dict[str, Any]) -> TrainResult:
        """The result whose `as_json` a manifest keeps."""
        own = {key: values[key] for key in cls.__dataclass_fields__ if key in values}
        own["by_language"] = {lang: LanguageLoss(**losses) for lang, losses in values["by_language"].items()}
        run = RunFigures(**{key: values[key] for key in RunFigures.__dataclass_fields__ if key in values})
        return cls(output=output, run=run, **own)


def train_causal(options: TrainOptions) -> TrainResult:
    """Train an adapter on running text: every token is learned. Writes `options.output`."""
    return _run(options, prepare_texts(options), "lora")


def train_sft(options: TrainOptions, watch: Watch = lambda _: None) -> TrainResult:
    """Train an adapter on conversations: only the answers' tokens are learned. Writes `options.output`.

    watch: told of every step that is over.
    """
    return _run(options, prepare_conversations(options), "sft", watch)


def _run(options: TrainOptions, prepared: Prepared, method: str, watch: Watch = lambda _: None) -> TrainResult:
    started = time.monotonic()
    ranks.connect()
    threads = options.threads or max(1, physical_cores() // ranks.local_world())
    use_cores(threads)
    data = [(file, prepared.examples_by_file[file]) for file in (*options.data, *options.eval_data)]
    asked = asked_of(options, method, prepared.template_name, data, threads)
    require_replaceable(options.output, "adapter")
    if options.resume and (known := ended_figures(options.output, asked)):
        return TrainResult.from_json(options.output, known)
    if options.tensorboard:
        require_tensorboard()
    shares = ", ".join(f"{count} {lang}" for lang, count in sorted(prepared.train.language_counts().items()))
    note(
        f"{len(prepared.train)} sequences to train on ({shares}),"
        f" {len(prepared.held_out)} held out; {prepared.train.lengths.sum(dtype=int):,} tokens,"
        f" {prepared.train.supervised_total:,} of them supervised"
    )
    dtype, why = choose_dtype(options.dtype)
    dtype, why = ranks.gathered((dtype, why))[0]
    note(f"{str(dtype).removeprefix('torch.')}: {why}")
    with open_run(options.output, asked, resume=options.resume, fresh=options.fresh) as run:
        model = add_adapter(load_model(options.base), options)
        initial = initial_factors(model)
        if run.checkpoint:
            initial = return_to_initial(model, run.checkpoint.tensors())
        store_frozen(model, dtype)
        pad_id = prepared.tokenizer.pad_token_id
        with feed(model, options, (prepared.train, prepared.held_out), pad_id=pad_id, dtype=dtype) as collate:

            def measure() -> Sums:
                return _measure(model, prepared.held_out, collate)

            plan = plan_of(options, prepared)
            settle_checkpointing(model, options, plan, prepared.train, collate, dtype)
            task = Task(prepared.train, plan, collate, measure, initial)
            went = run.checkpoint and RunState.from_json(run.checkpoint.counters)
            state = went or RunState(before=measure())
            figures = fit(model, task, options, dtype, run, state, watch)
        result = _result(options, prepared, state.before, state.best, figures, time.monotonic() - started)
        if ranks.rank() == 0:
            _write(model, prepared, options, run, initial, asked, result)
        ranks.gathered(None)  # all have ended before the first one leaves
    return result


def _measure(model: Any, held_out: Sequence[Encoded], collate: Collate) -> Sums:
    """The held-out sums by language; every process measures its share."""
    share = held_out[ranks.rank() :: ranks.world()]
    whole: dict[str, LossSum] = {}
    for part in ranks.gathered(held_out_loss(model, share, collate)):
        for lang, one in part.items():
            whole[lang] = whole.get(lang, LossSum(0.0, 0)) + one
    return {lang: (one.nats, one.tokens) for lang, one in sorted(whole.items())}


def _result(
    options: TrainOptions, prepared: Prepared, before: Sums, after: Sums, run: RunFigures, seconds: float
) -> TrainResult:
    trained, held = (Counter(side.language_counts()) for side in (prepared.train, prepared.held_out))
    dropped = prepared.dropped_by_language
    by_language = {
        lang: LanguageLoss(
            nats / tokens, after[lang][0] / tokens, tokens, trained[lang], held[lang], dropped.get(lang, 0)
        )
        for lang, (nats, tokens) in before.items()
    }
    return TrainResult(
        options.output, by_language, loss_of(before), loss_of(after), prepared.dropped, run, round(seconds, 2),
        prepared.unused_fields,
    )  # fmt: skip


def _write(
    model: Any, prepared: Prepared, options: TrainOptions, run: RunFolder, initial: dict[str, Any],
    asked: dict[str, Any], result: TrainResult,
) -> None:  # fmt: skip
    """Write the adapter folder whole, with the run's history and picture in it."""
    why_not = save_curve(run.path, result.run.best_step)
    if why_not:
        note(why_not)
    with new_folder(options.output, "adapter") as (folder, manifest):
        save_adapter(model, options.base, folder, initial)
        if prepared.template is not None:
            prepared.tokenizer.chat_template = prepared.template
        prepared.tokenizer.save_pretrained(folder)
        run.keep(folder)
        (folder / KEPT / "figures.json").write_text(json.dumps(result.as_json(), indent=2) + "\n", encoding="utf-8")
        langs = sorted(prepared.train.language_counts())
        manifest.update(
            base=asked["base"],
            template=asked["template"],
            lang=options.lang or (langs[0] if len(langs) == 1 and langs[0] != "und" else None),
            data=asked["data"],
            figures=result.as_json(),
            options=asked["options"],
        )
