"""The commands of the chat and what a typed line is: a command, or a question. It knows nothing of what they do.

Only what is known is a command: `/etc/hosts ...` is a question. A line that begins with a space always is one.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from dataclasses import dataclass

from slm.errors import InputError


@dataclass(frozen=True)
class ChatCommand:
    """argument: as help shows it, "" where there is none; in brackets where it may be left out."""

    name: str
    argument: str
    help: str


COMMANDS = (
    ChatCommand("help", "", "this text"),
    ChatCommand("model", "[NAME]", "go on with another model; alone: show which are here"),
    ChatCommand(
        "adapter", "[NAME]", "answer with an adapter, with `auto` (by language) or with `base`; alone: show them"
    ),
    ChatCommand("auto", "", "the adapter by the language of each question"),
    ChatCommand("system", "[TEXT]", "what the model is told before the conversation; `off`: nothing; alone: show it"),
    ChatCommand("rag", "[INDEX]", "answer from an index of documents; `off`: no more; alone: show which"),
    ChatCommand(
        "reader", "[WHO]", "with documents: lines of them (point) or the model's words (model); alone: show who"
    ),
    ChatCommand("sources", "[NUMBER]", "the passages of the last answer, or one of them whole"),
    ChatCommand(
        "set", "[NAME VALUE]", "temperature, top_p, top_k, min_p, repeat_penalty, seed, max_tokens; alone: show"
    ),
    ChatCommand("retry", "", "answer the last question again, with another seed"),
    ChatCommand("edit", "[TEXT]", "change the last question and ask it instead"),
    ChatCommand("undo", "", "take back the last question and its answer"),
    ChatCommand("save", "NAME", "name this session (it saves itself)"),
    ChatCommand("load", "NAME", "go on with another session, by name or number"),
    ChatCommand("sessions", "[WORDS]", "the last sessions, or those in which all the words occur"),
    ChatCommand("export", "FILE", "write the conversation as Markdown, or as JSON to FILE.json"),
    ChatCommand("stats", "", "figures of this session"),
    ChatCommand("clear", "", "begin a new conversation; the old one stays saved"),
    ChatCommand("quit", "", "leave (also Ctrl-D)"),
)
_ALIASES = {"reset": "clear", "exit": "quit"}
_BY_NAME = {command.name: command for command in COMMANDS}
_LEAST_HELP = 30  # so many columns for what a command does, or it stands below
_WITH_LINES = frozenset(["system", "edit"])  # whose text may have several lines
_KEYS = (
    "/reset and /exit are /clear and /quit. Ctrl-C stops an answer and keeps what was said; twice at an empty line it "
    "leaves. Alt-Enter, or \\ at a line's end, begins another line; Ctrl-R searches what was asked before. A space "
    "before / makes a question of a command."
)


@dataclass(frozen=True)
class TypedLine:
    """command: the name of one, "" for a question. text: its argument, or the question."""

    command: str
    text: str


def typed(line: str) -> TypedLine:
    """What a line is. Raises InputError for a command with an argument too many or too few."""
    word, _, rest = line.strip().partition(" ")
    if "\n" in word:
        word = line.strip().split(maxsplit=1)[0]
        rest = line.strip()[len(word) :]
    name = _ALIASES.get(word[1:], word[1:])
    command = _BY_NAME.get(name) if word.startswith("/") and not line[:1].isspace() else None
    if command is None or ("\n" in line.strip() and name not in _WITH_LINES):
        return TypedLine("", line.strip())
    argument = rest.strip()
    if argument and not command.argument:
        raise InputError(f"/{name} takes nothing behind it", found=argument[:60], hint=f"A question? ' {word} ...'")
    if not argument and command.argument and not command.argument.startswith("["):
        raise InputError(f"/{name} needs {command.argument}", hint=f"{command.help}: /{name} {command.argument}")
    return TypedLine(name, argument)


def near_command(question: str) -> str | None:
    """The command that a question was perhaps meant as: its first word is one but for a slip, or it has no other."""
    found = re.match(r"/([A-Za-z]*)(?=\s|$)", question)
    if found is None:
        return None
    near = difflib.get_close_matches(found[1].lower(), [*_BY_NAME, *_ALIASES], n=1, cutoff=0.7)
    return f"/{near[0]}" if near else "/help" if found[0] == question else None


def help_text(columns: int = 100) -> str:
    """All commands with what they do, and the keys, on rows of at most so many columns.

    A narrow screen has each command on a row of its own and what it does below.
    """
    names = [f"/{command.name} {command.argument}".rstrip() for command in COMMANDS]
    wide = max(map(len, names)) + 2
    width, narrow = max(12, columns - 1), columns < wide + _LEAST_HELP
    rows = []
    for name, command in zip(names, COMMANDS, strict=True):
        if narrow:
            below = textwrap.wrap(command.help, width, initial_indent="  ", subsequent_indent="  ")
            rows += [*textwrap.wrap(name, width), *below]
        else:
            rows += textwrap.wrap(f"{name:<{wide}}{command.help}", width, subsequent_indent=" " * wide)
    return "\n".join([*rows, *textwrap.wrap(_KEYS, width)])
