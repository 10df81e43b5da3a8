"""Continue or answer a prompt from a checkpoint folder, with or without an adapter.

A thin door: the work is in the `train` room. For GGUF models there is `slm generate`.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed

import click

from slm.terminal.arguments import TEXT, ListsCommand
from slm.terminal.console import run
from slm_cli import Roof
from train.cli.train import generation_options

# Every flag may be written with underscores or hyphens.
_SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda name: name.replace("_", "-")}


@click.command(cls=ListsCommand, context_settings=_SETTINGS)
@click.option("--base", "--model_path", required=True, type=click.Path(path_type=Path), help="Checkpoint folder.")
@click.option("--adapter", type=click.Path(path_type=Path), help="Adapter folder or GGUF file.")
@click.option("--prompt", "-p", required=True, type=TEXT, help="The text to continue, or the question.")
@click.option("--chat/--no-chat", default=None, help="Ask as a user's turn [default: if there is a chat template].")
@generation_options
def main(base: Path, adapter: Path | None, prompt: str, chat: bool | None, **values: Any) -> None:
    """Continue or answer a prompt; the text is printed as it is made.

    \b
    Example:
      python scripts/generate.py --base DIR --adapter adapters/en_lora --prompt "Write a haiku about teamwork"
    """
    from train.adapter.sample import GenerateOptions, open_generator

    options = GenerateOptions(**values)
    folder = adapter and Roof().adapter_of(adapter, base)
    for piece in open_generator(base, folder).stream(prompt, options, chat=chat):
        click.echo(piece, nl=False)
    click.echo()


if __name__ == "__main__":
    run(main)
