"""The commands `slm rag ...` that fill an index, take documents out of it and tell of it; and the group of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rag.cli.ask import ask, search
from rag.cli.copy import copy
from rag.cli.evaluate import HELP as _HELP
from rag.cli.evaluate import JSON as _JSON
from rag.cli.evaluate import evaluate
from rag.cli.questions import questions
from rag.cli.read import BASE_URL, COMMENTS, read
from rag.cli.spread import ON, workers
from rag.cli.sync import sync
from rag.cli.wording import WORDS
from slm.terminal.answer import shown_path
from slm.text.address import shown_address

_NAMED_FILES = 10


@click.group(context_settings=_HELP)
def rag() -> None:
    """Index documents, search them, and ask a model about them with citations.

    INDEX is a name, kept in the data folder, a path, or an index in PostgreSQL: postgresql://user@host/db?index=NAME.

    \b
    Example:
      slm rag add handbook data/handbook
      slm rag ask handbook "When do I have to be in the office?"
    """


rag.add_command(ask)
rag.add_command(copy)
rag.add_command(evaluate)
rag.add_command(questions)
rag.add_command(read)
rag.add_command(search)
rag.add_command(sync)


@rag.command(context_settings=_HELP)
@click.argument("index")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--embedder", metavar="NAME|FILE",
    help="Embedder for a new index: a name, a GGUF file or a checkpoint folder [default: multilingual-e5-small].",
)  # fmt: skip
@WORDS
@click.option("--fresh", is_flag=True, help="Make the index anew from these paths alone, also when it is damaged.")
@click.option("--yes", is_flag=True, help="Forget documents that are gone even if that is most of a folder.")
@COMMENTS
@BASE_URL
@ON
@_JSON
def add(
    index: str, paths: tuple[Path, ...], embedder: str | None, words: str | None, fresh: bool, yes: bool,
    comments: bool, base_url: str, address: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Add files, folders of them, or exports of Confluence; a changed file or page replaces its old text.

    A folder that is added again loses the documents whose files are gone or empty. A file that cannot be read this
    time keeps its old text.

    \b
    Example:
      slm rag add handbook data/handbook/en data/handbook/ja
      slm rag add handbook data/handbook --fresh --words sudachi
      slm rag add wiki Confluence-space-export.zip --base-url https://wiki.example.com
      slm rag add archive /srv/documents --on ray://node1
    """
    from rag.index.change.gone import departed, left_behind
    from rag.index.change.planned import require_made_with
    from rag.index.embed import DEFAULT_EMBEDDER, embedder_name
    from rag.sources.files import find_files, nothing_read, read_files
    from rag.sources.reader import ReadOptions
    from rag.stores.named import open_store
    from rag.sync.look import require_paths, seen
    from slm.paths import on_disk
    from slm.terminal.console import counted, emit_json, progress

    embedder = embedder_name(embedder) if embedder else None
    store = open_store(index, words)
    index = shown_address(index)
    held = store.held() if not fresh and store.exists() else None
    made_with = str(held.made_with["name"]) if held else None
    if made_with:
        require_made_with(made_with, embedder, index)
    known = held.documents if held else {}
    require_paths(paths, known, index)
    with workers(address) as work:
        with progress("reading files", total=len(find_files(paths)) or None, unit="files") as done:
            reading = read_files(paths, done, none_ok=True, wanted=ReadOptions(comments, base_url), by=work.read)
        looked = seen(paths, reading, ReadOptions(comments, base_url))
        if not reading.documents and not departed(known, looked, lambda source: on_disk(source).exists()).gone:
            raise nothing_read(paths, reading)
        _note_some([f"skipped {shown_path(str(skipped.path))}: {skipped.reason}" for skipped in reading.skipped])
        _note_some([f"{shown_path(noted.source)}: {noted.text}" for noted in reading.notes])
        embed = work.embedder(embedder or made_with or DEFAULT_EMBEDDER)
        with progress("embedding", total=100, unit="%") as done:
            change = store.add(
                reading.documents, embed, lambda n, total: done(100 * n / total),
                seen=looked, fresh=fresh, sure=yes,
            )  # fmt: skip
    _note_some([f"removed {shown_path(source)}: {reason}" for source, reason in change.gone.items()])
    _note_some([f"kept the old text of {shown_path(source)}: {reason}" for source, reason in change.kept.items()])
    missing = left_behind(store.held().documents, looked, lambda source: on_disk(source).exists())
    if missing:
        _note_some([_told_of_missing(missing, index)])
    result = {
        "index": store.name, "embedder": embed.identity.name, "added": change.added, "replaced": change.replaced,
        "unchanged": change.unchanged, "moved": change.moved, "chunks": change.chunks,
        "removed": [{"source": source, "reason": reason} for source, reason in change.gone.items()],
        "kept": [{"source": source, "reason": reason} for source, reason in change.kept.items()],
        "missing": missing,
        "skipped": [{"path": str(s.path), "reason": s.reason} for s in reading.skipped],
        "notes": [{"source": n.source, "note": n.text} for n in reading.notes],
    }  # fmt: skip
    if as_json:
        emit_json(result)
        return
    also = "".join(
        f", {count} {what}" for count, what in ((change.moved, "moved"), (len(change.gone), "removed")) if count
    )
    click.echo(
        f"{counted(change.added, 'document')} added, {change.replaced} replaced, {change.unchanged} unchanged{also}, "
        f"{counted(len(reading.skipped), 'file')} skipped; the index '{index}' holds {counted(change.chunks, 'chunk')}"
    )


