"""What the training commands share: their options, and how values become files. It knows nothing of the commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from slm.joints import Joints
from slm.terminal.arguments import FLOAT
from train.config import CAUSAL_DEFAULTS, CHECKPOINTING, DTYPES, SCHEDULES, TrainOptions
from train.ranks import first_then_others

_F = TypeVar("_F", bound=Callable[..., Any])

HELP = {"help_option_names": ["-h", "--help"]}
PATH = click.Path(path_type=Path)
BASE = click.option("--base", required=True, help="Checkpoint folder, catalog name, or GGUF file (restored first).")
DATA = click.option("--data", required=True, multiple=True, type=PATH, help="Repeatable.")
OUTPUT = click.option("-o", "--output", required=True, type=PATH, help="Folder to write.")
JSON = click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
FROM_ADAPTER = click.option(
    "--from-adapter",
    type=PATH,
    help="Go on with the weights of this adapter (folder or GGUF file) of the same base, rank and layers.",
)
# What every kind of training run has (`train.config.check_run`); their defaults are each kind's own.
RUN_OPTIONS = [
    click.option("--warmup", "warmup_fraction", type=FLOAT, help="Share of the steps that warm up."),
    click.option("--epochs", type=FLOAT, help="Passes over the data."),
    click.option("--seed", type=int, help="Of new weights, of what is held out, and of the order."),
    click.option("--dtype", type=click.Choice(DTYPES), help="auto: bfloat16 products where they are faster."),
    click.option(
        "--time-limit-s",
        type=FLOAT,
        help="End after this time and keep what was learned; the schedule follows it. 0: none.",
    ),
    click.option("--threads", type=int, help="0: the physical cores."),
    click.option("--save-every-s", type=FLOAT, help="Seconds between checkpoints to resume from; 0: none."),
    click.option("--resume", is_flag=True, help="Go on where this run was broken off."),
    click.option("--fresh", is_flag=True, help="Start anew, without the checkpoints of a run broken off."),
]


def opened_base(joints: Joints, base: str, values: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The base's checkpoint folder, and the values with the folder of the adapter to go on with; each made once."""

    def folders() -> tuple[Path, dict[str, Any]]:
        folder = joints.checkpoint_of(base)
        return folder, with_adapter(joints, folder, values)

    return first_then_others(folders)


def with_adapter(joints: Joints, base: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a run with its --from-adapter as a PEFT folder for the base's checkpoint folder."""
    adapter: Path | None = values.get("from_adapter")
    return values if adapter is None else {**values, "from_adapter": joints.adapter_of(adapter, base)}


def training_options(*, sft: bool) -> Callable[[_F], _F]:
    """The options that `slm train lora`, `slm train sft` and the scripts share, with the defaults of the kind."""
    default = {name: field.default for name, field in TrainOptions.__dataclass_fields__.items()}
    if not sft:
        default |= CAUSAL_DEFAULTS
    options = [
        click.option("--lang", help="Only examples of this language (lines without one count as this)."),
        click.option("--weight", "weights", multiple=True, type=FLOAT, help="How often each --data counts, in order."),
        click.option("--eval-data", multiple=True, type=PATH, help="Held-out data of your own; repeatable."),
        click.option("--eval-fraction", type=FLOAT, help="Share of each language that is held out."),
        click.option("--targets", help="Layers to adapt: qv, attention, all, or a list of names."),
        click.option("--rank", type=int, help="Rank of the update."),
        click.option("--alpha", type=FLOAT, help="Scale: the update is multiplied by alpha / rank."),
        FROM_ADAPTER,
        click.option("--dropout", type=FLOAT, help="Dropout in front of the adapter."),
        click.option("--rslora/--no-rslora", help="Scale by alpha / sqrt(rank) instead."),
        click.option("--dora/--no-dora", help="Learn magnitude and direction apart (DoRA)."),
        click.option("--pissa/--no-pissa", help="Begin at the principal singular vectors (PiSSA)."),
        click.option("--lora-plus", type=FLOAT, help="B learns this many times faster than A (LoRA+)."),
        click.option(
            "--neftune", type=FLOAT, help="NEFTune's alpha: noise on the embeddings of padded batches; 0: none."
        ),
        click.option("--top-layers", type=int, help="Adapt only the top layers; the rest is computed once. 0: all."),
        click.option("--pack/--no-pack", help="Put the sequences of a step end to end, without padding."),
        click.option("--share-prefix/--no-share-prefix", help="Compute a step's common beginnings once."),
        click.option("--fuse/--no-fuse", help="Compute layers that read the same input together, in float32."),
        click.option("--checkpointing", type=click.Choice(CHECKPOINTING), help="Trade time for memory."),
        click.option("--lr", "learning_rate", type=FLOAT, help="Peak learning rate."),
        click.option("--schedule", type=click.Choice(SCHEDULES), help="Learning rate after the warm-up."),
        click.option("--weight-decay", type=FLOAT, help="Weight decay of AdamW."),
        click.option("--max-steps", type=int, help="Steps instead of --epochs; 0: by epochs."),
        click.option("--batch-size", type=int, help="Sequences in one pass."),
        click.option("--accumulate", type=int, help="Passes added up to one step."),
        click.option("--max-length", type=int, help="Longest sequence, in tokens."),
        click.option("--eval-every", type=int, help="Steps between held-out losses; 0: only before and after."),
        click.option("--patience", type=int, help="End after so many without a better one; the best is kept."),
        *RUN_OPTIONS,
        click.option("--tensorboard/--no-tensorboard", help="Write TensorBoard's event files as well."),
    ]
    if sft:
        options += [
            click.option("--template", help="Chat template: chatml, gemma, alpaca  [default: the base's own]"),
            click.option("--drop-long", is_flag=True, help="Leave out examples longer than --max-length."),
        ]

    return partial(with_options, options=options, defaults=default)


def with_options(function: _F, *, options: Sequence[Callable[[_F], _F]], defaults: Mapping[str, Any]) -> _F:
    """The function with these click options, each showing the default of the field that it fills."""
    for option in reversed(options):
        function = option(function)
    for parameter in function.__click_params__:  # type: ignore[attr-defined]
        value = defaults.get(parameter.name)
        if isinstance(value, (int, float, str)) and not parameter.multiple:
            parameter.default = value
            parameter.show_default = not getattr(parameter, "is_flag", False)
    return function
