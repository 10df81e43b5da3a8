"""The commands `slm rag search` and `ask`. Ranking and prompts are elsewhere; who reads comes from the roof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rag.cli.evaluate import HELP as _HELP
from rag.cli.evaluate import JSON as _JSON
from rag.cli.filters import filter_options
from slm.joints import Filters, Finish, Joints, SamplingOptions, pass_joints
from slm.terminal.answer import (
    ShownAnswer,
    pointed_sources,
    show_pointed,
    show_sources,
    shown_path,
    sources_of,
)
from slm.terminal.arguments import NAMED_FILE, TEXT, TextCommand, one_of_each, typed
from slm.terminal.asking import nobody_answers, ranking_reader, reader_for, with_reader

if TYPE_CHECKING:
    from slm.joints import Passage, PointedAnswer, Reader


@click.command(cls=TextCommand, context_settings=_HELP)
@click.argument("index")
@click.argument("query", type=TEXT)
@click.option("-k", default=5, show_default=True, type=click.IntRange(1, 100), help="How many passages.")
@filter_options
@click.option("--rerank", metavar="point|FOLDER", help="A reader that puts first what most likely answers a question.")
@_JSON
@pass_joints
def search(joints: Joints, index: str, query: str, k: int, filters: Filters, rerank: str | None, as_json: bool) -> None:
    """Show the passages that fit a query best.

    Options that are given several times mean any of what they name. Without --as restricted pages are shown too.
    A reader looks at the best sixteen passages, which takes about a second.

    \b
    Example:
      slm rag search handbook "paid leave" -k 3
      slm rag search handbook "Whom do I ask for a day off?" --rerank point
      slm rag search wiki "release plan" --space DOCS --since 2026-04-01 --as user:aoi --as group:staff
    """
    from rag.answer.prompt import passage_head
    from rag.answer.retriever import open_retriever
    from slm.terminal.console import emit_json
    from slm.text.visible import visible

    who = ranking_reader(joints, rerank)
    with open_retriever(index) as retriever:
        passages = retriever.ranked(query, who, k, filters) if who else retriever.search(query, k, filters)
    if as_json:
        emit_json({"query": query, "results": [_as_dict(p) for p in passages]})
        return
    for number, passage in enumerate(passages, start=1):
        click.secho(f"{number}. {passage_head(passage)}", bold=True)
        click.echo(f"   {shown_path(passage.source)}  (score {passage.score:.4f})")
        if passage.also:
            click.echo(f"   also in {', '.join(map(shown_path, passage.also))}")
        click.echo("   " + visible(passage.text).replace("\n", "\n   ") + "\n")


@click.command(cls=TextCommand, context_settings=_HELP)
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
        for name, option in typed().items():
            if name in ("model", "adapters", "k", "max_tokens", "threads"):
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
