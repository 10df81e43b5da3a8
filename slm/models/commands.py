"""The commands of the ground: pull, models, rm. It knows nothing of what the models are used for."""

from __future__ import annotations

import shutil
import sys

import click

from slm.terminal.piped import is_terminal

_HELP = {"help_option_names": ["-h", "--help"]}


def _ask(question: str) -> bool:
    return click.confirm(question, default=False, err=True)


@click.command(context_settings=_HELP)
@click.argument("name")
@click.option(
    "--from", "source", type=click.Choice(["hub", "package"]), help="Only this source [default: hub, then package]."
)
@click.option("--accept-license", is_flag=True, help="Accept the model's licence terms without being asked.")
@click.option("--json", "as_json", is_flag=True, help="Its name and path as one JSON object.")
def pull(name: str, source: str | None, accept_license: bool, as_json: bool) -> None:
    """Download a model: a NAME of `slm models`, or a hub id (owner/name).

    \b
    Example:
      slm pull smollm2-135m-instruct
      slm pull gemma-3-270m --accept-license
    """
    from slm.models.fetch import pull as pull_model
    from slm.terminal.console import emit_json

    ask = _ask if is_terminal() and sys.stderr.isatty() else None
    path = pull_model(name, source, accept_license, ask)
    if as_json:
        emit_json({"name": name, "path": str(path)})
    else:
        click.echo(path)


@click.command(context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def models(as_json: bool) -> None:
    """List the models with a name, and which are here.

    \b
    Example:
      slm models
    """
    from slm.models.catalog import CATALOG, all_pulled, entry_of
    from slm.terminal.console import emit_json

    pulled = {model.name: model for model in all_pulled()}
    rows = []
    for name in [*CATALOG, *(name for name in pulled if name not in CATALOG)]:
        entry, here = entry_of(name), pulled.get(name)
        rows.append(
            {
                "name": name,
                "what": entry.what,
                "path": str(here.path) if here else None,
                "pulled": here is not None,
                "size_bytes": here.size_bytes if here else None,
                "licence": entry.licence.name,
                "sources": ["hub", *(["package"] if entry.package else [])],
                "summary": entry.summary,
            }
        )
    if as_json:
        emit_json({"models": rows})
        return
    wide = shutil.get_terminal_size().columns >= 130
    table = [["name", "what", "pulled", "licence", "from", *(["summary"] if wide else [])]]
    for row in rows:
        size = row["size_bytes"]
        state = f"{size / 1e6:,.0f} MB" if isinstance(size, int) and size else "yes" if row["pulled"] else "no"
        sources = ", ".join(row["sources"]) if isinstance(row["sources"], list) else ""
        cells = [str(row["name"]), str(row["what"]), state, str(row["licence"]), sources]
        table.append([*cells, *([str(row["summary"])] if wide else [])])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:  # rich would take longer to import than all the rest takes
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


@click.command(context_settings=_HELP)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="What was freed as one JSON object.")
def rm(name: str, as_json: bool) -> None:
    """Remove a pulled model from this machine.

    \b
    Example:
      slm rm smollm2-135m-instruct
    """
    from slm.models.fetch import remove
    from slm.terminal.console import emit_json

    freed = remove(name)
    if as_json:
        emit_json({"name": name, "freed_bytes": freed})
    else:
        click.echo(f"removed {name}: {freed / 1e6:,.0f} MB freed")
