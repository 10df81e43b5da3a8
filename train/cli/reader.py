"""The command `slm train reader`. How it trains is in train/run/reader/."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from slm.joints import Joints, pass_joints
from slm.terminal.arguments import FLOAT
from train.cli.options import BASE, DATA, FROM_ADAPTER, HELP, JSON, OUTPUT, PATH, RUN_OPTIONS, opened_base, with_options
from train.config import TrainOptions
from train.ranks import rank

READER_DEFAULTS: dict[str, Any] = {
    **{name: field.default for name, field in TrainOptions.__dataclass_fields__.items()},
    "epochs": 3.0, "learning_rate": 1e-3, "rank": 32, "batch_size": 8, "checkpointing": "off",
}  # fmt: skip
_OPTIONS = [
    click.option("--eval-data", multiple=True, required=True, type=PATH, help="Held-out questions; repeatable."),
    click.option("--targets", help="Layers to adapt: qv, attention, all, or a list of names."),
    click.option("--rank", type=int, help="Rank of the update."),
    click.option("--alpha", type=FLOAT, help="Scale: the update is multiplied by alpha / rank."),
    FROM_ADAPTER,
    click.option("--checkpointing", type=click.Choice(["on", "off"]), help="Trade time for memory."),
    click.option("--lr", "learning_rate", type=FLOAT, help="Peak learning rate."),
    click.option("--max-steps", type=int, help="Steps instead of --epochs; 0: by epochs."),
    click.option("--batch-size", type=int, help="Questions in one pass."),
    click.option("--eval-every", type=int, help="Steps between held-out losses; 0: only before and after."),
    *RUN_OPTIONS,
]


@click.command(context_settings=HELP)
@BASE
@DATA
@OUTPUT
@partial(with_options, options=_OPTIONS, defaults=READER_DEFAULTS)
@JSON
@pass_joints
def reader(joints: Joints, /, base: str, data: tuple[Path, ...], output: Path, as_json: bool, **values: Any) -> None:
    """Teach a base to judge which lines of a passage answer a question, from examples that scripts/reader.py makes.

    \b
    Example:
      slm train reader --base gemma-3-270m --data train.jsonl --eval-data development.jsonl -o adapters/reader
    """
    from slm.terminal.console import emit_json, note

    folder, values = opened_base(joints, base, values)
    options = TrainOptions(base=folder, data=tuple(data), output=output, **values)
    from train.run.reader.run import train_reader

    result = train_reader(options)
    if rank():
        return
    if as_json:
        emit_json({"output": str(output)} | result.as_json())
        return
    note(
        f"{result.run.steps} steps in {result.run.seconds:.0f} s, {result.run.tokens_per_s:,.0f} tok/s; held-out loss "
        f"{result.held_out_loss_before:.3f} -> {result.held_out_loss_after:.3f} nats per question"
    )
    click.echo(str(output))
