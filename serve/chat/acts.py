"""What the commands of the chat do. `act` is their one door; `serve.chat.commands` says what they are."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import click

from serve.chat.commands import help_text
from serve.chat.export import as_json, as_markdown
from serve.chat.opening import another_index, another_model, server_of
from serve.chat.sessions import Archive, SavedSession
from serve.chat.talk import Chat
from serve.chat.talker import LocalTalker
from slm.artifacts import new_file
from slm.errors import InputError, UnknownNameError
from slm.paths import at_home, named_indexes
from slm.terminal.answer import shown_path
from slm.terminal.console import counted
from slm.text.address import shown_address
from slm.text.visible import one_line, visible

# name: (kind, least, most), as the options of the command line have them.
_SETTINGS: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 5), "top_p": (float, 1e-9, 1), "top_k": (int, 0, 1 << 31), "min_p": (float, 0, 1),
    "repeat_penalty": (float, 0.1, 10), "seed": (int, -(1 << 63), 1 << 63), "max_tokens": (int, 1, 1 << 20),
}  # fmt: skip
_OFF = ("off", "none")


class Leaving(Exception):
    """The user wants to go."""


def act(chat: Chat, command: str, argument: str) -> None:
    """Do a command. Raises Leaving, and SlmError for what cannot be done."""
    _ACTS[command](chat, argument)


def say(text: str) -> None:
    """What a command was asked for: lines on stderr, since stdout has the answers."""
    click.echo(text, err=True)


def arguments_of(chat: Chat, command: str, beginning: str) -> list[str]:
    """The arguments of a command that there are, for completion."""
    if command in ("adapter", "model") and not chat.opening.is_open:
        return []
    if command == "adapter":
        name, equals, file = beginning.partition("=")
        known = ["auto", "base", *(name for name, _ in chat.opening.desk().talker.adapters())]
        return [f"{name}={path}" for path in paths_like(file)] if equals else known
    if command == "model":
        return _models(chat)
    if command in ("load", "sessions") and chat.keeper.archive:
        return [row.label for row in chat.keeper.archive.listed()]
    if command == "export":
        return paths_like(beginning)
    if command == "rag":
        return ["off", *named_indexes()]
    return {"set": list(_SETTINGS), "reader": ["point", "model"], "system": ["off"]}.get(command, [])


def paths_like(beginning: str) -> list[str]:
    """The files and folders whose path begins so; a folder with a slash at its end. A hidden one has to be named."""
    folder, slash, start = beginning.rpartition("/")
    try:
        return [
            f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
            for entry in sorted(at_home(f"{folder}{slash}" or ".").iterdir())
            if entry.name.startswith(start) and (start.startswith(".") or not entry.name.startswith("."))
        ]
    except (OSError, ValueError):  # not there, not to be read, no name that a file can have
        return []


# --- who answers ------------------------------------------------------------------------------------------------


def _model(chat: Chat, name: str) -> None:
    if not name:
        talker = chat.opening.desk().talker if chat.opening.setup.url else None
        say(f"now: {talker.name if talker else chat.opening.setup.model}; also: {', '.join(_models(chat)) or 'none'}")
        return
    desk = another_model(chat.opening, name)
    if chat.wanted not in ("auto", "base", *(adapter for adapter, _ in desk.talker.adapters())):
        chat.wanted = "base"
    chat.first = chat.used = 0
    chat.keeper.settle(desk.setup.label, chat.system)
    say(f"now {desk.talker.name} answers")


def _models(chat: Chat) -> list[str]:
    """The others that may be talked to: a server's, or those that are pulled."""
    if chat.opening.setup.url:
        return [name for name, _ in chat.opening.desk().talker.adapters()]
    from slm.models.catalog import all_pulled

    now = chat.opening.setup.model
    return [model.name for model in all_pulled() if model.manifest.get("what") == "model" and model.name != now]


def _adapter(chat: Chat, name: str) -> None:
    talker = chat.opening.desk().talker
    if not name:
        known = ", ".join(f"{n} ({language or 'no language'})" for n, language in talker.adapters()) or "none"
        say(f"now: {chat.wanted}; adapters: {known}; also: auto, base")
        return
    new, equals, file = name.partition("=")
    if equals and new and file and isinstance(talker, LocalTalker):
        path = at_home(file)
        talker.engine.load_adapter(new, path)
        setup = chat.opening.setup
        chat.opening.setup = replace(setup, adapters={**setup.adapters, new: path})
        name = new
    talker.route(name, [])  # an unknown name is an error here, not at the next question
    chat.wanted = name


