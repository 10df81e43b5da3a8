"""The command `slm rag copy`. What a store gives and takes is said in rag/stores/interface.py."""

from __future__ import annotations

import click

from rag.cli.evaluate import HELP, JSON
from rag.cli.wording import WORDS


@click.command(context_settings=HELP)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@WORDS
@JSON
def copy(source: str, target: str, words: str | None, as_json: bool) -> None:
    """Copy an index to another store, or to another name, without embedding anything again.

    Both are names, paths or addresses of PostgreSQL. TO must not be there yet, and is there whole or not at all. What
    FROM was made of (its files, folders and spaces) is known to TO as well, so that a sync goes on with it. Words are
    found anew, as FROM has them or as --words says.

    \b
    Example:
      slm rag copy handbook "postgresql://slm@db.example.com/search?index=handbook"
      slm rag copy "postgresql://slm@db.example.com/search?index=handbook" backup
      slm rag copy handbook handbook-words --words sudachi
    """
    from rag.stores.named import open_store
    from slm.terminal.console import counted, emit_json, progress

    origin, goal = open_store(source), open_store(target, words)
    with origin.contents() as contents, progress("copying", total=100, unit="%") as done:
        chunks = goal.fill(contents, lambda number, size: done(100 * number / max(1, size)))
    result = {"from": origin.name, "to": goal.name, "documents": contents.size, "chunks": chunks}
    if as_json:
        emit_json(result)
        return
    click.echo(f"{counted(contents.size, 'document')} in {counted(chunks, 'chunk')} copied to {goal.name}")
