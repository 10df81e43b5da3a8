"""The commands generate, serve and route. It knows the engine and the server, nothing of other rooms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serve.cli.batch import BatchOptions, answer_batch, check_options, opened_on, with_batch
from serve.cli.guard import GuardOptions, guard_options, policy_of
from serve.cli.oneshot import asked, grammar_of, whole_json
from serve.cli.options import (
    HELP,
    check_viewer,
    sampling_of,
    with_adapters,
    with_context,
    with_documents,
    with_drafts,
    with_sampling,
    with_threads,
    with_wanted,
)
from slm.joints import Joints, Message, pass_joints
from slm.models.model_argument import name_of_model
from slm.terminal.answer import ShownAnswer
from slm.terminal.arguments import TEXT, Named, TextCommand, one_of_each
from slm.terminal.asking import reader_of_index
from slm.terminal.console import emit_json, note
from slm.terminal.streams import says
from slm.text.address import shown_address

if TYPE_CHECKING:
    import socket

    from serve.engine.engine import Engine
    from serve.engine.served import ServedEngine
    from serve.server.guard import Policy

# The parameters of `slm serve` that llama.cpp's own servers have a counterpart for.
_ANY_ENGINE = frozenset(
    ["engine", "adapters", "context", "threads", "parallel", "host", "port", "api_key_env", "api_key_file", "no_key_ok"]
)
_PATH = click.Path(path_type=Path)
_VARIABLE = Named("NAME=TEXT", "tone=polite", TEXT)


def _open(stack: ExitStack, model: Path, adapters: dict[str, Path], *, context: int, **options: Any) -> Engine:
    from serve.engine.engine import open_engine
    from serve.engine.options import tell_of_context

    engine = stack.enter_context(open_engine(model, adapters, context=context, **options))
    tell_of_context(engine.context, context)
    return engine


@click.command(context_settings=HELP)
@click.argument("model")
@with_adapters
@with_wanted
@click.option("-p", "--prompt", type=TEXT, help="The question; what is piped in stands above it.")
@click.option(
    "--template", type=_PATH, metavar="FILE", help="A prompt (Jinja) with {{ input }}, {{ prompt }} and more."
)
@click.option("--var", "variables", type=_VARIABLE, multiple=True, help="A variable of the template.")
@click.option("--schema", type=_PATH, metavar="FILE", help="Answer in JSON that holds to this JSON schema.")
@click.option("--system", type=TEXT, default="", help="A system message before the question.")
@click.option("--raw", is_flag=True, help="Continue the text as it stands, without a chat template.")
@click.option("--stop", type=TEXT, multiple=True, help="Text that ends the answer; may be given several times.")
@with_batch
@with_threads
@with_context
@with_sampling("0")
@click.option("--json", "as_json", is_flag=True, help="Text and figures as one JSON object.")
@pass_joints
def generate(
    joints: Joints, /, model: str, adapters: tuple[tuple[str, Path], ...], wanted: str | None,
    prompt: str | None, template: Path | None, variables: tuple[tuple[str, str], ...], schema: Path | None,
    system: str, raw: bool, stop: tuple[str, ...], batch: Path | None, output: Path | None, resume: bool, fresh: bool,
    parallel: int, hot: int, address: str | None, threads: int, context: int, as_json: bool, **sampling: Any,
) -> None:  # fmt: skip
    """Answer one prompt and end, or a file of requests. Greedy unless a temperature is given.

    The prompt is -p, or what is piped in; with both, the piped text stands above the prompt. A template puts them
    where it says {{ input }} and {{ prompt }}. An answer held to a schema is printed when it is whole.

    With --batch each line of a file is a request as OpenAI's batches have it, with the server's fields and defaults,
    and the output has a line for each in the same order. Many are computed together, with --on by many machines; a
    killed batch goes on with --resume.

    \b
    Example:
      slm generate smollm2-135m-instruct -p "Name three fruits."
      slm generate gemma-3-270m --adapter en=en.gguf --adapter ja=ja.gguf -p "有給休暇は何日ですか。"
      slm generate gemma-3-270m -p "Summarize this in one sentence." < minutes.txt
      slm generate gemma-3-270m --template mail.txt --var tone=polite --schema mail.json < notes.txt
      slm generate gemma-3-270m --adapter ja=ja.gguf --batch requests.jsonl -o answers.jsonl

    \b
    Exit codes: 0 answered (a batch: every line, with an answer or its error), 1 failed (with --schema also: cut before
    the JSON was whole), 2 wrong usage, 130 interrupted (Ctrl-C), 141 whoever reads the answer has gone.
    """
    options_of_batch = BatchOptions(resume, fresh, parallel, hot, address)
    check_options(batch, output, options_of_batch)
    if batch and output:

        @contextmanager
        def opened() -> Iterator[tuple[ServedEngine, int]]:
            from serve.engine.options import EngineOptions

            named = one_of_each(adapters)
            with ExitStack() as stack:
                if address:
                    options = EngineOptions(threads, context, parallel, hot)
                    yield stack.enter_context(opened_on(address, joints, model, named, options))
                    return
                yield _open(
                    stack, joints.gguf_of(model), named, context=context, threads=threads, parallel=parallel, hot=hot,
                    name=name_of_model(model),
                ), 1  # fmt: skip

        answer_batch(batch, output, options_of_batch, opened, as_json=as_json)
        return
    if schema and stop:
        raise click.UsageError("--stop would cut the JSON of --schema; give one of them.")
    asked_for = asked(prompt, template, one_of_each(variables), raw=raw)
    grammar = grammar_of(schema) if schema else ""
    with ExitStack() as stack:
        named = one_of_each(adapters)
        path, name = joints.gguf_of(model), name_of_model(model)
        engine = _open(stack, path, named, context=context, threads=threads, parallel=1, name=name)
        options = replace(sampling_of(sampling, temperature=0.0, stop=stop), grammar=grammar, grammar_field="--schema")
        way = engine.route(wanted or ("auto" if adapters else None), [Message(role="user", content=asked_for.question)])
        if raw:
            events = engine.complete(asked_for.text, adapter=way.adapter, sampling=options)
        else:
            turns = [Message(role="system", content=system)] if system else []
            turns.append(Message(role="user", content=asked_for.text))
            events = engine.chat(turns, adapter=way.adapter, sampling=options)
        shown = ShownAnswer().show(events, silent=as_json or bool(schema))
    if (finish := shown.finish) is None:
        return
    held = {"value": whole_json(shown.text, finish.reason, options.max_tokens)} if schema else {}
    if as_json:
        figures = {
            "text": shown.text, **held, "adapter": finish.adapter, "route_reason": way.reason,
            "finish_reason": finish.reason, "prompt_tokens": finish.prompt_tokens,
            "completion_tokens": finish.completion_tokens, **finish.timings(), "ttft_s": round(shown.first_s, 4),
        }  # fmt: skip
        emit_json(figures)
    elif held:
        click.echo(shown.text if says(shown.text) else json.dumps(held["value"]))
    elif finish.reason == "length":
        note(f"the answer was cut at --max-tokens {options.max_tokens}")


@click.command(context_settings=HELP)
@click.argument("model")
@with_adapters
@click.option(
    "--adapters-dir", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder whose adapters (GGUF files, PEFT folders) are loaded, replaced and unloaded as they come and go.",
)  # fmt: skip
@with_documents
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="127.0.0.1 and localhost: ::1 too, where there is one."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--parallel", type=click.IntRange(1, 64), default=8, show_default=True, help="Requests at once, each adapter."
)
@click.option(
    "--hot", type=click.IntRange(1, 64), default=3, show_default=True, help="Adapters with a context kept open."
)
@with_context
@with_threads
@with_drafts
@click.option(
    "--cache-ram",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    metavar="MB",
    help="Memory for conversations that had to leave their context, so that they need not be read again.",
)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for what does not fit into that memory; kept for the next start.",
)
@guard_options
@click.option(
    "--engine", type=click.Choice(["slm", "llama-server", "llama-cpp-python"]), default="slm", show_default=True,
    help="Ours, or one of llama.cpp's own servers with the same options.",
)  # fmt: skip
@click.pass_context
@pass_joints
def serve(
    joints: Joints, ctx: click.Context, /, model: str, adapters: tuple[tuple[str, Path], ...],
    adapters_dir: Path | None, default_adapter: str | None, index: str | None, reader: str, refuse_at: float | None,
    viewer: tuple[str, ...], host: str, port: int, parallel: int, hot: int, context: int, threads: int,
    draft_max: int, cache_ram: int, cache_dir: Path | None, engine: str, **guarding: Any,
) -> None:  # fmt: skip
    """Serve a model and its adapters over HTTP, as OpenAI's API and a page to chat on.

    \b
    Example:
      slm serve gemma-3-270m --adapter en=exports/en.gguf --adapter ja=exports/ja.gguf
    """
    from serve.server.listen import bind, url_of

    check_viewer(index, viewer)
    policy = policy_of(host, GuardOptions(**guarding))
    with ExitStack() as stack:
        listeners = bind(stack, host, port)
        if engine != "slm":
            from serve import upstream

            upstream.refuse(engine, _given(ctx, but=_ANY_ENGINE))
            port = listeners[0].getsockname()[1]
            for listener in listeners:
                listener.close()
            options = upstream.UpstreamOptions(
                joints.gguf_of(model).resolve(), tuple((n, p.resolve()) for n, p in one_of_each(adapters).items()),
                context, threads, parallel, host, port, policy.keys.single(), name_of_model(model),
            )  # fmt: skip
            ctx.exit(upstream.serve_upstream(engine, options))
        from serve.server.app import create_app

        path = joints.gguf_of(model)
        who = reader_of_index(joints, index, reader, refuse_at)
        retriever = stack.enter_context(joints.open_retriever(index)) if index else None
        files = one_of_each(adapters)
        opened = _open(
            stack, path, files, context=context, threads=threads, parallel=parallel, hot=hot, draft=draft_max,
            default_adapter=default_adapter, cache_bytes=cache_ram << 20, cache_folder=cache_dir,
            name=name_of_model(model),
        )  # fmt: skip
        if adapters_dir:
            from serve.adapters.watch import WatchedFolder, watching

            def convert(folder: Path) -> Path:
                return joints.adapter_gguf_of(folder, model)

            stack.enter_context(watching(WatchedFolder(adapters_dir, opened, convert, taken=frozenset(files))))
        folders = [file.resolve().parent for file in files.values()] + ([adapters_dir] if adapters_dir else [])
        app = create_app(opened, allowed_folders=folders, policy=policy, retriever=retriever, viewer=viewer, reader=who)
        _announce(url_of(listeners[0]), opened, needs_key=bool(policy.keys))
        if index:
            note(f"documents: {shown_address(index)}, answered by {f'the reader {who.name}' if who else 'the model'}")
        _run(app, listeners, policy)


def _given(ctx: click.Context, *, but: frozenset[str]) -> list[str]:
    """The options that were set anywhere (command line, environment, file) and are not among `but`, as spelled."""
    default = click.core.ParameterSource.DEFAULT
    options = [p for p in ctx.command.params if isinstance(p, click.Option) and p.name not in but]
    return [p.opts[-1] for p in options if p.name and ctx.get_parameter_source(p.name) is not default]


def _announce(url: str, engine: Engine, *, needs_key: bool) -> None:
    names = ", ".join(a.name for a in engine.adapters()) or "none"
    key = ' -H "Authorization: Bearer $KEY"' if needs_key else ""
    note(f"{engine.base.name}, adapters: {names}; context {engine.context:,} tokens")
    note(f"listening on {url} (page: {url}/, API: {url}/v1, Ctrl-C stops)")
    body = '{"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}'
    note(f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'")


def _run(app: Any, listeners: list[socket.socket], policy: Policy) -> None:
    import uvicorn

    from serve.server.connection import server_config

    uvicorn.Server(server_config(app, policy.limits)).run(sockets=listeners)


@click.command(cls=TextCommand, context_settings=HELP)
@click.argument("texts", nargs=-1, required=True, type=TEXT, metavar="TEXT...")
@click.option("--adapter", "names", multiple=True, metavar="NAME", help="Adapters to choose among. [default: en, ja]")
@click.option("--default", metavar="NAME", help="Adapter for text that does not decide; else the base.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with a row for each text.")
def route(texts: tuple[str, ...], names: tuple[str, ...], default: str | None, as_json: bool) -> None:
    """Show which adapter a text would go to, and why. An adapter's language is read from its name.

    \b
    Example:
      slm route "How many days of leave do I have?" "有給休暇は何日ありますか。" --adapter en --adapter ja
    """
    from serve.adapters.registry import language_of_name
    from serve.engine.router import by_language
    from slm.errors import UnknownNameError

    known = {name.partition("=")[0]: language_of_name(name.partition("=")[0]) for name in names or ("en", "ja")}
    if default is not None and default not in known:
        raise UnknownNameError("adapter", default, known)
    rows = []
    for text in texts:
        way = by_language([text], known, default=default)
        rows.append({"text": text, "adapter": way.adapter or "base", "language": way.language, "reason": way.reason})
    if as_json:
        emit_json({"routes": rows})
        return
    for row in rows:
        click.echo(f"{row['adapter']}\t{row['text']}")
        note(f"  {row['reason']}")
