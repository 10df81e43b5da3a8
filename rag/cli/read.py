"""The command `slm rag read`: what files are read as, without an index. How each kind is read is in rag/sources."""

from __future__ import annotations

from pathlib import Path

import click

from rag.cli.evaluate import HELP, JSON


@click.command(context_settings=HELP)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@JSON
def read(paths: tuple[Path, ...], as_json: bool) -> None:
    """Show what files and folders are read as, in Markdown: what an index would hold of them.

    \b
    Example:
      slm rag read data/handbook/en/03-overtime.md
    """
    from rag.sources.files import nothing_read, read_files
    from rag.sources.reader import markdown_of
    from slm.terminal.console import emit_json, note
    from slm.text.visible import one_line

    reading = read_files(paths, none_ok=True)
    if as_json:
        emit_json(
            {
                "documents": [
                    {
                        "id": document.source, "title": document.title, "url": "", "space": "", "labels": [],
                        "ancestors": [], "lang": document.lang, "text": markdown_of(document),
                    }
                    for document in reading.documents
                ],
                "skipped": [{"path": str(skipped.path), "reason": skipped.reason} for skipped in reading.skipped],
                "notes": [{"source": noted.source, "note": noted.text} for noted in reading.notes],
            }
        )  # fmt: skip
        return
    for skipped in reading.skipped:
        note(f"skipped {one_line(str(skipped.path))}: {skipped.reason}")
    for noted in reading.notes:
        note(f"{one_line(noted.source)}: {noted.text}")
    if not reading.documents:
        raise nothing_read(paths, reading)
    for document in reading.documents:
        if len(reading.documents) > 1:
            click.echo(f"<!-- {one_line(document.source)} -->\n")
        click.echo(markdown_of(document))
