"""Teach a checkpoint to answer, from JSONL conversations (alpaca, ShareGPT, messages): `slm train sft`.

A thin door: the work is in the `train` room.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed

import click

from slm.terminal.arguments import ListsCommand
from slm.terminal.console import run
from slm_cli import Roof
from train.cli.options import training_options, with_adapter
from train.cli.train import report, run_training

# Every flag may be written with underscores or hyphens.
_SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda name: name.replace("_", "-")}


@click.command(cls=ListsCommand, context_settings=_SETTINGS)
@click.option("--model_path", required=True, type=click.Path(path_type=Path), help="Checkpoint folder of the base.")
@click.option("--train_file", required=True, multiple=True, type=click.Path(path_type=Path), help="Repeatable.")
@click.option("--output_dir", required=True, type=click.Path(path_type=Path), help="Adapter folder to write.")
@training_options(sft=True)
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
def main(model_path: Path, train_file: tuple[Path, ...], output_dir: Path, as_json: bool, **values: Any) -> None:
    """Teach a checkpoint to answer, from JSONL conversations (alpaca, ShareGPT, messages): `slm train sft`.

    \b
    Example:
      python scripts/train_sft_lora.py --model_path DIR --train_file data/instruct.jsonl \\
        --output_dir adapters/en_sft --lang en
    """
    values = with_adapter(Roof(), model_path, values)
    result = run_training(sft=True, base=model_path, data=train_file, output=output_dir, values=values)
    report(result, as_json=as_json)


if __name__ == "__main__":
    run(main)
