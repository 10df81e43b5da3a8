"""The options that the commands of a model share: generate, chat, serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from serve.child.schedule import LONGEST_DRAFT
from slm.joints import SamplingOptions
from slm.models.model_argument import is_model_folder
from slm.paths import at_home
from slm.terminal.arguments import NAMED_FILE, FiniteRange
from slm.terminal.asking import with_reader

HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
_F = TypeVar("_F", bound=Callable[..., Any])


def group_of(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Several options as one decorator; the help lists them in this order."""

    def apply(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


with_adapters = click.option(
    "--adapter", "adapters", type=NAMED_FILE, multiple=True,
    help="A LoRA adapter (GGUF) and the name it answers to; may be given several times.",
)  # fmt: skip
with_wanted = click.option(
    "-m", "wanted", metavar="NAME", help="Adapter's name, 'base', or 'auto' (by language; default)."
)
with_threads = click.option("--threads", type=click.IntRange(0, 512), default=0, help="0: one for each physical core.")
with_context = click.option(
    "--context", type=click.IntRange(64, 1 << 20), default=4096, show_default=True, help="Tokens of prompt and answer."
)

with_documents = group_of(
    click.option("--default-adapter", metavar="NAME", help="Who answers text in no adapter's language; else the base."),
    click.option("--rag", "index", metavar="INDEX", help='Index for requests with `"rag": true`.'),
    with_reader,
    click.option(
        "--rag-as", "viewer", multiple=True, metavar="NAME",
        help="Who asks where a request does not say (user:NAME, group:NAME) [default: nobody: no restricted page].",
    ),
)  # fmt: skip
with_drafts = click.option(
    "--draft-max", type=click.IntRange(0, LONGEST_DRAFT), default=LONGEST_DRAFT, show_default=True,
    help="Tokens tried at once where an answer repeats what was said before; 0: none.",
)  # fmt: skip


def check_viewer(index: str | None, viewer: tuple[str, ...]) -> None:
    """Raise click.UsageError for somebody who asks an index that is not there."""
    if viewer and not index:
        raise click.UsageError("--rag-as says who asks the index; name one with --rag INDEX.")


def model_everywhere(model: str) -> str:
    """How other machines are told of MODEL: a file's or folder's whole path, a name as it is, since each of them has
    a data folder of its own."""
    path = at_home(model)
    return str(path.resolve()) if path.is_file() or is_model_folder(path) else model


def with_sampling(temperature: str) -> Callable[[_F], _F]:
    """Options of how tokens are chosen, for `sampling_of`. temperature: the command's default in the help's words."""
    return group_of(
        click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer."),
        click.option("--temperature", type=FiniteRange(0, 5), help=f"0 is greedy [default: {temperature}]."),
        click.option("--top-p", type=FiniteRange(0, 1, min_open=True), default=0.95, show_default=True),
        click.option("--top-k", type=click.IntRange(0), default=40, show_default=True),
        click.option("--min-p", type=FiniteRange(0, 1), default=0.05, show_default=True),
        click.option("--repeat-penalty", type=FiniteRange(0.1, 10), default=1.0, show_default=True),
        click.option("--seed", type=int, default=0, show_default=True),
    )


def sampling_of(values: dict[str, Any], *, temperature: float, stop: tuple[str, ...] = ()) -> SamplingOptions:
    """What the options of `with_sampling` ask for; temperature: the command's own, where none was given."""
    given = values.pop("temperature")
    return SamplingOptions(temperature=temperature if given is None else given, stop=stop, **values)
