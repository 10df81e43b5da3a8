"""Choose the adapter by the language of the prompt, then generate.

A thin door: the work is in the `train` room and in `slm.text.language`. For GGUF models there is `slm generate -m
auto`.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed

import click

from slm.terminal.arguments import NAMED_FOLDER, TEXT, ListsCommand, all_of_each
from slm.terminal.console import note, run
from train.cli.train import generation_options

# Every flag may be written with underscores or hyphens.
_SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda name: name.replace("_", "-")}


@click.command(cls=ListsCommand, context_settings=_SETTINGS)
@click.option("--base", "--model_path", required=True, type=click.Path(path_type=Path), help="Checkpoint folder.")
@click.option("--prompt", "--text", "-p", required=True, type=TEXT, help="The text to continue, or the question.")
@click.option("--adapters", "--adapter", required=True, multiple=True, type=NAMED_FOLDER, help="One or several.")
@click.option("--default", help="Adapter for a text whose language is undecided [default: the first].")
@click.option("--chat/--no-chat", default=None, help="Ask as a user's turn [default: if there is a chat template].")
@generation_options
def main(
    base: Path,
    prompt: str,
    adapters: tuple[tuple[str, Path], ...],
    default: str | None,
    chat: bool | None,
    **values: Any,
) -> None:
    """Choose the adapter by the prompt's language (said on stderr), then generate.

    \b
    Example:
      python scripts/router.py --base DIR --adapters en=adapters/en_lora ja=adapters/ja_lora \\
        --prompt "会議の案内文を書いてください"
    """
    from train.adapter.sample import GenerateOptions, open_generator, route

    options = GenerateOptions(**values)
    chosen = route(prompt, all_of_each(adapters), default)
    note(f"adapter: {chosen.name} ({chosen.reason})")
    for piece in open_generator(base, chosen.folder).stream(prompt, options, chat=chat):
        click.echo(piece, nl=False)
    click.echo()


if __name__ == "__main__":
    run(main)
