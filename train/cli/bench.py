"""The command `slm bench train`: how the measured figures are shown, not how they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm.joints import Joints, pass_joints
from slm.terminal.arguments import FLOAT, FiniteRange
from slm.terminal.console import emit_json, out

_MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
_PEERS = ("trainer", "trl", "trl-defaults")


@click.command("train", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", "models", multiple=True, default=_MODELS, show_default=True, help="Repeatable.")
@click.option("--data", type=click.Path(path_type=Path), default=Path("data/instruct.jsonl"), show_default=True,
              help="Conversations (JSONL), repeated and shuffled.")  # fmt: skip
@click.option("--peer", "peers", multiple=True, type=click.Choice(_PEERS), default=_PEERS, show_default=True,
              help="Repeatable.")  # fmt: skip
@click.option("--no-peers", is_flag=True, help="Only ours.")
@click.option("--steps", type=click.IntRange(0), default=30, show_default=True, help="0: as --seconds allows.")
@click.option("--seconds", type=FiniteRange(0), default=0.0, help="Of training, of each; 0: --steps.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Medians over so many.")
@click.option("--time-limit-s", type=FiniteRange(0, min_open=True), default=240.0, show_default=True,
              help="A contender is ended after so much, loading and measuring included.")  # fmt: skip
@click.option("--examples", type=click.IntRange(2), default=2000, show_default=True, help="Of the repeated data.")
@click.option("--longest", type=click.IntRange(8), default=1024, show_default=True,
              help="Leave out examples of more tokens: padded logits of long ones take many GB.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--lr", "learning_rate", type=FLOAT, default=5e-4, show_default=True, help="Constant.")
@click.option("--rank", type=click.IntRange(1), default=8, show_default=True)
@click.option("--alpha", type=FLOAT, default=16.0, show_default=True)
@click.option("--top-layers", type=click.IntRange(0), default=0, help="Also adapt only so many, for two epochs.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_joints
def bench_train(
    joints: Joints, /, models: tuple[str, ...], peers: tuple[str, ...], no_peers: bool, as_json: bool, **values: Any
) -> None:
    """Supervised tokens a second, memory and held-out loss of `slm train sft` beside Trainer + PEFT and TRL.

    Everyone trains LoRA on q and v on the same token ids and labels, with the same batch size and learning rate,
    one after the other, each in a process of its own. trl-defaults is TRL as it comes.

    \b
    Example:
      slm bench train --model smollm2-135m-instruct --steps 30 --rounds 3
    """
    if not values["steps"] and not values["seconds"]:
        raise click.UsageError("--steps 0 needs --seconds.")
    folders = [joints.checkpoint_of(model) for model in models]
    from train.bench.run import TrainBenchOptions, bench_training

    chosen = () if no_peers else peers
    results = [
        {**bench_training(folder, chosen, TrainBenchOptions(**values)), "model": Path(model).name}
        for model, folder in zip(models, folders, strict=True)
    ]
    if as_json:
        emit_json({"trainings": results})
        return
    for result in results:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for column in ("supervised\ntok/s", "tok/s", "times", "peak\nMB", "steps", "s", "held-out\nloss"):
        table.add_column(column, justify="right")
    for one in result["contenders"]:
        table.add_row(
            one["name"],
            _figure(one["supervised_tokens_per_s"], "{:,.1f}"),
            _figure(one["tokens_per_s"], "{:,.0f}"),
            _figure(one["times_faster"], "{:.2f}"),
            _figure(one["peak_rss_mb"], "{:,.0f}"),
            f"{one['steps']:g}" if one["steps"] else "not one",
            _figure(one["seconds"], "{:,.1f}"),
            _figure(one["held_out_loss"], "{:.4f}"),
        )
    out().print(table)
    data, options = result["data"], result["options"]
    click.echo(
        f"{result['model']}: {data['examples']:,} examples of {data['tokens_mean']:g} tokens in the mean, longest "
        f"{data['tokens_longest']}, {data['supervised_share']:.1%} supervised; batches of {options['batch_size']}, "
        f"rank {options['rank']}; medians of {options['rounds']} rounds"
    )
    for one in result["contenders"]:
        if one["error"]:
            click.echo(f"{one['name']}: failed with: {one['error']}")
        elif not one["completed"]:
            click.echo(f"{one['name']}: ended after {options['time_limit_s']:g} s")
    for line in result["missing"]:
        click.echo(line)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