def _told_of_missing(sources: list[str], index: str) -> str:
    """A note of files that are not there and go on answering: a renamed and changed one would answer twice."""
    one = len(sources) == 1
    also = f" and {len(sources) - 1} more" if not one else ""
    return (
        f"{shown_path(sources[0])}{also} {'is' if one else 'are'} no longer there and {'goes' if one else 'go'} on "
        f"answering; to forget {'it' if one else 'them'}: "
        + (f"slm rag remove {index} {sources[0]}" if one else f"slm rag sync {index}")
    )


def _note_some(lines: list[str]) -> None:
    """Notes on stderr, of many the first ones."""
    from slm.terminal.console import note

    for line in lines[:_NAMED_FILES]:
        note(line)
    if len(lines) > _NAMED_FILES:
        note(f"... and {len(lines) - _NAMED_FILES} more like these; --json names them all")


@rag.command(context_settings=_HELP)
@click.argument("index")
@click.argument("documents", nargs=-1, required=True, metavar="DOC...")
@click.option("--all", "every", is_flag=True, help="Remove all documents that a name fits, not only a single one.")
@_JSON
def remove(index: str, documents: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Remove documents, named by their path or its end, or by a folder with all that is below it.

    \b
    Example:
      slm rag remove handbook ja/03-overtime.md
      slm rag remove handbook data/handbook/ja
    """
    from rag.stores.named import open_store
    from slm.terminal.console import emit_json

    store = open_store(index)
    came_by = {source: entry.get("roots", ()) for source, entry in store.held().documents.items()}
    removed = store.remove(documents, every=every)
    if as_json:
        emit_json({"removed": removed})
        return
    for source in removed:
        click.echo(f"removed {shown_path(source)}")
    click.echo(f"{len(removed)} document{'' if len(removed) == 1 else 's'} removed")
    still = {root for source in removed for root in came_by[source]} & set(store.held().sources)
    for root in sorted(still):
        click.echo(f"note: {shown_path(root)} is still a source: what is there comes back with the next slm rag sync")


@rag.command(context_settings=_HELP)
@click.argument("index")
@_JSON
def status(index: str, as_json: bool) -> None:
    """Show what an index holds.

    \b
    Example:
      slm rag status handbook --json
    """
    from rag.stores.named import open_store
    from slm.terminal.console import counted, emit_json
    from slm.text.visible import one_line

    result = open_store(index).status()
    if as_json:
        emit_json(result)
        return
    embedder = result["embedder"]
    click.echo(f"index     {result['index']} ({result['generation']}, {result['size_bytes'] / 1e6:.1f} MB)")
    click.echo(f"embedder  {embedder['name']} [{embedder['revision']}], {embedder['dimension']} dimensions")
    if result["words"]["made_by"]:
        click.echo(f"words     {result['words']['kind']} [{result['words']['made_by']}]")
    documents, chunks = len(result["documents"]), result["chunks"]
    click.echo(f"holds     {counted(documents, 'document')} in {counted(chunks, 'chunk')}")
    click.echo(f"search    {_searched(result['parts'])}")
    for document in result["documents"]:
        title = one_line(document["title"])
        click.echo(f"  {document['lang']:4}{document['chunks']:4} chunks  {title}  ({shown_path(document['source'])})")


def _searched(parts: list[dict[str, Any]]) -> str:
    """How vectors are searched: which chunks are compared one by one, and which through lists or a graph."""
    exact = sum(part["chunks"] for part in parts if part["search"] == "flat")
    lists = [(part["chunks"], part["search"].removeprefix("ivf ")) for part in parts if part["search"] != "flat"]
    shown = [
        f"{chunks} chunks through " + ("a graph (HNSW)" if how == "hnsw" else f"{how} inverted lists (IVF)")
        for chunks, how in lists
    ]
    return ", ".join([f"{exact} chunks compared one by one"] * (exact > 0 or not lists) + shown)
