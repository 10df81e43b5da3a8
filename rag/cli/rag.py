"""The commands `slm rag ...`: fill an index, search it, ask a model about it. Ranking and prompts are elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rag.cli.copy import copy
from rag.cli.evaluate import HELP as _HELP
from rag.cli.evaluate import JSON as _JSON
from rag.cli.evaluate import evaluate
from rag.cli.filters import filter_options
from rag.cli.questions import questions
from rag.cli.read import BASE_URL, COMMENTS, read
from rag.cli.spread import ON, workers
from rag.cli.sync import sync
from rag.cli.wording import WORDS
from slm.joints import Filters, Finish, Joints, SamplingOptions, pass_joints
from slm.terminal.answer import (
    ShownAnswer,
    pointed_sources,
    show_pointed,
    show_sources,
    shown_path,
    sources_of,
)
from slm.terminal.arguments import NAMED_FILE, TEXT, TextCommand, one_of_each
from slm.terminal.asking import nobody_answers, reader_for, with_reader
from slm.text.address import shown_address

if TYPE_CHECKING:
    from slm.joints import Passage, PointedAnswer, Reader

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


rag.add_command(copy)
rag.add_command(evaluate)
rag.add_command(questions)
rag.add_command(read)
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
    from slm.terminal.console import emit_json, progress

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
        f"{change.added} documents added, {change.replaced} replaced, {change.unchanged} unchanged{also}, "
        f"{len(reading.skipped)} files skipped; the index '{index}' holds {change.chunks} chunks"
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


@rag.command(cls=TextCommand, context_settings=_HELP)
@click.argument("index")
@click.argument("query", type=TEXT)
@click.option("-k", default=5, show_default=True, type=click.IntRange(1, 100), help="How many passages.")
@filter_options
@_JSON
def search(index: str, query: str, k: int, filters: Filters, as_json: bool) -> None:
    """Show the passages that fit a query best.

    Options that are given several times mean any of what they name. Without --as restricted pages are shown too.

    \b
    Example:
      slm rag search handbook "paid leave" -k 3
      slm rag search wiki "release plan" --space DOCS --since 2026-04-01 --as user:aoi --as group:staff
    """
    from rag.answer.prompt import passage_head
    from rag.answer.retriever import open_retriever
    from slm.terminal.console import emit_json
    from slm.text.visible import visible

    with open_retriever(index) as retriever:
        passages = retriever.search(query, k, filters)
    if as_json:
        emit_json({"query": query, "results": [_as_dict(p) for p in passages]})
        return
    for number, passage in enumerate(passages, start=1):
        click.secho(f"{number}. {passage_head(passage)}", bold=True)
        click.echo(f"   {shown_path(passage.source)}  (score {passage.score:.4f})")
        if passage.also:
            click.echo(f"   also in {', '.join(map(shown_path, passage.also))}")
        click.echo("   " + visible(passage.text).replace("\n", "\n   ") + "\n")


@rag.command(cls=TextCommand, context_settings=_HELP)
@click.argument("index")
@click.argument("question", type=TEXT)
@click.option("--model", help="GGUF file, catalog name or checkpoint folder: who words answers where no reader does.")
@click.option("--adapter", "adapters", type=NAMED_FILE, multiple=True, help="Adapter GGUF; routed by language.")
@click.option("-k", default=3, show_default=True, type=click.IntRange(1, 20), help="How many passages to answer from.")
@filter_options
@with_reader
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1), help="Longest answer.")
@click.option("--threads", default=0, help="CPU threads [default: the physical cores].")
@_JSON
@pass_joints
def ask(
    joints: Joints,
    index: str,
    question: str,
    model: str | None,
    adapters: tuple[tuple[str, Path], ...],
    k: int,
    filters: Filters,
    reader: str,
    refuse_at: float | None,
    max_tokens: int,
    threads: int,
    as_json: bool,
) -> None:
    """Answer a question from the documents, with numbered citations.

    \b
    Example:
      slm rag ask handbook "有給休暇は何日ですか"
      slm rag ask handbook "有給休暇は何日ですか" --reader model --model gemma-3-270m --adapter ja=exports/ja.gguf
    """
    from rag.answer.retriever import open_retriever
    from slm.artifacts import require_file
    from slm.errors import EngineError
    from slm.terminal.console import emit_json, note

    files = {name: require_file(file) for name, file in one_of_each(adapters).items()}
    who = reader_for(joints, reader, refuse_at)
    if who:
        given = click.get_current_context().get_parameter_source
        options = {
            "model": "--model", "adapters": "--adapter", "max_tokens": "--max-tokens", "k": "-k",
            "threads": "--threads",
        }  # fmt: skip
        for name, option in options.items():
            if given(name) is ParameterSource.COMMANDLINE:
                note(f"a reader answers: {option} is for --reader model and does nothing here")
        with open_retriever(index) as retriever:
            pointed = retriever.pointed(question, who, filters)
        _tell_pointed(question, pointed, who, as_json=as_json)
        return
    if model is None:
        raise nobody_answers()
    gguf = joints.gguf_of(model)
    with open_retriever(index) as retriever:
        grounded = retriever.grounded(question, k, filters)
    chosen, sampling = "auto" if files else None, SamplingOptions(max_tokens=max_tokens)
    with joints.open_engine(gguf, files, threads=threads, context=4096) as engine:
        shown = ShownAnswer().show(
            engine.chat(grounded.messages, adapter=chosen, sampling=sampling), grounded, silent=as_json
        )
    finish, sources = shown.finish, sources_of(grounded)
    if finish is None:
        raise EngineError("the answer broke off before its end", hint="Run it again with --debug.")
    if as_json:
        emit_json(
            {
                "question": question,
                "answer": shown.text.strip(),
                "citations": grounded.citations.cited,
                "sources": [
                    {"number": s.number, "cited": s.cited, "quote": s.quote, **_as_dict(s.passage)} for s in sources
                ],
                **_figures(finish),
            }
        )
        return
    if finish.reason == "length":
        note(f"the answer was cut at --max-tokens {max_tokens}")
    show_sources(sources, click.echo)


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

    removed = open_store(index).remove(documents, every=every)
    if as_json:
        emit_json({"removed": removed})
        return
    for source in removed:
        click.echo(f"removed {shown_path(source)}")
    click.echo(f"{len(removed)} documents removed")


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
    from slm.terminal.console import emit_json
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
    click.echo(f"holds     {len(result['documents'])} documents in {result['chunks']} chunks")
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


def _tell_pointed(question: str, pointed: PointedAnswer, reader: Reader, *, as_json: bool) -> None:
    from slm.terminal.console import emit_json

    if not as_json:
        click.echo(pointed.text)
        show_pointed(pointed, click.echo)
        return
    sources = [
        {"number": s.number, "cited": s.cited, "quote": s.quote, **_as_dict(s.passage)}
        for s in pointed_sources(pointed)
    ]
    emit_json(
        {
            "question": question, "answer": pointed.text, "refused": not pointed.said,
            "citations": sorted({one.passage for one in pointed.said}), "lines": [vars(one) for one in pointed.said],
            "nearest": [vars(one) for one in pointed.nearest], "doubt": pointed.doubt, "sources": sources,
            "reader": reader.name,
            "prompt_tokens": pointed.tokens,
        }
    )  # fmt: skip


def _figures(finish: Finish) -> dict[str, Any]:
    return {
        "adapter": finish.adapter,
        "finish_reason": finish.reason,
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "prefill_s": finish.prefill_s,
        "decode_s": finish.decode_s,
    }


def _as_dict(passage: Passage) -> dict[str, Any]:
    return {
        "title": passage.title, "heading": passage.heading, "source": passage.source, "score": passage.score,
        "text": passage.text, "also": list(passage.also),
    }  # fmt: skip
