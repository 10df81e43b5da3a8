"""A whole LoRA run: data in, adapter folder out, held-out loss before and after.

It knows nothing of the command line. Everything that can be wrong with the input is found before the
model is loaded; the output folder appears only when the run has ended well.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm.artifacts import checkpoint_fingerprint, new_folder, sha256_file
from slm.console import note
from train.checkpoint import load_model, read_config
from train.config import TrainOptions
from train.evaluate import LossSum, held_out_loss, total
from train.peft_adapter import add_adapter
from train.precision import choose_dtype, store_frozen, use_cores
from train.prepare import Prepared, prepare_conversations, prepare_texts
from train.trainer import RunFigures, fit


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

    def as_json(self) -> dict[str, Any]:
        """All figures as JSON values; losses in nats per token."""
        values = asdict(self.run)
        values |= {
            "held_out_loss_before": self.held_out_loss_before,
            "held_out_loss_after": self.held_out_loss_after,
            "by_language": {lang: asdict(figures) for lang, figures in self.by_language.items()},
            "dropped_examples": self.dropped_examples,
            "total_seconds": self.total_seconds,
        }
        return values


def train_causal(options: TrainOptions) -> TrainResult:
    """Train an adapter on running text: every token is learned. Writes `options.output`."""
    return _run(options, prepare_texts(options))


def train_sft(options: TrainOptions) -> TrainResult:
    """Train an adapter on conversations: only the answers' tokens are learned. Writes `options.output`."""
    return _run(options, prepare_conversations(options))


def _run(options: TrainOptions, prepared: Prepared) -> TrainResult:
    started = time.monotonic()
    use_cores(options.threads)
    shares = ", ".join(f"{count} {lang}" for lang, count in sorted(prepared.train.language_counts().items()))
    note(
        f"{len(prepared.train)} sequences to train on ({shares}),"
        f" {len(prepared.held_out)} held out; {prepared.train.lengths.sum(dtype=int):,} tokens,"
        f" {prepared.train.supervised_total:,} of them supervised"
    )
    dtype, why = choose_dtype(options.dtype)
    note(f"{str(dtype).removeprefix('torch.')}: {why}")
    with new_folder(options.output, "adapter") as (folder, manifest):
        model = add_adapter(load_model(options.base), options)
        store_frozen(model, dtype)
        pad_id = prepared.tokenizer.pad_token_id
        before = held_out_loss(model, prepared.held_out, pad_id, dtype)
        run = fit(model, prepared.train, options, dtype, pad_id)
        after = held_out_loss(model, prepared.held_out, pad_id, dtype)
        result = _result(options, prepared, before, after, run, time.monotonic() - started)
        _save(model, prepared, options, folder)
        manifest.update(_manifest(options, prepared, result))
    return result


def _result(
    options: TrainOptions,
    prepared: Prepared,
    before: dict[str, LossSum],
    after: dict[str, LossSum],
    run: RunFigures,
    seconds: float,
) -> TrainResult:
    trained, held = (Counter(side.language_counts()) for side in (prepared.train, prepared.held_out))
    by_language = {
        lang: LanguageLoss(
            before[lang].loss,
            after[lang].loss,
            before[lang].tokens,
            trained[lang],
            held[lang],
            prepared.dropped_by_language.get(lang, 0),
        )
        for lang in before
    }
    return TrainResult(
        options.output, by_language, total(before).loss, total(after).loss, prepared.dropped, run, round(seconds, 2)
    )


def _save(model: Any, prepared: Prepared, options: TrainOptions, folder: Path) -> None:
    model.peft_config["default"].base_model_name_or_path = str(options.base.resolve())
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card, with nothing filled in
    if prepared.template is not None:
        prepared.tokenizer.chat_template = prepared.template
    prepared.tokenizer.save_pretrained(folder)


def _manifest(options: TrainOptions, prepared: Prepared, result: TrainResult) -> dict[str, Any]:
    lines = prepared.examples_by_file
    langs = sorted(prepared.train.language_counts())
    return {
        "base": {
            "path": str(options.base.resolve()),
            "fingerprint": checkpoint_fingerprint(options.base),
            "architecture": read_config(options.base)["model_type"],
        },
        "template": prepared.template_name,
        "lang": options.lang or (langs[0] if len(langs) == 1 and langs[0] != "und" else None),
        "data": [
            {"file": str(file), "sha256": sha256_file(file), "examples": lines[file]}
            for file in (*options.data, *options.eval_data)
        ],
        "figures": result.as_json(),
        "options": options.as_json(),
    }
