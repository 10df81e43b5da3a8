"""The command `slm train estimate`: how the figures are shown, not how they are found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from slm.joints import Joints, pass_joints
from train.cli.options import BASE, DATA, HELP, JSON, PATH, opened_base, training_options
from train.config import CAUSAL_DEFAULTS, TrainOptions

if TYPE_CHECKING:
    from train.measure.estimate import Estimate


@click.command(context_settings=HELP)
@BASE
@DATA
@click.option("-o", "--output", type=PATH, help="As of the run; nothing is written.")
@click.option("--method", type=click.Choice(["sft", "lora"]), default="sft", show_default=True,
              help="Of which command the options are; lora has other defaults.")  # fmt: skip
@training_options(sft=True)
@JSON
@pass_joints
@click.pass_context
def estimate(
    context: click.Context, joints: Joints, /, base: str, data: tuple[Path, ...], output: Path | None, method: str,
    as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Tokens, memory and time of a training run, before the run: the same options as `slm train sft` and `lora`.

    The memory of the largest batch is counted without being taken, and three steps are timed.

    \b
    Example:
      slm train estimate --base gemma-3-270m --data data/instruct.jsonl --lang ja
    """
    if method == "lora":
        values |= {
            name: value
            for name, value in CAUSAL_DEFAULTS.items()
            if context.get_parameter_source(name) is ParameterSource.DEFAULT
        }
    folder, values = opened_base(joints, base, values)
    options = TrainOptions(base=folder, data=tuple(data), output=output or Path("unwritten"), **values)
    from train.data.prepare import prepare_conversations, prepare_texts
    from train.measure.estimate import estimate as estimated

    prepared = (prepare_conversations if method == "sft" else prepare_texts)(options)
    show(estimated(options, prepared), as_json=as_json)


def show(figures: Estimate, *, as_json: bool) -> None:
    """The figures on stdout: one JSON object, or a line for each question."""
    from slm.terminal.console import duration, emit_json

    if as_json:
        emit_json(figures.as_json())
        return
    memory = ", ".join(f"{name} {value:,.0f}" for name, value in figures.memory_mb.items() if name != "loading")
    kept = "with gradient checkpointing" if figures.checkpointing else (
        f"{figures.peak_rss_checkpointing_mb:,.0f} with gradient checkpointing"
    )  # fmt: skip
    lines = {
        "data": f"{figures.examples:,} sequences, {figures.held_out_examples:,} held out, {figures.dropped_examples:,} "
        f"left out; longest {figures.tokens_longest:,} tokens",
        "tokens": f"{figures.tokens:,} an epoch, {figures.computed_tokens:,} computed, "
        f"{figures.supervised_tokens:,} supervised ({figures.supervised_share:.1%})",
        "memory": f"{figures.peak_rss_mb:,.0f} MB of {figures.available_mb:,.0f} MB available ({kept}): {memory}",
        "time": f"{duration(figures.train_seconds)} for {figures.steps:,} steps of {figures.seconds_per_step:.2f} s, "
        f"{duration(figures.total_seconds)} in all",
        "speed": f"{figures.tokens_per_s:,.0f} tok/s, {figures.supervised_tokens_per_s:,.1f} supervised, "
        f"{figures.dtype}",
    }
    if figures.frozen_states_mb:
        lines["disk"] = f"{figures.frozen_states_mb:,.0f} MB for the states of the frozen layers"
    for name, text in lines.items():
        click.echo(f"{name + ':':8} {text}")
    if not figures.fits:
        click.secho(
            "This does not fit into memory: lower --batch-size or --max-length, or adapt fewer layers.",
            fg="red",
            err=True,
        )
