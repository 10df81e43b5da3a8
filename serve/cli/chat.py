"""The command `slm chat`: its options, and what they open."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

from serve.cli.guard import key_of_env
from serve.cli.options import HELP, sampling_of, with_adapters, with_context, with_sampling, with_threads, with_wanted
from slm.errors import InputError, SlmError
from slm.joints import Joints, pass_joints
from slm.terminal.arguments import TEXT, one_of_each
from slm.terminal.asking import check_reading, with_reader
from slm.terminal.console import note
from slm.terminal.flags import json_is_asked
from slm.terminal.piped import is_terminal
from slm.text.address import shown_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve.chat.opening import Desk, Opening, Setup
    from serve.chat.sessions import Archive, SavedSession

_DEFAULT_MODEL = "smollm2-135m-instruct"
_HERE_ONLY = frozenset(["adapters", "threads", "context"])  # what only a model of ours has


@click.command(context_settings=HELP)
@click.argument("model", required=False)
@with_adapters
@with_wanted
@click.option("--rag", "index", metavar="INDEX", help="Answer from this index, with citations.")
@with_reader
@click.option("--system", type=TEXT, help="A system message for the whole conversation.")
@click.option("--continue", "goes_on", is_flag=True, help="Go on with the session that was used last.")
@click.option("--session", type=TEXT, metavar="NAME", help="Go on with this session (name or number), or begin it.")
@click.option("--find", type=TEXT, metavar="WORDS", help="List the sessions in which all the words occur, and end.")
@click.option("--json", "as_json", is_flag=True, help="With --find: the sessions as one JSON object.")
@click.option("--no-save", is_flag=True, help="Keep nothing of what is said.")
@click.option("--plain", is_flag=True, help="Print answers as they are written: no Markdown, no toolbar.")
@click.option("--url", metavar="URL", help="Talk to a server with OpenAI's API; MODEL is then its name for one.")
@click.option("--api-key-env", metavar="VAR", help="With --url: environment variable with the server's key.")
@with_threads
@with_context
@with_sampling("0.7, with --rag 0")
@click.pass_context
@pass_joints
def chat(
    joints: Joints, ctx: click.Context, /, model: str | None, adapters: tuple[tuple[str, Path], ...],
    wanted: str | None, index: str | None, reader: str, refuse_at: float | None, system: str | None, goes_on: bool,
    session: str | None, find: str | None, as_json: bool, no_save: bool, plain: bool, url: str | None,
    api_key_env: str | None, threads: int, context: int, **sampling: Any,
) -> None:  # fmt: skip
    """Talk to a model in the terminal. /help shows the commands, Ctrl-C stops an answer, Ctrl-D leaves.

    What is said is kept in the data folder; what is piped in only with --session or --continue. MODEL is
    smollm2-135m-instruct, or the model of the session that goes on.

    \b
    Example:
      slm chat smollm2-135m-instruct
      slm chat gemma-3-270m --adapter en=exports/en.gguf --adapter ja=exports/ja.gguf --rag index/handbook
      slm chat --continue
      slm chat --url http://127.0.0.1:8080
    """
    from serve.chat.acts import continue_with
    from serve.chat.opening import Opening, Setup
    from serve.chat.sessions import Keeper
    from serve.chat.talk import Chat
    from serve.chat.terminal import draws, talk_to

    _refuse_contradictions(ctx)
    named = one_of_each(adapters)
    if index is None:
        check_reading(None, reader, refuse_at)
    with ExitStack() as stack:
        kept = is_terminal() or goes_on or session is not None
        archive = None if no_save else _archive(stack, needed=goes_on or bool(session) or find is not None)
        if find is not None and archive:
            _list_found(archive, find, as_json)
            return
        saved = _saved(archive, goes_on, session)
        if url is not None and not url.strip():
            raise click.UsageError("--url is empty; give it an address: --url http://127.0.0.1:8080")
        if saved and model is None and url is None:
            model, url = _place_of(saved, ctx)
        if api_key_env is not None and url is None:
            raise click.UsageError("--api-key-env is for a server; name it with --url URL.")
        setup = Setup(
            (model or "") if url else model or _DEFAULT_MODEL, named, index, reader, refuse_at, threads, context,
            url or "", "" if api_key_env is None else key_of_env(api_key_env),
        )  # fmt: skip
        opening = stack.enter_context(closing(Opening(setup, _opener(joints, setup, wanted))))
        talk = Chat(
            opening, Keeper(archive if kept else None, note, "" if saved else session or ""),
            wanted or ("auto" if named or url else "base"), sampling_of(sampling, temperature=0.0 if index else 0.7),
            system or "", interactive=is_terminal(), drawn=draws(plain),
        )  # fmt: skip
        _greet(opening, plain)
        if saved:
            continue_with(talk, saved)
            if system is not None:
                talk.tell(system)
        talk_to(talk, plain=plain)


def _refuse_contradictions(ctx: click.Context) -> None:
    """Options that mean nothing beside each other are told, not passed over."""
    options, given = _options(ctx), _given(ctx)
    if given >= {"goes_on", "session"}:
        raise click.UsageError(
            "--continue goes on with the last session, --session with a named one; give one of them."
        )
    if json_is_asked(ctx) and "find" not in given:
        raise click.UsageError("a conversation is no JSON; --json lists sessions (--find WORDS), /export writes one.")
    if "no_save" in given and (others := given & {"goes_on", "session", "find"}):
        raise click.UsageError(f"--no-save keeps no session; leave out {options[min(others)]}.")
    if "url" in given and (others := given & _HERE_ONLY):
        raise click.UsageError(f"{options[min(others)]} is for a model that runs here; a server has its own (--url).")


def _list_found(archive: Archive, words: str, as_json: bool) -> None:
    from serve.chat.acts import list_sessions, sessions_with
    from slm.terminal.console import emit_json

    if as_json:
        rows = [{"number": row.id, **vars(row)} for row in sessions_with(archive, words)]
        for row in rows:
            del row["id"]
        emit_json({"sessions": rows})
    else:
        list_sessions(archive, words, click.echo, columns=get_terminal_size().columns if sys.stdout.isatty() else 0)


def _options(ctx: click.Context) -> dict[str, str]:
    return {p.name: p.opts[-1] for p in ctx.command.params if isinstance(p, click.Option) and p.name}


def _given(ctx: click.Context) -> set[str]:
    """The options that somebody gave."""
    default = click.core.ParameterSource.DEFAULT
    return {name for name in _options(ctx) if ctx.get_parameter_source(name) is not default and ctx.params[name]}


def _archive(stack: ExitStack, *, needed: bool) -> Archive | None:
    """The sessions; None where they cannot be kept and nobody asked for one."""
    from serve.chat.sessions import Archive
    from slm.paths import home

    try:
        archive = Archive(home() / "sessions.sqlite")
    except SlmError as error:
        if needed:
            raise
        note(f"this conversation is not saved: {error}")
        return None
    stack.callback(archive.close)
    return archive


def _saved(archive: Archive | None, goes_on: bool, session: str | None) -> SavedSession | None:
    """The session to go on with; None where a new one begins."""
    if archive is None:
        return None
    if goes_on:
        latest = archive.latest()
        if latest is None:
            raise InputError("there is no session to go on with", hint="Begin one with: slm chat")
        return latest
    if not session:
        return None
    return archive.get(session) if session.isdigit() else archive.find(session)


def _place_of(saved: SavedSession, ctx: click.Context) -> tuple[str | None, str | None]:
    """The model and the server that a session was held with; no server for a model that runs here."""
    from serve.chat.opening import server_of

    there = server_of(saved.model)
    if there is None:
        return saved.model, None
    if others := _given(ctx) & _HERE_ONLY:
        raise click.UsageError(
            f"session {saved.label} was held with {saved.model}, and {_options(ctx)[min(others)]} is for a model that "
            "runs here; name a MODEL to go on with, or leave it out."
        )
    note(f"session {saved.label} was held with {saved.model}; it goes on there")
    return there


def _opener(joints: Joints, first: Setup, wanted: str | None) -> Callable[[Setup, ExitStack], Desk]:
    from serve.chat.opening import local_desk, remote_desk

    open_desk = remote_desk(joints) if first.url else local_desk(joints)

    def opened(setup: Setup, stack: ExitStack) -> Desk:
        desk = open_desk(setup, stack)
        if setup is first and wanted is not None:
            desk.talker.route(wanted, [])  # a name that is unknown is an error before the first question
        return desk

    return opened


def _greet(opening: Opening, plain: bool) -> None:
    from serve.chat.terminal import is_bare

    setup = opening.setup
    desk = opening.desk() if is_bare(plain) else None  # else it is opened while the prompt is there
    name = desk.talker.name if desk else Path(setup.model).name or "the model"
    names = ", ".join(setup.adapters)
    where = f" at {setup.url}" if setup.url else f" with {names}" if names else ""
    note(f"{name}{where}; /help shows the commands, Ctrl-D leaves")
    if desk and desk.reader:
        reader = desk.reader.name
        note(
            f"the reader {reader} answers from {shown_address(setup.index or '')}: lines of it, word for word; "
            "/reader model: the model"
        )
