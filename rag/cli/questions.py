"""The command `slm rag questions`: a first questions file for an index of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from rag.cli.evaluate import HELP, JSON


@click.command(context_settings=HELP)
@click.argument("index")
@click.option("--out", type=click.Path(path_type=Path), help="A new JSON Lines file [default: stdout].")
@click.option("--most", default=200, show_default=True, type=click.IntRange(1), help="At most so many questions.")
@JSON
def questions(index: str, out: Path | None, most: int, as_json: bool) -> None:
    """Make a first questions file from titles and headings, for `slm rag evaluate --questions`.

    Each question is a title or a heading with text under it, and its right answer the page it stands on; what stands on
    more than three pages is left out. Headings are searched too, so that these are easy questions: change them to
    the words people use, and add some that no page answers ("relevant": [], "answerable": false).

    \b
    Example:
      slm rag questions handbook --out questions.jsonl
      slm rag evaluate handbook --questions questions.jsonl
    """
    import json

    from rag.evaluate.headings import questions_of
    from rag.stores.named import open_store
    from slm.artifacts import new_file
    from slm.errors import InputError
    from slm.terminal.console import emit_json, note

    if out is not None and out.exists():
        raise InputError(f"'{out}' is there already, perhaps with questions of yours", hint="Name another file.")
    with open_store(index).opening() as opened, opened.now() as held:
        asked = questions_of(held.chunks, most)
        found = f"{len(held.documents)} documents in {len(held.chunks)} chunks"
    if not asked:
        raise InputError(
            f"the index '{index}' has no title or heading of its own with text under it",
            found=found,
            hint="Write questions by hand; docs/evaluation.md shows a line.",
        )
    lines = "".join(json.dumps(one.as_row(), ensure_ascii=False) + "\n" for one in asked)
    if out is not None:
        with new_file(out) as file:
            file.write_text(lines, encoding="utf-8")
    if as_json:
        emit_json({"path": str(out) if out else None, "questions": [one.as_row() for one in asked]})
    elif out is None:
        click.echo(lines, nl=False)
    note(f"{len(asked)} questions from {len({source for one in asked for source in one.relevant})} documents")