def _auto(chat: Chat, _: str) -> None:
    _adapter(chat, "auto")
    if not chat.opening.desk().talker.adapters():
        say("no adapter is loaded; the base answers")


def _system(chat: Chat, text: str) -> None:
    if text:
        chat.tell("" if text in _OFF else text)
    say(f"the model is told: {chat.system}" if chat.system else "the model is told nothing before the conversation")


def _rag(chat: Chat, index: str) -> None:
    if index:
        another_index(chat.opening, None if index in _OFF else index)
    now = chat.opening.desk()
    who = f"the reader {now.reader.name}" if now.reader and chat.points else "the model"
    say(
        f"documents: {shown_address(now.setup.index)}, answered by {who}"
        if now.setup.index
        else "no documents; /rag INDEX"
    )


def _reader(chat: Chat, who: str) -> None:
    desk = chat.opening.desk()
    if desk.retriever is None:
        raise InputError("there are no documents to read", hint="Name their index: /rag INDEX, or slm chat --rag INDEX")
    if who == "point" and desk.reader is None:
        raise InputError("there is no reader that points at lines", hint="Start with --reader FOLDER.")
    if who not in ("", "point", "model"):
        raise InputError(f"'{who}' answers nothing", hint="Say /reader point or /reader model.")
    if who:
        chat.points = who == "point"
    names = [f"point ({desk.reader.name})", "model"] if desk.reader else ["model"]
    now = names[0] if chat.points else "model"
    others = "".join(f"; also: {name}" for name in names if name != now)
    say(f"documents are answered by: {now}{others}")


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    if not name:
        say("\n".join(f"{each} {getattr(chat.sampling, each)}" for each in _SETTINGS))
        return
    if name not in _SETTINGS:
        raise UnknownNameError("setting", name, _SETTINGS)
    kind, least, most = _SETTINGS[name]
    try:
        number = kind(value)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} is {what} from {least:g} to {most:g}", found=value or "nothing")
    chat.sampling = replace(chat.sampling, **{name: number})
    say(f"{name} {number}")


# --- the conversation -------------------------------------------------------------------------------------------


def _sources(chat: Chat, number: str) -> None:
    sources: list[dict[str, Any]] = chat.exchanges[-1].facts.get("sources", []) if chat.exchanges else []
    if not sources:
        raise InputError("the last answer has no sources", hint="Answer from documents with /rag INDEX.")
    if number:
        found = next((source for source in sources if str(source["number"]) == number), None)
        if found is None:
            raise UnknownNameError("source", number, [str(source["number"]) for source in sources])
        say("\n".join(chat.rows(f"{found['number']}. {_place(found)}\n{visible(found['text'])}")))
        return
    for source in sources:
        mark = "*" if source["cited"] else " "
        quote = f"\n     “{source['quote']}”" if source["quote"] else ""
        say("\n".join(chat.rows(f"{mark} {source['number']}. {_place(source)}{quote}")))


def _place(source: dict[str, Any]) -> str:
    return f"{one_line(source['place'])} ({shown_path(source['source'])})"


def _retry(chat: Chat, _: str) -> None:
    if chat.sampling.temperature == 0:
        say("temperature is 0, so the answer will hardly differ; /set temperature 0.7 lets it")
    chat.retry()


def _edit(chat: Chat, text: str) -> None:
    if not chat.exchanges:
        raise InputError("nothing was asked yet")
    if not text and not chat.drawn:
        raise InputError("what is to be asked instead?", hint="Say it behind the command: /edit TEXT")
    chat.replacing = chat.exchanges[-1]
    if text:
        chat.ask(text)
    else:
        chat.prefill = chat.replacing.question


def _undo(chat: Chat, _: str) -> None:
    say(f"taken back: {_short(chat.undo().question)}")


def _clear(chat: Chat, _: str) -> None:
    chat.clear()
    say("a new conversation begins")


def _save(chat: Chat, name: str) -> None:
    chat.keeper.call(name)
    say(f"this session is '{chat.keeper.name}' now; --session NAME goes on with it")


def _load(chat: Chat, label: str) -> None:
    continue_with(chat, _archive(chat).get(label))


def continue_with(chat: Chat, saved: SavedSession) -> None:
    """Go on with a session: its last question and answer are shown."""
    chat.load(saved)
    say(f"session {saved.label}: {counted(len(chat.exchanges), 'question')}")
    if saved.model != (now := chat.opening.setup.label):
        server = server_of(saved.model)
        how = f"slm chat --url {server[1]} goes there" if server else f"/model {saved.model} goes on with that"
        say(f"it was held with {saved.model}; {how}")
    elif not server_of(now):
        _say_what_lacks(chat)
    if chat.interactive and chat.exchanges:
        last = chat.exchanges[-1]
        say(f"> {visible(last.question)}")
        chat.show(last)
        if last.answer is None:
            say("this question has no answer; /retry asks it again")


