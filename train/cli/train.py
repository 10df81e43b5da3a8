"""The commands of the training room. It knows nothing of how they do it: heavy imports are in their bodies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slm.joints import Joints, pass_joints
from slm.terminal.arguments import FLOAT
from train.cli.estimate import estimate
from train.cli.options import BASE, DATA, HELP, JSON, OUTPUT, opened_base, training_options
from train.cli.process import prepare_process
from train.cli.reader import reader
from train.cli.scratch import scratch, tokenizer
from train.config import TrainOptions
from train.ranks import first_then_others, rank

if TYPE_CHECKING:
    from train.run.lora import TrainResult

_F = TypeVar("_F", bound=Callable[..., Any])


def generation_options(function: _F) -> _F:
    """The options of the scripts that generate from a checkpoint (fields of GenerateOptions)."""
    options = [
        click.option("--max_new_tokens", default=128, show_default=True, help="Longest answer, in tokens."),
        click.option(
            "--temperature", type=FLOAT, default=0.0, show_default=True, help="0: always the likeliest token."
        ),
        click.option(
            "--top_p", type=FLOAT, default=0.95, show_default=True, help="Sample from this share of the probability."
        ),
        click.option("--repetition_penalty", type=FLOAT, help="[default: 1.15 for a continuation, 1 for an answer]"),
        click.option("--seed", default=0, show_default=True, help="Of the sampling."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def run_training(*, sft: bool, base: Path, data: tuple[Path, ...], output: Path, values: dict[str, Any]) -> TrainResult:
    """Check the options as a whole, then train."""
    options = TrainOptions(base=base, data=tuple(data), output=output, **values)
    if rank():
        from slm.terminal.console import is_debug, set_verbosity

        set_verbosity(quiet=True, debug=is_debug())
    prepare_process()
    from train.run.lora import train_causal, train_sft

    return (train_sft if sft else train_causal)(options)


def report(result: TrainResult, *, as_json: bool) -> None:
    """The figures of a run on stdout: one JSON object, or a table with a line for each language."""
    from slm.terminal.console import emit_json, note, out

    if rank():
        return
    if as_json:
        emit_json({"output": str(result.output)} | result.as_json())
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("language", "examples", "held out", "loss before", "loss after", "change"):
        table.add_column(column, justify="left" if column == "language" else "right")
    for lang, figures in result.by_language.items():
        change = figures.held_out_loss_after / figures.held_out_loss_before - 1
        table.add_row(
            lang, str(figures.train_examples), str(figures.held_out_examples),
            f"{figures.held_out_loss_before:.3f}", f"{figures.held_out_loss_after:.3f}", f"{change:+.0%}",
        )  # fmt: skip
    out().print(table)
    run = result.run
    note(
        f"{run.steps} steps in {run.seconds:.0f} s, {run.tokens_per_s:,.0f} tok/s ({run.supervised_tokens_per_s:,.0f}"
        f" supervised), {run.dtype}, peak {run.peak_rss_mb:,.0f} MB"
    )
    if run.best_step != run.steps:
        note(f"the adapter is that of step {run.best_step}, where the held-out loss was lowest")
    click.echo(str(result.output))


@click.group(context_settings=HELP)
@click.pass_context
def train(context: click.Context) -> None:
    """Train LoRA adapters, tokenizers and small models from scratch on the CPU."""
    if context.invoked_subcommand != tokenizer.name:  # which does without torch
        prepare_process()


for _command in (estimate, tokenizer, scratch, reader):
    train.add_command(_command)


@train.command(context_settings=HELP)
@BASE
@DATA
@OUTPUT
@training_options(sft=False)
@JSON
@pass_joints
def lora(joints: Joints, /, base: str, data: tuple[Path, ...], output: Path, as_json: bool, **values: Any) -> None:
    """Adapt a base to running text (plain files, or JSONL with "text").

    \b
    Example:
      slm train lora --base gemma-3-270m --data data/en.txt -o adapters/en
    """
    folder, values = opened_base(joints, base, values)
    report(run_training(sft=False, base=folder, data=data, output=output, values=values), as_json=as_json)


@train.command(context_settings=HELP)
@BASE
@DATA
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.")
@training_options(sft=True)
@click.option(
    "--show-masks",
    type=click.IntRange(1),
    help="Only show this many examples, learned tokens between ⟦ ⟧.",
)
@JSON
@pass_joints
def sft(
    joints: Joints,
    /,
    base: str,
    data: tuple[Path, ...],
    output: Path | None,
    show_masks: int | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Teach a base to answer, from JSONL conversations (messages, ShareGPT, alpaca, prompt/completion).

    Only the answers are learned, with the marker that ends them. Plain texts may be among the data (text files, or
    JSONL with "text"): of them every token is learned.

    \b
    Example:
      slm train sft --base gemma-3-270m --data data/instruct.jsonl --lang ja -o adapters/ja
    """
    if show_masks:
        from slm.terminal.console import out
        from train.data.show import show_masks as masks

        folder = first_then_others(lambda: joints.checkpoint_of(base))
        options = TrainOptions(base=folder, data=tuple(data), output=output or Path("unused"), **values)
        for text in masks(options, show_masks):
            out().print(text, end="\n\n", soft_wrap=True, emoji=False)
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    folder, values = opened_base(joints, base, values)
    report(run_training(sft=True, base=folder, data=data, output=output, values=values), as_json=as_json)


@click.command(context_settings=HELP)
@BASE
@click.option("--adapter", "adapters", required=True, multiple=True, type=click.Path(path_type=Path),
              help="Adapter folder or GGUF file; several are added up.")  # fmt: skip
@click.option("--weight", "weights", multiple=True, type=FLOAT, help="Of each --adapter, in order.  [default: 1 each]")
@OUTPUT
@JSON
@pass_joints
def merge(
    joints: Joints, /, base: str, adapters: tuple[Path, ...], weights: tuple[float, ...], output: Path, as_json: bool
) -> None:
    """Fold adapters into their base: a checkpoint folder (float32) that needs no adapter.

    \b
    Example:
      slm merge --base gemma-3-270m --adapter adapters/ja -o exports/ja-merged
      slm merge --base gemma-3-270m --adapter adapters/en --weight 0.5 --adapter adapters/ja --weight 0.7 -o exports/m
    """
    from train.adapter.merge import merge as merge_folders

    folder = joints.checkpoint_of(base)
    result = merge_folders(folder, [joints.adapter_of(adapter, folder) for adapter in adapters], output, weights)
    show_merge(result.output, result.size_bytes, result.parameters, result.fingerprint, as_json=as_json)


def show_merge(output: Path, size_bytes: int, parameters: int, fingerprint: str, *, as_json: bool) -> None:
    """What a merge made, on stdout."""
    from slm.terminal.console import emit_json, note

    if as_json:
        figures = {"size_bytes": size_bytes, "parameters": parameters, "fingerprint": fingerprint}
        emit_json({"output": str(output)} | figures)
        return
    note(f"{parameters / 1e6:,.0f} M parameters, {size_bytes / 1e6:,.0f} MB")
    click.echo(str(output))
