"""Fold adapters into their base checkpoint: `slm merge`. A thin door: the work is in the `train` room."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed

import click

from slm.terminal.arguments import FLOAT, ListsCommand
from slm.terminal.console import run
from slm_cli import Roof
from train.cli.train import show_merge

# Every flag may be written with underscores or hyphens.
_SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda name: name.replace("_", "-")}


@click.command(cls=ListsCommand, context_settings=_SETTINGS)
@click.option("--base", "--model_path", required=True, type=click.Path(path_type=Path), help="Checkpoint folder.")
@click.option("--adapter", "--adapter_path", "adapters", required=True, multiple=True, type=click.Path(path_type=Path),
              help="Adapter folder or GGUF file; several are added up.")  # fmt: skip
@click.option("--weight", "weights", multiple=True, type=FLOAT, help="Of each --adapter, in order.  [default: 1 each]")
@click.option("--output_dir", "-o", required=True, type=click.Path(path_type=Path), help="Checkpoint folder to write.")
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
def main(base: Path, adapters: tuple[Path, ...], weights: tuple[float, ...], output_dir: Path, as_json: bool) -> None:
    """Fold adapters into their base: a checkpoint folder (float32) that needs no adapter.

    \b
    Example:
      python scripts/merge_lora.py --base DIR --adapter adapters/en_lora --output_dir exports/en_merged
    """
    from train.adapter.merge import merge

    made = merge(base, [Roof().adapter_of(adapter, base) for adapter in adapters], output_dir, weights)
    show_merge(made.output, made.size_bytes, made.parameters, made.fingerprint, as_json=as_json)


if __name__ == "__main__":
    run(main)
