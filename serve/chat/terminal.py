"""The loop of the chat: a line is read, and is a command or a question. It knows nothing of how these are done.

With a terminal: a prompt with editing and a toolbar, answers drawn as they come. With a pipe: one line is one turn, and
only answers go to stdout.
"""

from __future__ import annotations

import os
import sys

from serve.chat.acts import Leaving, act, arguments_of
from serve.chat.commands import near_command, typed
from serve.chat.editor import Editor, LineReader, PipedLines, PlainLines, silent_keys
from serve.chat.screen.painter import terminal_columns
from serve.chat.talk import Chat
from slm.errors import SlmError
from slm.terminal.console import complain, note
from slm.terminal.piped import is_terminal
from slm.terminal.streams import coloured
from slm.text.address import shown_address

_SHORT = 16  # characters of a model's name in a narrow terminal


def is_bare(plain: bool) -> bool:
    """Whether the terminal is only printed to: asked for, a dumb one, or what is shown goes to a file."""
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return plain or dumb or not (is_terminal() and sys.stdout.isatty())


def draws(plain: bool) -> bool:
    """Whether answers are drawn as Markdown."""
    return not is_bare(plain) and coloured() is not False


def talk_to(chat: Chat, *, plain: bool = False) -> None:
    """Talk until the input ends, /quit, Ctrl-D, or Ctrl-C twice at an empty line."""
    if not is_terminal():
        chat.opening.desk()
        _loop(chat, PipedLines())
    elif is_bare(plain):
        chat.opening.desk()
        _loop(chat, PlainLines())
    else:
        editor = Editor(
            lambda: _asked(chat), lambda: toolbar(chat, terminal_columns()), lambda *typed: arguments_of(chat, *typed)
        )
        chat.opening.begin(lambda error: editor.leave(error) if error else editor.refresh())
        with silent_keys(kept=True):  # between two prompts as well
            _loop(chat, editor)


def _loop(chat: Chat, reader: LineReader) -> None:
    interrupted = False
    while True:
        try:
            default, chat.prefill = chat.prefill, ""
            line = reader.read(f"{chat.wanted}> ", default)
            interrupted = False
        except EOFError:
            return
        except KeyboardInterrupt:
            chat.replacing = None  # a terminal's own editing does not say whether something was being typed
            if not chat.interactive or interrupted:
                return
            interrupted = True
            note("Ctrl-C again, or Ctrl-D, leaves the chat")
            continue
        try:
            turn(chat, line)
        except Leaving:
            return
        except KeyboardInterrupt:
            if not chat.interactive:
                raise
            note("stopped")


def turn(chat: Chat, line: str) -> None:
    """One line from the user. Errors are shown and the session goes on; in a pipe they end it."""
    if not line.strip():
        chat.replacing = None
        return
    try:
        what = typed(line)
        if what.command:
            act(chat, what.command, what.text)
            return
        if near := near_command(what.text):
            note(f"this is no command and goes to the model; {near} is one")
        chat.ask(what.text)
    except SlmError as error:
        if not chat.interactive or chat.opening.failed:
            raise  # a script has to notice; without a model there is nothing to go on with
        complain(str(error))


def toolbar(chat: Chat, columns: int = 0) -> str:
    """What the line under the prompt says: model, adapter and how it was chosen, context used, documents, session.

    Where that is more than so many columns, it goes without the reason and with a shorter name of the model, so that
    the context is seen. 0: however wide it is.
    """
    if not chat.opening.is_open:
        return f"{chat.opening.setup.model} is being opened; you can type already"
    desk = chat.opening.desk()
    facts = chat.exchanges[-1].facts if chat.exchanges else {}
    who, why = chat.wanted, ""
    if chat.wanted == "auto" and facts.get("reason"):
        who, why = f"auto: {facts.get('adapter') or 'base'}", f" ({facts['reason']})"
    parts = []
    if desk.talker.context:
        parts.append(f"context {chat.used / desk.talker.context:.0%} of {desk.talker.context:,}")
    if desk.setup.index:
        reads = desk.reader.name if desk.reader and chat.points else "the model"
        parts.append(f"{shown_address(desk.setup.index)} by {reads}")
    if chat.keeper.archive is None:
        parts.append("not saved")
    elif chat.keeper.name or chat.keeper.session:
        parts.append(f"session {chat.keeper.name or chat.keeper.session}")
    name = desk.talker.name
    short = name if len(name) <= _SHORT else f"{name[:_SHORT]}…"
    for head in (f"{name} · {who}{why}", f"{name} · {who}", f"{short} · {who}"):
        line = " · ".join([head, *parts])
        if not columns or len(line) < columns:
            break
    return line


def _asked(chat: Chat) -> list[str]:
    try:
        return chat.keeper.archive.questions() if chat.keeper.archive else []
    except SlmError:  # what cannot be read is told where it is written
        return []