def _say_what_lacks(chat: Chat) -> None:
    """What answered in a session that goes on and is not here: adapters, documents."""
    facts = [exchange.facts for exchange in chat.exchanges]
    who = dict.fromkeys(str(each["adapter"]) for each in facts if each.get("adapter") and "reader" not in each)
    for name in who:
        if name != "base" and name not in chat.opening.setup.adapters:
            say(f"{name} answered there and is not loaded: /adapter {name}=FILE")
    if any("sources" in each for each in facts) and not chat.opening.setup.index:
        say("some answers were from documents: /rag INDEX")


def _sessions(chat: Chat, words: str) -> None:
    list_sessions(_archive(chat), words, say, columns=shutil.get_terminal_size().columns if chat.interactive else 0)


def sessions_with(archive: Archive, words: str) -> list[SavedSession]:
    """Those where all the words occur; the last ones where there are no words."""
    return archive.search(words) if words else archive.listed()


def list_sessions(archive: Archive, words: str, write: Callable[[str], None], *, columns: int = 0) -> None:
    """The last sessions, or those where the words occur, a row each; as wide as so many columns at most (0: any)."""
    found = sessions_with(archive, words)
    if not found:
        say(f"no session has '{words}'" if words else "there are no sessions yet")
    wide = max((len(row.label) for row in found), default=0)
    for row in found:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.changed))
        line = f"{row.label:<{wide}}  {day}  {row.exchanges:>3}  {_short(row.found or row.title)}"
        write(_within(line, columns - 1) if columns else line)


def _archive(chat: Chat) -> Archive:
    if chat.keeper.archive is None:
        raise InputError("sessions are not kept here", hint="Start without --no-save.")
    return chat.keeper.archive


def _export(chat: Chat, name: str) -> None:
    if not chat.exchanges:
        raise InputError("there is nothing to export yet")
    path = at_home(name)
    if path.exists():
        raise InputError(f"'{path}' is there already", hint="Choose another name.")
    title = chat.keeper.name or _short(chat.exchanges[0].question)
    write = as_json if path.suffix.lower() == ".json" else as_markdown
    text = write(title, chat.opening.setup.label, chat.system, chat.exchanges)
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(f"written: {path}")


def _stats(chat: Chat, _: str) -> None:
    from statistics import median

    facts = [exchange.facts for exchange in chat.exchanges if exchange.answer is not None]
    context = chat.opening.desk().talker.context
    speeds = [fact["decode_tokens_per_s"] for fact in facts if fact.get("decode_tokens_per_s")]
    waits = [fact["ttft_s"] for fact in facts if "ttft_s" in fact]
    where = chat.keeper.name or chat.keeper.session
    rows = [
        f"session {where}" if where and chat.keeper.archive else "not saved",
        f"questions: {len(chat.exchanges)}, answered: {len(facts)}",
        f"{sum(fact.get('completion_tokens', 0) for fact in facts):,} tokens written",
    ]
    rows += [f"{median(speeds):.1f} tok/s, median"] if speeds else []
    rows += [f"first token after {median(waits):.2f} s, median"] if waits else []
    rows += [f"context: {chat.used:,} of {context:,} tokens"] if context else []
    rows += [f"left out of what is sent: {chat.first}"] if chat.first else []
    say("\n".join(rows))


def _short(text: str, longest: int = 80) -> str:
    line = one_line(text)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _within(line: str, columns: int) -> str:
    """A line in that many columns of a terminal, with its end left out where it has more."""
    from serve.chat.screen.glyphs import plain_glyphs

    glyphs = plain_glyphs(line)
    ends = list(accumulate(glyph.width for glyph in glyphs))
    if not ends or ends[-1] <= columns:
        return line
    return "".join(glyph.text for glyph, end in zip(glyphs, ends, strict=True) if end < columns) + "…"


def _help(chat: Chat, _: str) -> None:
    say(help_text(shutil.get_terminal_size().columns))


def _quit(chat: Chat, _: str) -> None:
    raise Leaving


_ACTS: dict[str, Callable[[Chat, str], None]] = {
    "help": _help, "model": _model, "adapter": _adapter, "auto": _auto, "system": _system, "rag": _rag,
    "reader": _reader, "sources": _sources, "set": _set, "retry": _retry, "edit": _edit, "undo": _undo, "save": _save,
    "load": _load, "sessions": _sessions, "export": _export, "stats": _stats, "clear": _clear, "quit": _quit,
}  # fmt: skip
