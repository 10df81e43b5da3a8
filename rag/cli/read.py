"""The command `slm rag read`: what files are read as, without an index. How each kind is read is in rag/sources."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from rag.cli.evaluate import HELP, JSON

COMMENTS = click.option("--comments", is_flag=True, help="With the comments on pages of Confluence.")
BASE_URL = click.option(
    "--base-url", default="", metavar="URL", help="The site that an export is from, for links to its pages."
)


@click.command(context_settings=HELP)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@COMMENTS
@BASE_URL
@JSON
def read(paths: tuple[Path, ...], comments: bool, base_url: str, as_json: bool) -> None:
    """Show what files, folders and exports of Confluence are read as, in Markdown: what an index would hold of them.

    \b
    Example:
      slm rag read data/handbook/en/03-overtime.md
    """
    from rag.sources.files import MOST_TOLD, nothing_read, read_files
    from rag.sources.reader import ReadOptions, markdown_of
    from slm.terminal.console import emit_json, note
    from slm.text.visible import one_line

    reading = read_files(paths, none_ok=True, wanted=ReadOptions(comments, base_url))
    if as_json:
        emit_json(
            {
                "documents": [
                    {
                        **asdict(document.meta), "id": document.meta.id or document.source, "title": document.title,
                        "source": document.source, "lang": document.lang, "text": markdown_of(document),
                    }
                    for document in reading.documents
                ],
                "skipped": [{"path": str(skipped.path), "reason": skipped.reason} for skipped in reading.skipped],
                "notes": [{"source": noted.source, "note": noted.text} for noted in reading.notes],
            }
        )  # fmt: skip
        return
    told = not reading.documents and len(reading.skipped) <= MOST_TOLD  # the error names them
    for skipped in [] if told else reading.skipped:
        note(f"skipped {one_line(str(skipped.path))}: {skipped.reason}")
    for noted in reading.notes:
        note(f"{one_line(noted.source)}: {noted.text}")
    if not reading.documents:
        raise nothing_read(paths, reading)
    for document in reading.documents:
        if len(reading.documents) > 1:
            click.echo(f"<!-- {one_line(document.source)} -->\n")
        click.echo(markdown_of(document))
